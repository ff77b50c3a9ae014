"""Tables with right hashes that no writer makes: each is refused by an error of headatlas, quickly and in little memory."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_builder import Content, make_contents, make_site, make_spec, write_store

from headatlas.store import Store, open_store
from headatlas.store.codecs.array_layout import ArrayLayout, SegmentArray
from headatlas.store.errors import FormatError, HeadAtlasError, ShapeError
from headatlas.store.files.containers.container import ArrayEntry
from headatlas.store.files.containers.formats import container_of
from headatlas.store.files.manifest import manifest_name
from headatlas.store.reading.stored_edges import read_edges
from headatlas.store.schema.token_table import Column
from headatlas.store.schema.traces import Keep
from headatlas.store.writing.segment_contents import segment_contents
from headatlas.store.writing.verification import verify_store

MAX_S, MAX_BYTES = 1.0, 96 << 20
HUGE = 2**31 - 1
TARGET = {"query_sequence": "target"}
SPEC = make_spec(
    Keep(attention="sqrt8", query_key=None, edges=None),
    (make_site("encoder", causal=False), make_site("cross", causal=False, **TARGET)),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Stores of two sequences with second texts, columns of each kind, and an overlay of each kind."""
    paths: dict[str, Path] = {}

    def make(container: str) -> Path:
        if container not in paths:
            path = tmp_path_factory.mktemp("hostile") / "traces"
            parts = make_contents(SPEC, seed=1, n_segments=1)
            write_store(path, parts, container=container)
            store = open_store(path)
            store.annotate("note", {0: "a", 2: "b"})
            store.annotate("grade", {e.index: [0.5] * len(e.tokens("target")) for e in store.examples}, kind="token",
                           sequence="target")  # fmt: skip
            words = {e.index: ["w"] * int(np.diff(e.tokens().word_offset)[0]) for e in store.examples}
            store.annotate("tag", words, kind="word")
            store.add_statistic("mine", np.ones((2, 4, 4), np.float32))
            paths[container] = path
        return paths[container]

    return make


Change = Callable[[ArrayLayout, np.ndarray], tuple[tuple[str, ...], np.ndarray] | None]


def _put(index: int, value: int) -> Change:
    def change(layout: ArrayLayout, data: np.ndarray) -> tuple[tuple[str, ...], np.ndarray] | None:
        if (
            not data.size
            or layout.dtype.kind == "f"
            or not np.iinfo(layout.dtype).min <= value <= np.iinfo(layout.dtype).max
        ):
            return None
        data = data.copy()
        data.flat[index] = value
        return layout.axes, data

    return change


def _typed(dtype: str) -> Change:
    return lambda layout, data: None if layout.dtype == dtype else (layout.axes, data.astype(dtype))


LAYOUT_CHANGES: dict[str, Change] = {
    "two axes": lambda layout, data: ((*layout.axes, "x"), data[..., None]),
    "another axis": lambda layout, data: (("x", *layout.axes[1:]), data),
    "floats": _typed("float32"),
    "half": _typed("float16"),
    "uint32": _typed("uint32"),
    "int64": _typed("int64"),
    "one entry more": lambda layout, data: (
        (layout.axes, np.concatenate([data, data[-1:]], axis=0)) if len(data) else None
    ),
    "one entry less": lambda layout, data: (layout.axes, data[:-1]) if len(data) else None,
    "no entry": lambda layout, data: (layout.axes, data[:0]) if len(data) else None,
    "many entries": lambda layout, data: (layout.axes, np.zeros((1 << 22, *data.shape[1:]), data.dtype)),
}
VALUE_CHANGES: dict[str, dict[str, Change]] = {
    "_offset": {
        "negative": _put(0, -1),
        "not from 0": _put(0, 1),
        "descending": _put(1, HUGE),
        "huge end": _put(-1, 2**62),
        "smallest": _put(1, -(2**63)),
    },
    "/code": {"too high": _put(0, 1000), "highest": _put(0, HUGE), "below missing": _put(0, -2)},
    "token/word": {"highest": _put(2, HUGE), "a thousand": _put(2, 1000), "below missing": _put(2, -2)},
}


