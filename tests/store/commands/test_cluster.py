"""The options --cluster, --workers and --insecure-cluster: refused addresses, and scripts for batch systems."""

from __future__ import annotations

import re

import pytest

from headatlas.store.commands.cluster import ClusterOptions, batch_options, cluster_options, open_cluster
from headatlas.store.errors import ConfigError, MissingExtraError


@pytest.mark.parametrize("address", ["tcp://10.0.0.5:8786", "tcp://scheduler:8786", "tcp://[2001:db8::1]:8786"])
def test_an_address_without_encryption_is_refused_off_this_machine(address):
    with pytest.raises(ConfigError, match=r"connection without encryption.*use tls://, or add --insecure-cluster"):
        cluster_options(address)
    allowed = cluster_options(address, is_insecure_allowed=True)
    assert allowed is not None
    assert (allowed.target, allowed.kind) == (address, None)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786", "tls://scheduler:8786"]
)
def test_encrypted_and_local_addresses_are_accepted(address):
    assert cluster_options(address) == ClusterOptions(address)


@pytest.mark.parametrize(
    "text", ["lokal", "", "scheduler:8786", "tls://scheduler", "tls://:8786", "tls://a:port", "ws://a:1", "inproc://1", "http://a:80", "tls://[1:8786"]
)  # fmt: skip
@pytest.mark.parametrize("is_insecure_allowed", [False, True])
def test_other_targets_are_refused(text, is_insecure_allowed):
    with pytest.raises(ConfigError, match=r"expected local, slurm, pbs, cuda, or the address of a dask scheduler"):
        cluster_options(text, is_insecure_allowed=is_insecure_allowed)


def test_options_without_a_cluster_are_refused():
    assert cluster_options(None) is None
    for options in ({"n_workers": 2}, {"is_insecure_allowed": True}):
        with pytest.raises(ConfigError, match="belong to --cluster"):
            cluster_options(None, **options)
    with pytest.raises(ConfigError, match="--workers is for clusters that headatlas starts"):
        cluster_options("tls://scheduler:8786", 3)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("headatlas.store.commands.cluster._CONNECT_S", 0.1)
    with (
        pytest.raises(ConfigError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"),
        open_cluster(ClusterOptions("tcp://127.0.0.1:9")),
    ):
        pass


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dask_cuda", None)
    with (
        pytest.raises(MissingExtraError, match=r"--cluster cuda needs .*dask_cuda.*pip install 'headatlas\[gpu\]'"),
        open_cluster(ClusterOptions("cuda")),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("slurm", ["#SBATCH -p long", "#SBATCH -A lab", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=15G", "#SBATCH -t 04:00:00"]),
        ("pbs", ["#PBS -q long", "#PBS -A lab", "#PBS -l select=1:ncpus=4:mem=15GB", "#PBS -l walltime=04:00:00"]),
    ],
)  # fmt: skip
def test_the_script_of_a_batch_system_is_that_of_dask_jobqueue(kind, expected, tmp_path):
    """One worker process for each job, over TLS, with its keys in the shared folder."""
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    from distributed.security import Security

    cluster_class = jobqueue.SLURMCluster if kind == "slurm" else jobqueue.PBSCluster
    options = ClusterOptions(
        kind, 3, queue="long", account="lab", walltime="04:00:00", memory="16GB", cores=4, shared_folder=tmp_path
    )
    scripts = []
    for arguments in (
        batch_options(options),
        {
            "queue": "long",
            "account": "lab",
            "walltime": "04:00:00",
            "memory": "16GB",
            "cores": 4,
            "processes": 1,
            "protocol": "tls://",
            "shared_temp_directory": str(tmp_path),
        },
    ):
        scheduler = {"scheduler_options": {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}}
        with cluster_class(**arguments, security=Security.temporary(), **scheduler) as cluster:
            script = cluster.job_script()
            names = re.findall(rf"--tls-(ca-file|cert|key) {tmp_path}/", script)
            scripts.append(re.sub(rf"tls://\S+|{tmp_path}/\S+", "...", script))
    assert scripts[0] == scripts[1]
    lines = scripts[0].splitlines()
    assert set(expected) <= set(lines), scripts[0]
    assert "--nthreads 4" in lines[-1]
    assert sorted(names) == ["ca-file", "cert", "key"]
