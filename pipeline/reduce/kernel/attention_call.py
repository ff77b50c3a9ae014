"""Checks of every size, type, stride and bound of a call of the attention kernel, before C receives pointers.

The C code checks nothing. A wrong call raises `ShapeError` or `ConfigError` here, before any memory is accessed. Array
annotations have no shapes on purpose: the checks must also run where annotations are not checked.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headatlas.store.errors import ConfigError, ShapeError
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

from .batch_placement import LONGEST, BatchPlacement
from .c_structures import CODE_KINDS, MAX_BIASES, MAX_EDGES, Call
from .library import DEFAULT_EXECUTION, Execution
from .prepared_calls import PreparedAttention, tensor_properties


@dataclass(frozen=True)
class Destination:
    """Views of a segment's arrays that receive one layer's results. The kernel skips results whose view is `None`.

    Parameters
    ----------
    codes
        [head, pair], the weights in the format of `code_kind`: uint8 that counts `code_steps` steps of the weight's
        square root ("sqrt", 255: sqrt8) or of the weight ("linear"), or the weight as float16 or float32. Pairs are the
        lower triangle row by row for causal attention, else all keys of each query. A band of the placement restricts
        them.
    logsumexp
        float32 [head, row], natural logarithm, of the scaled and capped scores including biases and the sink.
    edge_key, edge_weight
        uint8 (up to 255 keys), uint16 or uint32, and float16 [head, row, edge], at most 16 edges per row. Pass both or
        neither. The strongest edge is first, and the lower key wins a tie. A row that sees fewer keys ends with the
        largest key number and weight 0.
    statistics
        float32 [statistic, head, column], its first axis named by `statistic_names`.
    valid
        bool [example, head]: True if every score of the example's rows is finite.
    """

    codes: np.ndarray | None = None
    code_kind: str = "sqrt"
    code_steps: int = 255
    logsumexp: np.ndarray | None = None
    edge_key: np.ndarray | None = None
    edge_weight: np.ndarray | None = None
    statistics: np.ndarray | None = None
    statistic_names: tuple[str, ...] = ()
    valid: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """Tensors of one attention call of a right-padded batch, and the operations on their scores.

    Parameters
    ----------
    query
        float32 [example, head, query_pos, d_head] on the CPU, any strides.
    key, value
        float32 [example, kv_head, key_pos, d_head] and [example, kv_head, key_pos, d_value]. Query head h uses
        key head h // (n_heads / n_kv_heads).
    scaling
        Factor of query · key.
    window
        In causal attention a query sees the last `window` keys, including its own position. Otherwise it sees keys at
        most `window` positions away. A band (`BatchPlacement.band`) also hides the keys outside it.
    softcap
        Scores s become softcap · tanh(s / softcap) after the scaling.
    biases
        Up to two tensors that are added to the scores after the cap: float32 on the CPU, [example, head, query_pos,
        key_pos]. The first three sizes may be 1. Numbers below -1e37 hide the key.
    sinks
        float32 [head]: score of an additional key that takes a share of every row and is not stored.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    window: int | None = None
    softcap: float | None = None
    biases: Sequence[torch.Tensor] = ()
    sinks: torch.Tensor | None = None


