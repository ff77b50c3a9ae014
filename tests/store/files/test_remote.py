"""A store behind a URL gives the same results as its folder. Faulty servers are refused. Bytes are cached."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import fsspec.config
import h5py
import hdf5plugin  # noqa: F401  registers zstd
import numpy as np
import pytest
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from range_server import RangeServer, serve
from segment_objects import object_of
from traced_corpus import make_site, make_store
from typer.testing import CliRunner

from headatlas.store import open_store
from headatlas.store.commands.info import app
from headatlas.store.commands.search import app as query_app
from headatlas.store.commands.stats import app as stats_app
from headatlas.store.errors import ConfigError, CorruptSegmentError, FormatError, NotFoundError, RemoteError
from headatlas.store.files.manifest_names import LATEST_NAME
from headatlas.store.queries.held_out import check_same_heads
from headatlas.store.store import Store
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.verification import verify_store

PATTERN = "key.position == query.position - 1"


@pytest.fixture
def folder(tmp_path: Path, container: str) -> Path:
    """A small store of three segments, in each container."""
    path = tmp_path / "traces"
    if container == "zarr":
        make_store(path, lengths=((3, 7, 5), (1, 8, 6), (9, 4)))
    else:
        make_store(tmp_path / "first", lengths=((3, 7, 5), (1, 8, 6), (9, 4)))
        convert_store(tmp_path / "first", path, "hdf5")
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with serve(folder) as running:
        yield running


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """Options of a local S3-compatible server with a bucket ``bucket``."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    try:
        yield options
    finally:
        running.stop()


def check_same_results(local: Store, remote: Store) -> None:
    assert remote.example_texts() == local.example_texts()
    assert remote.statistics().identical(local.statistics())
    assert remote.search(PATTERN).table("mass").equals(local.search(PATTERN).table("mass"))
    for number in (1, 7):
        expected, example = local.examples[number], remote.examples[number]
        assert example.attention().identical(expected.attention())
        assert example.edges(1).identical(expected.edges(1))
    assert remote.tokens_frame().equals(local.tokens_frame())


def test_s3_gives_the_same_results(folder: Path, s3: dict[str, Any], container: str, monkeypatch, capsys) -> None:
    """Search, statistics and attention over an S3 server. Prints the number of fetched bytes."""
    url = f"s3://bucket/{container}/traces"
    fsspec.filesystem("s3", **s3).put(str(folder), url, recursive=True)
    store = open_store(url, storage_options=s3)
    check_same_results(open_store(folder), store)
    n_bytes = store.bytes_fetched
    assert 0 < n_bytes < 1.5 * store.bytes_on_disk
    store.search(PATTERN)
    assert store.bytes_fetched == n_bytes  # everything was cached
    copy: Store = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 800
    assert copy.examples[7].attention().identical(store.examples[7].attention())
    assert verify_store(store.source, full=True).is_sound
    plain: Any  # opened by the libraries themselves
    if container == "zarr":
        archive = fsspec.filesystem("s3", **s3).open(f"{url}/segments/000001/segment.zip")
        members = fsspec.filesystem("zip", fo=archive)
        plain = zarr.open_group(
            zarr.storage.FsspecStore(AsyncFileSystemWrapper(members, asynchronous=True), path=""),
            mode="r",
            zarr_format=3,
        )
    else:
        plain = h5py.File(fsspec.filesystem("s3", **s3).open(f"{url}/segments/000001/segment.h5"))
    assert np.array_equal(plain["encoder/attention"][1, 2], store.segments[1].read("encoder/attention", (1, 2)))
    monkeypatch.setitem(fsspec.config.conf, "s3", s3)  # like FSSPEC_S3_ENDPOINT_URL
    info = json.loads(CliRunner().invoke(app, [url, "--json"]).stdout)
    assert info["n_examples"] == 8
    assert 0 < info["bytes_fetched"] < n_bytes
    result = json.loads(CliRunner().invoke(query_app, ["search", url, PATTERN, "--json"]).stdout)
    assert result["bytes_fetched"] > 0
    assert "fetched in" in CliRunner().invoke(stats_app, ["stats", url]).stdout
    with capsys.disabled():
        print(f" {n_bytes:,} of {store.bytes_on_disk:,} bytes in {store.n_requests} requests", end="")


