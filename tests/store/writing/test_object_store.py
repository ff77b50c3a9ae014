"""Stores that are written to an S3-compatible server: the bytes of a folder, one writer a number, faults, collection."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from object_server import options_of, run_proxy, run_server
from store_builder import make_contents, make_spec, open_writer, segment_bytes, write_store

from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.files.remote import remote_target
from headatlas.store.files.remote.remote_target import RemoteTarget
from headatlas.store.schema.traces import Keep
from headatlas.store.store import open_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.targets import BucketTarget, open_target
from headatlas.store.writing.verification import verify_store

slow = pytest.mark.slow
CONTENTS = make_contents(make_spec(Keep(edges=3)), n_segments=3, n_examples=3)


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, Any]]:
    with run_server() as options:
        yield options


@pytest.fixture
def url(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """URL of a new store. fsspec finds the server in its configuration, as with FSSPEC_S3_ENDPOINT_URL."""
    monkeypatch.setitem(fsspec.config.conf, "s3", server)
    return f"s3://bucket/{request.node.name.replace('[', '-').rstrip(']')}/traces"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the same segments in a folder."""
    path = tmp_path_factory.mktemp("expected") / "traces"
    write_store(path, CONTENTS)
    return segment_bytes(path)


def objects_of(url: str, options: dict[str, Any], below: str = "segments") -> dict[str, bytes]:
    fs = fsspec.filesystem("s3", **options)
    root = url.removeprefix("s3://")
    return {path[len(root) + 1 :]: fs.cat_file(path) for path in fs.find(f"{root}/{below}")}


def bucket(url: str) -> RemoteTarget:
    target = open_target(url)
    assert isinstance(target, BucketTarget)
    return target.objects


def test_the_bytes_are_those_of_a_folder(url: str, server: dict[str, Any], expected: dict[str, bytes]) -> None:
    """Written, resumed, annotated, dropped and verified at the URL, as in a folder."""
    writer = open_writer(url, CONTENTS)  # type: ignore[arg-type]
    writer.write(0, CONTENTS[0].first_example, CONTENTS[0].tables, CONTENTS[0].arrays)
    write_store(url, CONTENTS)  # type: ignore[arg-type]
    assert objects_of(url, server) == expected
    assert verify_store(url, full=True).is_sound
    store = open_store(url).annotate("mark", {0: 1, 4: 5})
    assert store.examples_frame()["mark"].tolist()[:5:4] == [1, 5]
    assert drop_from_store(url, examples=[4]).examples == (4,)
    newest = open_store(url)
    assert len(newest.examples[4].tokens()) == 0
    assert newest.segments[1].entry.is_replacement
    assert verify_store(url, full=True).is_sound
    with pytest.raises(HeadAtlasError, match="another"):
        open_writer(url, make_contents(make_spec(Keep(edges=2)), n_segments=3, n_examples=3))  # type: ignore[arg-type]


def test_collection_goes_by_age(url: str, server: dict[str, Any]) -> None:
    write_store(url, CONTENTS)  # type: ignore[arg-type]
    drop_from_store(url, examples=[0])
    before = objects_of(url, server)
    assert collect_store(url).manifests == ()
    assert objects_of(url, server) == before
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    assert collect_store(url, now=later, dry_run=True).segments == ("segments/000000",)
    assert objects_of(url, server) == before
    result = collect_store(url, now=later)
    assert (result.manifests, result.segments) == ((0, 1, 2, 3), ("segments/000000",))
    assert verify_store(url, full=True).is_sound
    assert open_store(url).manifest.number == 4
    assert not [name for name in objects_of(url, server) if name.startswith("segments/000000/")]


def test_other_places_are_refused(url: str, server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="web address"):
        open_target("http://127.0.0.1:9/traces")
    fsspec.filesystem("s3", **server).pipe_file(f"{url}/notes.txt", b"mine")
    with pytest.raises(ConfigError, match=r"holds 'notes\.txt' and no manifest"):
        open_writer(url, CONTENTS)  # type: ignore[arg-type]
    with run_server(conditional=False) as options:
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        with pytest.raises(ConfigError, match="no conditional writes"):
            open_writer("s3://bucket/traces", CONTENTS)  # type: ignore[arg-type]
        assert fsspec.filesystem("s3", **options).find("bucket") == []


