"""What a file itself says of its trace arrays, for readers without headatlas."""

from __future__ import annotations

from .. import companding
from ..schema import TraceSpec


def array_attributes(spec: TraceSpec, path: str) -> dict[str, str | float]:
    """What the file itself says of a trace array, for readers without headatlas."""
    name = path.rpartition("/")[2]
    if name == "attention" and spec.keep.attention:
        bound = companding.ATTENTION_BOUNDS[spec.keep.attention]
        return {"codec": spec.keep.attention, "definition": bound.definition, "max_absolute_error": bound.absolute}
    if name in ("query", "key") and spec.keep.query_key:
        bound = companding.VECTOR_BOUNDS[spec.keep.query_key]
        said = {"codec": spec.keep.query_key, "definition": bound.definition, "max_relative_error": bound.relative}
        return said | ({"max_error_in_scales": bound.scaled} if bound.scaled else {})
    if name in ("query_scale", "key_scale"):
        return {"definition": "largest absolute value of an example, head and dimension, over 127"}
    if name == "position_bias":
        return {"definition": "added to the scores of a layer and head, by key_pos - query_pos"}
    if name == "sinks":
        return {"definition": "score of the sink of a layer and head"}
    if name == "logsumexp":
        return {"definition": "natural logarithm of the sum of exp of a row's scaled and masked scores"}
    if name == "statistics":
        return {"statistics": ", ".join(spec.statistics)}
    return {}
