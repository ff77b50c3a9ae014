"""Compare a corpus with a store that is to be extended: find the records that the store holds, and those that are new.

A record is found by its id, and by its content: texts, annotations, words and tokens. Numbers of the store without a
stored example (an interrupted run, a dropped or damaged segment) are filled with the records that were not found, in
their order. All further records are new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby, islice
from typing import Any

from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.reading.committed_segment import CommittedSegment
from headatlas.store.reading.snapshot import Snapshot
from headatlas.store.schema.corpus_parts import CorpusPart
from headatlas.store.schema.token_table import MISSING, Column

from ..corpora.examples import EncodedExample
from ..tokens.batch_plan import SegmentSpec

WINDOW_OF = "window_of"
_CACHED_SEGMENTS = 4
_COMPUTED = ("source tokens", "target", "words", "word annotation")
"""Fields that a generated continuation or a failure during the capture changes."""


@dataclass(frozen=True)
class Group:
    """Examples that are planned together: their indices in the corpus, and their first numbers in the store."""

    first_segment: int
    first_example: int
    indices: list[int]


@dataclass
class Selection:
    """The examples of a corpus that a job has to compute."""

    groups: list[Group] = field(default_factory=list)
    """Parts of the store of which a segment is missing (in a repair: all parts). `new` is the last group."""
    new: Group | None = None
    """Examples that the store does not plan yet."""
    n_stored: int = 0
    """Number of examples that the store holds already."""
    n_repeated: int = 0
    """Number of records that the store holds already, from another corpus."""
    renamed: dict[str, str] = field(default_factory=dict)
    """New ids of records by their ids in the corpus, if the store has another text of that id."""

    def describe(self) -> str:
        """Return one line for the progress of a job."""
        n_new = 0 if self.new is None else len(self.new.indices)
        parts = [f"extending the store by {n_new:,} examples", f"{self.n_stored:,} of this corpus are stored"]
        if self.n_repeated:
            parts.append(f"{self.n_repeated:,} records are stored already, from another corpus")
        if self.renamed:
            names = ", ".join(f"{old} is {new}" for old, new in islice(self.renamed.items(), 3))
            more = ", …" if len(self.renamed) > 3 else ""
            parts.append(
                f"{len(self.renamed):,} ids belong to another text of the store and were changed ({names}{more})"
            )
        return "; ".join(parts)


def select_examples(
    store: Snapshot, name: str, skip: int, examples: list[EncodedExample], *, are_prompts: bool, repair: bool
) -> Selection:
    """Compare the examples of a corpus with those of a store. Examples that get another id are replaced in the list.

    Parameters
    ----------
    name, skip
        File name of the corpus, and the number of its records before the first example.
    are_prompts
        True if the store holds continuations of the texts. Then only the prompts are compared.
    repair
        True to compute damaged and dropped segments too.

    Raises
    ------
    ConfigError
        A record changed since it was stored, or the store waits for segments of another corpus.
    CorruptSegmentError
        A segment cannot be read, and `repair` is False.
    """
    stored = _StoredRecords(store, are_prompts, repair)
    selection = Selection()
    parts = [part for part in store.manifest.parts if part.name == name]
    numbers: dict[int, int] = {}
    pending: list[int] = []
    names: set[str] = set()
    for record, group in groupby(range(len(examples)), key=lambda index: _record_id(examples[index])):
        indices = list(group)
        record_name, rows = _match(stored, names, [examples[index] for index in indices], parts)
        names.add(record_name)
        if record_name != record:
            selection.renamed[record] = record_name
            for index in indices:
                examples[index] = _renamed(examples[index], record_name)
        if rows and not _are_in(parts, rows):
            selection.n_repeated += 1
            continue
        for index in indices:
            number = rows.get(examples[index].example.id)
            if number is None:
                pending.append(index)
            else:
                numbers[index] = number
    selection.n_stored = len(numbers)
    stop = skip + len(names)
    reached = [part for part in parts if skip < _records_end(part, parts) and _option(part, "skip", 0) < stop]
    missing: list[int] = []
    for part in reached:
        numbers_of_part = _missing_numbers(part, stored)
        missing += numbers_of_part
        if numbers_of_part and pending and _option(part, "skip", 0) != skip:
            raise ConfigError(
                f"the store lacks examples of {name} (the first: number {numbers_of_part[0]}) that a job with corpus.skip = "
                f"{_option(part, 'skip', 0)} planned, and this job has {skip}. Run that job again first, with --extend, or "
                "with --extend --repair if the examples were dropped."
            )
    filled = dict(zip(pending, missing, strict=False))
    numbers |= filled
    new = pending[len(filled) :]
    _check_order(filled, numbers, parts)
    _check_new(new, numbers, examples)
    index_of = {number: index for index, number in numbers.items()}
    lost = {row.index for row in store.manifest.dropped} | stored.damaged
    committed = {segment.index for segment in store.segments} | lost
    for part in store.manifest.parts:
        is_complete = all(i in committed for i in range(part.first_segment, part.first_segment + part.n_segments))
        if part not in parts:
            if not is_complete and new:
                raise ConfigError(
                    f"the store still waits for segments of {part.name or 'its first corpus'}. Run that job again first, "
                    "with --extend. Then this corpus can be added."
                )
            continue
        if part not in reached:
            continue
        indices = [index_of.get(number) for number in range(part.first_example, part.first_example + part.n_examples)]
        present = [index for index in indices if index is not None]
        if not is_complete and len(present) < len(indices):
            raise ConfigError(
                f"the store waits for segments of a run over {part.n_examples} examples of {name}, and this job has "
                f"{len(present)} of them. Run it with the same corpus.max_examples or a larger one, and restore records "
                "that are missing."
            )
        if len(present) == len(indices) and (repair or not is_complete):
            selection.groups.append(Group(part.first_segment, part.first_example, present))
    if new:
        selection.new = Group(store.manifest.n_segments_planned, store.manifest.n_examples_planned, new)
        selection.groups.append(selection.new)
    return selection


def check_plan(store: Snapshot, segments: Iterable[SegmentSpec]) -> None:
    """Check that the segments that a job plans are those that the store holds.

    Raises
    ------
    ConfigError
        A stored segment has other examples: records that are not stored yet changed, and with them the plan.
    """
    entries = {row.index: row for row in (*store.manifest.segments, *store.manifest.dropped)}
    for segment in segments:
        entry = entries.get(segment.index)
        if entry is not None and (entry.first_example, entry.n_examples) != (segment.first_example, segment.n_examples):
            raise ConfigError(
                f"{store.location}: segment {segment.index} holds {entry.n_examples} examples from number "
                f"{entry.first_example}, and the corpus now gives {segment.n_examples} from number "
                f"{segment.first_example}: records that are not stored yet have changed. Restore them, or use another "
                "output folder."
            )


def _match(
    stored: _StoredRecords, names: set[str], examples: Sequence[EncodedExample], parts: Sequence[CorpusPart]
) -> tuple[str, dict[str, int]]:
    """Return the id of a record in the store, and the numbers of its examples by id; none if it is not stored."""
    record = _record_id(examples[0])
    name, number = record, 1
    while name in names or name in stored.numbers:
        if name not in names:
            rows = stored.numbers[name]
            difference = stored.difference([_renamed(example, name) for example in examples], rows)
            if difference is None:
                return name, rows
            if _are_in(parts, rows):
                raise ConfigError(
                    f"record {record!r} of {parts[0].name} differs from example {min(rows.values())} of the store: its "
                    f"{difference} changed. Restore the record, or use another output folder. If this is another "
                    "corpus, give its file another name."
                )
        number += 1
        name = f"{record}#{number}"
    return name, {}


def _are_in(parts: Sequence[CorpusPart], rows: dict[str, int]) -> bool:
    number = min(rows.values())
    return any(part.first_example <= number < part.first_example + part.n_examples for part in parts)


def _check_order(filled: dict[int, int], numbers: dict[int, int], parts: Sequence[CorpusPart]) -> None:
    """Check that records that are filled in stand between the stored ones that they were between."""
    firsts = {part.first_example for part in parts}
    before: int | None = None
    for index in sorted(numbers):
        number = numbers[index]
        was_filled, before_index, before = index in filled, before, index
        follows = before_index is not None and numbers[before_index] == number - 1
        if follows or number in firsts:
            continue
        if was_filled or before_index in filled:
            raise ConfigError(
                f"the store has no example {number}, and the records of the corpus around it are not those that the store "
                "holds, so it is not clear which record belongs there. Restore the order of the records, or use another "
                "output folder."
            )


def _check_new(new: Sequence[int], numbers: dict[int, int], examples: Sequence[EncodedExample]) -> None:
    """Check that no document has both new windows and windows that are stored."""
    documents = {_record_id(examples[index]) for index in numbers}
    for index in new:
        if (record := _record_id(examples[index])) in documents:
            raise ConfigError(
                f"record {record!r} has more windows than the store holds of it: its text grew. Restore the record, or use "
                "another output folder."
            )


def _option(part: CorpusPart, name: str, default: int | None) -> Any:
    return part.corpus.get("options", {}).get(name, default)


def _records_end(part: CorpusPart, parts: Sequence[CorpusPart]) -> float:
    """Return a record number of the corpus that the part does not reach."""
    n_records = _option(part, "max_examples", None)
    if n_records is None and part is parts[0]:
        n_records = part.n_examples
    return float("inf") if n_records is None else _option(part, "skip", 0) + n_records


def _missing_numbers(part: CorpusPart, stored: _StoredRecords) -> list[int]:
    numbers = range(part.first_example, part.first_example + part.n_examples)
    return [number for number in numbers if number not in stored.present]


def _record_id(encoded: EncodedExample) -> str:
    """Return the id of the record of an example: of its document if it is a window."""
    return str(encoded.example.columns.get(WINDOW_OF, encoded.example.id))


def _renamed(encoded: EncodedExample, record: str) -> EncodedExample:
    """Return the example with another record id."""
    before = _record_id(encoded)
    if before == record:
        return encoded
    example = encoded.example
    columns = example.columns | ({WINDOW_OF: record} if WINDOW_OF in example.columns else {})
    return replace(encoded, example=replace(example, id=record + example.id.removeprefix(before), columns=columns))


class _StoredRecords:
    """The records of a store: the numbers of their examples by record id and example id, and their content."""

    def __init__(self, store: Snapshot, are_prompts: bool, repair: bool) -> None:
        self.numbers: dict[str, dict[str, int]] = {}
        self.present: set[int] = set()
        self.damaged: set[int] = set()
        self._store, self._are_prompts = store, are_prompts
        self._skipped = {row.example for row in store.manifest.skipped}
        self._contents = lru_cache(_CACHED_SEGMENTS)(self._read)
        for segment in store.segments:
            try:
                rows = _record_ids(segment)
            except HeadAtlasError:
                if not repair:
                    raise
                self.damaged.add(segment.index)
                continue
            for number, (record, name) in enumerate(rows, segment.first_example):
                self.numbers.setdefault(record, {})[name] = number
                self.present.add(number)

    def _read(self, index: int) -> list[dict[str, Any]]:
        (segment,) = (segment for segment in self._store.segments if segment.index == index)
        return list(_stored_contents(segment.without_overlays()))

    def difference(self, examples: Sequence[EncodedExample], rows: dict[str, int]) -> str | None:
        """Return the name of the first field in which examples differ from the stored ones; None if they are equal.

        `rows` has the numbers of the stored examples of a record by id. Examples that are not stored are not compared.
        """
        by_name = {example.example.id: example for example in examples}
        if rows.keys() - by_name.keys():
            return "length"
        for name, number in rows.items():
            segment = self._store.segment_of(number)
            before = self._contents(segment.index)[number - segment.first_example]
            if number in self._skipped and not before["text"]:  # a removed example keeps its id only
                continue
            after = _content(by_name[name])
            if self._are_prompts:
                end = int(before.get("annotation prompt_end", len(before["text"])))
                before = {field: value for field, value in before.items() if field != "annotation prompt_end"}
                before["text"], after["text"] = before["text"][:end], after["text"][:end]
            for name_of_field in before | after:
                is_ignored = name_of_field.startswith(_COMPUTED) and (self._are_prompts or number in self._skipped)
                if before.get(name_of_field) != after.get(name_of_field) and not is_ignored:
                    return name_of_field
        return None


def _record_ids(segment: CommittedSegment) -> list[tuple[str, str]]:
    """Return the record id and the id of each example of a segment."""
    names = segment.ids()
    column = segment.without_overlays().columns().get(WINDOW_OF)
    documents = [None] * len(names) if column is None else column.to_list()
    return [
        (document if isinstance(document, str) else name, name) for name, document in zip(names, documents, strict=True)
    ]


def _content(encoded: EncodedExample) -> dict[str, Any]:
    """Return what a store would hold of an example, by field. Fields without a value are left out."""
    example = encoded.example
    content: dict[str, Any] = {"text": example.text, "text_pair": example.text_pair, "target": example.target}
    content |= {f"annotation {name}": _plain(value) for name, value in example.columns.items()}
    content["source tokens"] = encoded.source.id.tolist()
    if encoded.target is not None:
        content["target tokens"] = encoded.target.id.tolist()
    content["words"] = [(word.char_start, word.char_end) for word in example.words]
    content |= {
        f"word annotation {name}": [None if value == MISSING else _plain(value) for value in rows]
        for name, rows in example.word_columns.items()
    }
    return _with_values(content)


def _stored_contents(segment: CommittedSegment) -> Iterator[dict[str, Any]]:
    """Yield the content of each example of a segment, as `_content` does."""
    tables = {name: segment.tokens(name) for name in segment.spec.sequences}
    rows: dict[str, Sequence[Any]] = {
        "text": segment.texts(),
        "text_pair": segment.optional_texts("text_pair"),
        "target": segment.optional_texts("target_text"),
    }
    rows |= {f"annotation {name}": _stored_values(column) for name, column in segment.columns().items()}
    for row in range(segment.n_examples):
        content: dict[str, Any] = {name: values[row] for name, values in rows.items()}
        for name, table in tables.items():
            tokens = table.example(row)
            content[f"{name} tokens"] = tokens.id.tolist()
            if name == "source":
                spans = zip(tokens.word_char_start.tolist(), tokens.word_char_end.tolist(), strict=True)
                content["words"] = list(spans)
                for column_name, column in tokens.word_columns.items():
                    content[f"word annotation {column_name}"] = _stored_values(column)
        yield _with_values(content)


def _stored_values(column: Column) -> list[str | None]:
    missing = MISSING if column.data.dtype.kind == "i" else None
    return [None if value == missing else _plain(value) for value in column.to_list()]


def _plain(value: Any) -> str | None:
    """Return a value as text, equal for numbers of different types; None if it is missing."""
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, (int, float)) and value == int(value) else str(value)


def _with_values(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in content.items()
        if value is not None and not (isinstance(value, list) and all(item is None for item in value))
    }
