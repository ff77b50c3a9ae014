"""Annotations and statistics that are added to a store stay with it through drop, merge, convert and collection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from segment_objects import flip_bit
from traced_corpus import make_store
from typer.testing import CliRunner

from headatlas.pipeline.commands.annotate import app as annotate_app
from headatlas.store import Store, open_store
from headatlas.store.commands.info import app as info_app
from headatlas.store.commands.stats import app as stats_app
from headatlas.store.commands.verify import app as verify_app
from headatlas.store.errors import ConfigError, CorruptSegmentError, NotFoundError, ShapeError
from headatlas.store.patterns import Pattern
from headatlas.store.reading.data_frames import table_frame
from headatlas.store.writing.annotate import remove_annotation
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.merge import merge_stores
from headatlas.store.writing.verification import verify_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "traces", lengths=((3, 7, 5), (1, 8, 6)))
    return tmp_path / "traces"


def annotated(folder: Path) -> tuple[Store, np.ndarray]:
    """A store with an overlay of each kind, and the values of its statistic."""
    store = open_store(folder)
    words = [np.diff(example.tokens().word_offset)[0] for example in store.examples]
    kinds = {e.id: [f"w{i % 2}" for i in range(n)] for e, n in zip(store.examples, words, strict=True) if e.index != 4}
    store.annotate("kind", kinds, kind="word", description="every other word")
    store.annotate("weight", {e.index: [0.5] * len(e.tokens()) for e in store.examples[:3]}, kind="token")
    store.annotate("mood", {0: 3, 5: 7})
    site = store.site()
    values = np.arange(site.n_layers * site.n_heads * 6, dtype=np.float32).reshape(site.n_layers, site.n_heads, 6)
    return store.add_statistic("confidence", values, unit="bits", description="made up"), values


def check(store: Store, values: np.ndarray, dropped: tuple[int, ...] = ()) -> None:
    rows = np.isin(np.arange(6), dropped)
    assert np.array_equal(store.statistics()["confidence"].values, np.where(rows, np.nan, values), equal_nan=True)
    assert store.statistics()["confidence"].attrs["units"] == "bits"
    tokens, examples = store.tokens_frame(), store.examples_frame()
    assert examples["mood"].tolist() == [-1 if i in dropped else {0: 3, 5: 7}.get(i, -1) for i in range(6)]
    with_word = tokens[(tokens["word"] >= 0) & (tokens["example"] != 4)]
    assert with_word["kind"].tolist() == [f"w{word % 2}" for word in with_word["word"]]
    assert tokens["kind"].isna()[tokens["example"] == 4].all()
    assert (tokens["weight"] == 0.5).tolist() == (tokens["example"] < 3).tolist()
    assert verify_store(store.path, full=True).is_sound


def test_overlays_live_with_their_store(folder: Path, tmp_path: Path) -> None:
    """Searches and frames use them, and drop, merge, convert and collection keep them. Segments do not change."""
    before = {path: path.read_bytes() for path in (folder / "segments").rglob("*") if path.is_file()}
    old = open_store(folder)
    store, values = annotated(folder)
    check(store, values)
    assert {path: path.read_bytes() for path in (folder / "segments").rglob("*") if path.is_file()} == before
    assert "confidence" not in old.statistics()
    tokens = store.tokens_frame()
    for expression, rows in (
        ('query.kind == "w1"', tokens["kind"] == "w1"),
        ("query.weight == 0.5", tokens["example"] < 3),
        ("example.mood == 7", tokens["example"] == 5),
    ):
        assert store.search(f"{expression} and key.position == 0").rows == int(rows.sum())
    example = store.examples[4]
    assert np.array_equal(example.statistics()["confidence"].values, values[..., 4])
    convert_store(folder, tmp_path / "other", "hdf5")
    check(open_store(tmp_path / "other"), values)
    assert [s.read_listing().container for s in open_store(tmp_path / "other").segments] == ["hdf5", "hdf5"]
    for name, segment in (("a", 1), ("b", 0)):
        convert_store(folder, tmp_path / name, "zarr")
        drop_from_store(tmp_path / name, segments=[segment])
        document = json.loads(max((tmp_path / name).glob("manifest-*.json")).read_bytes())
        assert len(document["overlays"]) == 4
    with pytest.raises(ConfigError, match="made_from"):  # different conversions are different stores
        merge_stores([tmp_path / "a", tmp_path / "other"], tmp_path / "wrong")
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    check(open_store(tmp_path / "merged"), values)
    drop_from_store(folder, examples=[4])
    check(store.refresh(), values, (4,))
    store.close()
    old.close()
    collect_store(folder, grace_s=-1)
    paths = {row.path for entry in store.refresh().manifest.segments for row in (entry, *entry.overlays)}
    assert {f"overlays/{path.name}" for path in (folder / "overlays").iterdir()} == {p for p in paths if p[0] == "o"}
    check(open_store(folder), values, (4,))
    assert "kind" not in remove_annotation(folder, "kind").tokens_frame()
    with pytest.raises(NotFoundError, match="no added column 'kind'"):
        remove_annotation(folder, "kind")


def test_annotations_in_frames(folder: Path) -> None:
    """Missing floats are NaN. An annotation with the name of a column of the frame gets a prefix."""
    store = open_store(folder).annotate("grade", {0: 0.5, 2: -1.0})
    assert np.array_equal(store.example_columns()["grade"].data, [0.5, np.nan, -1, *[np.nan] * 3], equal_nan=True)
    assert np.isnan(store.examples_frame()["grade"].iloc[4])
    assert np.isnan(store.example_columns()["grade"].take(np.array([-1])).data).all()
    table = store.segments[0].tokens()
    table.columns["position"], table.columns["self"] = table.columns["text"], table.columns["piece"]
    frame = table_frame(table, 0)
    assert frame["position"].tolist() == table.position.tolist()
    assert (frame["_position"].tolist(), frame["self"].tolist()) == (table.text, table.piece)


def test_overlays_are_checked(folder: Path) -> None:
    store, values = annotated(folder)
    for wrong, error, match in (
        (lambda: store.annotate("kind", {0: "x"}), ConfigError, "has a column 'kind'"),
        (lambda: store.annotate("upos", {0: "x"}), ConfigError, "from its corpus or capture"),
        (lambda: store.annotate("a b", {0: "x"}), ConfigError, "expressions"),
        (lambda: store.annotate("mixed", {0: "x", 1: 2}), ConfigError, "text and numbers"),
        (lambda: store.annotate("short", {1: [1]}, kind="word"), ShapeError, "one per word"),
        (lambda: store.annotate("position", {0: [1, 2, 3]}, kind="token"), ConfigError, "of every token"),
        (lambda: store.annotate("index", {0: 1}), ConfigError, "of every example"),
        (lambda: store.annotate("lost", {"nobody": 1}), NotFoundError, "nobody"),
        (lambda: store.add_statistic("entropy", values), ConfigError, "from its corpus or capture"),
        (lambda: store.add_statistic("odd", values[:, :, :3]), ShapeError, "layer, head and example"),
    ):
        with pytest.raises(error, match=match):
            wrong()
    assert store.refresh().manifest.number == store.manifest.number
    replaced = store.annotate("kind", {"0-0" if "0-0" in store.example_ids() else 0: -3}, replace=True)
    assert replaced.examples_frame()["kind"].iloc[0] == -3.0
    overlay = open_store(folder).segments[0].overlays["mood"]
    chunk = next(item.path for item in overlay.listing.objects if "/c/" in item.path)
    flip_bit(folder / overlay.entry.path, chunk, 0)
    with pytest.raises(CorruptSegmentError, match="overlay mood"):
        open_store(folder).example_columns()
    (finding,) = verify_store(folder, full=True).findings
    assert finding.object.startswith("overlays/")
    assert (finding.first_example, finding.last_example, finding.overlay) == (0, 2, "mood")


def test_damaged_overlays_are_added_again(folder: Path) -> None:
    """Verify names the command. The same values restore the same bytes, and other overlays do not change."""
    store, values = annotated(folder)
    words = [np.diff(example.tokens().word_offset)[0] for example in store.examples]
    kinds = {e.id: [f"w{i % 2}" for i in range(n)] for e, n in zip(store.examples, words, strict=True) if e.index != 4}
    for name, add in (
        ("kind", lambda: store.annotate("kind", kinds, kind="word", replace=True)),
        ("mood", lambda: store.annotate("mood", {0: 3, 5: 7}, replace=True)),
        ("confidence", lambda: store.add_statistic("confidence", values, unit="bits", replace=True)),
    ):
        victim = folder / open_store(folder).segments[0].overlays[name].entry.path / "segment.zip"
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        result = CliRunner().invoke(verify_app, [str(folder), "--full"])
        assert result.exit_code == 1
        assert "--repair" not in result.output
        assert ("add_statistic" if name == "confidence" else f"--name {name} --replace") in result.output
        add()
        assert verify_store(folder, full=True).is_sound
    check(open_store(folder), values)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_the_command_reads_files(folder: Path, tmp_path: Path, ending: str) -> None:
    store, file = open_store(folder), tmp_path / f"annotations.{ending}"
    lists = {e.id: [i * 2 for i in range(int(np.diff(e.tokens().word_offset)[0]))] for e in store.examples}
    if ending == "jsonl":
        file.write_text("".join(json.dumps({"id": name, "twice": row}) + "\n" for name, row in lists.items()))
    elif ending == "parquet":
        pl.DataFrame({"id": list(lists), "twice": list(lists.values())}).write_parquet(file)
    else:
        rows = [f"{name},{i},{value}" for name, row in lists.items() for i, value in enumerate(row)]
        file.write_text("\n".join(["id,word,twice", *rows]) + "\n")
    outcome = CliRunner().invoke(annotate_app, [str(folder), str(file), "--name", "twice", "--json"])
    assert outcome.exception is None, outcome.exception
    assert json.loads(outcome.stdout)["kind"] == "word"
    result = store.refresh().search(Pattern.parse("query.twice == 2 * query.word and key.position == 0"))
    assert result.rows == int((store.tokens_frame()["word"] >= 0).sum())
    assert "column twice" in CliRunner().invoke(info_app, [str(folder)], env={"COLUMNS": "200"}).stdout


@pytest.mark.parametrize(
    ("ending", "text", "options", "message"),
    [
        ("csv", "id,word,twice\n{id},,1\n", (), "word"),
        ("csv", "id,word,twice\n{id},first,1\n", (), "word"),
        ("jsonl", '{{"id": "{id}", "word": 0, "twice": 1}}\n', ("--kind", "token"), "token"),
    ],
)
def test_tables_that_name_no_word_are_refused(
    folder: Path, tmp_path: Path, ending: str, text: str, options: tuple[str, ...], message: str
) -> None:
    file = tmp_path / f"annotations.{ending}"
    file.write_text(text.format(id=open_store(folder).examples[0].id))
    outcome = CliRunner().invoke(annotate_app, [str(folder), str(file), "--name", "twice", *options])
    assert isinstance(outcome.exception, ConfigError)
    assert message in str(outcome.exception)


def test_conllu_and_stats(folder: Path, tmp_path: Path) -> None:
    store, _ = annotated(folder)
    file, lines = tmp_path / "parsed.conllu", []
    for example in store.examples[1:3]:
        lines.append(f"# sent_id = {example.id}")
        n_words = int(np.diff(example.tokens().word_offset)[0])
        lines += [f"{i + 1}\tw\tw\tX{i}\t_\t_\t{i}\t{'dep' if i else 'root'}\t_\t_" for i in range(n_words)]
        lines.append("")
    file.write_text("\n".join(lines) + "\n")
    outcome = CliRunner().invoke(annotate_app, [str(folder), str(file), "--name", "tag", "--column", "upos"])
    assert outcome.exception is None, outcome.exception
    tokens = store.refresh().tokens_frame(examples=slice(1, 3))
    words = tokens[tokens["word"] >= 0]
    assert words["tag"].tolist() == [f"X{word}" for word in words["word"]]
    output = CliRunner().invoke(stats_app, ["stats", str(folder)], env={"COLUMNS": "200"}).stdout
    assert "confidence (bits). made up" in output
    ranked = CliRunner().invoke(stats_app, ["stats", str(folder), "--statistic", "confidence", "--json"]).stdout
    assert json.loads(ranked)["heads"][0]["head"] == 2


def test_polars_frames(folder: Path) -> None:
    store, _ = annotated(folder)
    for polars, pandas in (
        (store.examples_frame("polars"), store.examples_frame().reset_index()),
        (store.tokens_frame(examples=slice(0, 3), as_="polars"), store.tokens_frame(examples=slice(0, 3))),
    ):
        assert isinstance(polars, pl.DataFrame)
        assert polars.columns == list(pandas.columns)
        for name in pandas:
            values = polars[str(name)].to_list()
            if polars[str(name)].dtype == pl.String:
                assert values == [text if isinstance(text, str) else None for text in pandas[name].tolist()]
            else:
                assert np.array_equal(values, pandas[name].to_numpy(), equal_nan=polars[str(name)].dtype.is_float())
