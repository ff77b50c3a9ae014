"""One store out of several of the same model and specification: their segments, file for file.

Parts of one job (same corpus, same plan) keep their numbers. Stores of different corpora are appended, examples and
segments numbered on, where that is asked for; an id may not occur twice. What was taken out stays out, unless another
part of the job has it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from ..errors import ConfigError
from ..files.locations import local_folder
from ..files.manifest import Dropped, Skipped, read_manifest
from ..reading.committed_segment import CommittedSegment
from ..reading.snapshot import Snapshot, open_snapshot
from .job_identity import check_same
from .overlay_commit import commit_overlays
from .overlay_writer import read_overlays, united
from .store_writer import StoreWriter

_MODEL = ("model", "tokenizer", "dtype")
_JOB = ("corpus", "config", "made_from")


@dataclass(frozen=True)
class Merge:
    """What `merge_stores` did."""

    out: str
    n_stores: int
    n_segments: int
    n_examples: int
    appended: bool

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def merge_stores(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    append: bool = False,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Merge:
    """Write the newest snapshots of stores into the folder `out`; cut off, the same call goes on.

    Raises
    ------
    ConfigError
        Models or specifications differ; corpora differ and `append` was not given; a segment or an id is in two of
        the stores. The difference is named.
    """
    stores = [open_snapshot(path) for path in paths]
    places = {store.location if store.source.folder is None else str(store.path.resolve()) for store in stores}
    if len(places | {str(local_folder(out).absolute().resolve())}) != len(stores) + 1:
        raise ConfigError(f"{len(stores)} stores into {out}: one is named twice; expected different folders.")
    if len(stores) < 2:
        raise ConfigError("one store alone; expected at least two to merge.")
    first = stores[0]
    for store in stores[1:]:
        _check(first, store, append)
    segments = _appended(stores) if append else _united(stores)
    gone, noted = _without_segment(stores, append, segments)
    manifests = [store.manifest for store in stores]
    parts = [
        {name: manifest.provenance.get(name) for name in _JOB}
        | {"sha256": read_manifest(store.source, manifest.number)[1], "n_examples": manifest.n_examples_planned}
        for store, manifest in zip(stores, manifests, strict=True)
    ]
    provenance = {**first.manifest.provenance, "made_from": {"merged": parts}}
    if append:
        provenance |= {"corpus": {"kind": "merged", "parts": [part["corpus"] for part in parts]}}
    writer = StoreWriter.create(
        out,
        spec=first.spec,
        provenance=provenance,
        n_examples_planned=sum(m.n_examples_planned for m in manifests) if append else manifests[0].n_examples_planned,
        n_segments_planned=sum(m.n_segments_planned for m in manifests) if append else manifests[0].n_segments_planned,
        on_step=on_step,
    )
    there = writer.committed
    for number, (segment, index, first_example, skipped) in enumerate(segments):
        on_segment(number, len(segments))
        if index not in there:
            writer.adopt(segment, index, first_example, skipped)
    on_segment(len(segments), len(segments))
    overlays = united([(store.location, store.overlays) for store in stores])
    if overlays:
        found = [(index, read_overlays(segment, overlays.values())) for segment, index, _, _ in segments]
        commit_overlays(writer, overlays.values(), found)
    writer.take_out(skipped=noted, dropped=gone)
    result = open_snapshot(out)
    return Merge(str(result.path), len(stores), len(result.segments), result.n_examples, append)


_Placed = tuple[CommittedSegment, int, int, list[Skipped]]


def _check(first: Snapshot, store: Snapshot, append: bool) -> None:
    one, other = first.manifest, store.manifest
    names = _MODEL if append else (*_MODEL, *_JOB)
    pairs = [(name, one.provenance.get(name), other.provenance.get(name)) for name in names]
    pairs += [("spec", one.spec.model_dump(mode="json"), other.spec.model_dump(mode="json"))]
    if not append:
        pairs += [(n, getattr(one, n), getattr(other, n)) for n in ("n_examples_planned", "n_segments_planned")]
    for name, there, asked in pairs:
        advice = "Stores of one model and specification can be merged"
        advice += "." if append or name in (*_MODEL, "spec") else "; those of different corpora with --append."
        check_same(name, there, asked, f"{first.location} has", store.location, advice)


def _united(stores: Sequence[Snapshot]) -> list[_Placed]:
    """The segments of parts of one job, under their own numbers."""
    found: dict[int, tuple[Snapshot, CommittedSegment]] = {}
    for store in stores:
        for segment in store.segments:
            before = found.get(segment.index)
            if before is None:
                found[segment.index] = (store, segment)
            elif before[1].entry.sha256 != segment.entry.sha256:
                raise ConfigError(
                    f"segment {segment.index} is in {before[0].location} and, with other contents, in {store.location}; "
                    f"expected it in one. Drop it from one: headatlas drop {store.location} --segments {segment.index}"
                )
    return [
        (segment, index, segment.first_example, _skipped_in(store, segment, 0))
        for index, (store, segment) in sorted(found.items())
    ]


def _appended(stores: Sequence[Snapshot]) -> list[_Placed]:
    """The segments of all stores, one store after the other."""
    owner: dict[str, Snapshot] = {}
    for store in stores:
        own = set(store.example_ids())
        twice = sorted(name for name in own if name in owner)
        if twice:
            named = ", ".join(repr(name) for name in twice[:5]) + (", …" if len(twice) > 5 else "")
            raise ConfigError(
                f"{len(twice)} ids are in {owner[twice[0]].location} and in {store.location}: {named}; expected each once. "
                "Drop the examples from one of the stores."
            )
        owner |= dict.fromkeys(own, store)
    return [
        (segment, index + segment.index, example + segment.first_example, _skipped_in(store, segment, example))
        for store, index, example in _shifts(stores, append=True)
        for segment in store.segments
    ]


def _shifts(stores: Sequence[Snapshot], append: bool) -> list[tuple[Snapshot, int, int]]:
    """Each store, and what is added to the numbers of its segments and of its examples."""
    if not append:
        return [(store, 0, 0) for store in stores]
    indices = accumulate([store.manifest.n_segments_planned for store in stores], initial=0)
    examples = accumulate([store.manifest.n_examples_planned for store in stores], initial=0)
    return list(zip(stores, indices, examples, strict=False))


def _without_segment(
    stores: Sequence[Snapshot], append: bool, segments: Sequence[_Placed]
) -> tuple[list[Dropped], list[Skipped]]:
    """Which segments stay taken out, and what is noted of examples that no segment carries, under new numbers."""
    there = {index for _, index, _, _ in segments}
    starts = [first for _, _, first, _ in segments]
    ends = [first + segment.n_examples for segment, _, first, _ in segments]
    gone: dict[int, Dropped] = {}
    noted: dict[int, Skipped] = {}
    for store, index, example in _shifts(stores, append):
        for row in store.manifest.dropped:
            new = {"index": row.index + index, "first_example": row.first_example + example}
            if new["index"] not in there:
                gone.setdefault(new["index"], row.model_copy(update=new))
        for row in store.manifest.skipped:
            number = row.example + example
            place = bisect_right(starts, number) - 1
            if place < 0 or number >= ends[place]:
                noted.setdefault(number, row.model_copy(update={"example": number}))
    return [gone[index] for index in sorted(gone)], [noted[number] for number in sorted(noted)]


def _skipped_in(store: Snapshot, segment: CommittedSegment, shift: int) -> list[Skipped]:
    """What is noted of examples of a segment, under their new numbers."""
    inside = range(segment.first_example, segment.first_example + segment.n_examples)
    return [
        row.model_copy(update={"example": row.example + shift})
        for row in store.manifest.skipped
        if row.example in inside
    ]
