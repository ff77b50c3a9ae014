"""Attributes of arrays in the files of a segment: codec, definition, largest error."""

from __future__ import annotations

from ..codecs.attention_layout import band_array
from ..codecs.companding import VECTOR_BOUNDS
from ..schema.traces import TraceSpec

_SPARSE = {
    "attention_key": "key position of each kept weight, ascending within a row; rows follow each other",
    "attention_count": "how many weights of each row are kept; what follows the last row's means nothing",
    "attention_dropped": "mass of each row that is not kept, rounded up to float16",
}


def array_attributes(spec: TraceSpec, path: str) -> dict[str, str | float]:
    """Return the attributes of a trace array, for people who read the file without headatlas."""
    name = path.rpartition("/")[2]
    if name in _SPARSE:
        return {"definition": _SPARSE[name]}
    if name.startswith("attention") and (codec := spec.attention_codec) is not None:
        attributes = {
            "codec": codec.name,
            "definition": codec.bound.definition,
            "max_absolute_error": spec.attention_error,
        }
        if codec.selection is None:
            site = spec.site(path.partition("/")[0])
            indices = next(indices for band, indices in site.bands.items() if band_array(band) == name)
            layers = ", ".join(str(site.layers[index]) for index in indices)
            attributes |= {"layers": layers} if len(site.bands) > 1 else {}
        return attributes
    if name in ("query", "key") and spec.keep.query_key:
        bound = VECTOR_BOUNDS[spec.keep.query_key]
        attributes = {
            "codec": spec.keep.query_key,
            "definition": bound.definition,
            "max_relative_error": bound.relative,
        }
        return attributes | ({"max_error_in_scales": bound.scaled} if bound.scaled else {})
    if name in ("query_scale", "key_scale"):
        return {"definition": "largest absolute value of an example, head and dimension, over 127"}
    if name == "position_bias":
        return {"definition": "added to the scores of a layer and head, by key_pos - query_pos"}
    if name == "visible_keys":
        site = spec.site(path.partition("/")[0])
        layers = ", ".join(str(site.layers[index]) for index in site.stored_masks)
        return {"definition": "1 for each pair whose key the query sees, else 0", "layers": layers}
    if name == "sinks":
        return {"definition": "score of the sink of a layer and head"}
    if name == "logsumexp":
        return {"definition": "natural logarithm of the sum of exp of a row's scaled and masked scores"}
    if name == "statistics":
        return {"statistics": ", ".join(spec.statistics)}
    return {}
