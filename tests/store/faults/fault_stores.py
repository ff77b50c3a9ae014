"""Stores small enough to be broken a thousand times, and checks of them afterwards.

Used inside the process of `campaign.py`, where nothing but the store's own code checks anything.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from store_builder import Content, make_contents, make_site, make_spec, open_writer, segment_bytes

from headatlas.store.codecs.attention_codecs import ATTENTION_CODECS
from headatlas.store.codecs.companding import VECTOR_BOUNDS
from headatlas.store.errors import HeadAtlasError
from headatlas.store.files.manifest import manifest_numbers
from headatlas.store.schema.traces import Keep
from headatlas.store.store import Store, open_store
from headatlas.store.writing.verification import verify_store

N_SEGMENTS = 3
rng = random.Random(7)
KEEPS: dict[str, Keep] = {
    **{
        f"attention {codec}": Keep(attention=codec, query_key=None, edges=None)
        for codec in (*ATTENTION_CODECS, "linear:5", "top_k:2", "threshold:0.2/float16")
    },
    **{f"query and key {codec}": Keep(attention=None, query_key=codec, edges=None) for codec in VECTOR_BOUNDS},
    "edges": Keep(attention=None, query_key=None, edges=3),
}
"""Settings of `Keep` that together use every codec."""


def lean_contents(keep: Keep | None = None, n_segments: int = N_SEGMENTS, n_examples: int = 3) -> list[Content]:
    """Return segments of few and small files: one column of each kind."""
    spec = make_spec(keep or Keep(edges=3), (make_site(n_heads=2, n_kv_heads=1, d_head=4),))
    return [_lean(content) for content in make_contents(spec, seed=1, n_segments=n_segments, n_examples=n_examples)]


def _lean(content: Content) -> Content:
    tables = content.tables
    tokens = {
        name: replace(table, columns={"text": table.columns["text"]}, word_columns={"upos": table.word_columns["upos"]})
        for name, table in tables.tokens.items()
    }
    nothing = [None] * tables.n_examples
    year = {"year": tables.columns["year"]}
    return replace(content, tables=replace(tables, text_pairs=nothing, columns=year, tokens=tokens))


def write_lean(path: Path, contents: list[Content], container: str, **options) -> list[int]:
    """Write the segments that are missing; returns their indices."""
    writer = open_writer(path, contents, container=container, **options)
    there = writer.committed
    for content in contents:
        if content.index not in there:
            writer.write(content.index, content.first_example, content.tables, content.arrays)
    return [content.index for content in contents if content.index not in there]


@cache
def undisturbed(container: str, folder: Path) -> dict[str, bytes]:
    """Return the files of the lean store after an undisturbed run."""
    path = folder / f"undisturbed-{container}"
    write_lean(path, lean_contents(), container)
    return segment_bytes(path)


def read_all(store: Store) -> dict[tuple[int, str], np.ndarray]:
    """Read every array of every segment; texts and tables are decoded too."""
    arrays = {}
    for segment in store.segments:
        for name in segment.layouts:
            arrays[segment.index, name] = segment.read(name)
        segment.tokens(), segment.columns(), segment.texts(), segment.ids()
    return arrays


def equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Return True if two arrays have the same type, shape and bits."""
    return (first.dtype, first.shape) == (second.dtype, second.shape) and first.tobytes() == second.tobytes()


def check_survivor(path: Path, container: str, folder: Path, at_least: int = 0) -> None:
    """Check that listed segments are whole, others invisible, and that a resumed run ends with the same bytes.

    `at_least` segments were committed before whatever happened.
    """
    contents, expected = lean_contents(), undisturbed(container, folder)
    committed: set[int] = set()
    if manifest_numbers(path):
        store = open_store(path)
        committed = {segment.index for segment in store.segments}
        for segment in store.segments:
            name = rng.choice(sorted(contents[segment.index].arrays))
            assert equal(segment.read(name), contents[segment.index].arrays[name]), f"{segment}: {name} reads otherwise"
            assert segment.texts() == list(contents[segment.index].tables.texts)
        assert store.n_examples == sum(contents[index].tables.n_examples for index in committed)
    assert committed >= set(range(at_least)), f"{committed} of {at_least} committed segments are there"
    written = write_lean(path, contents, container)
    assert set(written) == set(range(len(contents))) - committed, f"{written} were written again"
    # Committed segments are not written again, so their bytes must be those of an undisturbed run too.
    assert segment_bytes(path) == expected, "the segments have other bytes"
    assert verify_store(path).is_sound, "resumed, it is damaged"
    assert open_store(path).is_complete
    assert list((path / "tmp").glob("*/")) == [], "private folders are left"


@contextmanager
def one_case(violations: list[str], what: str) -> Iterator[None]:
    """Record an exception inside as a violation."""
    try:
        yield
    except Exception as error:
        violations.append(f"{what}: {type(error).__name__}: {error}"[:600])


def in_child(work: Callable[[], object], *, limit_s: int = 60) -> int:
    """Run `work` in a fork of this process and return its exit status.

    It is ended after `limit_s` seconds of processor time; where it waits for something that never comes, after much longer.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
            signal.alarm(30 * limit_s)
            work()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def checked_in_child(violations: list[str], what: str, work: Callable[[], object]) -> None:
    """Run `work` in a fork and record its exception as a violation."""
    reader, writer = os.pipe()

    def tell() -> None:
        errors: list[str] = []
        with one_case(errors, what):
            work()
        os.write(writer, "".join(errors).encode(errors="replace")[:4000])

    status = in_child(tell)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read().decode(errors="replace")
    if report or status:
        violations.append(report or f"{what}: the process ended with status {status}")


def fresh(path: Path) -> Path:
    """Delete what lies at a path and return the path."""
    shutil.rmtree(path, ignore_errors=True)
    return path


CLEAN = (HeadAtlasError, OSError)
"""Errors that a failing disk may cause."""
