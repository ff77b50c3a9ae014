"""A system that starts no thread, or only some: every task is done, nothing waits for ever."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from range_server import serve
from traced_corpus import make_store

PRELUDE = """
    import faulthandler, sys, threading
    from headatlas.store import open_store
    from headatlas.store.writing.convert import convert_store
    from headatlas.store.writing.verification import verify_store
    path, out, url, allowed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    start, n_started = threading._start_new_thread, 0

    def refuse(*arguments, **options):  # as the system does when the limit of processes is reached
        global n_started
        n_started += 1
        if n_started > allowed:
            raise RuntimeError("can't start new thread")
        return start(*arguments, **options)

    def heads(store):
        return store.search("key.position == query.position - 1").heads["mass"].to_numpy().tolist()

    expected = heads(open_store(path))
    threading._start_new_thread = refuse
    faulthandler.dump_traceback_later(300, exit=True)
"""


def run(tmp_path: Path, code: str, url: str = "", allowed: int = 0) -> str:
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    command = [sys.executable, "-c", program, str(tmp_path / "traces"), str(tmp_path / "out"), url, str(allowed)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(autouse=True)
def _traces(tmp_path: Path) -> None:
    make_store(tmp_path / "traces", lengths=((3, 7, 5), (1, 8, 6), (9, 4)))


@pytest.mark.fault("no thread starts")
@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_searching_writing_and_verifying(tmp_path: Path, container: str, allowed: int) -> None:
    code = f"""
        assert heads(open_store(path)) == expected
        assert verify_store(path, full=True).is_sound
        convert_store(path, out, "{container}")
        assert verify_store(out, full=True).is_sound
        assert heads(open_store(out)) == expected
        print("done")
    """
    assert run(tmp_path, code, allowed=allowed) == "done\n"


@pytest.mark.fault("no thread starts")
def test_reading_over_a_network(tmp_path: Path) -> None:
    """Network requests need a thread: the error says so each time, and reading works when there are threads again."""
    code = """
        for _ in range(2):
            try:
                open_store(url)
            except OSError as error:
                print(error.strerror)
        threading._start_new_thread = start
        assert heads(open_store(url)) == expected
    """
    with serve(tmp_path / "traces") as server:
        assert run(tmp_path, code, server.url) == "network requests need a thread: can't start new thread\n" * 2
