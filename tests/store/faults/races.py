"""Races of writers for the number of the next manifest: one wins, the others retry, nothing is lost.

Only commits race: what they list is made up, so that a thousand races take seconds. Then some races of whole segments,
which all write.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import threading
from pathlib import Path

from fault_stores import fresh, in_child, lean_contents, one_case, undisturbed
from store_builder import open_writer, segment_bytes

from headatlas.store.files.containers.container import CONTAINERS
from headatlas.store.files.leases import private_folder
from headatlas.store.files.manifest import Dropped, SegmentEntry, manifest_numbers, read_manifest, segment_path
from headatlas.store.writing.store_writer import StoreWriter

RACERS, ROUNDS = 4, 20


def run(folder: Path, n: int, n_whole: int) -> dict[str, tuple[int, list[str]]]:
    """Run `n` races of four commits, half with threads, half with processes; in each fourth race one drops a segment.

    Then run `n_whole` races of four processes that write the same segments of a container.
    """
    result: dict[str, tuple[int, list[str]]] = {}
    for kind in ("threads", "processes"):
        violations: list[str] = []
        done = 0
        while done < n // 2:
            rounds, path = min(ROUNDS, n // 2 - done), fresh(folder / "traces")
            in_child(lambda path=path: open_writer(path, lean_contents(n_segments=1)) and None)
            (_with_threads if kind == "threads" else _with_processes)(path, rounds)
            with one_case(violations, f"races {done} to {done + rounds} of {kind}"):
                _check(path, rounds)
            done += rounds
        result[f"race of four commits ({kind})"] = (done, violations)
    for container in CONTAINERS:
        violations = []
        for number in range(n_whole):
            with one_case(violations, f"race {number}"):
                _race_for_segments(folder, container)
        result[f"race of four writers for all segments ({container})"] = (n_whole, violations)
    return result


def _commit(writer: StoreWriter, private: Path, racer: int, number: int) -> None:
    """Commit segment `number * RACERS + racer`; the last racer of every fourth round drops one of an earlier round."""
    if racer == RACERS - 1 and number % 4 == 3:
        writer.replace(
            [], dropped=[Dropped(index=(number - 1) * RACERS, first_example=2 * (number - 1) * RACERS, n_examples=2)]
        )
        return
    writer.commit(_entry(number * RACERS + racer), (), private)


def _entry(index: int) -> SegmentEntry:
    return SegmentEntry(
        index=index,
        path=segment_path(index),
        first_example=2 * index,
        n_examples=2,
        n_tokens={"source": 3},
        bytes=10,
        sha256=hashlib.sha256(str(index).encode()).hexdigest(),
        data_bytes=100,
    )


def _race(path: Path, racer: int, rounds: int, barrier) -> None:
    writer = StoreWriter(path, container="zarr", threads=1)
    with private_folder(path) as private:
        for number in range(rounds):
            barrier.wait(600)
            _commit(writer, private, racer, number)


def _with_threads(path: Path, rounds: int) -> None:
    barrier = threading.Barrier(RACERS)
    threads = [threading.Thread(target=_race, args=(path, racer, rounds, barrier)) for racer in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _with_processes(path: Path, rounds: int) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(RACERS)
    processes = [context.Process(target=_race, args=(path, racer, rounds, barrier)) for racer in range(RACERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def _check(path: Path, rounds: int) -> None:
    """Check that every commit exists once, and that each manifest differs from the one before by one commit."""
    drops = [number for number in range(rounds) if number % 4 == 3]
    dropped = {(number - 1) * RACERS for number in drops}
    committed = set(range(rounds * RACERS)) - {number * RACERS + RACERS - 1 for number in drops}
    manifests = [read_manifest(path, number) for number in manifest_numbers(path)]
    newest = manifests[-1][0]
    assert newest.number == rounds * RACERS, f"{newest.number} commits"
    assert {entry.index for entry in newest.segments} == committed - dropped, "a commit is lost"
    assert sorted(row.index for row in newest.dropped) == sorted(dropped), "a drop is lost, or there twice"
    for (before, sha256), (after, _) in itertools.pairwise(manifests):
        assert after.parent is not None
        if after.number == before.number + 1:  # manifests between may have been deleted
            assert (after.parent.number, after.parent.sha256) == (before.number, sha256), "a manifest follows another"
            changed = {entry.path for entry in before.segments} ^ {entry.path for entry in after.segments}
            assert len(changed) == 1, f"manifest {after.number} changes {len(changed)} segments"
    assert list((path / "tmp").iterdir()) == []


def _race_for_segments(folder: Path, container: str) -> None:
    """Let four processes write all segments in different orders: each must exist once, as if written alone."""
    path, contents = fresh(folder / "traces"), lean_contents()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(RACERS)

    def write(racer: int) -> None:
        writer = open_writer(path, contents, container=container)
        barrier.wait(600)
        for i in range(len(contents)):
            content = contents[(i + racer) % len(contents)]
            writer.write(content.index, content.first_example, content.tables, content.arrays)

    processes = [context.Process(target=write, args=(racer,)) for racer in range(RACERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert segment_bytes(path) == undisturbed(container, folder), "other bytes than written alone"
    manifest, _ = read_manifest(path)
    assert [entry.index for entry in manifest.segments] == list(range(len(contents)))
    assert manifest.number == len(contents)
