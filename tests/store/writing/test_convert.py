"""Conversion to the other container and back keeps all bits, and an interrupted conversion can be resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from store_builder import Content, open_writer, segment_bytes
from typer.testing import CliRunner

from headatlas.store.commands.maintain import app
from headatlas.store.errors import ConfigError, CorruptSegmentError
from headatlas.store.files.containers.container import CONTAINERS
from headatlas.store.files.manifest import read_manifest
from headatlas.store.store import open_store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.verification import verify_store

runner = CliRunner()
OTHER = {"zarr": "hdf5", "hdf5": "zarr"}


def same_arrays(path: Path, other: Path) -> bool:
    pairs = zip(open_store(path).segments, open_store(other).segments, strict=True)
    return all(
        a.layouts == b.layouts
        and a.examples_of("") == b.examples_of("")
        and all(np.array_equal(a.read(p), b.read(p), equal_nan=True) for p in a.layouts)
        for a, b in pairs
    )


def test_conversion_and_back(store_path: Path, container: str, tmp_path: Path) -> None:
    result = convert_store(store_path, tmp_path / "there", OTHER[container])  # type: ignore[arg-type]
    assert (result.n_segments, result.n_segments_there, result.n_examples) == (3, 0, 12)
    assert same_arrays(store_path, tmp_path / "there")
    assert {s.read_listing().container for s in open_store(tmp_path / "there").segments} == {OTHER[container]}
    assert verify_store(tmp_path / "there", full=True).is_sound
    convert_store(tmp_path / "there", tmp_path / "back", container)  # type: ignore[arg-type]
    assert segment_bytes(tmp_path / "back") == segment_bytes(store_path)


def test_provenance_records_the_conversion(store_path: Path, container: str, tmp_path: Path) -> None:
    convert_store(store_path, tmp_path / "there", OTHER[container])  # type: ignore[arg-type]
    convert_store(tmp_path / "there", tmp_path / "back", container)  # type: ignore[arg-type]
    before, after = open_store(store_path).manifest, open_store(tmp_path / "back").manifest
    assert {k: v for k, v in after.provenance.items() if k != "made_from"} == before.provenance
    note = after.provenance["made_from"]
    assert (note["containers"], note["container"]) == ([OTHER[container]], container)
    assert note["sha256"] == read_manifest(tmp_path / "there")[1]
    assert note["made_from"]["sha256"] == read_manifest(store_path)[1]
    assert (after.spec, after.skipped) == (before.spec, before.skipped)


def test_skipped_examples_stay_skipped(tmp_path: Path, contents: list[Content], container: str) -> None:
    writer = open_writer(tmp_path / "traces", contents, container=container)
    rows = [{"example": i, "id": f"example-{i}", "reason": "too long"} for i in (1, 5, 6, 11)]
    for content, skipped in zip(contents, (rows[:1], rows[1:3], rows[3:]), strict=True):
        writer.write(content.index, content.first_example, content.tables, content.arrays, skipped)
    convert_store(tmp_path / "traces", tmp_path / "out", OTHER[container])  # type: ignore[arg-type]
    assert open_store(tmp_path / "out").manifest.skipped == open_store(tmp_path / "traces").manifest.skipped


class InterruptedConversionError(Exception):
    pass


def test_removals_are_recorded_without_segments(store_path: Path, container: str, tmp_path: Path) -> None:
    """A store without segments still records its skipped examples and dropped segments."""
    drop_from_store(store_path, examples=[1])
    source = open_store(store_path)
    drop_from_store(store_path, segments=[segment.index for segment in source.segments])
    convert_store(store_path, tmp_path / "out", container)
    before, after = open_store(store_path).manifest, open_store(tmp_path / "out").manifest
    assert after.skipped == before.skipped
    assert [row.example for row in after.skipped] == [1]
    assert after.dropped == before.dropped


@pytest.mark.parametrize("step", ["arrays-written", "listing-written", "renamed", "manifest-linked", "committed"])
def test_an_interrupted_conversion_is_resumed(store_path: Path, container: str, tmp_path: Path, step: str) -> None:
    """After an interruption at any step of the second segment, existing segments are not written again."""
    steps: list[str] = []

    def on_step(reached: str) -> None:
        steps.append(reached)
        if steps.count(step) == 2 + (step == "manifest-linked"):  # the first manifest is empty
            raise InterruptedConversionError

    other = OTHER[container]
    with pytest.raises(InterruptedConversionError):
        convert_store(store_path, tmp_path / "out", other, on_step=on_step)  # type: ignore[arg-type]
    before = {p: p.stat().st_ino for p in (tmp_path / "out/segments/000000").rglob("*")}
    result = convert_store(store_path, tmp_path / "out", other)  # type: ignore[arg-type]
    assert result.n_segments_there == (2 if step in ("manifest-linked", "committed") else 1)
    assert before == {p: p.stat().st_ino for p in (tmp_path / "out/segments/000000").rglob("*")}
    convert_store(store_path, tmp_path / "undisturbed", other)  # type: ignore[arg-type]
    assert segment_bytes(tmp_path / "out") == segment_bytes(tmp_path / "undisturbed")


def test_invalid_targets_are_refused(store_path: Path, tmp_path: Path, contents: list[Content]) -> None:
    for container in CONTAINERS:
        with pytest.raises(ConfigError, match="is the store itself"):
            convert_store(store_path, store_path / "../traces", container)
    convert_store(store_path, tmp_path / "out", "hdf5")
    with pytest.raises(ConfigError, match=r"made_from\.container = 'hdf5'; this job has 'zarr'"):
        convert_store(store_path, tmp_path / "out", "zarr")
    open_writer(tmp_path / "other", contents)
    with pytest.raises(ConfigError, match=r"provenance\.made_from|made_from = None"):
        convert_store(store_path, tmp_path / "other", "hdf5")


def test_damage_is_not_carried_over(store_path: Path, container: str, tmp_path: Path) -> None:
    name = {"zarr": "segment.zip", "hdf5": "segment.h5"}[container]
    victim = store_path / "segments/000001" / name
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 4] + bytes(255 ^ byte for byte in data[len(data) // 4 :]))
    with pytest.raises(CorruptSegmentError, match="segment 1"):
        convert_store(store_path, tmp_path / "out", OTHER[container])  # type: ignore[arg-type]
    assert [segment.index for segment in open_store(tmp_path / "out").segments] == [0]


def test_the_command(store_path: Path, container: str, tmp_path: Path) -> None:
    arguments = ["convert", str(store_path), str(tmp_path / "out"), "--container", OTHER[container]]
    result = runner.invoke(app, ["x", *arguments][1:])
    assert result.exit_code == 0
    assert f"12 examples in 3 segments, container {OTHER[container]}" in result.stdout
    result = runner.invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout)["n_segments_there"] == 3
    assert runner.invoke(app, [*arguments[:-1], "parquet"]).exit_code == 2


def test_other_codecs(store_path: Path, container: str, tmp_path: Path) -> None:
    """Attention is within the sum of both codecs' errors, which the store records. Other arrays do not change."""
    first = convert_store(store_path, tmp_path / "six", codecs={"attention": "linear6"})
    second = convert_store(tmp_path / "six", tmp_path / "two", codecs={"attention": "top_k:3", "query_key": "float32"})
    before, six, two = (open_store(path) for path in (store_path, tmp_path / "six", tmp_path / "two"))
    assert (first.container, first.attention) == (container, "linear6")
    error = 1 / 255 + 0.5 / 63
    assert first.attention_error == six.spec.attention_error == pytest.approx(error)
    note = two.manifest.provenance["made_from"]
    assert (note["kept"]["before"]["attention"], note["kept"]["after"]["attention"]) == ("linear6", "top_k:3")
    assert note["attention_error"]["after"] == second.attention_error == pytest.approx(1 / 4 + 2 * error)
    assert two.spec.earlier.attention == ("sqrt8", "linear6")
    assert two.spec.earlier.query_key == ("float16",)
    moved = np.abs(six.examples[3].attention() - before.examples[3].attention())
    assert 0 < moved.max() <= error
    for old, new in zip(before.segments, two.segments, strict=True):
        for path in old.layouts:
            if "/attention" not in path:
                assert np.array_equal(old.read(path), new.read(path), equal_nan=True), path
    with pytest.raises(ConfigError, match="the weights that it left out are gone"):
        convert_store(tmp_path / "two", tmp_path / "back", codecs={"attention": "float32"})
    assert verify_store(tmp_path / "two", full=True).is_sound


