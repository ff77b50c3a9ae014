"""Instruments of the benchmarks: inputs, rotation, ratios, the file of a report."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmarks import __main__ as all_benchmarks
from benchmarks import (
    capture,
    capture_cases,
    capture_device,
    codecs,
    reads,
    search,
    search_growth,
    similar,
    viewer_stores,
)
from benchmarks.capture_cases import KEEPS
from benchmarks.inputs import MissingInputError, content_key
from benchmarks.interleave import Mode, Timing, interleave, rotated, speed_ratio
from benchmarks.report import Row, report
from benchmarks.search import PATTERNS
from benchmarks.search_loop import PaddedFiles, loop_seconds
from headatlas.store import open_store
from headatlas.store.queries.pattern_search import search as search_patterns


def test_modes_take_turns_and_the_first_place_rotates() -> None:
    calls = []
    modes = {
        name: Mode(
            step=lambda item, name=name: calls.append((name, item)),
            prepare=lambda name=name: calls.append((name, "prepare")),
            finish=lambda name=name: calls.append((name, "finish")),
        )
        for name in "ab"
    }
    timings = interleave(modes, [1, 2], repeats=2)
    warm_up = [(name, what) for name in "ab" for what in ("prepare", 1, "finish")]
    assert calls[:6] == warm_up
    first = [
        ("a", "prepare"),
        ("b", "prepare"),
        ("a", 1),
        ("b", 1),
        ("b", 2),
        ("a", 2),
        ("a", "finish"),
        ("b", "finish"),
    ]
    second = [
        ("a", "prepare"),
        ("b", "prepare"),
        ("b", 1),
        ("a", 1),
        ("a", 2),
        ("b", 2),
        ("b", "finish"),
        ("a", "finish"),
    ]
    assert calls[6:] == first + second
    assert {name: len(timing.cpu_s) for name, timing in timings.items()} == {"a": 2, "b": 2}


def test_work_is_charged_to_the_mode_that_did_it() -> None:
    modes = {"loop": Mode(lambda n: sum(range(n))), "nothing": Mode(lambda n: None)}
    timings = interleave(modes, [200_000] * 3, repeats=2)
    assert min(timings["loop"].cpu_s) > max(timings["nothing"].cpu_s)
    assert speed_ratio(timings, "loop", beside="nothing").median < 1


def test_ratios_compare_repeats_pair_by_pair() -> None:
    timings = {"plain": Timing([1.0, 2.0, 4.0], [9.0] * 3), "ours": Timing([2.0, 2.5, 5.0], [3.0] * 3)}
    ratio = speed_ratio(timings, "ours", beside="plain")
    assert (ratio.median, ratio.spread) == (0.8, (0.5, 0.8))
    assert speed_ratio(timings, "ours", beside="plain", clock="wall").median == 3.0


def test_what_covers_a_line_twice_counts_once() -> None:
    assert capture_device.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert capture_device.covered([]) == 0


def test_the_benchmark_of_a_gpu_measures_every_way(monkeypatch) -> None:
    rows_by_name = {}
    monkeypatch.setattr(
        capture_device, "keep_rows", lambda rows, name: rows_by_name.update({row.name: row for row in rows})
    )
    capture_device.main(["--device", "cpu", "--small", "--models", "Llama-3-8B", "--lengths", "32", "--repeats", "1"])
    ways = [f"{keep}{how}" for keep in KEEPS for how in ("", ", not written")]
    assert set(rows_by_name) == {f"{way} · Llama-3-8B · 32 · cpu" for way in (*ways, "plain")}
    assert all(row.value > 0 for row in rows_by_name.values())
    assert rows_by_name["plain · Llama-3-8B · 32 · cpu"].unit == "s"
    assert "2 generated texts, 64 tokens" in (rows_by_name["everything · Llama-3-8B · 32 · cpu"].compared_with or "")


@pytest.mark.parametrize("folder", ["empty", "missing"])
@pytest.mark.parametrize(
    ("run", "way_out"),
    [
        (lambda folder: capture.main(["--parts", "naive"]), "."),
        (lambda folder: codecs.main(), "."),
        (lambda folder: reads.make_store(folder / "store"), ", or HEADATLAS_BENCH_STORE to a store."),
        (lambda folder: search.make_store(), ", or HEADATLAS_BENCH_SEARCH_STORE to a store."),
    ],
)
def test_a_benchmark_without_its_treebank_stops_and_says_what_to_provide(
    tmp_path, monkeypatch, folder, run, way_out
) -> None:
    data = tmp_path / folder
    if folder == "empty":
        data.mkdir()
    monkeypatch.setenv("HEADATLAS_DATA", str(data))
    with pytest.raises(MissingInputError) as stopped:
        run(tmp_path)
    message = str(stopped.value)
    assert message.startswith(f"{data}/ud-english-ewt/en_ewt-ud-")
    assert "Set HEADATLAS_DATA to the folder that holds ud-english-ewt/en_ewt-ud-" in message
    assert message.endswith(way_out)
    assert list(tmp_path.rglob("*")) == ([data] if folder == "empty" else [])


def test_a_benchmark_without_its_input_does_not_keep_the_others_from_running(monkeypatch, capsys) -> None:
    measured = []

    def lacks_input() -> None:
        raise MissingInputError("no treebank")

    benchmarks = {"first": lacks_input, "second": lambda: measured.append("second")}
    monkeypatch.setattr(all_benchmarks, "find_benchmarks", lambda: benchmarks)
    with pytest.raises(SystemExit, match="Not measured, for lack of input: first"):
        all_benchmarks.run([])
    assert measured == ["second"]
    assert "first: no treebank" in capsys.readouterr().err
    all_benchmarks.run(["second"])


def test_texts_of_another_length_are_refused(tmp_path) -> None:
    text = "word\n" * 500  # one document a line
    with pytest.raises(ValueError, match=r"MiniLM · 64: the texts have \[.*\] tokens; 64 were expected"):
        capture_cases.open_case("MiniLM", "64", tmp_path, 2, text=text).__enter__()


def test_what_is_kept_is_named_after_its_content(tmp_path, monkeypatch) -> None:
    assert content_key(b"ab", b"c") != content_key(b"a", b"bc")
    assert content_key(b"ab", b"c") == content_key(b"ab", b"c")
    key = viewer_stores.store_key()
    assert viewer_stores.store_key() == key
    monkeypatch.setattr(viewer_stores, "LENGTHS", (16,))
    assert viewer_stores.store_key() != key


def test_the_search_store_is_named_after_its_sentences(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HEADATLAS_DATA", str(tmp_path))
    monkeypatch.setattr(search, "FOLDER", tmp_path / "bench")
    paths = []
    monkeypatch.setattr("headatlas.pipeline.job.job_runner.run_job", lambda config: paths.append(config.corpus.path))
    packed = tmp_path / "ud-english-ewt" / "en_ewt-ud-train.conllu.gz"
    packed.parent.mkdir()
    stores = []
    for sentences in (b"1\tone\n", b"1\tother\n", b"1\tone\n"):
        packed.write_bytes(gzip.compress(sentences))
        stores.append(search.make_store())
        assert paths[-1].read_bytes() == sentences
    assert stores[0] == stores[2] != stores[1]
    assert all(store.parent == path.parent for store, path in zip(stores, paths, strict=True))


@pytest.mark.parametrize("by", [0, 1, 2, 3, 7])
def test_rotation_keeps_every_name_once(by) -> None:
    assert sorted(rotated("abc", by)) == ["a", "b", "c"]
    assert rotated("abc", by)[0] == "abc"[by % 3]


@pytest.mark.parametrize(("items", "repeats"), [([], 1), ([1], 0)])
def test_nothing_to_measure_is_refused(items, repeats) -> None:
    with pytest.raises(ValueError, match="there must be one of each"):
        interleave({"a": Mode(lambda item: None)}, items, repeats)


def test_a_report_is_printed_and_kept(tmp_path, capsys) -> None:
    rows = [Row("everything · MiniLM · short", 0.75, "×", (0.73, 0.77), "plain SDPA forward"), Row("bytes", 18.0, "MB")]
    path = report("capture", rows, tmp_path)
    assert path == tmp_path / "capture.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["rows"] == [
        {"name": "everything · MiniLM · short", "value": 0.75, "unit": "×", "spread": [0.73, 0.77],
         "compared_with": "plain SDPA forward"},
        {"name": "bytes", "value": 18.0, "unit": "MB", "spread": None, "compared_with": None},
    ]  # fmt: skip
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["versions"]["numpy"]
    assert "0.73 – 0.77" in capsys.readouterr().out


def test_a_spread_holds_its_value_and_a_name_is_a_file_name(tmp_path) -> None:
    with pytest.raises(ValueError, match="outside its spread"):
        Row("x", 2.0, "s", (0.0, 1.0))
    with pytest.raises(ValueError, match="names a file"):
        report("../x", [], tmp_path)


def test_the_loop_over_padded_files_sums_what_a_search_does(tmp_path) -> None:
    search_growth.write_random(tmp_path / "store", 150)
    store = open_store(tmp_path / "store")
    files = PaddedFiles.write(store, tmp_path)
    assert (len(files.sampled), files.n_files) == (3, 3)
    for pattern in PATTERNS[:2]:
        loop_seconds(files, pattern, search_patterns(store, pattern, basis="exact"))  # compares
    with pytest.raises(AssertionError, match="differ"):
        loop_seconds(files, PATTERNS[0], search_patterns(store, PATTERNS[1], basis="exact"))


def test_similar_heads_are_measured_sampled_exact_and_beside_a_loop(tmp_path) -> None:
    similar.write_random(tmp_path / "store", 2, 12)
    rows = {row.name: row for row in similar.measure(open_store(tmp_path / "store"))}
    assert rows["difference of exact from the loop, a row"].value < 1e-5
    assert rows["error that the sample states"].value > 0
    assert rows["one head · sample · speed"].value > rows["every pair · exact · speed"].value


def test_every_kind_of_question_is_asked_of_each_size(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search_growth, "SIZES", (20, 40))
    rows = search_growth.growth_rows(tmp_path)
    assert len(rows) == 10
    assert rows[-1].name == "token pair · 40 examples"
    assert list(tmp_path.iterdir()) == []