def prepare_attention(
    inputs: AttentionInputs,
    placement: BatchPlacement,
    into: Destination | None = None,
    *,
    output: bool = True,
    execution: Execution = DEFAULT_EXECUTION,
) -> PreparedAttention:
    """Check a call that computes attention and the stored values. `run` of the result makes the call.

    Parameters
    ----------
    placement
        Lengths of the examples, and the position of each in the destination's arrays. Padding is neither read nor
        stored.
    into
        The arrays to write to.
    output
        True if the attention output is needed.
    execution
        Number of threads; for tests and benchmarks also instruction set and library. Results do not depend on it.

    Returns
    -------
    PreparedAttention
        Its `run` returns the output, float32 [example, query_pos, head, d_value], contiguous, with zeros for padding.
        Without `output` it returns None.

    Raises
    ------
    ShapeError
        Sizes, types or strides do not match, or an example lies outside its array.
    ConfigError
        An option is out of range, or there is no compiled kernel.
    MemoryError
        `run` cannot allocate scratch memory or start a thread.
    """
    library, n_threads = execution.resolve()
    query, key, value = inputs.query, inputs.key, inputs.value
    window, scaling, softcap = inputs.window, inputs.scaling, inputs.softcap
    _check_tensors(query, key, value)
    n_examples, n_heads, n_queries, d_head = query.shape
    n_keys, d_value = key.shape[2], value.shape[3]
    _check_lengths(placement, n_examples, n_queries, n_keys)
    if window is not None and (window < 1 or not placement.same_tokens):
        raise ConfigError(f"window is {window}. It must be at least 1, or None between two sequences.")
    if not (math.isfinite(scaling) and (softcap is None or 0 < softcap < math.inf)):
        raise ConfigError(
            f"scaling is {scaling}, softcap is {softcap}. Both must be finite; softcap must be above 0 or None."
        )

    call = Call(ctypes.sizeof(Call), n_examples, n_heads, key.shape[1], n_queries, n_keys, d_head, d_value)
    call.query, call.key, call.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
    call.query_stride[:], call.key_stride[:], call.value_stride[:] = query.stride(), key.stride(), value.stride()
    call.query_length, call.key_length = placement.n_queries.ctypes.data, placement.n_keys.ctypes.data
    all_positions = n_queries + n_keys
    reach = all_positions if window is None else min(window, all_positions)
    band_reach = all_positions if placement.band is None else placement.band - 1
    call.before = min(band_reach, reach - 1 if placement.causal and window is not None else reach)
    call.after = 0 if placement.causal else min(band_reach, reach)
    call.kept_before, call.kept_after = band_reach, 0 if placement.causal else band_reach
    call.same_tokens = placement.same_tokens
    call.scaling, call.softcap = scaling, softcap or 0.0
    biases = [bias.contiguous() if bias.stride(-1) != 1 else bias for bias in inputs.biases]
    _point_biases(call, biases, inputs.sinks)
    if placement.special is not None:
        call.special, call.special_stride = placement.special.ctypes.data, n_keys
    call.statistic_row[:] = _NOT_COMPUTED
    if into is not None:
        _point_destination(call, into, placement)
    return PreparedAttention(
        call,
        library,
        execution.instructions,
        n_threads,
        (tensor_properties(query), tensor_properties(key), tensor_properties(value)),
        (n_examples, n_queries, n_heads, d_value) if output else None,
        tensors=(query, key, value),
        references=(placement, biases, inputs.sinks, into),
    )


_NOT_COMPUTED = (-1,) * len(STATISTIC_NAMES)


def _check_tensors(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
            shape = tuple(getattr(tensor, "shape", ()))
            raise ShapeError(f"{name} has shape {shape}; expected a tensor [example, head, position, d]")
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise ShapeError(f"{name} is {tensor.dtype} on {tensor.device}; expected dense float32 on the CPU")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ConfigError(f"{name} requires gradients, which the kernel does not compute. Use torch.no_grad().")
        if tensor.is_neg():
            raise ShapeError(f"{name} is a lazy negative view. Call resolve_neg() on it.")
    n_examples, n_heads, _, d_head = query.shape
    n_kv_heads = key.shape[1]
    if key.shape[0] != n_examples or value.shape[:3] != key.shape[:3] or key.shape[3] != d_head:
        raise ShapeError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not match"
        )
    if not n_kv_heads or n_heads % n_kv_heads:
        raise ShapeError(
            f"there are {n_heads} query heads and {n_kv_heads} key heads; expected a multiple of the key heads"
        )
    if not (0 < d_head <= 65_536 and 0 < value.shape[3] <= 65_536):
        raise ShapeError(f"d_head is {d_head}, d_value {value.shape[3]}; expected 1 ... 65536")


