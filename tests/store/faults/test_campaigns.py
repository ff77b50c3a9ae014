"""Campaigns of faults, thousands of cases each; docs/reliability.md says what the store promises.

The work is done in a process of its own (`campaign.py`). `make test` takes a sample of each fault, `make test-long` all.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile import FORGERIES, HDF5_FORGERIES, ZARR_FORGERIES

from headatlas.store.files.containers.container import CONTAINERS

HERE = Path(__file__).parent
slow = pytest.mark.slow


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Compile the library that makes calls fail; None if there is no C compiler for Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    target = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, HERE / "failing_calls.c", "-ldl"], check=True)
    return target


@pytest.fixture(scope="session")
def breaker(shim: Path | None) -> Iterator[subprocess.Popen[str]]:
    """Start the process that breaks stores."""
    environment = os.environ | ({"LD_PRELOAD": str(shim)} if shim else {})
    process = subprocess.Popen(
        [sys.executable, "-W", "error", HERE / "campaign.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture
def campaign(breaker: subprocess.Popen[str], tmp_path: Path, count_fault: Callable) -> Callable[..., int]:
    """Run a campaign: count its faults in the table, fail on any violation, return the number of cases."""

    def run(name: str, **arguments: object) -> int:
        answer = tmp_path / "answer.json"
        request = {"name": name, "answer": str(answer), "folder": str(tmp_path), "arguments": arguments}
        assert breaker.stdin is not None
        assert breaker.stdout is not None
        breaker.stdin.write(json.dumps(request) + "\n")
        breaker.stdin.flush()
        output = list(itertools.takewhile(lambda line: line and line != "done\n", iter(breaker.stdout.readline, "")))
        assert answer.exists(), f"the process that breaks stores died: {''.join(output)[-2000:]}"
        result = json.loads(answer.read_text())
        for fault, counts in result.items():
            count_fault(fault, counts["cases"], len(counts["violations"]))
        print("".join(output))
        violations = {fault: counts["violations"] for fault, counts in result.items() if counts["violations"]}
        assert not violations, json.dumps(violations, indent=1)[:6000]
        return sum(counts["cases"] for counts in result.values())

    return run


@pytest.mark.parametrize("n", [1, pytest.param(4, marks=slow)])
def test_killed_at_every_named_step(campaign, container: str, n: int) -> None:
    campaign("kills", container=container, n=n, what="steps")


@pytest.mark.parametrize("n", [4, pytest.param(200, marks=slow)])
def test_killed_at_random(campaign, container: str, n: int) -> None:
    assert campaign("kills", container=container, n=n) == n


@pytest.mark.parametrize("n", [2, pytest.param(50, marks=slow)])
def test_killed_while_converting(campaign, container: str, n: int) -> None:
    assert campaign("kills", container=container, n=n, what="convert") == n


@pytest.mark.parametrize(("n", "n_full"), [(12, 2), pytest.param(250, 30, marks=slow)])
def test_failing_calls(campaign, container: str, n: int, n_full: int, shim: Path | None) -> None:
    if shim is None:
        pytest.skip("needs a C compiler: no call of the HDF5 library can be made to fail without one")
    assert campaign("failing_calls", container=container, n=n, n_full=n_full, real_fsync=True) == 2 * n + n_full


@pytest.mark.parametrize("n", [9, pytest.param(250, marks=slow)])
def test_power_lost(campaign, container: str, n: int) -> None:
    assert campaign("power_loss", container=container, n=n) == n


@pytest.mark.parametrize("n", [10, pytest.param(1000, marks=slow)])
def test_flipped_bits(campaign, container: str, n: int) -> None:
    campaign("flips", container=container, n=n)


@pytest.mark.parametrize("every", [25, pytest.param(1, marks=slow)])
def test_damaged_objects(campaign, container: str, every: int) -> None:
    campaign("damaged_files", container=container, every=every if container == "zarr" else 1)


@pytest.mark.parametrize(("n", "n_whole"), [(40, 1), pytest.param(1000, 25, marks=slow)])
def test_races(campaign, n: int, n_whole: int) -> None:
    assert campaign("races", n=n, n_whole=n_whole) == n + 2 * n_whole


@pytest.mark.parametrize("n", [100, pytest.param(5_000, marks=slow)])
def test_readers_beside_writers(campaign, container: str, n: int) -> None:
    assert campaign("readers", container=container, n=n) >= n


def test_the_page_says_how_many_hostile_stores_there_are():
    page = (Path(__file__).parents[3] / "docs/reliability.md").read_text(encoding="utf-8")
    n = len(CONTAINERS) * len(FORGERIES) + len(ZARR_FORGERIES) + len(HDF5_FORGERIES)
    assert f"| all of them, {n} |" in page


@pytest.mark.parametrize("container", CONTAINERS)
def test_hostile_stores(campaign, container: str) -> None:
    assert campaign("hostile", container=container) >= 50


@pytest.mark.parametrize("n", [100, pytest.param(5_000, marks=slow)])
def test_changed_documents(campaign, container: str, n: int) -> None:
    assert campaign("fuzz", container=container, n=n) == n


def test_reading_after_a_fork(campaign, container: str) -> None:
    campaign("forks", container=container)
