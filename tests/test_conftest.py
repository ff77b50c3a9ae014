"""The safeguards of the tests: each must catch its fault."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from headatlas.pipeline.corpora.examples import TokenSequence


def _sequence(n_char_end: int) -> TokenSequence:
    three = np.zeros(3, np.int32)
    texts = ("a", "b", "c")
    return TokenSequence(three, three, three, np.zeros(n_char_end, np.int32), np.zeros(3, np.uint8), texts, texts)


def test_shapes_are_checked_at_run_time() -> None:
    assert len(_sequence(3)) == 3
    with pytest.raises(TypeCheckError, match="char_end"):
        _sequence(4)


@pytest.mark.parametrize("turn", ["one test", "the next"])
def test_the_first_calls_in_each_test_are_checked(turn: str) -> None:
    with pytest.raises(TypeCheckError, match="char_end"):
        _sequence(4)
    for _ in range(100):
        _sequence(3)
    assert len(_sequence(4)) == 3, "all calls are checked: the tests take twice the time"


def test_shape_checks_can_be_switched_off_to_see_what_users_see(without_shape_checks) -> None:
    assert len(_sequence(4)) == 3


def test_torch_uses_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Run a small web server on this machine; yields the address of its page."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    (tmp_path / "favicon.ico").touch()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/page.html"
        server.shutdown()
        thread.join()


@pytest.mark.browser
def test_a_page_that_stays_at_home_is_fine(page, site, tmp_path) -> None:
    (tmp_path / "page.html").write_text("<canvas></canvas><script>document.title = 6 * 7</script>")
    page.goto(site)
    assert page.title() == "42"


@pytest.mark.browser
def test_external_requests_and_console_errors_are_seen(page, page_record, site, tmp_path) -> None:
    (tmp_path / "page.html").write_text(
        '<img src="https://example.com/a.png"><script>'
        'new WebSocket("wss://example.org/").onopen = () => console.log("opened"); throw Error("broken")</script>'
    )
    with page.expect_console_message(lambda message: message.text == "opened"):
        page.goto(site)
    assert "https://example.com/a.png" in page_record.external
    assert "wss://example.org/" in page_record.external
    assert any("broken" in error for error in page_record.errors)
    page_record.external.clear()
    page.close()
    page_record.errors.clear()


def test_tests_of_the_corpora_are_marked(request: pytest.FixtureRequest) -> None:
    marked = {item.name for item in request.session.items if item.get_closest_marker("corpora")}
    assert {item.name for item in request.session.items if "data_dir" in getattr(item, "fixturenames", ())} <= marked


def test_this_test_reads_the_corpora(data_dir: Path) -> None:
    assert (data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu").is_file()
