"""Tutorials: commands run in order, outputs and numbers are rewritten, and a wrong number is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.tutorials import PAGES, Run, TutorialError, differences, format_like, keep, run_page

PAGE = """\
# A page

<!-- corpora: texts -->

```sh
echo '{"heads": [{"head": 3, "effect": 0.5}, {"head": 8, "effect": -0.18249, "share": 0.912}], "n": 1234}' >result.json
echo "<svg/>" >images/picture.svg
```

```sh
grep -o '"n": [0-9]*' result.json
```

```text
"n": 1
```

<!-- not run -->
```sh
exit 1
```

Head 8: <!-- =result.json/heads/head=8/effect -->0.182 and <!-- =result.json/heads/1/share -->20.0 % of
<!-- =result.json/n -->1,230; <!-- =result.json/heads/0/effect -->+0.7.

![A picture](images/picture.svg)
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a page, and the corpus that it needs."""
    (tmp_path / "data" / "texts").mkdir(parents=True)
    monkeypatch.setenv("HEADATLAS_DATA", str(tmp_path / "data"))
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_a_run_rewrites_outputs_and_marked_numbers(page: Path, tmp_path: Path) -> None:
    run = run_page(page, tmp_path / "run")
    assert '```text\n"n": 1234\n```' in run.text
    assert "-->−0.182 and" in run.text
    assert "-->91.2 % of" in run.text
    assert "-->1,234; " in run.text
    assert "-->+0.5." in run.text
    assert keep(run, page, tmp_path / "run").startswith("written, 3 lines changed")
    assert page.read_text(encoding="utf-8") == run.text
    assert (tmp_path / "images" / "picture.svg").read_text(encoding="utf-8") == "<svg/>\n"
    assert not differences(run.text, run_page(page, tmp_path / "run").text)
    page.write_text(run.text.replace("-->+0.5.", "-->+0.500.").replace("grep", "false"), encoding="utf-8")
    again = run_page(page, tmp_path / "run", only_numbers=True)  # the command would fail
    assert "-->+0.500." in again.text
    assert '```text\n"n": 1234\n```' in again.text


def test_a_machine_without_the_corpus_leaves_the_page(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADATLAS_DATA", str(tmp_path / "nothing"))
    before = page.read_text(encoding="utf-8")
    run = run_page(page, tmp_path / "run")
    assert run.missing_corpora == ["texts"]
    assert "nothing has no texts, so the commands ran on other texts" in keep(run, page, tmp_path / "run")
    assert page.read_text(encoding="utf-8") == before
    assert (tmp_path / "run" / "page.md").read_text(encoding="utf-8") == run.text


@pytest.mark.parametrize(
    ("page", "run", "n"),
    [
        ("n = 87, NIE 0.182", "n = 87, NIE 0.183", 0),
        ("NIE 0.182", "NIE 0.184", 1),
        ("NIE −0.1", "NIE 0.1", 1),
        ("1,234 heads", "1,236 heads", 1),
        ("a  0.10   b\n", "a 0.11 b\n", 0),
        ("head 5.8 matters", "head 5.8", 1),
        ("one line", "one line\nand one more", 1),
    ],
)
def test_numbers_may_differ_by_one_unit_of_their_last_digit(page: str, run: str, n: int) -> None:
    assert len(differences(page, run)) == n


@pytest.mark.parametrize(
    ("value", "sample", "expected"),
    [(0.18249, "0.2", "0.2"), (-0.004, "0.00", "0.00"), (-3.0, "+1.5", "−3.0"), (2048.4, "7", "2,048")],
)
def test_a_number_keeps_the_form_that_the_page_gave_it(value: float, sample: str, expected: str) -> None:
    assert format_like(value, sample) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("grep -o", "grepp -o"), r"page.md:11 ended with exit code 127"),
        (("heads/1/share", "heads/2/share"), "asks for result.json/heads/2/share, which the run does not have"),
        (("head=8/effect", "head=9/effect"), "asks for result.json/heads/head=9/effect"),
        (("](images/picture.svg)", "](images/another.svg)"), "page.md shows another.svg, but no command wrote it"),
    ],
)
def test_what_a_run_lacks_is_an_error(page: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    page.write_text(page.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(TutorialError, match=message):
        run_page(page, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in PAGES.glob("*.md")))
def test_pages_have_the_numbers_of_their_runs(name: str, tmp_path: Path) -> None:
    page = PAGES / f"{name}.md"
    run: Run = run_page(page, tmp_path / name)
    if run.missing_corpora:
        pytest.skip(f"the commands run, but the page's numbers need the corpora {', '.join(run.missing_corpora)}")
    assert not differences(page.read_text(encoding="utf-8"), run.text)
