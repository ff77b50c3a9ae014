"""C structures of the kernel's calls, with the same fields in the same order as in `call.h`."""

from __future__ import annotations

import ctypes

from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

CODE_KINDS = ("sqrt", "linear", "float16", "float32")
"""Kinds of attention codecs that the kernel computes (`AttentionCodec.kind`). The index is the number in C."""

MAX_EDGES = 16
MAX_BIASES = 2

VECTOR_CODECS = ("float32", "float16", "bfloat16")
"""Types of stored vectors. The index is the number in C."""

_INT = ctypes.c_int64
_POINTER = ctypes.c_void_p


class Call(ctypes.Structure):
    """Arguments of the attention kernel. `call.h` describes each field. Strides count elements."""

    _fields_ = (
        ("call_bytes", _INT),
        *((name, _INT) for name in ("n_examples", "n_heads", "n_kv_heads", "n_queries", "n_keys", "d_head", "d_value")),
        *((name, _POINTER) for name in ("query", "key", "value")),
        *((name, _INT * 4) for name in ("query_stride", "key_stride", "value_stride")),
        *((name, _POINTER) for name in ("query_length", "key_length")),
        *((name, _INT) for name in ("before", "after", "kept_before", "kept_after")),
        *((name, ctypes.c_double) for name in ("scaling", "softcap")),
        ("bias", _POINTER * MAX_BIASES),
        ("bias_stride", _INT * 3 * MAX_BIASES),
        ("sinks", _POINTER),
        ("same_tokens", _INT),
        ("special", _POINTER),
        ("special_stride", _INT),
        *((name, _POINTER) for name in ("pair_offset", "row_offset", "column")),
        ("output", _POINTER),
        ("output_stride", _INT * 3),
        ("codes", _POINTER),
        ("codes_stride", _INT),
        ("codes_kind", _INT),
        ("codes_steps", ctypes.c_double),
        ("logsumexp", _POINTER),
        ("logsumexp_stride", _INT),
        ("edge_key", _POINTER),
        ("edge_weight", _POINTER),
        *((name, _INT) for name in ("edge_key_bytes", "n_edges", "edge_key_stride", "edge_weight_stride")),
        ("statistics", _POINTER),
        ("statistics_stride", _INT * 3),
        ("statistic_row", _INT * len(STATISTIC_NAMES)),
        ("valid", _POINTER),
        ("valid_stride", _INT),
    )


class Vectors(ctypes.Structure):
    """Arguments of the kernel that stores vectors. `call.h` describes each field."""

    _fields_ = (
        ("call_bytes", _INT),
        *((name, _INT) for name in ("n_examples", "n_heads", "d_head")),
        ("source", _POINTER),
        ("source_stride", _INT * 3),
        *((name, _POINTER) for name in ("length", "start")),
        ("to", _POINTER),
        ("to_stride", _INT * 2),
        ("codec", _INT),
        ("largest", _POINTER),
    )
