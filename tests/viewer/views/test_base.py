"""What all components share: how their files reach a browser, with a server and without."""

from __future__ import annotations

import pytest

from headatlas.viewer.components import base
from headatlas.viewer.components.tokentext import TokenText


def test_the_file_is_served_by_url_and_not_inlined():
    assert (
        TokenText._render_esm(server=True)
        == "./components/headatlas.viewer.components.tokentext/TokenText/_bundle_path/tokentext.js"
    )


def test_without_a_server_the_shared_files_are_spliced_in_once_and_in_order():
    source = TokenText._render_esm(server=False)
    assert "import" not in [line.split(" ")[0] for line in source.splitlines()]
    assert source.count("function el(") == source.count("function paintOf(") == 1
    assert source.index("function paintOf(") < source.index("function mount(") < source.index("function render(")
    assert source.count("export function render(") == 1


def test_every_shared_file_exists_and_is_listed():
    for name in base.ESMView._js:
        assert (base.FOLDER / name).is_file()


@pytest.mark.browser
def test_shared_files_are_fetched_not_inlined(serve):
    from urllib.parse import urlparse

    fetched = []
    served = serve(lambda: TokenText(frame={"lines": [], "tags": ["hello"]}, width=300, height=50))
    served.page.on("request", lambda r: fetched.append(urlparse(r.url).path))
    served.page.reload()
    served.page.get_by_text("hello").wait_for()
    assert [p for p in fetched if p.endswith("/tokentext.js")]
    assert {p.rsplit("/", 1)[1] for p in fetched if "/_js/" in p} == {"paint.js", "dom.js", "style.js"}
