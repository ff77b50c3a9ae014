"""Expected sizes of stored arrays: how many weights a sparse codec keeps, and how well each array compresses.

The compression of each attention codec is in its record (`AttentionCodec.compression`). Arrays are named as in a
segment.
"""

from __future__ import annotations

from .attention_codecs import AttentionCodec, Selection

# Stored bytes for each raw byte, by array and whether the site is causal. Measured on sentences of UD English EWT with
# MiniLM (full maps) and SmolLM2 (causal maps); attention in sqrt8.
_COMPRESSED = {
    ("attention", False): 0.70,
    ("attention", True): 0.64,
    ("attention_key", False): 0.75,
    ("attention_count", False): 0.35,
    ("attention_dropped", False): 0.95,
    ("query", False): 1.0,
    ("key", False): 1.0,
    ("logsumexp", False): 1.0,
    ("edge_key", False): 0.64,
    ("edge_weight", False): 0.86,
    ("statistics", False): 0.91,
}
_FILLED = 0.25
"""A row has at most 1 / T weights of T or more, and about a fourth of that (docs/codecs.md: 0.05 to 0.4)."""


def compression_factor(name: str, codec: AttentionCodec | None, *, causal: bool) -> float:
    """Stored bytes for each raw byte of the array `name` of a site; `codec` is that of attention."""
    if name.startswith("attention_window"):
        name = "attention"
    factor = _COMPRESSED.get((name, causal), _COMPRESSED.get((name, False), 1.0))
    return factor * codec.compression if codec is not None and name == "attention" else factor


def expected_row_entries(selection: Selection) -> int:
    """Weights of a long row that a sparse codec is expected to keep, at most `selection.n_kept`."""
    return max(1, int(_FILLED * selection.n_kept)) if selection.threshold else selection.n_kept
