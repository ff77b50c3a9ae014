"""`fused_attention`: every size, type, stride and bound is checked here, then pointers are passed.

The C side trusts what it is told, so this module decides nothing and doubts everything: a wrong call raises
`ShapeError` or `ConfigError` before any memory is touched. Arrays in the signatures are plain on purpose: these checks
also run where annotations are not checked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headatlas.store.errors import ConfigError, ShapeError

from .layout import MAX_EDGES, STATISTIC_NAMES, Call
from .library import Instructions, Library, explain, installed

if TYPE_CHECKING:
    import torch

Lengths = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Destination:
    """Where one layer's results go: views of a segment's arrays. What is `None` is not computed.

    Each example has its own place: its pairs begin at `pair_offset`, its query rows at `row_offset`, its statistics
    stand in column `column`. Places of two examples must not overlap.

    Parameters
    ----------
    codes
        uint8 [head, pair], sqrt8; the lower triangle row by row for causal attention, else all keys of each query.
    logsumexp
        float32 [head, row], natural logarithm, of the scaled and capped scores.
    edge_key, edge_weight
        uint16 or uint32, and float16 [head, row, edge], at most 16 edges a row; both or neither. Strongest first,
        ties to the lower key; a row with fewer keys ends in the largest key number with weight 0.
    statistics
        float32 [statistic, head, column], its first axis named by `statistic_names`.
    pair_offset, row_offset, column
        Whole numbers [example]; needed where an array that uses them is given.
    """

    codes: np.ndarray | None = None
    logsumexp: np.ndarray | None = None
    edge_key: np.ndarray | None = None
    edge_weight: np.ndarray | None = None
    statistics: np.ndarray | None = None
    statistic_names: tuple[str, ...] = ()
    pair_offset: Lengths | None = None
    row_offset: Lengths | None = None
    column: Lengths | None = None


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Lengths,
    *,
    causal: bool,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    key_lengths: Lengths | None = None,
    special: np.ndarray | None = None,
    into: Destination | None = None,
    output: bool = True,
    n_threads: int = 1,
    instructions: Instructions | None = None,
    library: Library | None = None,
) -> torch.Tensor | None:
    """Attention of a right padded batch, and what is kept of it, in one pass.

    Parameters
    ----------
    query
        float32 [example, head, query_pos, d_head] on the CPU, any strides.
    key, value
        float32 [example, kv_head, key_pos, d_head] and [example, kv_head, key_pos, d_value]; query head h uses
        key head h // (n_heads / n_kv_heads).
    lengths
        Tokens of each example [example]; positions beyond are padding, neither read as keys nor stored.
    causal
        Queries see themselves and what is before them.
    scaling
        Multiplies query · key.
    window
        Causal: queries see the last `window` keys, themselves included. Otherwise: keys at most `window` away.
    softcap
        Scores s become softcap · tanh(s / softcap) after the scaling.
    key_lengths
        For attention between two sequences; not with `causal` or `window`. `self`, `previous` and `next` are then NaN.
    special
        bool or uint8 [example, key_pos], not zero for special tokens; needed for the statistic `special`.
    into
        Where to put what is kept.
    output
        Whether the attention output is wanted.
    n_threads
        Threads to spread examples and heads over; the result does not depend on it.
    instructions, library
        For tests and benchmarks: another instruction set than the fastest, another compiled file.

    Returns
    -------
    Tensor or None
        float32 [example, query_pos, head, d_value], contiguous, rows of padding zero.

    Raises
    ------
    ShapeError
        Sizes, types or strides do not fit together, or a place lies outside its array.
    ConfigError
        An option is out of range, or no compiled kernel is there.
    """
    import torch

    library = library or installed()
    if library is None:
        raise ConfigError(f"no fused kernel here ({explain()})")
    sizes = _check_tensors(query, key, value)
    n_examples, n_heads, n_queries, n_keys = sizes
    query_length = _whole_numbers("lengths", lengths, n_examples, n_queries)
    crossing = key_lengths is not None
    key_length = query_length if key_lengths is None else _whole_numbers("key_lengths", key_lengths, n_examples, n_keys)
    if key_length.max(initial=0) > n_keys:
        raise ShapeError(f"lengths reach {key_length.max()}, but there are {n_keys} key positions")
    if crossing and (causal or window is not None):
        raise ConfigError("causal or window with key_lengths: positions of two sequences cannot be compared")
    if np.any((key_length == 0) & (query_length > 0)):
        raise ShapeError("key_lengths holds 0 for an example that has queries: there is nothing to attend to")
    if window is not None and window < 1:
        raise ConfigError(f"window is {window}; it must be at least 1, or None")
    if not (np.isfinite(scaling) and (softcap is None or 0 < softcap < np.inf)):
        raise ConfigError(f"scaling is {scaling}, softcap {softcap}; both must be finite, softcap above 0 or None")
    if not 1 <= n_threads <= 1024:
        raise ConfigError(f"n_threads is {n_threads}; it must be in 1 ... 1024")

    call = Call(call_bytes=ctypes.sizeof(Call), n_examples=n_examples, n_heads=n_heads, n_kv_heads=key.shape[1])
    call.n_queries, call.n_keys, call.d_head, call.d_value = n_queries, n_keys, query.shape[3], value.shape[3]
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        setattr(call, name, tensor.data_ptr())
        getattr(call, f"{name}_stride")[:] = tensor.stride()
    call.query_length, call.key_length = query_length.ctypes.data, key_length.ctypes.data
    everything = n_queries + n_keys
    reach = everything if window is None else min(window, everything)
    call.before = reach - 1 if causal and window is not None else reach
    call.after = 0 if causal else reach
    call.triangle, call.same_tokens = causal, not crossing
    call.scaling, call.softcap = scaling, softcap or 0.0
    kept = [query_length, key_length]  # what the call points into has to live until it returns
    if special is not None:
        kept.append(_point_special(call, special, n_examples, n_keys))
    kept += _point_destination(call, into or Destination(), query_length, key_length, special is not None)
    result = None
    if output:
        result = torch.empty((n_examples, n_queries, n_heads, value.shape[3]), dtype=torch.float32)
        call.output, call.output_stride[:] = result.data_ptr(), result.stride()[:3]
    if n_examples and n_heads:
        library.run(call, instructions, n_threads)
    del kept
    return result


def _check_tensors(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[int, int, int, int]:
    import torch

    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
            shape = tuple(getattr(tensor, "shape", ()))
            raise ShapeError(f"{name} has shape {shape}; expected a tensor [example, head, position, d]")
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise ShapeError(f"{name} is {tensor.dtype} on {tensor.device}; the kernel takes dense float32 on the CPU")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ConfigError(f"{name} wants gradients, which the kernel does not compute; use torch.no_grad()")
        if tensor.is_neg():
            raise ShapeError(f"{name} is a lazy negative view; call resolve_neg() on it")
    n_examples, n_heads, n_queries, d_head = query.shape
    n_kv_heads, n_keys, d_value = key.shape[1], key.shape[2], value.shape[3]
    if key.shape[0] != n_examples or value.shape[:3] != key.shape[:3] or key.shape[3] != d_head:
        raise ShapeError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit together"
        )
    if not n_kv_heads or n_heads % n_kv_heads:
        raise ShapeError(f"{n_heads} query heads cannot share {n_kv_heads} key heads evenly")
    if not (0 < d_head <= 65_536 and 0 < d_value <= 65_536 and max(n_queries, n_keys) < 2**24):
        raise ShapeError(f"d_head {d_head}, d_value {d_value} or {max(n_queries, n_keys)} positions: out of range")
    return n_examples, n_heads, n_queries, n_keys


def _whole_numbers(name: str, values: Lengths | None, n: int, largest: int) -> np.ndarray:
    """`values` as int64 [n] in 0 ... largest, contiguous."""
    if values is None:
        raise ShapeError(f"{name} is missing; the arrays that were given need it")
    array = np.asarray(values)
    if array.shape != (n,) or (array.dtype.kind not in "iu" and n):
        raise ShapeError(f"{name} has shape {array.shape}, dtype {array.dtype}; expected whole numbers for {n} examples")
    array = np.ascontiguousarray(array, np.int64)
    if n and not 0 <= array.min() <= array.max() <= largest:
        raise ShapeError(f"{name} holds {array.min()} ... {array.max()}; expected 0 ... {largest}")
    return array


def _places(name: str, values: Lengths | None, counts: np.ndarray, size: int) -> np.ndarray:
    """Where each example begins, so that `counts` elements from there lie in 0:size and no two examples overlap."""
    starts = _whole_numbers(name, values, len(counts), size)
    stops = starts + counts
    if np.any(stops > size):
        example = int(np.argmax(stops > size))
        raise ShapeError(f"{name}: example {example} would fill {starts[example]}:{stops[example]} of 0:{size}")
    order = np.argsort(starts[counts > 0], kind="stable")
    sorted_starts, sorted_stops = starts[counts > 0][order], stops[counts > 0][order]
    if np.any(sorted_stops[:-1] > sorted_starts[1:]):
        raise ShapeError(f"{name}: two examples would fill the same places")
    return starts


def _check_array(name: str, array: np.ndarray, dtypes: tuple[str, ...], first: int, axes: str) -> list[int]:
    """The strides of a destination in elements, once it is sure that the kernel can write there."""
    if not isinstance(array, np.ndarray) or array.ndim != len(axes.split()):
        raise ShapeError(f"{name} has shape {np.shape(array)}; expected axes [{axes.replace(' ', ', ')}]")
    if array.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        raise ShapeError(f"{name} is {array.dtype}; expected {' or '.join(str(np.dtype(d)) for d in dtypes)}")
    if not (array.flags.writeable and array.flags.aligned):
        raise ShapeError(f"{name} cannot be written to, or is not aligned")
    head_axis = axes.split().index("head")
    if array.shape[head_axis] != first:
        raise ShapeError(f"{name} has {array.shape[head_axis]} heads; query has {first}")
    steps, odd = zip(*(divmod(stride, array.itemsize) for stride in array.strides), strict=True)
    if any(odd) or any(step < 1 for step, n in zip(steps, array.shape, strict=True) if n > 1):
        raise ShapeError(f"{name} has strides {array.strides}; expected whole, positive steps of {array.itemsize} bytes")
    return list(steps)


def _check_dense(name: str, array: np.ndarray, steps: list[int], n_axes: int) -> None:
    """The last axes must lie in memory without gaps: the kernel writes whole rows."""
    expected = 1
    for n, step in zip(array.shape[: -n_axes - 1 : -1], steps[: -n_axes - 1 : -1], strict=True):
        if n > 1 and step != expected:
            raise ShapeError(f"{name} has gaps along its last axes (strides {array.strides}); pass an array without")
        expected *= n


def _point_special(call: Call, special: np.ndarray, n_examples: int, n_keys: int) -> np.ndarray:
    if not isinstance(special, np.ndarray) or special.dtype not in (np.bool_, np.uint8):
        raise ShapeError("special must be a bool or uint8 array [example, key_pos]")
    if special.shape != (n_examples, n_keys):
        raise ShapeError(f"special has shape {special.shape}; expected {(n_examples, n_keys)}")
    special = np.ascontiguousarray(special)
    call.special, call.special_stride = special.ctypes.data, n_keys
    return special


def _point_destination(
    call: Call, into: Destination, n_queries: np.ndarray, n_keys: np.ndarray, has_special: bool
) -> list[np.ndarray]:
    """Check every destination and point `call` at it; returns what must live as long as the call."""
    kept: list[np.ndarray] = []
    n_heads = call.n_heads
    if into.codes is not None:
        steps = _check_array("codes", into.codes, ("u1",), n_heads, "head pair")
        _check_dense("codes", into.codes, steps, 1)
        pairs = n_queries * (n_queries + 1) // 2 if call.triangle else n_queries * n_keys
        pair_offset = _places("pair_offset", into.pair_offset, pairs, into.codes.shape[1])
        call.codes, call.codes_stride, call.pair_offset = into.codes.ctypes.data, steps[0], pair_offset.ctypes.data
        kept.append(pair_offset)

    if (into.edge_key is None) != (into.edge_weight is None):
        raise ShapeError("edge_key and edge_weight go together: pass both or neither")
    row_arrays = [a for a in (into.logsumexp, into.edge_key, into.edge_weight) if a is not None]
    if row_arrays:
        smallest = min(int(np.shape(array)[1]) if np.ndim(array) > 1 else 0 for array in row_arrays)
        row_offset = _places("row_offset", into.row_offset, n_queries, smallest)
        call.row_offset = row_offset.ctypes.data
        kept.append(row_offset)
    if into.logsumexp is not None:
        steps = _check_array("logsumexp", into.logsumexp, ("f4",), n_heads, "head row")
        _check_dense("logsumexp", into.logsumexp, steps, 1)
        call.logsumexp, call.logsumexp_stride = into.logsumexp.ctypes.data, steps[0]
    if into.edge_key is not None and into.edge_weight is not None:
        _point_edges(call, into.edge_key, into.edge_weight, int(n_keys.max(initial=0)))

    call.statistic_row[:] = [-1] * len(STATISTIC_NAMES)
    if into.statistics is not None:
        _point_statistics(call, into, has_special)
        column = _places("column", into.column, np.ones_like(n_queries), into.statistics.shape[2])
        call.column = column.ctypes.data
        kept.append(column)
    return kept


def _point_edges(call: Call, edge_key: np.ndarray, edge_weight: np.ndarray, n_keys: int) -> None:
    key_steps = _check_array("edge_key", edge_key, ("u2", "u4"), call.n_heads, "head row edge")
    weight_steps = _check_array("edge_weight", edge_weight, ("f2",), call.n_heads, "head row edge")
    _check_dense("edge_key", edge_key, key_steps, 2)
    _check_dense("edge_weight", edge_weight, weight_steps, 2)
    n_edges = edge_key.shape[2]
    if edge_weight.shape[2] != n_edges or not 1 <= n_edges <= MAX_EDGES:
        raise ShapeError(
            f"edge_key has {n_edges} edges a row, edge_weight {edge_weight.shape[2]}; expected the same, 1 ... {MAX_EDGES}"
        )
    if n_keys > np.iinfo(edge_key.dtype).max + 1:
        raise ShapeError(f"edge_key is {edge_key.dtype}, which cannot number {n_keys} keys; use uint32")
    call.edge_key, call.edge_weight = edge_key.ctypes.data, edge_weight.ctypes.data
    call.edge_key_bytes, call.n_edges = edge_key.itemsize, n_edges
    call.edge_key_stride, call.edge_weight_stride = key_steps[0], weight_steps[0]


def _point_statistics(call: Call, into: Destination, has_special: bool) -> None:
    statistics, names = into.statistics, into.statistic_names
    assert statistics is not None
    steps = _check_array("statistics", statistics, ("f4",), call.n_heads, "statistic head column")
    if statistics.shape[0] != len(names) or len(set(names)) != len(names):
        raise ShapeError(f"statistics has {statistics.shape[0]} rows for the names {', '.join(names) or '(none)'}")
    if unknown := [name for name in names if name not in STATISTIC_NAMES]:
        raise ConfigError(f"statistic {unknown[0]!r}: the kernel knows {', '.join(STATISTIC_NAMES)}")
    if "special" in names and not has_special:
        raise ShapeError("the statistic special needs `special`, the flags of the special tokens")
    call.statistics, call.statistics_stride[:] = statistics.ctypes.data, steps
    for row, name in enumerate(names):
        call.statistic_row[STATISTIC_NAMES.index(name)] = row
