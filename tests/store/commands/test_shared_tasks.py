"""Commands with `--cluster` print what they print without it, and a worker that ends costs nothing but time."""

from __future__ import annotations

import functools
import os
import signal
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from distributed import KilledWorker, LocalCluster
from traced_corpus import make_site, make_store, random_attention
from treebank_store import CHAIN, chain_table, write_trees

from headatlas.store.commands.cluster import ClusterOptions, open_cluster
from headatlas.store.commands.main import command_line
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.reading import ordered_tasks
from headatlas.store.reading.ordered_tasks import run_in_order, tasks_on
from headatlas.store.schema.traces import Keep

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of a killed process

COMMANDS = {
    "search": "search TRACES induction",
    "stats": "stats TRACES --statistic entropy_sink_free,variability,decay",
    "overview": "stats TRACES",
    "definition": "stats TRACES --definition vig",
    "relations": "relations TREES --min-rows 1",
    "attention": "contrast TREES",
    "contrast": "contrast TREES key.position==0",
    "similar": "similar TREES OTHER",
    "diff": "diff TREES OTHER",
    "like": "like TRACES --numbers 0:2>1",
    "neurons": "neurons TRACES previous_token --head 0.0",
    "roles": "roles TRACES --every-head",
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("stores")
    keep = Keep(attention="float32", query_key="float32", edges=3)
    make_store(folder / "TRACES", keep=keep, lengths=((9, 7, 8), (6, 8, 9), (7,)))
    columns = {"pair": list("aabbcc"), "variant": list("xyxyxy")}
    segments = [[CHAIN] * 2, [CHAIN] * 4]
    for number, name in enumerate(("TREES", "OTHER")):
        rng = np.random.default_rng(number)

        def attention_of(tokens, rng=rng):
            return random_attention(rng, make_site(), len(tokens), len(tokens))

        write_trees(folder / name, segments, attention_of, chain_table, columns=columns)
    return {name: str(folder / name) for name in ("TRACES", "TREES", "OTHER")}


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def program():
    return command_line()


@pytest.fixture
def output_of(program, monkeypatch, capsys):
    def run(arguments: list[str], cache: Path) -> str:
        monkeypatch.setenv("HEADATLAS_CACHE_DIR", str(cache))
        program(arguments, prog_name="headatlas", standalone_mode=False)
        return capsys.readouterr().out

    return run


def n_finished(cluster) -> int:
    """Number of tasks of headatlas that the workers have finished."""
    prefix = cluster.scheduler.task_prefixes.get("run_packed")
    return 0 if prefix is None else prefix.state_counts["memory"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_answer_is_that_of_this_process(name, stores, cluster, output_of, tmp_path):
    arguments = [stores.get(word, word) for word in COMMANDS[name].split()]
    arguments += ["--csv"] if name == "attention" else ["--json"]
    before = n_finished(cluster)
    shared = output_of([*arguments, "--cluster", cluster.scheduler_address], tmp_path / "shared")
    assert n_finished(cluster) > before
    assert shared == output_of(arguments, tmp_path / "own")


def test_a_cached_answer_starts_no_cluster(stores, output_of, tmp_path):
    arguments = ["stats", stores["TRACES"], "--statistic", "next_sink_free", "--json"]
    expected = output_of(arguments, tmp_path)
    assert output_of([*arguments, "--cluster", "tcp://127.0.0.1:9"], tmp_path) == expected
    with pytest.raises(ConfigError, match="without encryption"):
        output_of([*arguments, "--cluster", "tcp://10.0.0.5:8786"], tmp_path)


def _end_once(folder: str, number: int) -> int:
    path = Path(folder) / "ended"
    if number == 3 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_tasks_of_a_worker_that_ended_run_again(cluster, tmp_path):
    options = ClusterOptions(cluster.scheduler_address, task_attempts=2)
    with open_cluster(options) as client, tasks_on(lambda: client):
        results = list(run_in_order(functools.partial(_end_once, str(tmp_path)), range(8)))
    assert results == [(number, number**2) for number in range(8)]
    assert (tmp_path / "ended").exists()
    for error, message in (
        (KilledWorker("task", None, 2), r"2 workers ended during a task.*--workers"),
        (CancelledError(), r"scheduler tcp://.* ended or lost the tasks"),
    ):
        with pytest.raises(HeadAtlasError, match=message), open_cluster(options):
            raise error


def test_threads_stop_and_keep_the_order():
    calls = []

    def square(number: int) -> int:
        time.sleep(0.01 * (5 - number % 5))
        return number**2

    for workers in (1, 3):
        calls.clear()
        for task, result in run_in_order(square, range(20), workers, lambda: len(calls) > 4):
            calls.append((task, result))
        assert calls == [(number, number**2) for number in range(5)]
    assert ordered_tasks.current_client() is None