def test_http_gives_the_same_results(folder: Path, server: RangeServer) -> None:
    """Without listings the search for the newest manifest starts at `latest.json`, even if that is outdated."""
    store = open_store(server.url)
    check_same_results(open_store(folder), store)
    assert store.bytes_fetched <= server.sent
    newest = store.manifest.number
    drop_from_store(folder, examples=[-1 + open_store(folder).n_examples])
    (folder / LATEST_NAME).write_bytes(b"{")
    assert open_store(server.url).manifest.number == newest + 1  # searched from 0
    collect_store(folder, grace_s=-1)
    assert open_store(server.url).manifest.number == newest + 1  # 0 was removed; the collection wrote latest.json
    assert verify_store(open_store(server.url).source, full=True).is_sound
    (folder / LATEST_NAME).unlink()
    with pytest.raises(NotFoundError, match=r"latest\.json"):
        open_store(server.url)
    assert open_store(server.url, manifest=newest + 1).n_examples == 8


@pytest.mark.parametrize("container", ["hdf5"])
def test_hdf5_needs_few_requests(folder: Path, server: RangeServer) -> None:
    """One request fetches a segment's metadata, and one its tables. Cached bytes are not requested again."""
    store = open_store(server.url)
    segment = store.segments[0]

    def requests(read: Callable[[], object]) -> int:
        before = server.requested.count("segments/000000/segment.h5")
        read()
        return server.requested.count("segments/000000/segment.h5") - before

    assert requests(lambda: segment.layouts) == 2  # metadata, lengths of the examples
    assert requests(segment.tokens) == 1
    assert requests(lambda: [segment.reader.stored_bytes(path) for path in segment.layouts]) == 0
    assert requests(lambda: segment.read("encoder/attention")) == 1
    assert requests(lambda: segment.read("encoder/attention", 1)) == 0
    small = open_store(server.url, cache_bytes=1).segments[0]  # caches nothing
    assert np.array_equal(small.read("encoder/attention"), segment.read("encoder/attention"))


@pytest.mark.parametrize("container", ["zarr"])
def test_faulty_servers_are_refused(folder: Path, server: RangeServer) -> None:
    errors = {
        "gzip": (FormatError, "compressed"),
        "broken": (RemoteError, "503"),
        "flood": (CorruptSegmentError, "checksum"),
    }
    for mode, (error, match) in errors.items():
        server.mode = mode
        with pytest.raises(error, match=match):
            open_store(server.url, manifest=0)
    server.mode = "ranges"
    store = open_store(server.url)
    server.mode = "whole"
    with pytest.raises(FormatError, match="ignored the range"):
        store.examples[1].attention()
    server.mode = "ranges"
    archive, name = folder / "segments/000000/segment.zip", "encoder/attention/c/0/0/0"
    original, item = archive.read_bytes(), object_of(archive.parent, name)
    for damaged in (original[: item["offset"] + item["bytes"] - 9], None):
        archive.unlink() if damaged is None else archive.write_bytes(damaged)
        with pytest.raises(CorruptSegmentError, match=r"object .*are touched"):
            open_store(server.url).examples[1].attention(0)
        (finding,) = verify_store(open_store(server.url).source).findings
        assert finding.object == "segments/000000/segment.zip"
    archive.write_bytes(original)
    assert open_store(server.url).examples[1].attention(0).size


@pytest.mark.parametrize("container", ["zarr"])
def test_a_missing_snapshot(folder: Path, server: RangeServer) -> None:
    """The error is the same for a URL and a folder, and does not mention damage."""
    for location in (folder, server.url):
        with pytest.raises(NotFoundError, match=r"has no manifest 77; found: .*3"):
            open_store(location, manifest=77)
    assert open_store(server.url, manifest=1).n_examples == 3


