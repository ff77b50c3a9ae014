"""Check the capture before a job runs, and choose the reduction that serves it on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headatlas.store.errors import BudgetError, UnsupportedModelError

from ..calls.out_of_memory import is_out_of_memory, release_memory
from ..capture.kernel_agreement import check_agreement
from ..checks.eager_check import check_eager
from ..checks.long_rows import check_long_rows, most_long_tokens
from ..checks.selfcheck import check_capture, choose_examples, most_checked_tokens
from ..corpora.examples import EncodedExample
from ..progress import CheckPassed, Listener, Stage
from ..reduce import kernel
from ..reduce.reduction import Reduction, choose_reduction
from ..reduce.torch_reduction import TorchReduction
from ..tokens.batch_plan import SegmentSpec
from ..tokens.model_inputs import ModelInputs
from .prepared_job import Job
from .segment_groups import count_tokens


def sample_for_check(job: Job, segments: Sequence[SegmentSpec]) -> list[EncodedExample]:
    """Return the examples that `check_job` uses, for a worker that has no others: those of the check, and the longest."""
    examples = [example for segment in segments for example in job.examples[segment.examples]]
    for segment in segments:
        n_tokens = count_tokens(job.examples[segment.examples], job.spec)
        if next(iter(n_tokens.values())).any():
            checked = [job.examples[segment.examples][i] for i in choose_examples(job.spec.sites, n_tokens)]
            return [*checked, examples[_longest(examples, job)[0]]]
    return examples[:1]


def check_job(job: Job, segments: Sequence[SegmentSpec], on_event: Listener) -> tuple[Reduction, str]:
    """Check the capture on a few of the next examples. Return the reduction that serves, and its name.

    If memory runs out, half as many examples are checked.

    Raises
    ------
    BudgetError
        There is no memory for a single example.
    """
    n_examples = 8
    while True:
        try:
            return _check_examples(job, segments, n_examples, on_event)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            if n_examples == 1:
                raise BudgetError(
                    f"there is no memory on {job.loaded.model.device} to check the capture on one example ({error}). "
                    'Free memory, or set model.dtype = "bfloat16".'
                ) from error
        release_memory(job.loaded.model.device)
        n_examples //= 2


def _check_examples(
    job: Job, segments: Sequence[SegmentSpec], n_examples: int, on_event: Listener
) -> tuple[Reduction, str]:
    """Check the capture against eager attention on a few examples. Return the reduction and its name."""
    spec, model = job.spec, job.loaded.model
    torch_reduction = TorchReduction(spec.keep, spec.statistics)
    is_eager = spec.capture == "eager"
    on_event(Stage(f"checking the capture against {'the softmaxes of the model' if is_eager else 'eager attention'}"))
    for segment in segments:
        examples = job.examples[segment.examples]
        n_tokens = count_tokens(examples, spec)
        if not next(iter(n_tokens.values())).any():
            continue
        indices = choose_examples(spec.sites, n_tokens, n_examples)
        shortened = [examples[i].beginning(most_checked_tokens(spec.sites)) for i in indices]
        lengths = {name: counts.tolist() for name, counts in count_tokens(shortened, spec).items()}
        inputs = job.inputs.build(shortened)
        if is_eager:
            report = check_eager(model, job.sites, inputs, lengths)
        else:
            report = check_capture(model, job.sites, spec.keep, inputs, lengths)
        on_event(CheckPassed(report.n_examples, report.n_weights, report.largest, report.bound, report.rebuilt))
        if is_eager:
            on_event(Stage("capturing in eager mode, with torch operations; query and key are not available"))
            return torch_reduction, "eager mode, torch operations"
        reduction, served_by = _choose_reduction(job, inputs, lengths, on_event)
        n_checked = max(max(counts) for counts in lengths.values())
        difference = _long_rows_difference(job, segments, n_checked, reduction)
        if difference is not None and reduction is not torch_reduction:
            served_by = (
                f"torch operations, because the {reduction.name} differs from a direct computation ({difference})"
            )
            on_event(Stage(f"capturing with {served_by}"))
            reduction, difference = (
                torch_reduction,
                _long_rows_difference(job, segments, n_checked, torch_reduction),
            )
        if difference is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__}: captured attention differs from a direct computation ({difference}). "
                "This model cannot be captured with so long texts; set tokens.max_tokens. Please report it."
            )
        return reduction, served_by
    return torch_reduction, "torch operations"


def _choose_reduction(
    job: Job, inputs: ModelInputs, lengths: Mapping[str, Sequence[int]], on_event: Listener
) -> tuple[Reduction, str]:
    """Return the kernel of this device if it agrees with torch operations, else these, and a name for the provenance."""
    spec, model = job.spec, job.loaded.model
    torch_reduction = TorchReduction(spec.keep, spec.statistics)
    reduction = choose_reduction(spec.keep, spec.statistics, model.device, spec.capture)
    if isinstance(reduction, TorchReduction):
        unused = f"torch operations: no kernel on {model.device.type} computes what this job keeps"
        on_event(Stage(f"capturing with {unused if kernel.available() else kernel.explain()}"))
        return torch_reduction, "torch operations"
    agreement = check_agreement(model, job.sites, spec, inputs, lengths, reduction)
    if reduction.problem is not None:
        on_event(Stage(without_kernel(reduction)))
        return torch_reduction, without_kernel(reduction)
    if agreement.difference:
        on_event(
            Stage(f"capturing with torch operations: the {reduction.name} differs from them ({agreement.difference})")
        )
        return torch_reduction, "torch operations"
    share = f"{reduction.n_fused} of {reduction.n_fused + reduction.n_torch} layers"
    served_by = f"{reduction.name}, {share}" if reduction.n_fused else "torch operations"
    on_event(Stage(f"capturing with {'the ' if reduction.n_fused else ''}{served_by}"))
    return reduction, served_by


def _long_rows_difference(
    job: Job, segments: Sequence[SegmentSpec], n_checked: int, reduction: Reduction
) -> str | None:
    """Check rows of the longest example, if it has more than the `n_checked` tokens that were checked before.

    If memory runs out, half as many tokens are checked.
    """
    examples = [example for segment in segments for example in job.examples[segment.examples]]
    index, length = _longest(examples, job)
    longest, n_tokens = examples[index], min(length, most_long_tokens(job.spec))
    while n_tokens > n_checked:
        example = longest.beginning(n_tokens)
        lengths = {name: int(counts[0]) for name, counts in count_tokens([example], job.spec).items()}
        try:
            return check_long_rows(
                job.loaded.model, job.sites, job.spec, job.inputs.build([example]), lengths, reduction
            )
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(job.loaded.model.device)
        n_tokens //= 2
    return None


def _longest(examples: Sequence[EncodedExample], job: Job) -> tuple[int, int]:
    """Return the index and the number of tokens of the longest example."""
    total = np.max(np.stack(list(count_tokens(examples, job.spec).values())), axis=0)
    return int(total.argmax()), int(total.max())


def without_kernel(reduction: Reduction) -> str:
    """Return the note for the provenance if a kernel does not run on this device."""
    return f"torch operations, because the {reduction.name} cannot run on this device ({reduction.problem})"