def _check_lengths(placement: BatchPlacement, n_examples: int, n_queries: int, n_keys: int) -> None:
    if not isinstance(placement, BatchPlacement) or len(placement.n_queries) != n_examples:
        raise ShapeError(
            f"the placement is for {np.size(getattr(placement, 'n_queries', ()))} examples; query has {n_examples}"
        )
    if placement.longest_query > n_queries or placement.longest_key > n_keys or max(n_queries, n_keys) > LONGEST:
        raise ShapeError(
            f"lengths reach {placement.longest_query} queries and {placement.longest_key} keys; "
            f"the tensors have {n_queries} and {n_keys}"
        )
    if placement.special is not None and placement.special.shape[1] != n_keys:
        raise ShapeError(f"special has {placement.special.shape[1]} key positions; key has {n_keys}")


def _point_biases(call: Call, biases: Sequence[torch.Tensor], sinks: torch.Tensor | None) -> None:
    """Check biases and sinks, and set their pointers in `call`."""
    if len(biases) > MAX_BIASES:
        raise ConfigError(f"there are {len(biases)} biases; the kernel adds at most {MAX_BIASES}")
    full = (call.n_examples, call.n_heads, call.n_queries, call.n_keys)
    for number, bias in enumerate(biases):
        fits = bias.ndim == 4 and all(n in (1, m) for n, m in zip(bias.shape[:3], full[:3], strict=True))
        if not fits or bias.shape[3] != full[3] or not _is_dense_float32(bias):
            raise ShapeError(
                f"bias is {tuple(bias.shape)} {bias.dtype} on {bias.device}; expected float32 {full} on the CPU. The "
                "first three sizes may be 1."
            )
        call.bias[number] = bias.data_ptr()
        call.bias_stride[number][:] = [
            0 if n == 1 else s for n, s in zip(bias.shape[:3], bias.stride()[:3], strict=True)
        ]
    if sinks is not None:
        if sinks.shape != (call.n_heads,) or not _is_dense_float32(sinks) or not sinks.is_contiguous():
            raise ShapeError(
                f"sinks is {tuple(sinks.shape)} {sinks.dtype}; expected float32 [{call.n_heads}] on the CPU"
            )
        call.sinks = sinks.data_ptr()


