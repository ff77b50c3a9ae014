"""The loops over stored edges and codes, compiled and in numpy, compared with loops over single edges and pairs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from headatlas.store.errors import ConfigError, FormatError
from headatlas.store.queries import edge_scan
from headatlas.store.queries.edge_scan import CodedPairs, EdgeRows, scan_codes, scan_edges
from headatlas.store.queries.kernel import installed, library
from headatlas.store.reading.stored_edges import Edges

N_HEADS, N_ROWS, N_EXAMPLES = 3, 40, 9


@pytest.fixture(params=["vectors", "plain", "numpy"])
def implementation(request, monkeypatch):
    """Library argument of `scan_edges` for each implementation."""
    if request.param == "numpy":
        monkeypatch.setattr(edge_scan, "installed", lambda: None)
        return None
    if installed() is None:
        pytest.skip("the loop was not compiled: no C++ compiler when headatlas was installed")
    if request.param == "vectors" and not installed().has_avx2:
        pytest.skip("this processor has no AVX2")
    return replace(installed(), plain=request.param == "plain")


def make(rng, k, dtype, first_row=0):
    """Make random edges for rows of 1 to 300 keys (at most 255 for byte keys): rows, their matches, and edges."""
    filling = np.iinfo(dtype).max
    n_keys = np.minimum(rng.choice([1, 2, 7, 31, 32, 33, 63, 64, 65, 128, 300], N_ROWS), filling)
    key = np.full((N_HEADS, N_ROWS, k), filling, dtype)
    weight = np.zeros(key.shape, np.float16)
    for head, row in np.ndindex(N_HEADS, N_ROWS):
        n = min(k, n_keys[row])
        key[head, row, :n] = rng.permutation(n_keys[row])[:n]
        weights = np.sort(rng.dirichlet(np.ones(n) / 4))[::-1] * rng.uniform(0.2, 1)
        weight[head, row, :n] = np.where(
            rng.random(n) < 0.1, 3e-7, weights
        )  # includes subnormal numbers of half precision
    selected_rows = np.sort(rng.permutation(N_ROWS)[:30])
    matches = {row: np.sort(rng.permutation(n_keys[row])[: rng.integers(1, n_keys[row] + 1)]) for row in selected_rows}
    example = np.sort(rng.integers(0, N_EXAMPLES, 30))
    matching_rows = SimpleNamespace(
        rows=selected_rows + first_row,
        n_keys=n_keys[selected_rows],
        n_matches=np.array([len(matches[row]) for row in selected_rows]),
        example=example,
        key_pos=np.concatenate([matches[row] for row in selected_rows]),
    )
    return matching_rows, matches, Edges(key, weight, first_row)


def slow(matching_rows, matches, edges):
    mass, hits, slack = np.zeros((N_HEADS, N_EXAMPLES)), np.zeros(N_HEADS, int), np.zeros(N_HEADS)
    for head in range(N_HEADS):
        for (row, keys), example in zip(matches.items(), matching_rows.example, strict=True):
            weights = [float(w) for w in edges.weight[head, row]]
            matching_weights = [w for key, w in zip(edges.key[head, row].tolist(), weights, strict=True) if key in keys]
            mass[head, example] += sum(matching_weights)
            hits[head] += edges.key[head, row, 0] in keys
            if len(matching_weights) < len(keys):
                slack[head] += min((len(keys) - len(matching_weights)) * weights[-1], max(0, 1 - sum(weights)))
    return mass, hits, slack


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("k", [1, 3, 8, 16])
def test_every_implementation_equals_the_loop_over_single_edges(implementation, k, dtype):
    rng = np.random.default_rng(k)
    for first_row in (0, 11):
        matching_rows, matches, edges = make(rng, k, dtype, first_row)
        sums = np.ones((N_HEADS, N_EXAMPLES)), np.ones(N_HEADS, np.int64), np.ones(N_HEADS)
        scan_edges(EdgeRows.make(**vars(matching_rows)), edges, *sums, library=implementation)
        for got, expected in zip(sums, slow(matching_rows, matches, edges), strict=True):
            np.testing.assert_allclose(got - 1, expected, atol=2e-6)  # numpy sums a row in float32


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("edge", [0, 1])
def test_an_edge_outside_its_row_is_refused(implementation, k, edge):
    matching_rows, matches, edges = make(np.random.default_rng(5), k, np.uint16)
    row = next(row for row in matches if edges.key[0, row, 0] > 2)
    n_keys = int(matching_rows.n_keys[matching_rows.rows.tolist().index(row)])
    edges.key[1, row, edge] = n_keys if edge else 65_535
    sums = np.zeros((N_HEADS, N_EXAMPLES)), np.zeros(N_HEADS, np.int64), np.zeros(N_HEADS)
    with pytest.raises(FormatError, match="a key_pos outside its row"):
        scan_edges(EdgeRows.make(**vars(matching_rows)), edges, *sums, library=implementation)


@pytest.fixture
def codes_of(implementation):
    """Function that compares `scan_codes` with a loop over single pairs on random codes."""

    def compare(dtype, step=1, spoilt=None):
        rng = np.random.default_rng(7)
        matching_rows, matches, edges = make(rng, 3, dtype, first_row=11)
        length = rng.integers(300, 330, N_ROWS)
        start = np.cumsum(length) - length
        codes = rng.integers(0, 256, (N_HEADS, int(length.sum())), dtype=np.uint8)
        weight = rng.random(256)
        pair = np.concatenate([start[row] + keys for row, keys in matches.items()])
        strongest = np.repeat(edges.key[:, :, 0], step, axis=1)[
            :, ::step
        ]  # strided like one edge of several, or contiguous
        if spoilt is not None:
            strongest[1, next(iter(matches))] = spoilt
        mass, hits = np.ones((N_HEADS, N_EXAMPLES)), np.ones(N_HEADS, np.int64)
        pairs = CodedPairs(codes, pair, weight, strongest, 11)
        scan_codes(EdgeRows.make(**vars(matching_rows)), pairs, mass, hits, library=implementation)
        by_pair, by_key = np.ones(mass.shape), np.ones(hits.shape, int)
        for head in range(N_HEADS):
            for (row, keys), example in zip(matches.items(), matching_rows.example, strict=True):
                by_pair[head, example] += sum(weight[codes[head, start[row] + key]] for key in keys)
                by_key[head] += int(strongest[head, row]) in keys
        np.testing.assert_allclose(mass, by_pair, rtol=1e-12)
        np.testing.assert_array_equal(hits, by_key)

    return compare


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_codes_are_summed_as_by_the_loop_over_single_pairs(codes_of, dtype):
    codes_of(dtype)
    codes_of(dtype, step=8)
    with pytest.raises(FormatError, match="a key_pos outside its row"):
        codes_of(dtype, spoilt=np.iinfo(dtype).max)


def test_a_library_of_another_source_is_not_used(tmp_path, monkeypatch):
    broken = tmp_path / "_edges.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(ConfigError, match="is not a library"):
        library.load(broken)
    path = library.installed_path()
    if path is None:
        pytest.skip("the loop was not compiled")
    assert library.load(path).scan_edges is not None
    monkeypatch.setattr(library, "_VERSION", 1)
    with pytest.raises(ConfigError, match="another version"):
        library.load(path)


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_implementation_keeps_weights_that_are_not_finite(implementation, k, value):
    """The mass is not finite where such a weight matches, and unchanged elsewhere."""
    matching_rows, matches, edges = make(np.random.default_rng(k), k, np.uint16)
    row = next(row for row in matches if edges.key[0, row, 0] in matches[row])
    edges.weight[0, row, 0] = value
    other = next(row for row in matches if edges.key[1, row, 0] not in matches[row])
    edges.weight[1, other, 0] = value
    sums = np.zeros((N_HEADS, N_EXAMPLES)), np.zeros(N_HEADS, np.int64), np.zeros(N_HEADS)
    scan_edges(EdgeRows.make(**vars(matching_rows)), edges, *sums, library=implementation)
    mass, _, _ = slow(matching_rows, matches, edges)
    np.testing.assert_allclose(sums[0], mass, atol=2e-6)
    assert not np.isfinite(mass[0]).all()
    assert np.isfinite(mass[1]).all()
