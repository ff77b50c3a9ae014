"""Dropping examples or segments from a store, with a new manifest.

Examples keep their numbers. The segment of a dropped example is written again: the id of the example stays, without
text, tokens and traces, and the manifest lists it as skipped. Older manifests list the previous segment until `gc`
removes them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..codecs.array_layout import SegmentArray
from ..codecs.sparse_rows import entries_of_rows
from ..errors import ConfigError, NotFoundError
from ..files.containers.container import long_axis
from ..files.manifest import Dropped, Skipped
from ..files.overlays import Overlay, column_overlay, statistic_overlay
from ..reading.committed_segment import CommittedSegment
from ..reading.snapshot import Snapshot, open_snapshot
from ..schema.text_tables import SegmentTables
from ..schema.token_table import Column, TokenTable
from ..schema.traces import SequenceName, count_entries, segment_layout, zero_distance
from .store_writer import Replacement, StoreWriter


@dataclass(frozen=True)
class Drop:
    """Result of `drop_from_store`."""

    path: str
    manifest: int
    examples: tuple[int, ...]
    segments: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def drop_from_store(
    path: str | os.PathLike[str],
    *,
    examples: Collection[int | str] = (),
    segments: Collection[int] = (),
    reason: str = "dropped",
    **options: Any,
) -> Drop:
    """Drop examples (integers are numbers, texts are ids) and segments from the newest snapshot, in one commit.

    `options` are passed to `StoreWriter`. Examples that are already skipped are ignored.

    Raises
    ------
    NotFoundError
        There is no such example or segment.
    """
    store = open_snapshot(path)
    by_index = {segment.index: segment for segment in store.segments}
    for index in segments:
        if index not in by_index:
            raise NotFoundError(f"{store.location}: no segment {index}; there are {', '.join(map(str, by_index))}.")
    skipped_numbers = {row.example for row in store.manifest.skipped}
    rows_by_segment: dict[int, set[int]] = {}
    for example in examples:
        number = store.number_of(example)
        segment = store.segment_of(number)
        if segment.index not in segments and number not in skipped_numbers:
            rows_by_segment.setdefault(segment.index, set()).add(number - segment.first_example)
    entries = [by_index[index].entry for index in sorted(set(segments))]
    if not rows_by_segment and not entries:
        raise ConfigError(f"{store.location}: nothing to drop; expected examples or segments that the store has.")
    container = next(iter(by_index.values())).read_listing().container if rows_by_segment else "zarr"
    writer = StoreWriter(store.location, **({"container": container, "threads": None} | options))
    skipped = [
        Skipped(example=by_index[index].first_example + row, id=by_index[index].ids()[row], reason=reason)
        for index, rows in sorted(rows_by_segment.items())
        for row in sorted(rows)
    ]
    dropped = [Dropped(index=e.index, first_example=e.first_example, n_examples=e.n_examples) for e in entries]
    manifest = writer.replace(_replacements(store, rows_by_segment), skipped=skipped, dropped=dropped)
    return Drop(
        store.location, manifest.number, tuple(row.example for row in skipped), tuple(row.index for row in dropped)
    )


def _replacements(store: Snapshot, rows_by_segment: dict[int, set[int]]) -> Iterator[Replacement]:
    for segment in store.segments:
        if segment.index in rows_by_segment:
            tables, arrays = without_examples(segment, rows_by_segment[segment.index])
            keep = [row not in rows_by_segment[segment.index] for row in range(segment.n_examples)]
            tables, overlays = _split_overlays(tables, segment, store.overlays, keep)
            yield Replacement(segment.entry, tables, arrays, overlays)


def _split_overlays(
    tables: SegmentTables, segment: CommittedSegment, overlays: Sequence[Overlay], keep: Sequence[bool]
) -> tuple[SegmentTables, dict[str, dict[str, SegmentArray]]]:
    """Split the tables of the remaining examples into those of the segment itself and the arrays of its overlays."""
    contents: dict[str, dict[str, SegmentArray]] = {}
    for overlay in overlays:
        if overlay.name not in segment.overlays:
            continue
        if overlay.kind == "statistic":
            values = segment.overlay_statistic(overlay.name, overlay.group)
            contents[overlay.name] = statistic_overlay(
                overlay, np.where(keep, values, np.float32(np.nan)).astype(np.float32)
            )
        else:
            columns = tables.columns
            if overlay.kind != "example":
                table = next(table for name, table in tables.tokens.items() if name == overlay.group)
                columns = table.word_columns if overlay.kind == "word" else table.columns
            contents[overlay.name] = column_overlay(overlay, columns.pop(overlay.name))
    return tables, contents


def without_examples(segment: CommittedSegment, rows: set[int]) -> tuple[SegmentTables, dict[str, np.ndarray]]:
    """Return the contents of a segment without the text, tokens and traces of some examples."""
    keep = np.array([row not in rows for row in range(segment.n_examples)], dtype=bool)
    spec = segment.spec
    before: dict[SequenceName, TokenTable] = {name: segment.tokens(name) for name in spec.sequences}
    tables = SegmentTables(
        ids=segment.ids(),
        texts=[text if stays else "" for text, stays in zip(segment.texts(), keep, strict=True)],
        text_pairs=_blank_rows(segment.optional_texts("text_pair"), keep),
        target_texts=_blank_rows(segment.optional_texts("target_text"), keep),
        columns={name: _blank_column(column, keep) for name, column in segment.columns().items()},
        tokens={name: _without_tokens(table, keep) for name, table in before.items()},
    )
    arrays = {}
    for path, layout in segment.layouts.items():
        if path.partition("/")[0] not in spec.site_names:
            continue
        data, site = segment.read(path), spec.site(path.partition("/")[0])
        axis = layout.axes[long_axis(layout)]
        if axis == "example" and path.endswith("/statistics"):
            data = np.where(keep, data, np.float32(np.nan))
        elif axis == "example":  # scales
            data = data * keep[:, None]
        elif axis == "distance":
            tokens = before[site.query_sequence].n_tokens
            first = zero_distance(tokens) - zero_distance(tokens * keep)
            longest = {name: int((table.n_tokens * keep).max(initial=0)) for name, table in before.items()}
            data = data[:, :, first : first + max(0, longest[site.query_sequence] + longest[site.key_sequence] - 1)]
        elif axis in ("pair", "query_token", "key_token"):
            sequence = site.key_sequence if axis == "key_token" else site.query_sequence
            lengths = np.diff(segment.stored_pair_offset(path)) if axis == "pair" else before[sequence].n_tokens
            data = data[:, :, np.repeat(keep, lengths)]
        elif axis == "entry":
            row_mask = np.repeat(keep, before[site.query_sequence].n_tokens)
            data = entries_of_rows(data, segment.read(f"{site.name}/attention_count"), row_mask)
        arrays[path] = data
    n_tokens = {str(name): table.n_tokens for name, table in tables.tokens.items()}
    layouts = segment_layout(
        spec, n_tokens, count_entries(spec, n_tokens, {path: a.shape for path, a in arrays.items()})
    )
    arrays = {path: arrays[path].astype(layout.dtype) for path, layout in layouts.items()}
    return tables, arrays


def _blank_rows(rows: list[str | None], keep: np.ndarray) -> list[str | None]:
    return [row if stays else None for row, stays in zip(rows, keep, strict=True)]


def _blank_column(column: Column, keep: np.ndarray) -> Column:
    if column.is_text:
        return Column.of_text(_blank_rows([None if v is None else str(v) for v in column.to_list()], keep))
    return Column(np.where(keep, column.data, column.missing).astype(column.data.dtype))


def _without_tokens(table: TokenTable, keep: np.ndarray) -> TokenTable:
    tokens = np.flatnonzero(np.repeat(keep, table.n_tokens))
    n_words = np.diff(table.word_offset)
    words = np.flatnonzero(np.repeat(keep, n_words))
    return TokenTable(
        token_offset=_offset(table.n_tokens * keep),
        id=table.id[tokens],
        word=table.word[tokens],
        char_start=table.char_start[tokens],
        char_end=table.char_end[tokens],
        flags=table.flags[tokens],
        columns={name: _select_rows(column, tokens) for name, column in table.columns.items()},
        word_offset=_offset(n_words * keep),
        word_char_start=table.word_char_start[words],
        word_char_end=table.word_char_end[words],
        word_columns={name: _select_rows(column, words) for name, column in table.word_columns.items()},
    )


def _select_rows(column: Column, rows: np.ndarray) -> Column:
    """Select rows of a column. Texts without a remaining row are removed."""
    if not column.is_text:
        return column.take(rows)
    return Column.of_text([None if value is None else str(value) for value in column.take(rows).to_list()])


def _offset(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