def forge(path: Path, array: str, change: Change) -> bool:
    """Change an array of segment 0 or of its overlay, with right hashes everywhere. False if it cannot be changed."""
    store = open_store(path)
    segment = store.segments[0]
    overlay = next((row for row in segment.overlays.values() if array in row.layouts), None)
    owner = segment if overlay is None else overlay
    reader, layouts, entry = owner.reader, dict(owner.layouts), owner.entry
    listing, folder = owner.listing, path / entry.path
    contents = {
        name: SegmentArray(layout, reader.read(name, tuple(slice(0, n) for n in layout.shape)))
        for name, layout in layouts.items()
    }
    changed = change(layouts[array], contents[array].data)
    store.close()
    if changed is None:
        return False
    axes, data = changed
    contents[array] = SegmentArray(ArrayLayout(array, data.shape, data.dtype, axes), data)
    shutil.rmtree(folder)
    folder.mkdir()
    with ThreadPoolExecutor(1) as pool:
        files = container_of(listing.container).write(folder, contents, pool)
    new_listing = listing.model_copy(
        update={
            "arrays": tuple(ArrayEntry.of(item.layout) for item in contents.values()),
            "objects": tuple(sorted(files.objects, key=lambda item: item.path)),
            "archive": files.archive,
        }
    )
    document = new_listing.to_bytes()
    (folder / "segment.json").write_bytes(document)
    sha256 = hashlib.sha256(document).hexdigest()
    new = {"bytes": len(document), "sha256": sha256, "data_bytes": new_listing.data_bytes}
    manifest = path / manifest_name(store.manifest.number)
    head = json.loads(manifest.read_bytes())
    del head["checksum"]
    row = head["segments"][0]
    if overlay is not None:
        row = next(item for item in row["overlays"] if item["name"] == overlay.entry.name)
        new["path"] = f"{entry.path[:-16]}{sha256[:16]}"
        folder.rename(path / new["path"])
    row |= new
    body = b"," + json.dumps(head).encode()[1:]
    manifest.write_bytes(b'{"checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"' + body)
    return True


def use(store: Store) -> None:
    """Use the tables in every way that a command does."""
    store.example_ids(), store.example_texts(), store.example_columns(), store.examples_frame(), store.statistics()
    for sequence in store.spec.sequences:
        store.tokens_frame(sequence)
    example = store.examples[2]
    example.text_pair, example.target_text, example.word_attention()
    store.search("key.word == query.word")
    store.search('query.upos == "NOUN" and key.position == 0', words="mean")
    store.similar(n_examples=4)


def check_refused(path: Path, case: str, *, in_use_only: bool = False) -> None:
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        use(open_store(path))
    except HeadAtlasError as error:
        message = str(error)
    else:
        raise AssertionError(f"{case}: it was read")
    assert len(message) < 1000, case
    assert verify_store(path, full=True).findings or in_use_only, case
    assert time.process_time() - start < MAX_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MAX_BYTES


def test_the_untouched_store_is_read(template: Callable[[str], Path], container: str, tmp_path: Path) -> None:
    """Also if it is forged without a change; otherwise a refusal would prove nothing."""
    path = Path(shutil.copytree(template(container), tmp_path / "traces"))
    for array in ("source/token/word", "example/column/note/code"):
        assert forge(path, array, lambda layout, data: (layout.axes, data))
    use(open_store(path))
    assert verify_store(path).is_sound


