"""Hostile stores: each is refused with a clear error in under 1 s and 256 MiB; no code is run, no link is followed.

Each is opened and read whole in a process of its own, which measures itself.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from fault_stores import checked_in_child, fresh, in_child, lean_contents, read_all, write_lean
from forge import Forger, bomb, crc
from hostile_hdf5 import HDF5_FORGERIES
from segment_objects import unpack_store

from headatlas.store.errors import HeadAtlasError
from headatlas.store.store import open_store

MAX_S, MAX_BYTES = 1.0, 256 << 20
QUERY = "decoder/query/zarr.json"
SHARD = "decoder/query/c/0/0/0/0"
ABSENT = 2**64 - 1
Forgery = tuple[Callable[[Forger], Any], str]


def _sharding(document: dict) -> dict:
    return document["codecs"][0]["configuration"]


def _metadata(change: Callable[[dict], Any]) -> Forgery:
    return lambda forger: forger.edit(QUERY, change), r"segment 0: decoder/query: zarr\.json"


def _listing(change: Callable[[Forger], Any], message: str = "segment 0") -> Forgery:
    return change, message


def _manifest(change: Callable[[dict], Any], message: str) -> Forgery:
    return lambda forger: change(forger.head), message


def _sites(**changes: Any) -> Callable[[dict], Any]:
    return lambda head: head["spec"]["sites"][0].update(changes)


def _numbers(*values: int) -> bytes:
    return crc(zstandard.ZstdCompressor().compress(np.array(values, "<i8").tobytes()))


def _codes(value: int) -> bytes:
    return crc(zstandard.ZstdCompressor().compress(np.full(12, value, "<i4").tobytes()))


def _n_chunks(forger: Forger, array: str) -> int:
    """Return the chunks in a shard of an array; 0 if every chunk is a file."""
    document = json.loads(forger.read(f"{array}/zarr.json"))
    if document["codecs"][0]["name"] != "sharding_indexed":
        return 0
    whole = document["chunk_grid"]["configuration"]["chunk_shape"]
    return math.prod(w // c for w, c in zip(whole, _sharding(document)["chunk_shape"], strict=True))


def _table(n_chunks: int, *entries: int) -> bytes:
    """Return an index with these offsets and sizes; the other chunks are absent."""
    return crc(struct.pack(f"<{2 * n_chunks}Q", *(*entries, *[ABSENT] * (2 * n_chunks))[: 2 * n_chunks]))


def _index(*entries: int) -> Callable[[Forger], Any]:
    """Replace the index of the first query shard."""

    def change(forger: Forger) -> None:
        n_chunks = _n_chunks(forger, "decoder/query")
        data = forger.read(SHARD)
        forger.put(SHARD, data[: -(16 * n_chunks + 4)] + _table(n_chunks, *entries))

    return change


def _bomb(name: str, content: int, declared: bool) -> Callable[[Forger], Any]:
    def change(forger: Forger) -> None:
        frame, n_chunks = crc(bomb(content, declared)), _n_chunks(forger, name.partition("/c/")[0])
        forger.put(name, frame + _table(n_chunks, 0, len(frame)) if n_chunks else frame)

    return change


def _linked(name: str) -> Callable[[Forger], Any]:
    """Move a file or folder elsewhere and leave a link instead."""

    def change(forger: Forger) -> None:
        victim, elsewhere = forger.path / name, forger.path.parent / "elsewhere"
        forger.seal()
        shutil.move(victim, elsewhere)
        victim.symlink_to(elsewhere)

    return change


def _unpacked(change: Callable[[Forger], Any]) -> Callable[[Forger], Any]:
    """Change a store of an earlier release, whose objects are files of their own."""

    def unpack_first(forger: Forger) -> None:
        change(Forger(unpack_store(forger.path)))

    return unpack_first


def _special(forger: Forger) -> None:
    archive = forger.document.get("archive")
    victim = forger.folder / (archive or forger.document["objects"][0])["path"]
    victim.unlink()
    os.mkfifo(victim)


_NESTED = json.loads("[" * 900 + "]" * 900)
_DIGEST = "0" * 64

ZARR_FORGERIES: dict[str, Forgery] = {
    "metadata: pickle codec": _metadata(lambda d: _sharding(d)["codecs"].insert(1, {"name": "numcodecs.pickle"})),
    "metadata: unknown codec": _metadata(lambda d: d["codecs"].append({"name": "evil"})),
    "metadata: no checksum": _metadata(lambda d: _sharding(d)["codecs"].pop()),
    "metadata: index without checksum": _metadata(lambda d: _sharding(d)["index_codecs"].pop()),
    "metadata: other fill": _metadata(lambda d: d.update(fill_value=1.0)),
    "metadata: other keys": _metadata(lambda d: d.update(chunk_key_encoding={"name": "v2"})),
    "metadata: zarr v2": _metadata(lambda d: d.update(zarr_format=2)),
    "metadata: other type": _metadata(lambda d: d.update(data_type="float32")),
    "metadata: other shape": _metadata(lambda d: d.update(shape=[2, 2, 10**6, 4])),
    "metadata: negative shape": _metadata(lambda d: d.update(shape=[2, 2, -12, 4])),
    "metadata: shape of NaN": _metadata(lambda d: d.update(shape=[2, 2, float("nan"), 4])),
    "metadata: transformers": _metadata(lambda d: d.update(storage_transformers=[{"name": "x"}])),
    "metadata: huge chunk": _metadata(
        lambda d: (
            _sharding(d).update(chunk_shape=[1, 1, 2**40, 4]),
            d["chunk_grid"]["configuration"].update(chunk_shape=[1, 2, 2**40, 4]),
        )
    ),
    "metadata: zero chunk": _metadata(lambda d: _sharding(d).update(chunk_shape=[1, 1, 0, 4])),
    "metadata: negative chunk": _metadata(lambda d: _sharding(d).update(chunk_shape=[1, 1, -5, 4])),
    "metadata: chunk of text": _metadata(lambda d: _sharding(d).update(chunk_shape=["1", "1", "5", "4"])),
    "metadata: chunk of fractions": _metadata(lambda d: _sharding(d).update(chunk_shape=[1, 1, 5.5, 4])),
    "metadata: chunks that do not divide": _metadata(lambda d: _sharding(d).update(chunk_shape=[1, 1, 5, 4])),
    "metadata: fewer axes": _metadata(lambda d: _sharding(d).update(chunk_shape=[1, 1])),
    "metadata: no codecs": _metadata(lambda d: d.update(codecs=[])),
    "metadata: an array of arrays": _metadata(lambda d: d.update(codecs={"name": "x"})),
    "metadata: nested deep": _metadata(lambda d: d.update(codecs=_NESTED)),
    "metadata: a shard of a trillion chunks": (
        lambda forger: forger.edit(
            QUERY,
            lambda d: (
                d["chunk_grid"]["configuration"].update(chunk_shape=[1, 2, 2**44, 4]),
                _sharding(d).update(chunk_shape=[1, 1, 1, 4]),
            ),
        ),
        "cannot hold an index of|too large|zarr",
    ),
    **{
        f"metadata: {name}": (lambda forger, data=data: forger.put(QUERY, data), r"zarr\.json")
        for name, data in {
            "empty": b"",
            "null": b"null",
            "a hundred thousand lists": b"[" * 100_000,
            "a hundred thousand objects": b'{"a":' * 100_000,
            "no text": b"\xff\xfe",
            "infinite": b"1e999",
            "two documents": b"{}" * 2,
            "a megabyte of digits": b"1" * (1 << 20),
            "a million keys": b"{" + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}",
        }.items()
    },
    "chunk: bomb of 16 MiB in a table": (_bomb("source/token/id/c/0", 1 << 24, True), "a chunk"),
    "chunk: bomb of 256 MiB in a table": (_bomb("source/token/id/c/0", 1 << 28, True), "a chunk"),
    "chunk: undeclared bomb in a table": (_bomb("source/token/id/c/0", 1 << 28, False), "a chunk"),
    "chunk: bomb of 16 MiB in a shard": (_bomb("decoder/attention/c/0/0/0", 1 << 24, True), "a chunk"),
    "chunk: bomb of 256 MiB in a shard": (_bomb("decoder/attention/c/0/0/0", 1 << 28, True), "a chunk"),
    "chunk: undeclared bomb in a shard": (_bomb("decoder/attention/c/0/0/0", 1 << 28, False), "a chunk"),
    "chunk: two frames": (
        lambda forger: forger.put(
            "source/token/id/c/0",
            crc(b"".join(zstandard.ZstdCompressor().compress(bytes(n)) for n in (48, 1 << 24))),
        ),
        "not one frame",
    ),
    "index: a chunk is absent": (_index(ABSENT, ABSENT, ABSENT, ABSENT), "missing"),
    "index: far outside": (_index(2**63, 100, 0, 100), "outside"),
    "index: too long": (_index(0, 2**62, 0, 100), "too long"),
    "index: wrapped around": (_index(2**64 - 50, 100, 0, 100), "outside"),
    "index: into another chunk": (_index(1, 100, 0, 100), "checksum|missing"),
    "index: of nothing": (_index(0, 0, 0, 0), "checksum|missing"),
    "index: of three bytes": (_index(0, 3, 0, 100), "checksum|missing"),
    "shard: empty": (lambda forger: forger.put(SHARD, b""), "cannot hold an index"),
    "shard: only an index": (
        lambda forger: forger.put(SHARD, _table(_n_chunks(forger, "decoder/query"), 0, 100)),
        "outside|long|checksum",
    ),
    "table: falling offsets": (
        lambda forger: forger.put("example/text_offset/c/0", _numbers(0, 9, 3, 1)),
        "does not rise",
    ),
    "table: negative offsets": (
        lambda forger: forger.put("example/text_offset/c/0", _numbers(-9, -3, -1, 0)),
        "does not rise",
    ),
    "table: offsets past the end": (
        lambda forger: forger.put("example/text_offset/c/0", _numbers(0, 1, 2, 10**12)),
        "does not rise",
    ),
    "table: tokens past the end": (
        lambda forger: forger.put("source/token_offset/c/0", _numbers(0, 1, 2, 99)),
        "does not rise",
    ),
    "table: codes outside": (lambda forger: forger.put("source/token/column/text/code/c/0", _codes(99)), "outside the"),
    "table: negative codes": (
        lambda forger: forger.put("source/token/column/text/code/c/0", _codes(-2)),
        "outside the",
    ),
    "table: text that is not UTF-8": (
        lambda forger: forger.put(
            "example/id/c/0", crc(zstandard.ZstdCompressor().compress(b"\xff" * forger.array("example/id")["shape"][0]))
        ),
        "not UTF-8",
    ),
    "link: to an archive": (_linked("segments/000000/segment.zip"), "is a link"),
    "link: to a file": (_unpacked(_linked(f"segments/000000/{SHARD}")), "is a link"),
    "link: to a folder of an array": (_unpacked(_linked("segments/000000/decoder/query")), "is a link or a file"),
    "link: to a folder of a site": (_unpacked(_linked("segments/000000/decoder")), "is a link or a file"),
    "archive: another file": _listing(
        lambda f: f.document["archive"].update(path="../../secret.zip"), "is not allowed"
    ),
    "archive: another name": _listing(lambda f: f.document["archive"].update(path="segment.h5"), "expected an archive"),
    "archive: none": _listing(lambda f: f.document.pop("archive"), "no archive"),
    "archive: an object of its own": _listing(lambda f: f.object(SHARD).pop("offset"), "an offset for each object"),
    "archive: objects overlap": _listing(
        lambda f: f.object(SHARD).update(offset=f.object(QUERY)["offset"]), "overlap in the archive"
    ),
    "archive: an object before it": _listing(lambda f: f.object(SHARD).update(offset=-1), "offset"),
    "archive: an object after it": _listing(lambda f: f.object(SHARD).update(offset=2**40), "ends after the archive"),
    "archive: a petabyte": _listing(lambda f: f.document["archive"].update(bytes=2**50), "expected 1125899906842624"),
    "listing: a shard is not listed": _listing(lambda f: f.document["objects"].remove(f.object(SHARD)), "not listed"),
    "listing: metadata is not listed": _listing(lambda f: f.document["objects"].remove(f.object(QUERY)), "not listed"),
}

FORGERIES: dict[str, Forgery] = {
    **{
        f"path: {name!r:.20}": _listing(
            lambda f, name=name: f.document["objects"].append({"path": name, "bytes": 1, "sha256": _DIGEST}),
            r"segment 0: segment\.json.*is not allowed",
        )
        for name in (
            "../../../etc/passwd",
            "/etc/passwd",
            "a/../b",
            "a//b",
            ".hidden",
            "a\\b",
            "a/./b",
            "a\0b",
            "x" * 600,
            "",
            "é",
        )
    },
    "listing: array of 2^62": _listing(lambda f: f.array("source/token/id").update(shape=[2**62])),
    "listing: query of 2^40": _listing(lambda f: f.array("decoder/query").update(shape=[2, 2, 2**40, 4])),
    "listing: a negative shape": _listing(lambda f: f.array("decoder/query").update(shape=[2, 2, -12, 4])),
    "listing: a shape of text": _listing(lambda f: f.array("source/token/id").update(shape="12")),
    "listing: object type": _listing(lambda f: f.document["arrays"][0].update(dtype="object")),
    "listing: other type": _listing(lambda f: f.array("decoder/query").update(dtype="float64")),
    "listing: ten axes": _listing(lambda f: f.document["arrays"][0].update(shape=[1] * 10, axes=["a"] * 10)),
    "listing: no axes": _listing(lambda f: f.document["arrays"][0].update(shape=[], axes=[])),
    "listing: fewer names than axes": _listing(
        lambda f: f.array("source/token/id").update(axes=[]), "one name for each axis"
    ),
    "listing: listed twice": _listing(lambda f: f.document["objects"].append(f.document["objects"][0])),
    "listing: array listed twice": _listing(lambda f: f.document["arrays"].append(f.document["arrays"][0])),
    "listing: nothing": _listing(lambda f: f.document["objects"].clear()),
    "listing: array gone": _listing(lambda f: f.document["arrays"].remove(f.array("decoder/query"))),
    "listing: newer": _listing(lambda f: f.document.update(format_version=999)),
    "listing: other segment": _listing(lambda f: f.document.update(index=1)),
    "listing: other tokens": _listing(lambda f: f.document.update(n_tokens={"source": 3})),
    "listing: unknown key": _listing(lambda f: f.document.update(run="this")),
    "listing: negative size": _listing(lambda f: f.document["objects"][0].update(bytes=-1)),
    "listing: size of a petabyte": _listing(lambda f: f.document["objects"][0].update(bytes=2**50)),
    "listing: size of NaN": _listing(lambda f: f.document["objects"][0].update(bytes=float("nan"))),
    "listing: size beyond 2^53": _listing(lambda f: f.document["objects"][0].update(bytes=2**60)),
    "listing: no hash": _listing(lambda f: f.document["objects"][0].update(sha256="x")),
    "listing: nested deep": _listing(lambda f: f.document.update(n_tokens=_NESTED)),
    "listing: unknown container": _listing(
        lambda f: f.document.update(container="pickle"), "unknown container 'pickle'"
    ),
    "listing: no document": (lambda f: f.seal(listing=b"[" * 100_000), "segment 0"),
    "listing: empty": (lambda f: f.seal(listing=b""), "segment 0"),
    "manifest: newer": _manifest(
        lambda m: m.update(format_version=999, surprise=1), "version 999; this headatlas reads"
    ),
    "manifest: another format": _manifest(lambda m: m.update(format="parquet"), "format 'parquet'"),
    "manifest: unknown key": _manifest(lambda m: m.update(run="this"), "run: "),
    "manifest: path": _manifest(lambda m: m["segments"][0].update(path="../secret"), "expected 'segments/000000'"),
    "manifest: absolute path": _manifest(lambda m: m["segments"][0].update(path="/etc"), "expected 'segments/000000'"),
    "manifest: overlap": _manifest(lambda m: m["segments"][1].update(first_example=1), "overlaps"),
    "manifest: twice": _manifest(lambda m: m["segments"].append(m["segments"][0]), "out of order"),
    "manifest: negative index": _manifest(lambda m: m["segments"][0].update(index=-1), "index"),
    "manifest: negative examples": _manifest(lambda m: m["segments"][0].update(n_examples=-4), "n_examples"),
    "manifest: 2^62 examples": _manifest(lambda m: m["segments"][2].update(n_examples=2**62), ""),
    "manifest: examples of NaN": _manifest(lambda m: m["segments"][0].update(n_examples=float("nan")), ""),
    "manifest: 2^62 tokens": _manifest(lambda m: m["segments"][0].update(n_tokens={"source": 2**62}), ""),
    "manifest: 2^64 bytes": _manifest(lambda m: m["segments"][0].update(data_bytes=2**64), "data_bytes"),
    "manifest: no site": _manifest(lambda m: m["spec"].update(sites=[]), "expected at least one"),
    "manifest: renamed": _manifest(lambda m: m.update(number=2), "renamed"),
    "manifest: zero heads": _manifest(_sites(n_heads=0), "n_heads"),
    "manifest: 2^40 heads": _manifest(_sites(n_heads=2**40), "is listed as"),
    "manifest: a million heads": _manifest(_sites(n_heads=10**6), "is listed as"),
    "manifest: 2^62 layers": _manifest(_sites(n_layers=2**62), ""),
    "manifest: unknown codec": _manifest(lambda m: m["spec"]["keep"].update(attention="pickle"), "attention"),
    "manifest: a thousand edges": _manifest(lambda m: m["spec"]["keep"].update(edges=1000), "edges"),
    "manifest: site of another name": _manifest(_sites(name="../x"), "name"),
    "manifest: nested deep": _manifest(lambda m: m["spec"].update(sites=_NESTED), ""),
    "manifest: no segments but text": _manifest(lambda m: m.update(segments="all"), "segments"),
    "manifest: lists without end": (lambda f: f.seal(manifest=b"[" * 100_000), "manifest-000003"),
    "manifest: a number without end": (
        lambda f: f.seal(manifest=b'"number":' + b"9" * 100_000 + b"}"),
        "manifest-000003",
    ),
    "link: in place of the segment": (_linked("segments/000000"), "is a link or a file"),
    "link: in place of the segments": (_linked("segments"), "is a link or a file"),
    "link: in place of the manifest": (_linked("manifest-000003.json"), "cannot be opened"),
    "a pipe in place of a file": (_special, "is a link or a special file"),
}
"""Forgeries for both containers, each with a regular expression for its error."""


def run(folder: Path, container: str) -> dict[str, tuple[int, list[str]]]:
    """Return every forgery for a container."""
    template, path, violations = folder / "template", folder / "traces", []
    in_child(lambda: write_lean(template, lean_contents(), container))
    own = ZARR_FORGERIES if container == "zarr" else HDF5_FORGERIES
    checked_in_child(violations, "the untouched store", lambda: _untouched(template))
    for name, (change, message) in {**FORGERIES, **own}.items():
        shutil.rmtree(fresh(path).parent / "elsewhere", ignore_errors=True)
        (path.parent / "elsewhere").unlink(missing_ok=True)
        shutil.copytree(template, path)
        in_child(lambda change=change: _forge(path, change))
        checked_in_child(violations, name, lambda message=message: _is_refused(path, message))
    return {f"hostile store ({container})": (len(FORGERIES) + len(own), violations)}


def _forge(path: Path, change: Callable[[Forger], Any]) -> None:
    forger = Forger(path)
    before = forger.manifest.read_bytes()
    change(forger)
    moved = (forger.manifest, forger.folder, forger.path / "segments")  # a forgery of these seals itself
    if not any(path_of_file.is_symlink() for path_of_file in moved) and forger.manifest.read_bytes() == before:
        forger.seal()


def _untouched(path: Path) -> None:
    """Check that the store is read if nothing is forged; otherwise a refusal would prove nothing."""
    forger = Forger(path)
    if "archive" in forger.document:
        forger.edit(QUERY, lambda document: None)
    forger.seal()
    assert len(read_all(open_store(path))) > 30


def _is_refused(path: Path, message: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    cpu = time.process_time()
    room = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (8 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    try:
        store = open_store(path)
        read_all(store)
        store.statistics()
        for example in store.examples:
            example.attention(0, 0), example.edges(0)
    except HeadAtlasError as error:
        text = str(error)
    else:
        raise AssertionError("it was read")
    took, grew = time.process_time() - cpu, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert took < MAX_S, f"it took {took:.1f} s (of {time.monotonic() - start:.1f})"
    assert grew < MAX_BYTES, f"it took {grew >> 20} MiB"
    assert re.search(message, text, re.DOTALL), f"it was refused with another message: {text[:300]}"
    assert len(text) < 3000, "the message is as long as a page"
