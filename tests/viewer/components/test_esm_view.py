"""Component files reach a browser with a server and without."""

from __future__ import annotations

import importlib
import re

import pytest

from headatlas.viewer.components.tokentext import TokenText


def test_the_file_is_served_by_url_and_not_inlined():
    assert (
        TokenText._render_esm(server=True)
        == "./components/headatlas.viewer.components.esm_view/ESMView/_js/tokentext.js"
    )


def test_without_a_server_the_shared_files_are_inlined_once_and_in_order():
    source = TokenText._render_esm(server=False)
    assert "import" not in [line.split(" ")[0] for line in source.splitlines()]
    assert source.count("function el(") == source.count("function paintOf(") == 1
    assert source.index("function paintOf(") < source.index("function mount(") < source.index("function render(")
    assert source.count("export function render(") == 1


@pytest.mark.parametrize(
    "name", ["tokentext", "headview", "headpicker", "keylist", "modelview", "headdetail", "neuronview"]
)
def test_changes_of_the_browser_are_not_debounced(name):
    from panel.reactive import Syncable

    assert Syncable._priority_changes == []  # Panel still reads this list before it waits
    module = importlib.import_module(f"headatlas.viewer.components.{name}")
    cls = next(c for c in vars(module).values() if getattr(c, "_bundle", None) == f"{name}.js")
    assert cls._priority_changes
    assert set(cls._priority_changes) <= set(cls.param)
    source = cls._render_esm(server=False)
    assert not re.search("(?m)^import ", source)
    assert set(re.findall(r"model\.(\w+) = ", source)) <= {*cls._priority_changes}


@pytest.mark.browser
def test_a_file_is_fetched_once_for_all_components(serve):
    from urllib.parse import urlparse

    import panel as pn

    from headatlas.viewer.components.keylist import KeyList

    paths = []
    frame = {"lines": [], "tags": ["hello"]}
    served = serve(lambda: pn.Column(TokenText(frame=frame, width=300, height=50), KeyList(width=300, height=50)))
    served.page.locator("section.card").nth(1).wait_for(state="attached")  # requests of the first load do not count
    served.page.on("request", lambda r: paths.append(urlparse(r.url).path))
    served.page.reload()
    served.page.get_by_text("hello").wait_for()
    served.page.locator("section.card").nth(1).wait_for(state="attached")
    ours = [path for path in paths if "/ESMView/_js/" in path]
    assert len(ours) == len(set(ours))
    assert {path.rsplit("/", 1)[1] for path in ours} >= {"tokentext.js", "keylist.js", "paint.js", "dom.js", "style.js"}
