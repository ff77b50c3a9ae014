"""The code examples of the documentation page for users of BertViz run unchanged."""

from __future__ import annotations

import re

from headatlas.viewer.export import View


def blocks(repository, label):
    text = (repository / "docs" / "coming-from-bertviz.md").read_text("utf-8")
    return [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if b.startswith(f"# {label}")]


def test_every_call_of_bertviz_has_one_of_headatlas_beside_it(repository):
    n_pairs = len(blocks(repository, "BertViz"))
    assert (
        len(blocks(repository, "headatlas")) == n_pairs + 2
    )  # two more: generated text, and models that run with SDPA


def test_the_calls_run(repository, minilm_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"name": str(minilm_dir)}
    for block in blocks(repository, "headatlas"):
        exec(compile(block, "coming-from-bertviz.md", "exec"), names)
        assert isinstance(names["view"], View)
    assert (tmp_path / "view.html").read_text("utf-8") == names["view"].data
