"""Commands on a store in an S3-compatible server: run, kill, resume, search, stats, annotate, drop, verify and gc."""

from __future__ import annotations

import json

import fsspec
import pytest
from distributed import Client, LocalCluster

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.multi_model import run_jobs
from headatlas.store.commands.cluster import ClusterOptions
from headatlas.store.commands.main import command_line
from headatlas.store.errors import ConfigError
from headatlas.store.reading.ordered_tasks import tasks_on
from headatlas.store.store import open_store
from tests.store.object_server import run_server

from .job_process import run_until_killed
from .test_extension import segment_bytes, with_settings

URL = "s3://bucket/traces"


@pytest.fixture
def server(monkeypatch):
    """Options of a server that fsspec finds in its configuration, and child processes in their environment."""
    with run_server() as options:
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", options["endpoint_url"])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
        yield options


@pytest.fixture
def command(capsys):
    """Run a command of the command line in this process; its JSON."""
    program = command_line()

    def run(*arguments):
        program([*map(str, arguments), "--json"], prog_name="headatlas", standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return run


def segments_of(options, manifest):
    fs = fsspec.filesystem("s3", **options)
    paths = [f"{URL}/{entry.path}" for entry in manifest.segments]
    return {name.removeprefix("bucket/traces/segments/"): fs.cat_file(name) for path in paths for name in fs.find(path)}


def test_the_whole_way_in_an_object_store(tiny_job, server, command, tmp_path):
    run_job(parse_config(tiny_job))
    folder = tiny_job["store"]["path"]
    job_file = tmp_path / "job.toml"
    job = with_settings(tiny_job, store={"path": URL})
    job_file.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
            for name, section in tiny_job.items()
        )
    )
    plan = command("plan", job_file, "--out", URL, "--untimed", "--measure", 0)
    assert (plan["store"], plan["n_segments"]) == (URL, 5)
    assert fsspec.filesystem("s3", **server).find("bucket") == []  # a plan writes nothing

    run_until_killed(job, last=5)
    n_committed = len(open_store(URL).segments)
    assert n_committed < 5
    (report,) = [command("run", job_file, "--out", URL, "--quiet")]
    assert (report["n_segments"], report["n_segments_written"]) == (5, 5 - n_committed)
    store = open_store(URL)
    assert segments_of(server, store.manifest) == segment_bytes(folder)
    assert plan["n_files"] == len(fsspec.filesystem("s3", **server).find(URL))

    for arguments in (("search", "previous_token"), ("stats", "--statistic", "entropy,next_sink_free")):
        name, *options = arguments
        answers = [command(name, path, *options)["heads"] for path in (URL, folder)]
        assert answers[0] == answers[1]
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client, tasks_on(lambda: client):
        assert command("search", URL, "previous_token")["heads"] == command("search", folder, "previous_token")["heads"]
    assert command("verify", URL, "--full")["findings"] == []

    topics = tmp_path / "topics.jsonl"
    topics.write_text("".join(json.dumps({"id": name, "topic": name[-1]}) + "\n" for name in store.example_ids()))
    assert command("annotate", URL, topics, "--name", "topic")["n_examples"] == 40
    expected, text = [name[-1] for name in store.example_ids()], store.examples[4].text
    assert open_store(URL).example_columns()["topic"].to_list() == expected
    dropped = command("drop", URL, "--numbers", "3")
    assert dropped["examples"] == [3]
    newest = open_store(URL)
    assert len(newest.examples[3].tokens()) == 0
    n_objects = len(fsspec.filesystem("s3", **server).find(URL))
    removed = command("gc", URL, "--grace", 0)["segments"]
    assert [name.partition("-")[0] for name in removed] == ["overlays/000000", "segments/000000"]
    assert len(fsspec.filesystem("s3", **server).find(URL)) < n_objects
    assert command("verify", URL, "--full")["findings"] == []
    assert newest.refresh().examples[4].text == text

    with pytest.raises(ConfigError, match=r"is a URL\. The workers of a cluster write to a folder"):
        run_jobs([parse_config(with_settings(job, store={"path": f"{URL}-2"}))], cluster=ClusterOptions("local"))