def _is_dense_float32(tensor: torch.Tensor) -> bool:
    """Return True if the kernel can read this tensor as float32."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def _point_destination(call: Call, into: Destination, placement: BatchPlacement) -> None:
    """Check every destination, and set its pointer in `call`."""
    n_heads = call.n_heads
    if into.codes is not None:
        if into.code_kind not in CODE_KINDS or not 1 <= into.code_steps <= 255:
            raise ConfigError(
                f"code_kind is {into.code_kind!r} with {into.code_steps} steps; expected {', '.join(CODE_KINDS)}, "
                "and 1 ... 255 steps"
            )
        dtype = {"float16": "f2", "float32": "f4"}.get(into.code_kind, "u1")
        call.codes_stride = element_strides("codes", into.codes, (dtype,), ("head", "pair"), n_heads, 1)[0]
        call.codes, call.codes_kind = into.codes.ctypes.data, CODE_KINDS.index(into.code_kind)
        call.codes_steps = into.code_steps
        call.pair_offset = placement.starts("pair_offset", "codes", into.codes.shape[1]).ctypes.data
    if into.logsumexp is not None:
        call.logsumexp_stride = element_strides("logsumexp", into.logsumexp, ("f4",), ("head", "row"), n_heads, 1)[0]
        call.logsumexp = into.logsumexp.ctypes.data
        call.row_offset = placement.starts("row_offset", "logsumexp", into.logsumexp.shape[1]).ctypes.data
    if (into.edge_key is None) != (into.edge_weight is None):
        raise ShapeError("only one of edge_key and edge_weight is set. Pass both or neither.")
    if into.edge_key is not None and into.edge_weight is not None:
        _point_edges(call, into.edge_key, into.edge_weight, placement)
    if into.statistics is not None:
        _point_statistics(call, into.statistics, into.statistic_names, placement)
    if into.valid is not None:
        steps = element_strides("valid", into.valid, ("b1",), ("example", "head"), n_heads, 2)
        if into.valid.shape[0] != call.n_examples:
            raise ShapeError(f"valid has {into.valid.shape[0]} examples; query has {call.n_examples}")
        call.valid, call.valid_stride = into.valid.ctypes.data, steps[0] if call.n_examples > 1 else n_heads


def _point_edges(call: Call, edge_key: np.ndarray, edge_weight: np.ndarray, placement: BatchPlacement) -> None:
    axes = ("head", "row", "edge")
    key_steps = element_strides("edge_key", edge_key, ("u1", "u2", "u4"), axes, call.n_heads, 2)
    weight_steps = element_strides("edge_weight", edge_weight, ("f2",), axes, call.n_heads, 2)
    n_edges = edge_key.shape[2]
    if edge_weight.shape[1:] != edge_key.shape[1:] or not 1 <= n_edges <= MAX_EDGES:
        raise ShapeError(
            f"edge_key has shape {edge_key.shape}, edge_weight {edge_weight.shape}; expected the same, 1 ... "
            f"{MAX_EDGES} edges"
        )
    if placement.longest_key > {1: 255, 2: 65_536}.get(edge_key.itemsize, LONGEST):
        raise ShapeError(
            f"edge_key is {edge_key.dtype}, which is too small for {placement.longest_key} keys. Use a wider type."
        )
    call.edge_key, call.edge_weight = edge_key.ctypes.data, edge_weight.ctypes.data
    call.edge_key_bytes, call.n_edges = edge_key.itemsize, n_edges
    call.edge_key_stride, call.edge_weight_stride = key_steps[0], weight_steps[0]
    call.row_offset = placement.starts("row_offset", "edge_key", edge_key.shape[1]).ctypes.data


def _point_statistics(call: Call, statistics: np.ndarray, names: tuple[str, ...], placement: BatchPlacement) -> None:
    call.statistics_stride[:] = element_strides(
        "statistics", statistics, ("f4",), ("statistic", "head", "column"), call.n_heads, 0
    )
    if statistics.shape[0] != len(names) or len(set(names)) != len(names):
        raise ShapeError(f"statistics has {statistics.shape[0]} rows for the names {', '.join(names) or '(none)'}")
    if unknown := [name for name in names if name not in STATISTIC_NAMES]:
        raise ConfigError(f"statistic {unknown[0]!r} does not exist; expected {', '.join(STATISTIC_NAMES)}")
    if "special" in names and placement.special is None:
        raise ShapeError("the statistic special needs the flags of special tokens. Pass `special` to the placement.")
    call.statistics = statistics.ctypes.data
    call.column = placement.starts("column", "statistics", statistics.shape[2]).ctypes.data
    for row, name in enumerate(names):
        call.statistic_row[STATISTIC_NAMES.index(name)] = row


def element_strides(
    name: str, array: np.ndarray, dtypes: tuple[str, ...], axes: tuple[str, ...], n_heads: int, n_dense: int
) -> tuple[int, ...]:
    """Check a destination and return its strides in elements.

    Its last `n_dense` axes must be contiguous, because the kernel writes entire rows.

    Raises
    ------
    ShapeError
        The kernel cannot write to this array.
    """
    if not isinstance(array, np.ndarray) or array.ndim != len(axes):
        raise ShapeError(f"{name} has shape {np.shape(array)}; expected axes [{', '.join(axes)}]")
    if array.dtype.str[1:] not in dtypes or not array.dtype.isnative:
        raise ShapeError(f"{name} is {array.dtype}; expected {' or '.join(str(np.dtype(d)) for d in dtypes)}")
    if not (array.flags.writeable and array.flags.aligned):
        raise ShapeError(f"{name} cannot be written to: it is read-only or not aligned")
    if array.shape[axes.index("head")] != n_heads:
        raise ShapeError(f"{name} has {array.shape[axes.index('head')]} heads; query has {n_heads}")
    steps = tuple(stride // array.itemsize for stride in array.strides)
    dense = 1
    for axis in range(len(axes) - 1, -1, -1):
        n, step = array.shape[axis], steps[axis]
        if n > 1 and (step < 1 or step * array.itemsize != array.strides[axis]):
            raise ShapeError(
                f"{name} has strides {array.strides}; expected positive multiples of {array.itemsize} bytes"
            )
        if axis >= len(axes) - n_dense:
            if n > 1 and step != dense:
                raise ShapeError(
                    f"{name} has gaps along its last axes (strides {array.strides}). Pass an array without gaps."
                )
            dense *= n
    return steps
