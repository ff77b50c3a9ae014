"""Time and price of a job on other devices and several workers: sums by hand, and what `plan` prints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from headatlas.pipeline.commands.run import app
from headatlas.pipeline.job.resources.device_rates import (
    DEVICES,
    DeviceRates,
    ScaleProjection,
    bound,
    project_scale,
    work_of,
)
from headatlas.store.errors import ConfigError
from headatlas.store.schema.traces import Keep, Site, TraceSpec

SIMPLE = DeviceRates("simple", 1e9, 1e12, 1e12, 1e6, 1e9, encoded_bytes=1e12, disk_bytes=1e12)
ONLY_VECTORS = Keep(attention=None, query_key="float32", edges=None, statistics=False)


def site_of(**changes) -> Site:
    shape = {"name": "decoder", "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "causal": True, **changes}
    fixed = {name: (value,) * shape["n_layers"] for name, value in (("scaling", 1.0), ("softcap", None), ("window", None))}  # fmt: skip
    return Site(**fixed, **shape)


def work_for(site: Site, lengths: list[int], *, n_weights=1000.0, raw_bytes=600.0, stored_bytes=300.0):
    spec = TraceSpec(sites=(site,), keep=ONLY_VECTORS, statistics=())
    sizes = {"n_weights": n_weights, "hidden": 16, "inner": 32, "raw_bytes": raw_bytes, "stored_bytes": stored_bytes}
    return work_of(spec, {"source": np.array(lengths)}, 2, **sizes)


def test_scores_and_vectors_are_those_of_each_example():
    causal, full = work_for(site_of(), [5, 2]), work_for(site_of(name="encoder", causal=False), [5, 2])
    assert causal.n_tokens == full.n_tokens == 7
    assert causal.n_scores == 3 * 4 * (15 + 3)
    assert full.n_scores == 3 * 4 * (25 + 4)
    assert causal.vector_bytes == 7 * (4 + 2) * 8 * 3 * 2


def test_the_slowest_resource_limits():
    work = work_for(site_of(), [5, 2], n_weights=1e6)
    result = bound(work, ONLY_VECTORS, SIMPLE)
    score_flops = 2 * work.n_scores * 8
    assert result.flops == 2 * 1e6 * 7 + 4 * score_flops
    assert result.bare_s == pytest.approx((2e6 * 7 + 2 * score_flops) / 1e9)
    assert result.capture_s == pytest.approx(2 * score_flops / 1e9)
    assert result.limit == "device"
    slow_copies = bound(work_for(site_of(), [5, 2], n_weights=1e6, raw_bytes=1e6), ONLY_VECTORS, SIMPLE)
    assert slow_copies.limit == "PCIe"
    assert slow_copies.seconds["PCIe"] == 1
    scale = project_scale(work_for(site_of(), [5], n_weights=1e6, raw_bytes=1e6), ONLY_VECTORS, SIMPLE, 10, 4, 2.5)
    assert (scale.job_s, scale.limit, scale.origin) == (1, "PCIe", "computed")
    assert scale.hours == pytest.approx(1 * 3 / 10 / 3600)  # ten segments on four workers: one has three
    assert scale.price == pytest.approx(4 * 2.5 * scale.hours)


def test_workers_without_a_segment_and_models_of_several_devices_are_named():
    scale = ScaleProjection(3, 5, "cpu", "measured", "", 3600.0, 2.0)
    assert scale.hours == pytest.approx(1 / 3)
    assert scale.price == pytest.approx(5 * 2 / 3)
    text = "\n".join(scale.lines())
    assert "5 workers (cpu): about 20 min" in text
    assert "from one timed batch" in text
    assert "2 workers get no segment: the job has 3" in text
    large = project_scale(work_for(site_of(), [5], n_weights=70e9), ONLY_VECTORS, DEVICES["h100"], 10, 2)
    assert large.n_devices == 2  # 140 GB of parameters
    assert "fill 2 of these devices. headatlas runs a model on one device" in "\n".join(large.lines())


def test_plan_shows_hours_price_and_files(tiny_job, tmp_path):
    job_file = tmp_path / "job.toml"
    job_file.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
            for name, section in tiny_job.items()
        )
    )
    runner = CliRunner()
    options = ["plan", str(job_file), "--measure", "0", "--workers", "2"]
    plan = json.loads(runner.invoke(app, [*options, "--price", "3", "--json"], catch_exceptions=False).stdout)
    scale = plan["scale"]
    assert (scale["origin"], scale["n_segments"], scale["job_s"]) == ("measured", 5, plan["time_s"])
    assert scale["hours"] == pytest.approx(plan["time_s"] * 3 / 5 / 3600)
    assert scale["price"] == pytest.approx(2 * 3 * scale["hours"])
    shown = runner.invoke(app, [*options, "--untimed", "--device", "h100"], catch_exceptions=False).stdout
    assert "2 workers (H100 SXM): about" in shown
    assert "computed from shapes and data sheets" in shown
    assert f"5 segments ({plan['n_files']} files)" in shown.replace("\n", " ")
    with pytest.raises(ConfigError, match=r"--untimed leaves no time.*--device"):
        runner.invoke(app, [*options, "--untimed"], catch_exceptions=False)