@pytest.mark.parametrize("container", ["zarr"])
def test_a_network_failure_is_not_damage(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` reports a network failure, not damaged segments."""
    store = open_store(server.url)
    fetch = store.source.fetch  # type: ignore[attr-defined]

    def fails(ranges):
        if any(item.path.endswith("segment.json") for item in ranges):
            raise RemoteError("the server went away")
        return fetch(ranges)

    monkeypatch.setattr(store.source, "fetch", fails)
    with pytest.raises(RemoteError, match="segment 0: the server went away"):
        verify_store(store.source)


@pytest.mark.parametrize("container", ["zarr"])
def test_other_models_behind_urls(folder: Path, server: RangeServer, tmp_path: Path) -> None:
    make_store(tmp_path / "other", (make_site(n_heads=4, n_kv_heads=4),))
    with serve(tmp_path / "other") as other, pytest.raises(ConfigError, match=r"3 heads; http.*4 heads"):
        check_same_heads(open_store(server.url), open_store(other.url))


@pytest.mark.parametrize("container", ["zarr"])
def test_the_disk_cache_is_keyed_by_hash(folder: Path, server: RangeServer, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    check_same_results(open_store(folder), open_store(server.url, cache_dir=cache_dir))
    again = open_store(server.url, cache_dir=cache_dir)
    n_bytes = again.bytes_fetched
    check_same_results(open_store(folder), again)
    assert again.bytes_fetched == n_bytes  # only latest.json and the manifest were fetched
    for victim in [path for path in cache_dir.glob("??/*") if path.stat().st_size > 2000][:3]:
        victim.write_bytes(victim.read_bytes()[::-1])
    check_same_results(open_store(folder), open_store(server.url, cache_dir=cache_dir))


@pytest.mark.fault("damaged cache file")
@pytest.mark.parametrize("container", ["zarr"])
def test_a_disk_cache_that_is_damaged_or_cannot_be_used(folder: Path, server: RangeServer, tmp_path: Path) -> None:
    """Objects of another kind are replaced. Without a writable folder nothing is cached."""
    cache_dir = tmp_path / "cache"
    open_store(server.url, cache_dir=cache_dir).tokens_frame()
    victims = sorted(cache_dir.glob("??/*"))[:4]
    for victim, make in zip(
        victims, (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), Path.touch), strict=True
    ):
        victim.unlink()
        make(victim)
    check_same_results(open_store(folder), open_store(server.url, cache_dir=cache_dir))
    assert all(hashlib.sha256(victim.read_bytes()).hexdigest() == victim.name for victim in victims)
    (tmp_path / "file").touch()
    check_same_results(open_store(folder), open_store(server.url, cache_dir=tmp_path / "file"))


@pytest.mark.parametrize("container", ["zarr"])
def test_urls(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of memory and files can be read and written to. Unknown protocols cannot be opened."""
    fsspec.filesystem("memory").put(str(folder), "/traces", recursive=True)
    store = open_store("memory://traces")
    check_same_results(open_store(folder), store)
    assert store.name == "traces"
    assert open_store(folder.as_uri()).path == folder
    assert open_store(f"local://{folder}").path == folder
    with pytest.raises(NotFoundError, match="holds no manifest"):
        open_store("memory://nothing")
    assert open_store(Path("memory://traces")).location == store.location  # a Path drops a slash
    with pytest.raises(ConfigError, match="Protocol not known"):
        open_store("nonsense://traces")
    convert_store(folder, "memory://other", "hdf5")
    check_same_results(open_store(folder), open_store("memory://other"))
    assert open_store("memory://other").annotate("mark", {0: 1}).overlays[0].name == "mark"
    assert drop_from_store("memory://other", examples=[0]).examples == (0,)
    assert verify_store("memory://other", full=True).is_sound
    convert_store("memory://traces", tmp_path / "copy", "hdf5")
    check_same_results(open_store(folder), open_store(tmp_path / "copy"))
