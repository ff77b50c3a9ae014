"""Test that the self-check uses fewer examples if memory runs out, and says so if there is none for a single one."""

from __future__ import annotations

import pytest
import torch

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import execute_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.progress import CheckPassed
from headatlas.store.errors import BudgetError


def job_with_room_for(n_examples, tiny_job):
    """Return a prepared job whose model raises the error of a full GPU for more than `n_examples` examples."""
    job = prepare_job(parse_config(tiny_job))

    def refuse(module, arguments, options):
        if len(options["input_ids"]) > n_examples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    job.loaded.model.register_forward_pre_hook(refuse, with_kwargs=True)
    return job


def test_fewer_examples_are_checked(tiny_job):
    events = []
    report = execute_job(job_with_room_for(2, tiny_job), events.append)
    assert (report.n_examples, report.n_skipped) == (40, 0)
    assert [event.n_examples for event in events if isinstance(event, CheckPassed)] == [2]


def test_no_room_for_one_example_is_an_error(tiny_job):
    with pytest.raises(BudgetError, match=r"no memory on cpu to check the capture on one example .*model\.dtype"):
        execute_job(job_with_room_for(0, tiny_job))
