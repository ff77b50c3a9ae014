"""The page about GPUs has the tables of the script, and the script's sizes are those of the format."""

from __future__ import annotations

import pytest

from headatlas.store.schema.traces import Keep
from tools import scale_page
from tools.gpu_roofline import H100, KEEPS, SHAPES, batch_bound, is_served_by_kernel, with_table


def test_the_page_has_the_tables_of_the_script(repository):
    page = (repository / "docs/gpu.md").read_text(encoding="utf-8")
    assert page == with_table(page), "run: python -m tools.gpu_roofline docs/gpu.md"
    assert "**Not measured.**" in page


def test_sizes_are_those_of_the_arrays():
    """Count the codes, query and key of two texts of 4,096 tokens of Llama-3-8B by hand."""
    llama = SHAPES[-1]
    codes = 2 * 32 * 32 * 4096 * 4097 // 2
    only_codes = Keep(attention="sqrt8", query_key=None, edges=None, statistics=False)
    assert batch_bound(llama, only_codes, H100).pcie_bytes == codes
    vectors = 2 * 4096 * 32 * (32 + 8) * 128 * 2
    logsumexp = 2 * 4096 * 32 * 32 * 4
    result = batch_bound(llama, KEEPS["query, key"], H100)
    assert result.pcie_bytes == vectors + logsumexp
    assert 2 * 7e9 * 8192 < result.flops < 1.3 * 2 * 8e9 * 8192


def test_a_job_that_keeps_more_is_not_faster():
    for shape in SHAPES:
        shares = [batch_bound(shape, KEEPS[name], H100).share(written=True) for name in KEEPS]
        everything, long, edges, *_ = shares
        assert 0 < everything < long < edges <= 1
        assert all(batch_bound(shape, keep, H100).share(written=False) <= 1 for keep in KEEPS.values())
    assert not is_served_by_kernel(KEEPS['preset = "exact"'])


def test_the_page_of_a_million_examples_has_the_table_of_its_script(repository):
    page = (repository / "docs/scale.md").read_text(encoding="utf-8")
    assert page == scale_page.with_table(page), "run: python -m tools.scale_page docs/scale.md"
    bert, gpt2, _, llama_70b = scale_page.SHAPES
    codes = Keep(attention="sqrt8", query_key=None, edges=None, statistics=False)
    per_text = 12 * 12 * 512 * 512  # one byte for each weight
    row = scale_page.scale_row(bert, codes)
    assert row.n_segments == -(-(10**6) // ((256 << 20) // per_text))
    assert row.n_files == 2 * row.n_segments
    assert row.seconds["PCIe"] == pytest.approx(10**6 * per_text / H100.pcie_bytes)
    causal = scale_page.scale_row(gpt2, codes)
    assert causal.seconds["PCIe"] == pytest.approx(row.seconds["PCIe"] * 513 / 1024)
    assert (row.n_devices, scale_page.scale_row(llama_70b, codes).n_devices) == (1, 2)
