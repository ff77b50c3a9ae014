"""Tests that a wrong call raises an error that names the argument, and changes no array."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headatlas.pipeline.reduce.kernel import (
    AttentionInputs,
    BatchPlacement,
    Destination,
    Execution,
    Library,
    prepare_attention,
)
from headatlas.store.errors import ConfigError, ShapeError

LENGTHS, HEADS, KV_HEADS, LONGEST, D = (5, 3), 4, 2, 6, 8
N_PAIRS, N_ROWS = 5 * 6 // 2 + 3 * 4 // 2, 8
POSITIONS = {"pair_offset": [0, 15], "row_offset": [3, 0], "column": [1, 0], "special": np.zeros((2, LONGEST), bool)}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((2, n, LONGEST, D), generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS)]


def arrays() -> Destination:
    return Destination(
        codes=np.full((HEADS, N_PAIRS), 77, np.uint8),
        logsumexp=np.full((HEADS, N_ROWS), 77, np.float32),
        edge_key=np.full((HEADS, N_ROWS, 4), 77, np.uint16),
        edge_weight=np.full((HEADS, N_ROWS, 4), 77, np.float16),
        statistics=np.full((2, HEADS, 2), 77, np.float32),
        statistic_names=("entropy", "special"),
        valid=np.full((2, HEADS), True),
    )


def attempt(library: Library, into=None, placement=None, tensors_=None, **options):
    placement = placement or BatchPlacement(LENGTHS, causal=True, **POSITIONS)
    execution = {name: options.pop(name) for name in ("n_threads", "instructions") if name in options}
    inputs = AttentionInputs(*(tensors_ or tensors()), **{"scaling": 1.0} | options)
    return prepare_attention(
        inputs, placement, into or arrays(), execution=Execution(library=library, **execution)
    ).run()


def test_the_call_that_the_others_spoil_is_right(library):
    out = attempt(library)
    assert out.shape == (2, LONGEST, HEADS, D)


def read_only(array):
    array.flags.writeable = False
    return array


WRONG_ARRAYS = {
    "codes, one pair short": ("codes", lambda: np.zeros((HEADS, N_PAIRS - 1), np.uint8)),
    "codes, a head short": ("codes", lambda: np.zeros((HEADS - 1, N_PAIRS), np.uint8)),
    "codes, signed": ("codes", lambda: np.zeros((HEADS, N_PAIRS), np.int8)),
    "codes, three axes": ("codes", lambda: np.zeros((1, HEADS, N_PAIRS), np.uint8)),
    "codes, every other": ("codes", lambda: np.zeros((HEADS, 2 * N_PAIRS), np.uint8)[:, ::2]),
    "codes, backwards": ("codes", lambda: np.zeros((HEADS, N_PAIRS), np.uint8)[:, ::-1]),
    "codes, read only": ("codes", lambda: read_only(np.zeros((HEADS, N_PAIRS), np.uint8))),
    "logsumexp, a row short": ("logsumexp", lambda: np.zeros((HEADS, N_ROWS - 1), np.float32)),
    "logsumexp, float64": ("logsumexp", lambda: np.zeros((HEADS, N_ROWS), np.float64)),
    "logsumexp, foreign bytes": ("logsumexp", lambda: np.zeros((HEADS, N_ROWS), ">f4")),
    "edge_key, other number of edges": ("edge_key", lambda: np.zeros((HEADS, N_ROWS, 5), np.uint16)),
    "edge_key, int64": ("edge_key", lambda: np.zeros((HEADS, N_ROWS, 4), np.int64)),
    "edge_key, gaps": ("edge_key", lambda: np.zeros((HEADS, N_ROWS, 8), np.uint16)[:, :, :4]),
    "edge_weight, a row short": ("edge_weight", lambda: np.zeros((HEADS, N_ROWS - 1, 4), np.float16)),
    "edge_weight, float32": ("edge_weight", lambda: np.zeros((HEADS, N_ROWS, 4), np.float32)),
    "edge_weight, none": ("edge_weight", lambda: None),
    "statistics, a column short": ("statistics", lambda: np.zeros((2, HEADS, 1), np.float32)),
    "statistics, rows without a name": ("statistics", lambda: np.zeros((3, HEADS, 2), np.float32)),
    "statistics, odd strides": ("statistics", lambda: np.zeros((2, HEADS, 2), [("a", "f4"), ("b", "u1")])["a"]),
    "valid, transposed": ("valid", lambda: np.zeros((HEADS, 2), bool)),
    "valid, bytes": ("valid", lambda: np.zeros((2, HEADS), np.uint8)),
}


@pytest.mark.parametrize("wrong", WRONG_ARRAYS)
def test_wrong_arrays(library, wrong):
    name, make = WRONG_ARRAYS[wrong]
    into = arrays()
    with pytest.raises(ShapeError, match="edge_" if name == "edge_weight" else name):
        attempt(library, replace(into, **{name: make()}))
    assert (into.codes == 77).all()
    assert (into.logsumexp == 77).all()
    assert (into.edge_key == 77).all()


def test_more_than_sixteen_edges(library):
    edge_key, edge_weight = np.zeros((HEADS, N_ROWS, 17), np.uint16), np.zeros((HEADS, N_ROWS, 17), np.float16)
    with pytest.raises(ShapeError, match=r"1 \.\.\. 16 edges"):
        attempt(library, replace(arrays(), edge_key=edge_key, edge_weight=edge_weight))


@pytest.mark.parametrize("names", [("entropy", "entropy"), ("entropy",)])
def test_wrong_names(library, names):
    with pytest.raises(ShapeError, match="statistics"):
        attempt(library, replace(arrays(), statistic_names=names))


def test_unknown_statistic(library):
    with pytest.raises(ConfigError, match=r"'entropies'.*entropy"):
        attempt(library, replace(arrays(), statistic_names=("entropies", "special")))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"pair_offset": [0, 16]}, "pair_offset.*22.*length of 21"),
        ({"pair_offset": [0, 14]}, "overlap"),
        ({"pair_offset": [-1, 15]}, "pair_offset has values -1"),
        ({"pair_offset": np.array([0.0, 15.0])}, "whole numbers"),
        ({"pair_offset": [0]}, "shape"),
        ({"pair_offset": None}, "pair_offset of the placement is None"),
        ({"pair_offset": [0, 2**62]}, "pair_offset has values"),
        ({"row_offset": [4, 0]}, "row_offset.*9.*length of 8"),
        ({"row_offset": [2, 0]}, "overlap"),
        ({"column": [2, 0]}, "column.*3.*length of 2"),
        ({"column": [1, 1]}, "overlap"),
        ({"special": np.zeros((2, LONGEST - 1), bool)}, "special has 5 key positions"),
        ({"special": np.zeros((1, LONGEST), bool)}, "special has 1 rows"),
        ({"special": np.zeros((2, LONGEST), np.int64)}, "special must be"),
        ({"special": None}, "special needs"),
        ({"lengths": (5, 7), "row_offset": [7, 0]}, "lengths reach 7"),
        ({"lengths": (5, 3, 1)}, "shape"),
        ({"lengths": (-1, 3)}, "lengths has values -1"),
        ({"lengths": (5, 0), "causal": False, "key_lengths": (0, 0)}, "key_lengths is 0"),
    ],
)
def test_wrong_places(library, changed, match):
    with pytest.raises(ShapeError, match=match):
        attempt(library, placement=BatchPlacement(**({"lengths": LENGTHS, "causal": True} | POSITIONS | changed)))


def test_places_cannot_be_changed_after_the_check():
    offsets = np.array([0, 15])
    placement = BatchPlacement(LENGTHS, causal=True, pair_offset=offsets)
    offsets[1] = 10**9
    assert placement.pair_offset[1] == 15
    with pytest.raises(ValueError, match="read-only"):
        placement.pair_offset[1] = 10**9


@pytest.mark.parametrize(
    ("index", "change", "match"),
    [
        (0, lambda t: t.double(), "query is torch.float64"),
        (1, lambda t: t.bfloat16(), "key is torch.bfloat16"),
        (2, lambda t: t.to("meta"), "value is torch.float32 on meta"),
        (0, lambda t: t[0], "query has shape"),
        (0, lambda t: t[:, :3], "3 query heads and 2 key heads"),
        (1, lambda t: t[:, :, :, :7], "do not match"),
        (1, lambda t: t[:, :, :4], "do not match"),
        (1, lambda t: t[:1], "do not match"),
        (2, lambda t: t[:, :1], "do not match"),
        (2, lambda t: t[:, :, :, :0], "d_value 0"),
        (0, lambda t: t[:, :, :4], "lengths reach 5"),
    ],
)
def test_wrong_tensors(library, index, change, match):
    inputs = tensors()
    inputs[index] = change(inputs[index])
    with pytest.raises(ShapeError, match=match):
        attempt(library, tensors_=inputs)


@pytest.mark.parametrize(
    "options",
    [{"scaling": float("nan")}, {"softcap": 0.0}, {"softcap": -1.0}, {"window": 0}, {"n_threads": 0}],
    ids=str,
)
def test_wrong_options(library, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        attempt(library, **options)


def test_instructions_the_processor_lacks(library):
    with pytest.raises(ConfigError, match="'avx2' are not available; this processor runs plain"):
        attempt(replace(library, instructions=("plain",)), instructions="avx2")


def test_two_sequences_have_no_order(library):
    with pytest.raises(ConfigError, match="key_lengths"):
        BatchPlacement(LENGTHS, causal=True, key_lengths=LENGTHS)
    with pytest.raises(ConfigError, match="window"):
        attempt(library, Destination(), BatchPlacement(LENGTHS, causal=False, key_lengths=LENGTHS), window=3)


def test_gradients_are_refused(library):
    inputs = tensors()
    inputs[0].requires_grad_()
    with pytest.raises(ConfigError, match="gradients"):
        attempt(library, tensors_=inputs)
    with torch.no_grad():
        attempt(library, tensors_=inputs)


def test_expanded_tensors_are_read_as_they_are(library):
    query, key, value = tensors()
    expanded = [query[:, :1].expand_as(query), key[:, :1].expand_as(key), value[:1].expand_as(value)]
    contiguous = [tensor.contiguous() for tensor in expanded]
    assert torch.equal(attempt(library, tensors_=expanded), attempt(library, tensors_=contiguous))
