"""Planned bytes against those of a real run, array by array."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headatlas.pipeline.config import JobConfig, load_config
from headatlas.pipeline.job.job_runner import execute_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.job.projection import project_job
from headatlas.pipeline.job.size_sample import SAMPLE_EXAMPLES, choose_sample
from headatlas.store.files.containers.zip_archive import ALIGNED_BYTES
from headatlas.store.store import Store, open_store


def stored_bytes(store: Store) -> Counter[str]:
    """Return the bytes of every array on disk."""
    n_bytes: Counter[str] = Counter()
    for segment in store.segments:
        for path in segment.layouts:
            n_bytes[path] += segment.reader.stored_bytes(path)
    return n_bytes


def padding_bytes(store: Store) -> int:
    """Return the most bytes that can lie before large entries of zip files, so that these begin at a block."""
    archives = [zipfile.ZipFile(path) for path in store.path.glob("segments/*/segment.zip")]
    return 4096 * sum(entry.file_size >= ALIGNED_BYTES for archive in archives for entry in archive.infolist())


def check(config: JobConfig, least: int) -> None:
    """Check that a sample of the usual size predicts every array and the whole store within 5 %."""
    job = prepare_job(config)
    assert len(job.examples) >= least
    projection = project_job(job, timed=False, n_sampled=SAMPLE_EXAMPLES)
    execute_job(job)
    store = open_store(job.path)
    stored = stored_bytes(store)
    planned = {array.path: array.stored_bytes for array in projection.arrays}
    assert planned == pytest.approx({path: stored[path] for path in planned}, rel=0.05)
    tables = sum(n for path, n in stored.items() if path not in planned)
    besides = {array.path: array.stored_bytes for array in projection.besides}
    expected = {"texts, tokens, annotations": tables, "metadata": store.bytes_on_disk - stored.total()}
    assert besides == pytest.approx(expected, rel=0.05, abs=padding_bytes(store))
    assert projection.stored_bytes == pytest.approx(store.bytes_on_disk, rel=0.05)


@pytest.mark.parametrize("container", ["zarr", "hdf5"])
def test_generated_sentences(minilm_dir: Path, tmp_path: Path, container: str) -> None:
    changes = ["corpus.examples=600", f"store.path={tmp_path / 'store'}", f"store.container={container}"]
    check(load_config("demo", [*changes, f"model.source={minilm_dir}"]), least=3 * SAMPLE_EXAMPLES)


def test_a_treebank(minilm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    sentences = data_dir / "ud-english-ewt" / "en_ewt-ud-dev.conllu"
    corpus = ["corpus.kind=conllu", f"corpus.path={sentences}", "corpus.max_examples=600"]
    changes = [*corpus, f"model.source={minilm_dir}", f"store.path={tmp_path / 'store'}"]
    check(load_config("demo", changes), least=3 * SAMPLE_EXAMPLES)


def test_a_sample_is_runs_of_neighbours_all_over_the_corpus() -> None:
    lengths = np.full(1000, 20)
    lengths[::50] = 0
    indices = np.array(choose_sample(lengths, 192))
    assert len(indices) == 192
    assert (np.diff(indices) > 0).all()
    assert (lengths[indices] > 0).all()
    assert (np.diff(indices) > 2).sum() == 192 / 8 - 1
    assert indices[0] < 50
    assert indices[-1] > 950
    assert choose_sample(np.array([0, 9, 0]), 100) == [1]
    assert choose_sample(np.full(5, 9), 100) == [0, 1, 2, 3, 4]
    assert len(choose_sample(np.full(50, 8000), 100)) == 1, "one long example is enough"