@pytest.mark.fault("hostile table")
def test_arrays_of_another_layout(template: Callable[[str], Path], container: str, tmp_path: Path) -> None:
    """Every array of tables and overlays, with another type, rank, axis or length."""
    store = open_store(template(container))
    segment = store.segments[0]
    sites = {site.name for site in store.spec.sites}
    arrays = [path for path in segment.layouts if path.partition("/")[0] not in sites]
    arrays += [path for overlay in segment.overlays.values() for path in overlay.layouts]
    assert len(arrays) > 50
    arrays = arrays[(container == "zarr") :: 2]
    n_cases, names = 0, list(LAYOUT_CHANGES)
    for number, array in enumerate(arrays):
        name = names[number % len(names)]  # one change for each array
        path = Path(shutil.copytree(template(container), tmp_path / "traces"))
        if not _is_valid(array, name) and forge(path, array, LAYOUT_CHANGES[name]):
            check_refused(path, f"{array}, {name}")
            n_cases += 1
        shutil.rmtree(path)
    assert n_cases > 25


def _is_valid(array: str, change: str) -> bool:
    """Return True if a writer can make the changed array: numbers of another type, or one more (empty) text."""
    kind = array.rpartition("/")[2]
    return (kind, change) in (("number", "floats"), ("number", "int64"), ("value_offset", "one entry more"))


@pytest.mark.fault("hostile table")
def test_values_outside_their_range(template: Callable[[str], Path], container: str, tmp_path: Path) -> None:
    """Offsets, codes and word numbers."""
    segment = open_store(template(container)).segments[0]
    arrays = [*segment.layouts, *(path for overlay in segment.overlays.values() for path in overlay.layouts)]
    n_cases = 0
    for number, array in enumerate(arrays):
        for ending, changes in VALUE_CHANGES.items():
            if array.endswith(ending):
                name = list(changes)[number % len(changes)]
                path = Path(shutil.copytree(template(container), tmp_path / "traces"))
                if forge(path, array, changes[name]):
                    check_refused(path, f"{array}, {name}")
                    n_cases += 1
                shutil.rmtree(path)
    assert n_cases > 15


@pytest.mark.fault("hostile table")
def test_a_word_that_the_example_does_not_have(template: Callable[[str], Path], container: str, tmp_path: Path) -> None:
    """One past the last word would be a word of the next example."""
    for sequence in ("source", "target"):
        path = Path(shutil.copytree(template(container), tmp_path / "traces"))
        table = open_store(path).segments[0].tokens(sequence)
        token, n_words = int(table.token_offset[3]) - 1, int(np.diff(table.word_offset)[2])
        assert forge(path, f"{sequence}/token/word", _put(token, n_words))
        check_refused(path, sequence, in_use_only=True)
        with pytest.raises(FormatError, match=rf"token {token} belongs to word {n_words} of an example with {n_words}"):
            open_store(path).tokens_frame(sequence)
        shutil.rmtree(path)


def test_a_writer_refuses_what_a_reader_would(contents: list[Content]) -> None:
    part = contents[0]
    tokens = part.tables.tokens["source"]
    wrong = {
        "word": replace(tokens, word=np.where(np.arange(len(tokens)) == 3, 50, tokens.word).astype(np.int32)),
        "does not rise": replace(tokens, word_offset=tokens.word_offset[::-1].copy()),
        "source/token/column/text/code has": replace(tokens, columns=tokens.columns | {"text": Column.of_text(["a"])}),
    }
    for message, table in wrong.items():
        tables = replace(part.tables, tokens={"source": table})
        with pytest.raises(ShapeError, match=message):
            segment_contents(part.spec, tables, part.arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_edges_that_are_no_weights(store_path: Path, value: float) -> None:
    """Loops treat NaN in different ways, so no search sees one."""

    def change(layout: ArrayLayout, data: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        data = data.copy()
        data[1, 2, 3, 0] = value
        return layout.axes, data

    assert forge(store_path, "decoder/edge_weight", change)
    segment = open_store(store_path).segments[0]
    for last in (3, 9):  # a part of a layer, and a whole one
        with pytest.raises(FormatError, match=r"segment 0: edge_weight of layer 1 holds a value that is not finite"):
            read_edges(segment, segment.spec.site("decoder"), 1, 3, last)
        assert np.isfinite(read_edges(segment, segment.spec.site("decoder"), 0, 3, last).weight).all()
