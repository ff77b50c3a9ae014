"""Tests that the kernel writes queries and keys with the bits of torch's casts, and changes no other rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headatlas.pipeline.reduce.kernel import INSTRUCTIONS, Execution, VectorPlacement, prepare_vectors
from headatlas.store.errors import ConfigError, ShapeError

LENGTHS, STARTS, N_ROWS = (5, 40, 1, 0), (41, 1, 46, 3), 50
CODECS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
AWKWARD = [
    0.0,
    -0.0,
    1e-8,
    6e-8,
    5.9604645e-8,
    1.0009766,
    1.0004883,
    1.0014648,
    65504.0,
    -65519.0,
    3e-5,
    1.00390625,
    2**-126,
]


def numbers(d_head, layout):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((4, 3, 40, d_head), generator=generator) * 10
    x.view(-1)[: len(AWKWARD)] = torch.tensor(AWKWARD)
    for row, n in enumerate(LENGTHS):
        x[row, :, n:] = torch.nan  # padding must not be read
    if layout == "by token":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "in a wider tensor":
        wide = torch.full((4, 3, 40, d_head + 5), torch.nan)
        wide[..., 2 : d_head + 2] = x
        return wide[..., 2 : d_head + 2]
    return x


def cast(x, codec):
    x = x.to(getattr(torch, codec))
    return (x.view(torch.int16) if codec == "bfloat16" else x).numpy().view(CODECS[codec])


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("d_head", [1, 7, 16, 32, 67])
@pytest.mark.parametrize("layout", ["by head", "by token", "in a wider tensor"])
def test_equals_torch(library, instructions, codec, d_head, layout):
    if instructions not in library.instructions:
        pytest.skip(f"this processor has no {instructions}")
    x = numbers(d_head, layout)
    into = np.full((3, N_ROWS, d_head), 77, CODECS[codec])
    expected, sizes = into.copy(), []
    for row, (n, start) in enumerate(zip(LENGTHS, STARTS, strict=True)):
        expected[:, start : start + n] = cast(x[row, :, :n], codec)
        sizes.append(float(x[row, :, :n].abs().max()) if n else 0.0)
    placement = VectorPlacement(LENGTHS, STARTS)
    largest = prepare_vectors(
        x, placement, into, codec, execution=Execution(instructions=instructions, library=library)
    ).run()
    np.testing.assert_array_equal(into.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(largest, np.float32(sizes))


def test_threads_change_nothing(library):
    x = torch.randn((3, 2, 700, 64))
    placement = VectorPlacement([700, 513, 256], [0, 700, 1213])
    results = []
    for n_threads in (1, 2, 5):
        into = np.zeros((2, 1469, 64), np.float16)
        prepared = prepare_vectors(x, placement, into, "float16", execution=Execution(n_threads, library=library))
        results.append((into, prepared.run()))
    for into, largest in results[1:]:
        np.testing.assert_array_equal(into, results[0][0])
        np.testing.assert_array_equal(largest, results[0][1])
    assert results[0][1].tolist() == [float(x[i, :, :n].abs().max()) for i, n in enumerate((700, 513, 256))]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("index", [(1, 2, 39, 31), (1, 0, 0, 0)])
def test_what_is_not_finite_shows(library, value, index):
    x = numbers(33, "by token")
    x[index] = value
    into = np.zeros((3, N_ROWS, 33), np.float16)
    largest = prepare_vectors(
        x, VectorPlacement(LENGTHS, STARTS), into, "float16", execution=Execution(library=library)
    ).run()
    assert np.isfinite(largest).tolist() == [True, False, True, True]
    assert np.isnan(largest[1]) == np.isnan(value)


WRONG = {
    "float64": ({"vectors": torch.zeros((4, 3, 40, 8), dtype=torch.float64)}, "float64"),
    "three axes": ({"vectors": torch.zeros((4, 3, 40))}, "expected float32"),
    "gaps": ({"vectors": torch.zeros((4, 3, 40, 16))[..., ::2]}, "without gaps"),
    "gradients": ({"vectors": torch.zeros((4, 3, 40, 8), requires_grad=True)}, "no gradients"),
    "fewer positions": ({"vectors": torch.zeros((4, 3, 39, 8))}, "up to 40 positions"),
    "fewer examples": ({"vectors": torch.zeros((3, 3, 40, 8))}, "4 examples"),
    "a row short": ({"into": np.zeros((3, 46, 8), np.float16)}, "at least 47 rows"),
    "narrower": ({"into": np.zeros((3, N_ROWS, 7), np.float16)}, "rows of 8"),
    "fewer heads": ({"into": np.zeros((2, N_ROWS, 8), np.float16)}, "2 heads"),
    "another type": ({"into": np.zeros((3, N_ROWS, 8), np.float32)}, "expected float16"),
    "destination with gaps": ({"into": np.zeros((3, N_ROWS, 16), np.float16)[..., ::2]}, "gaps"),
    "another codec": ({"codec": "float8"}, "float8"),
    "no threads": ({"n_threads": 0}, "n_threads is 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(library, wrong):
    change, message = WRONG[wrong]
    into = np.zeros((3, N_ROWS, 8), np.float16)
    call = {"vectors": torch.ones((4, 3, 40, 8)), "into": into, "codec": "float16", "n_threads": 1, **change}
    with pytest.raises((ShapeError, ConfigError), match=message):
        prepare_vectors(
            placement=VectorPlacement(LENGTHS, STARTS),
            execution=Execution(call.pop("n_threads"), library=library),
            **call,
        )
    assert not into.any()


def test_read_only_destination(library):
    into = np.zeros((3, N_ROWS, 8), np.float16)
    into.flags.writeable = False
    with pytest.raises(ShapeError, match="cannot be written"):
        prepare_vectors(
            torch.ones((4, 3, 40, 8)),
            VectorPlacement(LENGTHS, STARTS),
            into,
            "float16",
            execution=Execution(library=library),
        )


@pytest.mark.parametrize(
    ("lengths", "starts", "message"),
    [((3, 2), (0, 2), "overlap"), ((3, -1), (0, 5), "lengths has values -1"), ((3,), (0, 3), "starts has shape")],
)
def test_wrong_places(lengths, starts, message):
    with pytest.raises(ShapeError, match=message):
        VectorPlacement(lengths, starts)


def test_places_stay_what_was_checked():
    starts = np.array([0, 3])
    placement = VectorPlacement(np.array([3, 2]), starts)
    starts[:] = 1_000_000
    assert np.asarray(placement.starts).tolist() == [0, 3]
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(placement.starts)[0] = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        placement.stop = 0
