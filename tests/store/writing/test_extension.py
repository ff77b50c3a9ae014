"""The plan of an extension: committed once, refused if it does not fit, and complete after a crash at any step."""

from __future__ import annotations

from pathlib import Path

import pytest

from headatlas.store.errors import ConfigError, CorruptSegmentError, FormatError
from headatlas.store.files.manifest import read_manifest
from headatlas.store.schema.corpus_parts import CorpusPart
from headatlas.store.store import open_store
from headatlas.store.writing.extension import check_extension, extend_store
from headatlas.store.writing.store_writer import STEPS

from ..store_builder import PROVENANCE, Content, make_contents, make_spec, seal_manifest, write_store

FIRST, SECOND = {"name": "a.txt", "options": {}}, {"name": "b.txt", "options": {}}


def part(first_segment: int, n_segments: int = 1, corpus: dict | None = None, **fields) -> CorpusPart:
    return CorpusPart(
        first_segment=first_segment,
        n_segments=n_segments,
        first_example=4 * first_segment,
        n_examples=4 * n_segments,
        corpus=corpus or SECOND,
        **fields,
    )


@pytest.fixture
def contents() -> list[Content]:
    return make_contents(make_spec(), n_segments=4)


@pytest.fixture
def store_path(tmp_path: Path, contents: list[Content]) -> Path:
    return write_store(tmp_path / "store", contents[:2]).path


def extended(path: Path, plan: CorpusPart | None, contents: list[Content], **options):
    return extend_store(path, plan, spec=contents[0].spec, container="zarr", **options)


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_loses_nothing(step: str, store_path: Path, contents: list[Content]) -> None:
    def crash(reached: str) -> None:
        if reached == step:
            raise RuntimeError("crash")

    def add(**options) -> None:
        writer = extended(store_path, part(2, 2), contents, **options)
        for content in contents[2:]:
            writer.write(content.index, content.first_example, content.tables, content.arrays)

    with pytest.raises(RuntimeError, match="crash"):
        add(on_step=crash)
    assert open_store(store_path).example_ids()[:8] == [name for c in contents[:2] for name in c.tables.ids]
    add()
    store = open_store(store_path)
    assert (store.is_complete, store.n_examples, len(store.manifest.extensions)) == (True, 16, 1)


def test_only_the_same_plan_is_accepted_twice(store_path: Path, contents: list[Content]) -> None:
    first = part(2, created="2026-01-01")
    extended(store_path, first, contents)
    extended(store_path, first.model_copy(update={"created": "2026-01-02"}), contents)
    assert read_manifest(store_path)[0].extensions == (first,)
    with pytest.raises(ConfigError, match="another writer extended the store"):
        extended(store_path, part(2, 2), contents)
    extended(store_path, part(3), contents)
    assert [row.first_segment for row in read_manifest(store_path)[0].parts] == [0, 2, 3]
    with pytest.raises(ConfigError, match=r"spec\.statistics"):
        extend_store(store_path, None, spec=contents[0].spec.model_copy(update={"statistics": ()}), container="zarr")


def test_what_was_left_out_counts_once_for_each_corpus(store_path: Path, contents: list[Content]) -> None:
    rows = [{"what": "records", "n": n, "reason": "empty text"} for n in (1, 3, 5)]
    extended(store_path, part(2, corpus=FIRST, left_out=rows[:1]), contents)
    extended(store_path, part(3, corpus=SECOND, left_out=rows[1:2]), contents)
    assert [row.n for row in read_manifest(store_path)[0].left_out] == [4]
    extended(store_path, part(4, corpus=SECOND, left_out=rows[2:]), contents)
    assert [row.n for row in read_manifest(store_path)[0].left_out] == [6]


def test_a_forged_list_of_extensions_is_refused(store_path: Path, contents: list[Content]) -> None:
    extended(store_path, part(2), contents)
    seal_manifest(store_path, lambda document: document["extensions"][0].update(n_examples=5))
    with pytest.raises((FormatError, CorruptSegmentError), match="extensions do not follow"):
        open_store(store_path)


def test_a_sample_of_a_file_that_changed_is_no_extension(store_path: Path) -> None:
    manifest = read_manifest(store_path)[0]
    before = {"name": "a.txt", "sha256": "0", "options": {"sample": 5, "seed": 0}}
    manifest = manifest.model_copy(update={"provenance": PROVENANCE | {"corpus": before}})
    check_extension(manifest, PROVENANCE | {"corpus": before})
    with pytest.raises(ConfigError, match=r"corpus\.sample draws from the whole of a\.txt"):
        check_extension(manifest, PROVENANCE | {"corpus": before | {"sha256": "1"}})
    with pytest.raises(ConfigError, match=r"corpus\.seed = 0; this job has 1"):
        check_extension(manifest, PROVENANCE | {"corpus": before | {"options": {"sample": 5, "seed": 1}}})
