"""Recoding of a segment's traces to other codecs, or a subset of the traces, for `convert`.

Arrays whose codec does not change are copied number for number. Other arrays are decoded and encoded layer by layer.
The specification lists the earlier codecs, and the errors of all codecs add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..codecs.array_layout import ArrayLayout
from ..codecs.attention_arrays import attention_arrays
from ..codecs.companding import VECTOR_DTYPE, channel_scale, decode_attention, encode_vectors
from ..errors import ConfigError
from ..reading.committed_segment import CommittedSegment
from ..reading.pair_attention import read_pairs
from ..reading.stored_vectors import decode_block
from ..schema.traces import EarlierCodecs, Keep, Site, TraceSpec, segment_layout

_CODED = ("attention", "query_key")


def recoded_spec(spec: TraceSpec, codecs: Mapping[str, str], keep: Collection[str] | None = None) -> TraceSpec:
    """Return the specification of a converted store.

    Parameters
    ----------
    codecs
        New codecs of ``attention`` or ``query_key``. Other codecs do not change.
    keep
        Kinds to keep of ``attention``, ``query_key``, ``edges`` and ``statistics``; None for all.

    Raises
    ------
    ConfigError
        There is no such codec or kind, it was not kept, or the codec cannot be computed from the stored data.
    """
    kinds = list(Keep.model_fields)
    for name in (*codecs, *(keep or ())):
        if name not in kinds:
            raise ConfigError(f"{name!r} is no kind of stored data; expected {', '.join(kinds)}.")
    changes: dict[str, Any] = {
        name: False if name == "statistics" else None for name in kinds if keep and name not in keep
    }
    earlier: dict[str, tuple[str, ...]] = {name: getattr(spec.earlier, name) for name in _CODED}
    for name in _CODED:
        before = getattr(spec.keep, name)
        if name in changes:
            earlier[name] = ()
        elif name in codecs:
            if before is None:
                raise ConfigError(
                    f"{name} was not kept in this store; expected a store that has it. Run the job into another store with "
                    f"keep.{name} set."
                )
            changes[name] = codecs[name]
    try:
        new_keep = Keep.model_validate(spec.keep.model_dump() | changes)
    except ValueError as error:
        raise ConfigError(
            f"{', '.join(codecs.values())} is no codec of {', '.join(codecs)}: {_reason(error)}."
        ) from None
    for name in _CODED:
        before, after = getattr(spec.keep, name), getattr(new_keep, name)
        if after is not None and after != before and before != "float32":
            earlier[name] = (*earlier[name], before)
    codec, new_codec = spec.attention_codec, new_keep.attention
    if codec is not None and codec.selection is not None and new_codec not in (None, codec.name):
        raise ConfigError(
            f"attention is kept in {codec.name}: the weights that it left out are gone. Convert the original store, or "
            f"run the job into another store with keep.attention = {new_codec!r}."
        )
    statistics = spec.statistics if new_keep.statistics else ()
    return spec.model_copy(update={"keep": new_keep, "earlier": EarlierCodecs(**earlier), "statistics": statistics})


def _reason(error: ValueError) -> str:
    first = error.errors()[0] if hasattr(error, "errors") else {"msg": str(error)}  # type: ignore[attr-defined]
    return str(first["msg"]).removeprefix("Value error, ")


def recoded_traces(segment: CommittedSegment, spec: TraceSpec) -> dict[str, np.ndarray]:
    """Return all traces of a segment in the codecs of `spec`, by path. `spec` comes from `recoded_spec`."""
    lengths = {name: np.diff(segment.token_offset(name)) for name in segment.spec.sequences}
    arrays: dict[str, np.ndarray] = {}
    layouts, before = segment_layout(spec, lengths), segment.spec.keep
    for path in layouts:
        site, _, name = path.partition("/")
        if path in arrays or (name.endswith("_scale") and spec.keep.query_key != before.query_key):
            continue  # computed together with the vectors
        if name.startswith("attention") and spec.keep.attention != before.attention:
            arrays |= _recoded_attention(segment, spec, spec.site(site), layouts, lengths)
        elif name in ("query", "key") and spec.keep.query_key != before.query_key:
            arrays |= _recoded_vectors(segment, spec, spec.site(site), name)
        else:
            arrays[path] = segment.read(path)
    return arrays


def _recoded_vectors(segment: CommittedSegment, spec: TraceSpec, site: Site, name: str) -> dict[str, np.ndarray]:
    """Return query or key of one site, with the scales of ``int8``."""
    path, codec = f"{site.name}/{name}", spec.keep.query_key or "float32"
    vectors = decode_block(segment, site, name, (slice(None),) * 4)  # [layer, head, token, d_head]
    if codec != "int8":
        return {path: encode_vectors(vectors, codec)}
    offset = segment.token_offset(site.query_sequence if name == "query" else site.key_sequence)
    codes = np.empty(vectors.shape, VECTOR_DTYPE[codec])
    scale = np.zeros((*vectors.shape[:2], segment.n_examples, site.d_head), np.float32)
    for example, (start, stop) in enumerate(itertools.pairwise(offset.tolist())):
        if start < stop:
            example_vectors = vectors[:, :, start:stop]
            scale[:, :, example : example + 1] = example_scale = channel_scale(example_vectors)
            codes[:, :, start:stop] = encode_vectors(example_vectors, codec, example_scale)
    return {path: codes, f"{path}_scale": scale}


def _recoded_attention(
    segment: CommittedSegment,
    spec: TraceSpec,
    site: Site,
    layouts: Mapping[str, ArrayLayout],
    lengths: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the attention arrays of one site. One layer is decoded at a time."""
    codec, n_pairs = spec.attention_codec, int(segment.pair_offset(site.name)[-1])
    assert codec is not None
    old_codec = segment.spec.keep.attention or "float32"

    def weights_of(layer: int) -> np.ndarray:
        return decode_attention(read_pairs(segment, site, layer, slice(None), slice(0, n_pairs)), old_codec)

    n_queries, n_keys = lengths[site.query_sequence], lengths[site.key_sequence]
    error = segment.spec.attention_error
    return attention_arrays(site, codec, layouts, n_queries, n_keys, weights_of, error=error)
