"""Facts of a store for the strip on the corpus page."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any, TypedDict

from headatlas.store.files.manifest import left_out_of
from headatlas.store.schema.traces import TraceSpec
from headatlas.store.schema.words_without_tokens import CUT

from ..theme.token_labels import visible
from .store_data import DataSource


class FactsFrame(TypedDict):
    """Frame of `Facts`."""

    facts: list[list[str]]
    """Facts as [value, label]."""
    tag: list[str]
    """Text of the tag, and ``"accent"`` or ``"warn"``."""
    left_out: list[str]
    """Lines about what the corpus or the model holds and the store does not, and about changed names, as in `info`."""


def facts_frame(data: DataSource) -> FactsFrame:
    """Build the facts with their labels, and a tag that shows if the store is complete."""
    store, keep = data.store, data.store.spec.keep
    arrays = [
        name
        for name, keep_option in [("attention", keep.attention), ("q\u00b7k", keep.query_key), ("edges", keep.edges)]
        if keep_option
    ]
    sites = list(store.sites.values())
    heads = (
        " + ".join(f"{s.n_layers} \u00d7 {s.n_heads}" for s in sites)
        + f" = {sum(s.n_layers * s.n_heads for s in sites):,}"
    )
    facts = [
        [_short_name(store.manifest.provenance.get("model")) or "model", "Model"],
        [_short_name(store.manifest.provenance.get("corpus")) or data.name, "Corpus"],
        [f"{data.n_examples:,}", "Examples"],
        [f"{sum(store.n_tokens.values()):,}", "Tokens"],
        [heads, "Heads"],
        [", ".join(arrays) or "statistics", "Kept"],
        [size_text(store.bytes_on_disk), "Size on disk"],
        [error_bound(store.spec), "Codec error"],
    ]
    left_out = left_out_of(store.manifest)
    facts += [
        [f"{row.n:,} {visible(row.what)}", f"Cut off in {row.n_examples or 0:,} examples"]
        for row in left_out
        if row.reason == CUT
    ]
    planned = store.manifest.n_segments_planned
    tag = ["complete", "accent"] if store.is_complete else [f"{len(store.segments)} of {planned} segments", "warn"]
    lines = [*map(str, left_out), *store.manifest.renamed.lines()]
    return {"facts": facts, "tag": tag, "left_out": list(map(visible, lines))}


def names_of(data: DataSource) -> tuple[str, str]:
    """Return short names of the model and of the corpus of a store, for titles."""
    provenance = data.store.manifest.provenance
    model = _short_name(provenance.get("model")) or data.name
    if match := re.fullmatch(r"[\w.-]+/([\w.-]+)", model.removesuffix("/model")):  # owner/name
        model = match[1]
    return model.removesuffix("/model"), _short_name(provenance.get("corpus")) or data.name


def error_bound(spec: TraceSpec) -> str:
    """Format the largest error of a stored weight."""
    if spec.keep.attention is None:
        return "\u2013"
    bound = spec.attention_error
    return "exact" if bound == 0 else "\u2264 " + f"{bound:.2g}".replace("0.", ".", 1)


def size_text(n_bytes: int) -> str:
    """Format a number of bytes with a unit."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _short_name(identity: Any) -> str:
    """Return a short name of a provenance entry: its name, or the last part of its path or source."""
    if isinstance(identity, dict):
        if identity.get("name"):
            return visible(str(identity["name"]))
        identity = next((identity[key] for key in ("source", "path", "kind") if identity.get(key)), "")
    text = str(identity or "")
    return visible(PurePath(text.rstrip("/")).name or text)
