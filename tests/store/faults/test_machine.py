"""Random sequences of operations on a store, with crashes, compared with a dictionary of the expected content."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fault_stores import lean_contents
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_builder import PROVENANCE, Content, open_writer, write_store

from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.files import leases as private
from headatlas.store.files.containers.container import CONTAINERS
from headatlas.store.files.manifest import Dropped, SegmentEntry, manifest_numbers
from headatlas.store.store import Store, open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import COLLECT_STEPS, collect_store
from headatlas.store.writing.merge import merge_stores
from headatlas.store.writing.store_writer import STEPS, Replacement, StoreWriter
from headatlas.store.writing.verification import verify_store

N_SEGMENTS, PER_SEGMENT = 4, 2
N_EXAMPLES = N_SEGMENTS * PER_SEGMENT
COMMITTED = STEPS.index("manifest-linked")
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
index_of = st.integers(0, N_SEGMENTS - 1)
example_of = st.integers(0, N_EXAMPLES - 1)
container_of = st.sampled_from(CONTAINERS)


class Killed(BaseException):
    """Stands for the end of the process: no code may clean up."""


@dataclass(frozen=True)
class Expected:
    """Expected content of a snapshot."""

    segments: dict[int, frozenset[int]] = field(default_factory=dict)
    """Examples that were dropped from each committed segment."""
    dropped: frozenset[int] = frozenset()
    noted: frozenset[int] = frozenset()


def traces(store: Store, index: int) -> list[np.ndarray]:
    """Return every array of an example."""
    example = store.examples[index]
    vectors = [example.attention(), example.query(), example.key(), example.logsumexp()]
    statistics = example.statistics()
    return [array.values for array in (*vectors, *example.edges(1).values(), *statistics.values())]


class Stores(RuleBasedStateMachine):
    """State machine of one store, snapshots that readers hold, and stores that are derived from it."""

    contents: list[Content]
    reference: list[list[np.ndarray]]
    texts: list[str]
    other: Path
    other_reference: list[list[np.ndarray]]

    @initialize(container=container_of)
    def create(self, container: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.number = 0
        self.path = self.folder / "traces"
        open_writer(self.path, self.contents, container=container)
        self.expected = Expected()
        self.held: list[tuple[Store, Expected]] = []

    def teardown(self) -> None:
        if hasattr(self, "path") and sys.exc_info()[0] is None:  # otherwise this would hide the first error
            self.check(open_store(self.path), self.expected, range(N_EXAMPLES))
            assert verify_store(self.path, full=True).is_sound
            for store, expected in self.held:
                self.check(store, expected, range(N_EXAMPLES))
                store.close()
        if hasattr(self, "path"):
            shutil.rmtree(self.folder)

    def check(self, store: Store, expected: Expected, examples) -> None:
        """Compare a snapshot with the expected content; for some examples every number."""
        assert {segment.index for segment in store.segments} == set(expected.segments)
        assert {row.index for row in store.manifest.dropped} == expected.dropped
        assert {row.example for row in store.manifest.skipped} == expected.noted
        assert store.is_complete == (len(expected.segments) + len(expected.dropped) == N_SEGMENTS)
        for example in examples:
            index = example // PER_SEGMENT
            if index not in expected.segments:
                with pytest.raises(NotFoundError):
                    store.examples[example]
            elif example in expected.segments[index]:
                assert (store.examples[example].text, len(store.examples[example].tokens())) == ("", 0)
            else:
                assert store.examples[example].text == self.texts[example]
                assert same(traces(store, example), self.reference[example])

    def writer(self, container: str, on_step: Callable[[str], None] = lambda step: None) -> StoreWriter:
        return StoreWriter(self.path, container=container, threads=1, on_step=on_step)

    def append_one(self, index: int, container: str, on_step=lambda step: None) -> Expected:
        content = self.contents[index]
        self.writer(container, on_step).write(index, content.first_example, content.tables, content.arrays)
        return replace(self.expected, segments=self.expected.segments | {index: frozenset()})

    def repair_one(self, index: int, container: str, on_step=lambda step: None) -> Expected:
        writer = self.writer(container, on_step)
        rows: dict[int, SegmentEntry | Dropped] = {
            row.index: row for row in (*writer.manifest.segments, *writer.manifest.dropped)
        }
        writer.replace([Replacement(rows[index], self.contents[index].tables, self.contents[index].arrays)])
        segments = self.expected.segments | {index: frozenset()}
        return replace(self.expected, segments=segments, dropped=self.expected.dropped - {index})

    def drop_segment(self, index: int, container: str, on_step=lambda step: None) -> Expected:
        drop_from_store(self.path, segments=[index], on_step=on_step)
        segments = {i: gone for i, gone in self.expected.segments.items() if i != index}
        return replace(self.expected, segments=segments, dropped=self.expected.dropped | {index})

    def drop_example(self, example: int, container: str, on_step=lambda step: None) -> Expected:
        drop_from_store(self.path, examples=[example], on_step=on_step)
        index = example // PER_SEGMENT
        segments = self.expected.segments | {index: self.expected.segments[index] | {example}}
        return replace(self.expected, segments=segments, noted=self.expected.noted | {example})

    def possible(self, what: str, which: int) -> bool:
        """Return True if an operation has an effect; `which` is an example for "drop_example", else a segment."""
        there = self.expected.segments
        if what == "drop_example":
            return which // PER_SEGMENT in there and which not in self.expected.noted
        if what == "append_one":
            return which not in there and which not in self.expected.dropped
        return which in there or (what == "repair_one" and which in self.expected.dropped)

    @rule(
        what=st.sampled_from(["append_one", "append_one", "repair_one", "drop_segment"]),
        index=index_of,
        container=container_of,
    )
    def change_a_segment(self, what: str, index: int, container: str) -> None:
        if self.possible(what, index):
            self.expected = getattr(self, what)(index, container)
        elif what == "append_one":
            before = open_store(self.path).manifest.number
            if index in self.expected.segments:  # a second write changes nothing
                self.append_one(index, container)
            assert open_store(self.path).manifest.number == before

    @rule(example=example_of)
    def drop(self, example: int) -> None:
        if self.possible("drop_example", example):
            self.expected = self.drop_example(example, "zarr")
            return
        with pytest.raises((ConfigError, NotFoundError)):
            drop_from_store(self.path, examples=[example])

    @rule(container=container_of)
    def resume(self, container: str) -> None:
        there = self.writer(container).committed
        assert there == set(self.expected.segments) | self.expected.dropped
        for index in sorted(set(range(N_SEGMENTS)) - there):
            self.expected = self.append_one(index, container)

    @rule(
        what=st.sampled_from(["append_one", "append_one", "repair_one", "drop_segment", "drop_example"]),
        which=example_of,
        container=container_of,
        step=st.sampled_from(STEPS),
    )
    def crash(self, what: str, which: int, container: str, step: str) -> None:
        """Kill an operation at a step: all of it must be visible, or nothing."""
        which = which if what == "drop_example" else which % N_SEGMENTS
        if not self.possible(what, which):
            return
        reached: list[str] = []
        after = self.killed(lambda on_step: getattr(self, what)(which, container, on_step), step, reached)
        if after is not None:  # the operation has no such step
            self.expected = after
        elif STEPS.index(step) >= COMMITTED:
            self.expected = self.without_crash(what, which)

    def without_crash(self, what: str, which: int) -> Expected:
        """Return the expected content after the operation."""
        there, dropped = self.expected.segments, self.expected.dropped
        if what == "drop_example":
            index = which // PER_SEGMENT
            return replace(
                self.expected, segments=there | {index: there[index] | {which}}, noted=self.expected.noted | {which}
            )
        if what == "drop_segment":
            left = {i: gone for i, gone in there.items() if i != which}
            return replace(self.expected, segments=left, dropped=dropped | {which})
        return replace(self.expected, segments=there | {which: frozenset()}, dropped=dropped - {which})

    def killed(self, work: Callable, step: str, reached: list[str]):
        """Run an operation until a step, without cleaning up; returns its result, or None if it was killed."""

        def on_step(name: str) -> None:
            reached.append(name)
            if name == step:
                raise Killed

        tidy = private.shutil.rmtree
        try:
            private.shutil.rmtree = lambda *arguments, **options: (
                None if reached[-1:] == [step] else tidy(*arguments, **options)
            )
            return work(on_step)
        except Killed:
            return None
        finally:
            private.shutil.rmtree = tidy

    @rule()
    def collect(self) -> None:
        gc.collect()  # unused stores release their snapshots
        collect_store(self.path, grace_s=-1)
        used = {
            Path(segment.entry.path).name
            for store in (open_store(self.path), *self.readers())
            for segment in store.segments
        }
        assert set(os.listdir(self.path / "segments")) == used
        assert os.listdir(self.path / "tmp") == []
        numbers = {store.manifest.number for store in self.readers()} | {open_store(self.path).manifest.number}
        assert set(manifest_numbers(self.path)) == numbers

    def readers(self) -> list[Store]:
        return [store for store, _ in self.held if store.path == self.path]

    @rule(step=st.sampled_from(COLLECT_STEPS))
    def crash_while_collecting(self, step: str) -> None:
        self.killed(lambda on_step: collect_store(self.path, grace_s=-1, on_step=on_step), step, [])

    @rule()
    @precondition(lambda self: len(self.held) < 3)
    def hold(self) -> None:
        self.held.append((open_store(self.path), self.expected))

    @rule(example=example_of)
    @precondition(lambda self: self.held)
    def read_what_is_held(self, example: int) -> None:
        self.check(*self.held[0], [example])

    @rule()
    @precondition(lambda self: self.held)
    def let_go(self) -> None:
        self.held.pop(0)[0].close()

    @rule(example=example_of)
    def read(self, example: int) -> None:
        self.check(open_store(self.path), self.expected, [example])

    @rule(index=index_of, position=st.floats(0, 1, exclude_max=True), container=container_of)
    def damage_and_repair(self, index: int, position: float, container: str) -> None:
        """Change a byte of a segment: verify names the segment, and it can be written again."""
        if index not in self.expected.segments:
            return
        segment = next(item for item in open_store(self.path).segments if item.index == index)
        if any(segment.entry == other.entry for store in self.readers() for other in store.segments):
            return  # a reader that holds it would correctly report the damage
        files = sorted(file for file in segment.folder.rglob("*") if file.is_file())
        victim = files[int(position * len(files))]
        data = bytearray(victim.read_bytes())
        data[int(position * len(data))] ^= 8
        victim.write_bytes(data)
        assert {finding.segment for finding in verify_store(self.path, full=True).findings} == {index}
        self.expected = self.repair_one(index, container)
        assert verify_store(self.path, full=True).is_sound

    @rule(container=container_of, goes_on_there=st.booleans(), killed_at=st.none() | st.sampled_from(STEPS))
    def convert(self, container: str, goes_on_there: bool, killed_at: str | None) -> None:
        self.number += 1
        out = self.folder / f"converted{self.number}"

        def work(on_step=lambda step: None):
            return convert_store(self.path, out, container, threads=1, on_step=on_step)

        if killed_at is not None:
            self.killed(work, killed_at, [])
        work()
        self.check(open_store(out), self.expected, [self.number % N_EXAMPLES])
        assert verify_store(out, full=True).is_sound
        if goes_on_there:
            self.path = out
        else:
            shutil.rmtree(out)

    @rule(killed_at=st.none() | st.sampled_from(STEPS))
    def merge(self, killed_at: str | None) -> None:
        """Merge with a store of another corpus: its examples follow."""
        out = self.folder / "merged"

        def work(on_step=lambda step: None):
            return merge_stores([self.path, self.other], out, append=True, on_step=on_step)

        if killed_at is not None:
            self.killed(work, killed_at, [])
        work()
        store = open_store(out)
        assert store.example_ids() == open_store(self.path).example_ids() + open_store(self.other).example_ids()
        assert {row.index for row in store.manifest.dropped} == self.expected.dropped
        assert {row.example for row in store.manifest.skipped} == self.expected.noted
        assert same(traces(store, N_EXAMPLES), self.other_reference[0])
        for index in self.expected.segments:
            example = index * PER_SEGMENT
            if example not in self.expected.segments[index]:
                assert same(traces(store, example), self.reference[example])
        assert verify_store(out, full=True).is_sound
        store.close()
        shutil.rmtree(out)

    @invariant()
    def the_newest_snapshot_is_what_was_done(self) -> None:
        if hasattr(self, "path"):
            self.check(open_store(self.path), self.expected, ())


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("part", range(4 if LONG else 1))
@pytest.mark.usefixtures("without_shape_checks")
def test_any_order_of_operations(tmp_path: Path, count_fault: Callable[[str, int, int], None], part: int) -> None:
    """Run 75 operations 200 times in the long profile."""
    Stores.contents = lean_contents(n_segments=N_SEGMENTS, n_examples=PER_SEGMENT)
    write_store(tmp_path / "whole", Stores.contents)
    whole = open_store(tmp_path / "whole")
    Stores.reference, Stores.texts = [traces(whole, i) for i in range(N_EXAMPLES)], whole.example_texts()
    Stores.other = tmp_path / "other"
    content = lean_contents(n_segments=1, n_examples=1)[0]
    content = replace(content, tables=replace(content.tables, ids=["elsewhere"]))
    writer = StoreWriter.create(
        Stores.other,
        spec=content.spec,
        provenance=PROVENANCE | {"corpus": {"kind": "else"}},
        n_examples_planned=1,
        n_segments_planned=1,
        threads=1,
    )
    writer.write(0, 0, content.tables, content.arrays)
    Stores.other_reference = [traces(open_store(Stores.other), 0)]
    n_runs, n_steps, failed = 50 if LONG else 10, 75 if LONG else 12, 1
    try:
        run_state_machine_as_test(
            Stores,
            settings=settings(
                max_examples=n_runs,
                stateful_step_count=n_steps,
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
        failed = 0
    finally:
        count_fault(f"any order of operations, {n_steps} steps", n_runs, failed)
