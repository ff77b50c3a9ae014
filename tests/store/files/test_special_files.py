"""Links, folders, pipes, sockets and devices inside a store: no reader waits, and writers agree with readers."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_builder import Content, make_contents, make_spec, open_writer, write_store

from headatlas.store import open_store
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.writing.convert import convert_store
from headatlas.store.writing.drop import drop_from_store
from headatlas.store.writing.garbage_collection import collect_store
from headatlas.store.writing.verification import verify_store


def _socket(path: Path) -> None:
    folder = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(folder)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "socket": _socket,
    "device": _device,
    "link": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return KINDS[request.param]


def read_all(path: Path) -> None:
    """Read every array of a store, its texts and its columns."""
    store = open_store(path)
    for segment in store.segments:
        for name in segment.layouts:
            segment.read(name)
        segment.tokens(), segment.texts(), segment.columns()
    store.statistics()


def files_of(path: Path) -> list[str]:
    """Return one file of each kind of a store with a column."""
    first = [sorted(path.glob(pattern)) for pattern in ("segments/000000/**/*", "overlays/*/**/*")]
    names = ["latest.json", "manifest-000004.json", "segments/000000/segment.json"]
    names += [
        str(next(f for f in files if f.is_file() and f.name not in ("segment.json",)).relative_to(path))
        for files in first
    ]
    names += [str(next(f for f in first[1] if f.name == "segment.json").relative_to(path))]
    return names


@pytest.mark.fault("special file in place of an object")
def test_no_reader_waits_and_verify_names_the_file(
    store_path: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """In place of each kind of file: `verify` reports it, with and without hashes, and reading raises an error."""
    open_store(store_path).annotate("mark", {0: 1})
    for name in files_of(store_path):
        path = Path(shutil.copytree(store_path, tmp_path / "copy"))
        (path / name).unlink()
        make(path / name)
        for full in (False, True):
            findings = [finding.object for finding in verify_store(path, full=full).findings]
            assert findings == ([] if name == "latest.json" and not full else [name]), name
        if name != "latest.json":
            with pytest.raises(HeadAtlasError, match=r"cannot be opened: it is a link or a special file"):
                read_all(path)
        else:
            read_all(path)
            drop_from_store(path, examples=[1])
            assert (path / name).is_dir() or verify_store(path, full=True).is_sound
        shutil.rmtree(path)


@pytest.mark.fault("special file in place of an object")
def test_writers_do_not_wait(store_path: Path, contents: list[Content], make: Callable[[Path], object]) -> None:
    """A special file in place of an older manifest, a lease, or the folder that a writer wants."""
    (store_path / "manifest-000001.json").unlink()
    make(store_path / "manifest-000001.json")
    (store_path / "tmp/old").mkdir()
    make(store_path / "tmp/old.lease")
    drop_from_store(store_path, examples=[1])
    write_store(store_path, contents)
    with pytest.raises(HeadAtlasError, match=r"manifest-000001\.json cannot be opened"):
        collect_store(store_path, grace_s=-1)
    assert verify_store(store_path).is_sound


def test_a_segment_that_is_a_link_is_replaced(
    tmp_path: Path, contents: list[Content], container: str, make: Callable[[Path], object]
) -> None:
    """What lies at the name of the next segment, or of its listing, is not followed: the store is sound afterwards."""
    write_store(tmp_path / "whole", contents, container=container)
    for name in ("segments/000001", "segments/000001/segment.json", None):
        path = tmp_path / "traces"
        writer = open_writer(path, contents, container=container)
        if name is None:
            (path / "segments/000001").symlink_to(tmp_path / "whole/segments/000001")
        else:
            if name.endswith("json"):
                shutil.copytree(tmp_path / "whole/segments/000001", path / "segments/000001")
                (path / name).unlink()
            make(path / name)
        part = contents[1]
        writer.write(1, part.first_example, part.tables, part.arrays)
        assert verify_store(path, full=True).is_sound
        read_all(path)
        shutil.rmtree(path)


@pytest.mark.parametrize("name", ["segments", "tmp", "overlays"])
def test_a_linked_folder_is_refused_before_anything_is_written(
    store_path: Path, tmp_path: Path, contents: list[Content], name: str
) -> None:
    """New stores, and each way to change a store."""
    big, new = tmp_path / "big", tmp_path / "new"
    big.mkdir()
    new.mkdir()
    (new / name).symlink_to(big)
    works: list[Callable[[], object]] = [lambda: convert_store(store_path, new), lambda: write_store(new, contents)]
    for work in works:
        with pytest.raises(ConfigError, match=rf"{name} is a link or a file; expected a folder"):
            work()
    assert [path.name for path in new.iterdir()] == [name]
    open_store(store_path).annotate("mark", {0: 1})
    shutil.move(store_path / name, tmp_path / "moved")
    (store_path / name).symlink_to(tmp_path / "moved")
    before = sorted(store_path.rglob("*")), sorted((tmp_path / "moved").rglob("*"))
    for work in (
        lambda: drop_from_store(store_path, examples=[1]),
        lambda: write_store(store_path, make_contents(make_spec(), seed=1, n_segments=4)),
        lambda: collect_store(store_path, grace_s=-1),
        lambda: open_store(store_path).annotate("other", {0: 1}),
    ):
        with pytest.raises(HeadAtlasError, match=rf"{name} is a link or a file; expected a folder"):
            work()
    assert (sorted(store_path.rglob("*")), sorted((tmp_path / "moved").rglob("*"))) == before


def test_the_store_itself_may_be_a_link(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store_path)
    drop_from_store(tmp_path / "link", examples=[1])
    assert open_store(tmp_path / "link").annotate("mark", {0: 1}).manifest.number == 5
    assert verify_store(tmp_path / "link", full=True).is_sound
    read_all(tmp_path / "link")


@contextmanager
def few_files(n_more: int) -> Iterator[None]:
    """Allow this process `n_more` further open files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + n_more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.fault("too many open files")