def test_a_subset_can_be_kept(store_path: Path, tmp_path: Path) -> None:
    result = convert_store(store_path, tmp_path / "out", keep=["edges", "statistics"])
    store = open_store(tmp_path / "out")
    assert (result.attention, store.spec.keep.query_key, store.spec.keep.edges) == (None, None, 3)
    assert {path.split("/")[1] for path in store.segments[0].layouts if path.startswith("decoder/")} == {
        "edge_key", "edge_weight", "statistics",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="attention was not kept"):
        convert_store(tmp_path / "out", tmp_path / "more", codecs={"attention": "sqrt8"})


def test_the_command_with_codecs(store_path: Path, tmp_path: Path) -> None:
    arguments = [
        "convert",
        str(store_path),
        str(tmp_path / "out"),
        "--codec",
        "linear:16",
        "--codec",
        "query_key=bfloat16",
    ]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0
    assert "Attention in linear:16: error at most 0.037 from the weights of the model" in result.stdout
    for wrong in (["--codec", "sqrt4"], ["--codec", "value=float16"], ["--keep", "text"]):
        failed = runner.invoke(app, [*arguments[:2], str(tmp_path / "x"), *wrong])
        assert isinstance(failed.exception, ConfigError)
        assert "expected" in str(failed.exception)
