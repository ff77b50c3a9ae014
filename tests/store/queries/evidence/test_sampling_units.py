"""The sampling units of a store: chosen, named, and summed over."""

import numpy as np
import pytest
from traced_corpus import make_store

from headatlas.store.errors import NotFoundError
from headatlas.store.queries.evidence.sampling_units import sampling_units, unit_sums

LENGTHS = ((3, 7, 5, 9), (4, 0, 8, 6, 4), (6, 12, 5))
N = sum(map(len, LENGTHS))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("units") / "store", lengths=LENGTHS).store


def test_every_example_is_a_unit_without_annotations(stored):
    units = sampling_units(stored)
    assert (units.name, units.unit.tolist()) == ("example", list(range(N)))
    assert units.of(np.array([1, 3])).tolist() == [0, 1]


def test_the_coarsest_annotation_is_the_unit(stored):
    store = stored.annotate("pair", {i: i // 2 for i in range(N)})
    assert sampling_units(store).unit.tolist() == [i // 2 for i in range(N)]
    store = store.annotate("document", {i: f"d{i // 4}" for i in range(N)})
    store = store.annotate("template", dict.fromkeys(range(N), "the same"))  # one value: nothing to compare
    assert sampling_units(store).name == "document"
    assert sampling_units(store, "pair").name == "pair"
    assert sampling_units(store, "example").unit.tolist() == list(range(N))
    assert "Fewer than 20 units: intervals and p-values are rough" in sampling_units(store).describe(5)
    assert "Fewer than 5 units: no p-values" in sampling_units(store).describe(4)
    assert "Fewer" not in sampling_units(store).describe(20)
    with pytest.raises(NotFoundError, match=r"no annotation 'shade'.*pair, document, template"):
        sampling_units(store, "shade")


def test_examples_without_a_value_are_units_of_their_own(stored):
    store = stored.annotate("window_of", {0: "a", 1: "a", 3: "b", 4: "b"})
    units = sampling_units(store, "window_of")
    unit = units.unit
    assert unit[0] == unit[1] != unit[3] == unit[4]
    assert len(set(unit.tolist())) == N - 2
    expected = f"({N - 2} units; the {N - 4} examples of the store without a value of window_of are units of their own)"
    assert expected in units.describe(N - 2)


def test_the_job_names_the_unit(stored, monkeypatch):
    store = stored.annotate("subject", {i: i % 3 for i in range(N)})
    corpus = {"name": "x", "options": {"sampling_unit": "subject"}}
    monkeypatch.setitem(store.manifest.provenance, "corpus", corpus)
    assert sampling_units(store).name == "subject"
    assert sampling_units(store, "example").name == "example"


def test_sums_of_units_equal_a_loop():
    rng = np.random.default_rng(0)
    unit = rng.permutation(np.repeat(np.arange(5), 4))
    values = rng.normal(size=(2, 3, 20))
    expected = np.stack([values[..., unit == code].sum(axis=-1) for code in range(5)], axis=-1)
    np.testing.assert_allclose(unit_sums(values, unit), expected)
    assert unit_sums(values[..., :0], unit[:0]).shape == (2, 3, 0)
    assert unit_sums(values, np.arange(20)) is values
