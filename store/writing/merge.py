"""Merging stores of the same model and specification into one, by copying the files of their segments.

Parts of one job (same corpus, same plan) keep their numbers, also with `append`. With `append` stores of different
corpora are appended, and their examples and segments get consecutive numbers. An id must not occur twice. Dropped segments stay dropped,
unless another part of the job has them.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from ..errors import ConfigError
from ..files.drafts import SPACE_ADVICE, check_free_space
from ..files.locations import open_source, place_of
from ..files.manifest import Dropped, Manifest, Skipped, read_manifest
from ..reading.committed_segment import CommittedSegment
from ..reading.snapshot import Snapshot, open_snapshot
from ..schema.omissions import Omissions
from .job_identity import check_same
from .overlay_commit import commit_overlays
from .overlay_writer import read_overlays, unite_overlays
from .store_writer import StoreWriter

_MODEL = ("model", "tokenizer", "dtype")
_JOB = ("corpus", "config", "made_from")


@dataclass(frozen=True)
class Merge:
    """Result of `merge_stores`."""

    out: str
    n_stores: int
    n_segments: int
    n_examples: int
    appended: bool

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def merge_stores(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    append: bool = False,
    check_space: bool = True,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Merge:
    """Write the newest snapshots of stores into the folder `out`. The same call resumes an interrupted merge.

    Raises
    ------
    ConfigError
        Models or specifications differ, corpora differ without `append`, or a segment or an id is in two of the stores.
        The message names the difference.
    BudgetError
        The disk has too little free space, and `check_space` is True.
    """
    stores = [open_snapshot(path) for path in paths]
    if len({place_of(source) for source in (*(store.source for store in stores), open_source(out))}) != len(stores) + 1:
        raise ConfigError(f"{len(stores)} stores into {out}: a folder is named twice; expected different folders.")
    if len(stores) < 2:
        raise ConfigError(f"{len(stores)} store to merge; expected at least two.")
    first = stores[0]
    append = append and not _is_one_job(stores)
    for store in stores[1:]:
        _check(first, store, append)
    segments = _append(stores) if append else _unite_parts(stores)
    dropped, skipped_rows = _without_segment(stores, append, segments)
    manifests = [store.manifest for store in stores]
    parts = [
        {name: manifest.provenance.get(name) for name in _JOB}
        | ({"extensions": _extensions(manifest)} if manifest.extensions else {})
        | {"sha256": read_manifest(store.source, manifest.number)[1], "n_examples": manifest.n_examples_planned}
        for store, manifest in zip(stores, manifests, strict=True)
    ]
    provenance = {**first.manifest.provenance, "made_from": {"merged": parts}}
    if append:
        left_out = Omissions(row for manifest in manifests for row in manifest.left_out)
        provenance["left_out"] = left_out.to_json()
        provenance |= {"corpus": {"kind": "merged", "parts": [part["corpus"] for part in parts]}}
    writer = StoreWriter.create(
        out,
        spec=first.spec,
        provenance=provenance,
        n_examples_planned=sum(m.n_examples_planned for m in manifests) if append else manifests[0].n_examples_planned,
        n_segments_planned=sum(m.n_segments_planned for m in manifests) if append else manifests[0].n_segments_planned,
        extensions=() if append else manifests[0].extensions,
        on_step=on_step,
    )
    existing = writer.committed
    if check_space:
        n_bytes = sum(segment.entry.data_bytes for segment, index, _, _ in segments if index not in existing)
        check_free_space(out, n_bytes, SPACE_ADVICE)
    for number, (segment, index, first_example, skipped) in enumerate(segments):
        on_segment(number, len(segments))
        if index not in existing:
            writer.adopt(segment, index, first_example, skipped)
    on_segment(len(segments), len(segments))
    overlays = unite_overlays([(store.location, store.overlays) for store in stores])
    if overlays:
        entries = {entry.index: entry for entry in writer.manifest.segments if not entry.is_replacement}
        contents = [
            (entries[index], read_overlays(segment, overlays.values()))
            for segment, index, _, _ in segments
            if index in entries
        ]
        commit_overlays(writer, overlays.values(), contents, "complete")
    writer.record_removals(skipped=skipped_rows, dropped=dropped)
    result = open_snapshot(out)
    return Merge(result.location, len(stores), len(result.segments), result.n_examples, append)


_NumberedSegment = tuple[CommittedSegment, int, int, list[Skipped]]


def _check(first: Snapshot, store: Snapshot, append: bool) -> None:
    for name, value, other_value in _facts(first, store, append):
        advice = "Stores of one model and specification can be merged"
        advice += "." if append or name in (*_MODEL, "spec") else "; those of different corpora with --append."
        check_same(name, value, other_value, f"{first.location} has", store.location, advice)


def _is_one_job(stores: Sequence[Snapshot]) -> bool:
    """Return True if the stores are parts of one job without a common segment."""
    indices = [segment.index for store in stores for segment in store.segments]
    return len(set(indices)) == len(indices) and all(
        value == other for store in stores[1:] for _, value, other in _facts(stores[0], store, append=False)
    )


def _facts(first: Snapshot, store: Snapshot, append: bool) -> list[tuple[str, Any, Any]]:
    """Return what two stores must have in common, as (name, value, value)."""

    def facts(manifest: Manifest) -> dict[str, Any]:
        names = _MODEL if append else (*_MODEL, *_JOB)
        values = {name: manifest.provenance.get(name) for name in names} | {
            "spec": manifest.spec.model_dump(mode="json")
        }
        if append:
            return values
        planned = {name: getattr(manifest, name) for name in ("n_examples_planned", "n_segments_planned")}
        return values | {"extensions": _extensions(manifest)} | planned

    values, others = facts(first.manifest), facts(store.manifest)
    return [(name, values[name], others[name]) for name in values]


def _extensions(manifest: Manifest) -> list[dict[str, Any]]:
    return [part.model_dump(mode="json", exclude={"created"}) for part in manifest.extensions]


def _unite_parts(stores: Sequence[Snapshot]) -> list[_NumberedSegment]:
    """Return the segments of parts of one job, with their own numbers."""
    owners: dict[int, tuple[Snapshot, CommittedSegment]] = {}
    for store in stores:
        for segment in store.segments:
            owner = owners.get(segment.index)
            if owner is None:
                owners[segment.index] = (store, segment)
            elif owner[1].entry.sha256 != segment.entry.sha256:
                raise ConfigError(
                    f"segment {segment.index} is in {owner[0].location} and, with other contents, in {store.location}; "
                    "expected it in one store. Drop it from the other: "
                    f"headatlas drop {store.location} --segments {segment.index}"
                )
    return [
        (segment, index, segment.first_example, _skipped_in(store, segment, 0))
        for index, (store, segment) in sorted(owners.items())
    ]


def _append(stores: Sequence[Snapshot]) -> list[_NumberedSegment]:
    """Return the segments of all stores, one store after the other, with new numbers."""
    owner: dict[str, Snapshot] = {}
    for store in stores:
        ids = set(store.example_ids())
        duplicates = sorted(name for name in ids if name in owner)
        if duplicates:
            examples_text = ", ".join(repr(name) for name in duplicates[:5]) + (", …" if len(duplicates) > 5 else "")
            raise ConfigError(
                f"{len(duplicates)} ids are in {owner[duplicates[0]].location} and in {store.location}: "
                f"{examples_text}; expected each once. Run one corpus again with other ids, or add it to the "
                "other store with headatlas run JOB --extend, which makes ids unique."
            )
        owner |= dict.fromkeys(ids, store)
    return [
        (segment, index + segment.index, example + segment.first_example, _skipped_in(store, segment, example))
        for store, index, example in _shifts(stores, append=True)
        for segment in store.segments
    ]


def _shifts(stores: Sequence[Snapshot], append: bool) -> list[tuple[Snapshot, int, int]]:
    """Return each store with the offsets that are added to the numbers of its segments and of its examples."""
    if not append:
        return [(store, 0, 0) for store in stores]
    indices = accumulate([store.manifest.n_segments_planned for store in stores], initial=0)
    examples = accumulate([store.manifest.n_examples_planned for store in stores], initial=0)
    return list(zip(stores, indices, examples, strict=False))


def _without_segment(
    stores: Sequence[Snapshot], append: bool, segments: Sequence[_NumberedSegment]
) -> tuple[list[Dropped], list[Skipped]]:
    """Return the dropped segments, and the skipped examples outside all segments, with new numbers."""
    indices = {index for _, index, _, _ in segments}
    starts = [first for _, _, first, _ in segments]
    ends = [first + segment.n_examples for segment, _, first, _ in segments]
    dropped: dict[int, Dropped] = {}
    skipped: dict[int, Skipped] = {}
    for store, index, example in _shifts(stores, append):
        for row in store.manifest.dropped:
            new = {"index": row.index + index, "first_example": row.first_example + example}
            if new["index"] not in indices:
                dropped.setdefault(new["index"], row.model_copy(update=new))
        for row in store.manifest.skipped:
            number = row.example + example
            position = bisect_right(starts, number) - 1
            if position < 0 or number >= ends[position]:
                skipped.setdefault(number, row.model_copy(update={"example": number}))
    return [dropped[index] for index in sorted(dropped)], [skipped[number] for number in sorted(skipped)]


def _skipped_in(store: Snapshot, segment: CommittedSegment, shift: int) -> list[Skipped]:
    """Return the skipped examples of a segment, with new numbers."""
    numbers = range(segment.first_example, segment.first_example + segment.n_examples)
    return [
        row.model_copy(update={"example": row.example + shift})
        for row in store.manifest.skipped
        if row.example in numbers
    ]
