"""Pages of a store whose layers are numbers 1, 4 and 6 of their model show what those of layers 0, 1 and 2 show."""

import re

import numpy as np
import pytest

from headatlas.store.store import open_store
from headatlas.viewer.components.esm_view import ESMView
from headatlas.viewer.data.bookmarks import Bookmark, Bookmarks
from headatlas.viewer.data.store_data import DataSource
from headatlas.viewer.notebook import head_view, neuron_view
from headatlas.viewer.pages.session import Session
from headatlas.viewer.state.page_table import PAGES, VIEWS

from ..conftest import PLAIN, SITE, write_store

NUMBERS = (1, 4, 6)
ROUTES = [{"page": row.route} for row in PAGES if row.route != "views"]
ROUTES += [{"page": "views", "view": row.route} for row in VIEWS]
ROUTES += [{"page": "views", "view": "compare", "compare": "heads"}]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Paths of the stores: layers 0, 1 and 2, and layers 1, 4 and 6 with the same arrays."""
    sites = {"plain": SITE, "hybrid": SITE.model_copy(update={"layer_numbers": NUMBERS})}
    folder, rows = tmp_path_factory.mktemp("layers"), PLAIN * 2
    return [write_store(folder / name / "tiny", rows=rows, n_segments=1, site=site) for name, site in sites.items()]


def components(path, bookmarks, patch):
    """Open a page and return the values of its components by name of the component and the parameter."""
    data = DataSource(open_store(path), bookmarks=bookmarks)
    data.search("previous_token", "")
    session = Session(data)
    session.receive({"go": {"pin": "q2", "pattern": "previous_token", "statistic": "previous"} | patch})
    assert session.problems == []
    values = {}
    for index, component in enumerate(session.view.select(ESMView)):
        for name in component.param.values():
            if name in ("frame", "selected", "tokens", "table", "enlarged", "pin", "ranking", "heads"):
                values[f"{index} {type(component).__name__}.{name}"] = getattr(component, name)
    return values


def renamed(value, key=""):
    """Return the values of the plain store with the numbers of the other store."""
    if isinstance(value, dict):
        return {renamed(name): renamed(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [renamed(item, key) for item in value]
    if isinstance(value, str):
        value = re.sub(r"(?<![\d.])([012])\.([0-3])(?![\d.])", lambda m: f"{NUMBERS[int(m[1])]}.{m[2]}", value)
        return re.sub(r"(?<=[Ll]ayer[ =])[012]\b", lambda m: str(NUMBERS[int(m[0])]), value)
    if key in ("layer", "layers") and isinstance(value, int):
        return NUMBERS[value]
    return value


def without_time(value):
    """Return the values without how long something took."""
    if isinstance(value, dict):
        return {name: without_time(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_time(item) for item in value]
    return re.sub(r"^[\d.]+ m?s$", "some time", value) if isinstance(value, str) else value


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: " ".join(route.values()))
def test_every_page_names_the_layers_by_their_numbers(paths, tmp_path, route):
    stores = []
    for path, (first, second) in zip(paths, (((1, 2), "0.1"), ((4, 2), "1.1")), strict=True):
        marks = Bookmarks(tmp_path / path.parent.name)
        marks.write("encoder", *first, Bookmark(star=True, note="a note"))
        stores.append(components(path, marks, route | {"layer": first[0], "head": first[1], "heads": second}))
    plain, hybrid = stores
    assert len(plain) > 5
    assert plain.keys() == hybrid.keys()
    for name, value in plain.items():
        np.testing.assert_equal(without_time(hybrid[name]), renamed(without_time(value)), name)


def test_addresses_hold_the_numbers(paths):
    session = Session(DataSource(open_store(paths[1])), "layer=4&head=2&heads=6.1,1.0")
    assert session.problems == []
    assert session.state.heads_shown == ((4, 2), (6, 1), (1, 0))
    assert "layer=4" in session.state.to_query()
    (problem,) = session.state.from_query("layer=2")
    assert str(problem) == "layer = '2': this store has layer 1, 4, 6"
    (problem,) = session.state.apply({"heads": "2.1"})
    assert "head 2.1 is not in this store: layers 1, 4, 6 of 4 heads" in str(problem)


def test_views_of_a_notebook_take_the_numbers(paths):
    plain, hybrid = (open_store(path).examples[0] for path in paths)
    for view in (head_view, neuron_view):
        documents = [
            view(example, layer=layer, include_layers=layers, html_action="return").data
            for example, layer, layers in ((plain, 1, [1, 2]), (hybrid, 4, [4, 6]))
        ]
        shown = [re.search(r'"layers":\s*\[[^\]]*\]', document) for document in documents]
        assert all(shown)
        assert len(documents[0]) == len(documents[1])
    assert neuron_view(hybrid, html_action="return") is not None
