"""What all components share: how their files reach a browser, with a server and without."""

from __future__ import annotations

import importlib
import re

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


@pytest.mark.parametrize(
    "name", ["tokentext", "headview", "headpicker", "keylist", "modelview", "headdetail", "neuronview"]
)
def test_what_the_browser_changes_is_not_debounced(name):
    from panel.reactive import Syncable

    assert Syncable._priority_changes == []  # still what Panel asks before it waits
    module = importlib.import_module(f"headatlas.viewer.components.{name}")
    cls = next(c for c in vars(module).values() if getattr(c, "_bundle", None) == f"{name}.js")
    assert cls._priority_changes
    assert set(cls._priority_changes) <= set(cls.param)
    source = cls._render_esm(server=False)
    assert not re.search("(?m)^import ", source)
    assert set(re.findall(r"model\.(\w+) = ", source)) <= {*cls._priority_changes}


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