def test_too_many_open_files_are_not_damage(store_path: Path) -> None:
    """Opening, reading and verifying say so; the same objects read on afterwards."""
    read_all(store_path)  # imports what it needs
    store = open_store(store_path)
    store.segments[0].read("decoder/query", 0)  # so that only the data are opened later
    for work in (
        lambda: open_store(store_path),
        lambda: verify_store(store_path),
        lambda: verify_store(store_path, full=True),
        lambda: store.segments[0].read("decoder/query"),
        lambda: store.segments[1].texts(),
        lambda: drop_from_store(store_path, examples=[1]),
    ):
        with few_files(0), pytest.raises(OSError, match="Too many open files") as caught:
            work()
        assert caught.value.errno == errno.EMFILE
    assert len(store.segments[0].read("decoder/query")) == 2
    assert verify_store(store_path, full=True).is_sound


@pytest.mark.fault("too many open files")
def test_an_intact_segment_is_not_replaced_for_lack_of_files(
    tmp_path: Path, contents: list[Content], container: str
) -> None:
    """A writer that cannot read the segment of another one stops. It does not take it for damaged."""
    path, part = tmp_path / "traces", contents[1]
    write_store(tmp_path / "whole", contents, container=container)
    steps: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def no_files(step: str) -> None:
        steps.append(step)
        if step == "listing-written":
            fd = os.open("/", os.O_RDONLY)
            os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd, limits[1]))

    writer = open_writer(path, contents, container=container, on_step=no_files)
    shutil.copytree(tmp_path / "whole/segments/000001", path / "segments/000001")
    inode = (path / "segments/000001").stat().st_ino
    try:
        with pytest.raises(OSError, match="Too many open files"):
            writer.write(1, part.first_example, part.tables, part.arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (path / "segments/000001").stat().st_ino == inode
    open_writer(path, contents, container=container).write(1, part.first_example, part.tables, part.arrays)
    assert (path / "segments/000001").stat().st_ino == inode


def test_a_file_that_may_not_be_read_is_not_damage(store_path: Path) -> None:
    """A process without permission says so. Root may read everything, so a child process gives up its rights."""
    victim = next(
        p for p in sorted((store_path / "segments/000000").rglob("*")) if p.name in ("segment.zip", "segment.h5")
    )
    for folder in (store_path, *store_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = """
        import os, sys
        from headatlas.store import open_store
        from headatlas.store.errors import CorruptSegmentError
        from headatlas.store.writing.verification import verify_store
        if os.getuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        segment = open_store(sys.argv[1]).segments[0]
        for work in (lambda: [segment.read(path) for path in segment.layouts], lambda: verify_store(sys.argv[1], full=True)):
            try:
                print("no error", work())
            except CorruptSegmentError as error:
                print("damaged:", error)
            except PermissionError as error:
                pass
    """
    victim.chmod(0)
    command = [sys.executable, "-c", textwrap.dedent(code), str(store_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "")