def test_large_files_are_uploaded_in_parts(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_target, "UPLOAD_PART_BYTES", 5 << 20)
    data = np.random.default_rng(0).bytes(11 << 20)
    (tmp_path / "file").write_bytes(data)
    target = bucket(url)
    assert target.upload(tmp_path / "file", "segments/large")
    etag = target._fs.info(f"{url}/segments/large")["ETag"]
    assert etag.strip('"').endswith("-3")  # S3 marks objects of several parts by their number
    assert target.upload(tmp_path / "file", "segments/large")  # the same bytes
    (tmp_path / "file").write_bytes(bytes(len(data)))
    assert not target.upload(tmp_path / "file", "segments/large")
    assert target._fs.cat_file(f"{url}/segments/large") == data


def test_a_segment_of_another_machine_stays(url: str, server: dict[str, Any]) -> None:
    """If other bytes are at the path of a segment, the segment is written to the path with its hash."""
    writer = open_writer(url, CONTENTS)  # type: ignore[arg-type]
    bucket(url).replace("segments/000000/segment.zip", b"other bytes")
    entry = writer.write(0, CONTENTS[0].first_example, CONTENTS[0].tables, CONTENTS[0].arrays)
    assert entry.is_replacement
    assert objects_of(url, server)["segments/000000/segment.zip"] == b"other bytes"
    assert verify_store(url, full=True).is_sound


@pytest.mark.fault("race of two writers for a number, object store")
@pytest.mark.parametrize("n", [20, pytest.param(1000, marks=slow)])
def test_one_of_two_writers_gets_each_number(url: str, n: int) -> None:
    targets, wins = [bucket(url) for _ in range(2)], []
    barrier = threading.Barrier(2)

    def race(target: RemoteTarget, name: bytes) -> None:
        for number in range(n):
            barrier.wait()
            if target.create(f"race-{number:04d}", name):
                wins.append((number, name))

    threads = [threading.Thread(target=race, args=(t, name)) for t, name in zip(targets, (b"a", b"b"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in wins) == list(range(n))
    for number, name in wins:
        assert targets[0]._fs.cat_file(f"{url}/race-{number:04d}") == name


def test_two_writers_of_one_store(url: str, server: dict[str, Any], expected: dict[str, bytes]) -> None:
    errors: list[BaseException] = []

    def write() -> None:
        try:
            write_store(url, CONTENTS)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    open_writer(url, CONTENTS)  # type: ignore[arg-type]
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [entry.index for entry in open_store(url).manifest.segments] == [0, 1, 2]
    assert objects_of(url, server) == expected
    assert verify_store(url, full=True).is_sound


@pytest.mark.fault("object store that answers 5xx, resets connections and is slow")
@pytest.mark.parametrize(("n_faults", "every"), [(10, 4), pytest.param(200, 3, marks=slow)])
def test_faults_give_the_same_bytes_or_an_error(
    url: str,
    server: dict[str, Any],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    n_faults: int,
    every: int,
) -> None:
    """A run whose server fails at random ends, perhaps after an error and the same command again, with the same bytes."""
    messages: list[str] = []
    port = int(server["endpoint_url"].rpartition(":")[2])
    for seed in range(1000):
        with run_proxy(port, n_faults, every, seed) as proxy:
            monkeypatch.setitem(fsspec.config.conf, "s3", options_of(proxy.server_port))
            for _ in range(20):
                try:
                    write_store(f"{url}-{seed}", CONTENTS)  # type: ignore[arg-type]
                    break
                except (HeadAtlasError, OSError) as error:
                    messages.append(str(error))
            n_faults = proxy.n_left
        monkeypatch.setitem(fsspec.config.conf, "s3", server)
        assert objects_of(f"{url}-{seed}", server) == expected
        assert verify_store(f"{url}-{seed}", full=True).is_sound
        if n_faults == 0:
            assert all(messages)
            return
    raise AssertionError(f"{n_faults} faults never happened")
