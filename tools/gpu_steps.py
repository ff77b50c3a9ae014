"""Steps of `gpu_check`. Each is a function that yields lines; a line with FAILED is a failure.

Without a GPU, Triton interprets the kernel on the CPU and the models are tiny.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np  # noqa: E402

from benchmarks import capture_device  # noqa: E402
from headatlas.pipeline.config import parse_config  # noqa: E402
from headatlas.pipeline.job.job_runner import execute_job  # noqa: E402
from headatlas.pipeline.job.prepared_job import Job, prepare_job  # noqa: E402
from headatlas.pipeline.job.resources.machine import describe_accelerator, read_machine  # noqa: E402
from headatlas.pipeline.progress import BatchHalved, Event, format_bytes  # noqa: E402
from headatlas.store.store import open_store  # noqa: E402

from .kernel_cases import Case, check, make_call, run  # noqa: E402

FREE_BYTES = 24 << 20
"""Device memory beside the model in the step `memory`: too little for 64 texts in GPT-2, which need about 60 MB."""
DEVICE = "cuda" if HAS_GPU else "cpu"
Lines = Iterator[str]


def check_launch() -> Lines:
    """Yield versions and limits, then build and launch the kernel once."""
    from headatlas.pipeline.reduce import triton_kernel

    yield f"torch {torch.__version__}, {describe_accelerator(torch.device(DEVICE)) or 'no GPU'}"
    machine = read_machine(torch.device(DEVICE), Path())
    sizes = {"device": machine.device_bytes, "host": machine.host_bytes, "disk": machine.disk_bytes}
    yield ", ".join(f"{name} {format_bytes(n)}" for name, n in sizes.items() if n is not None)
    yield str(triton_kernel.device_limits(torch.device(DEVICE)))
    case = Case((64,), heads=2, d_head=64, dtype=torch.bfloat16)
    started = time.perf_counter()
    check(run(triton_kernel, case, make_call(case, DEVICE)[0]), case, make_call(case, DEVICE)[0])
    yield f"built, launched and compared in {time.perf_counter() - started:.1f} s"
    if HAS_GPU:
        kernel: Any = triton_kernel._reduce
        for device_kernels in kernel.device_caches.values():
            for binary in device_kernels[0].values():
                yield f"{binary.n_regs} registers, {binary.n_spills} bytes spilled, {binary.metadata.shared} bytes shared"


def kernel_cases(*, small: bool) -> dict[str, Case]:
    """Return the cases of the comparison with torch operations, by name."""
    if small:
        return {
            "bfloat16, 64 · 70, 1 tokens": Case((70, 1), d_head=64, dtype=torch.bfloat16),
            "float32 · window, cap, sinks, bias": Case(
                (40,), window=9, softcap=5.0, has_sinks=True, has_bias=True, d_head=16
            ),
        }
    cases: dict[str, Case] = {}
    types = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    for (name, dtype), d_head in product(types.items(), (64, 80, 128, 256)):
        cases[f"{name}, {d_head} · 1 to 300 tokens"] = Case((1, 2, 33, 64, 65, 300), d_head=d_head, dtype=dtype)
    for name, dtype in types.items():
        base: dict[str, Any] = {"d_head": 128, "dtype": dtype}
        cases |= {
            f"{name} · 4,096 tokens": Case((4096,), **base),
            f"{name} · 4,096 tokens, all keys": Case((4096,), causal=False, **base),
            f"{name} · 4,096 tokens, window 512": Case((4096, 700), window=512, **base),
            f"{name} · window on both sides": Case((900, 65), window=64, causal=False, **base),
            f"{name} · soft cap": Case((513, 40), softcap=30.0, scale=2.0, **base),
            f"{name} · sinks": Case((513, 40), has_sinks=True, **base),
            f"{name} · bias": Case((513, 40), has_bias=True, causal=False, **base),
            f"{name} · window, cap, sinks, bias": Case(
                (700, 5), window=100, softcap=20.0, has_sinks=True, has_bias=True, **base
            ),
            f"{name} · cross-attention": Case((70, 9), (2100, 33), causal=False, **base),
            f"{name} · 64 edges": Case((513,), n_edges=64, **base),
        }
    return cases


def check_kernel(*, small: bool = not HAS_GPU) -> Lines:
    """Compare the kernel with torch operations on the same tensors."""
    from headatlas.pipeline.reduce import triton_kernel

    for name, case in kernel_cases(small=small).items():
        case = case if not HAS_GPU else Case(**{**vars(case), "exact_ties": False})
        call, _ = make_call(case, DEVICE)
        started = time.perf_counter()
        try:
            check(run(triton_kernel, case, call), case, call)
        except AssertionError as error:
            yield f"FAILED {name}: {' '.join(str(error).split())[:400]}"
        else:
            yield f"{name}: agrees ({time.perf_counter() - started:.1f} s)"


def check_sanitizer() -> Lines:
    """Run small cases of the kernel under NVIDIA's memory checker."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or not HAS_GPU:
        yield f"not checked: {'compute-sanitizer is not installed' if HAS_GPU else 'it needs a GPU'}"
        return
    command = [tool, "--error-exitcode", "1", sys.executable, "-m", "tools.gpu_check", "--step", "kernel", "--small"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    if result.returncode:
        yield f"FAILED with exit code {result.returncode}"
        yield from [line for line in lines if "=====" in line][:20]
    else:
        yield next((line for line in lines if "ERROR SUMMARY" in line), "no errors")


def make_job(
    folder: Path, device: str, name: str = "GPT-2", *, n_texts: int = 12, small: bool = True, **run_settings: Any
) -> Job:
    """Prepare a job over texts of 20 to 40 words for a random model, the same for the same name."""
    torch.manual_seed(0)
    loaded = capture_device.make_model(name, 128, torch.device("cpu"), small=small)
    loaded.model.to(device)  # pyright: ignore[reportArgumentType]
    folder.mkdir(parents=True)
    texts = [capture_device.generated_text(20 + 20 * i // n_texts, seed=i) for i in range(n_texts)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    document = {
        "model": {"source": name, "device": device},
        "corpus": {"kind": "text", "path": str(folder / "texts.txt")},
        "store": {"path": str(folder / "store"), "segment_examples": n_texts},
        "run": run_settings,
    }
    return prepare_job(parse_config(document), loaded=loaded)


def hashes(store: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of the segments of a store, by path."""
    files = sorted(path for path in (store / "segments").rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_job() -> Lines:
    """Run a job twice on the device and once on the CPU, for two models."""
    with temporary_folder() as folder:
        for name in ("GPT-2", "BERT-base") if HAS_GPU else ("GPT-2",):
            stores = {}
            for run_name, device in (("first", DEVICE), ("second", DEVICE), ("cpu", "cpu")):
                job = make_job(folder / name / run_name, device, name)
                execute_job(job)
                stores[run_name] = job.path
            equal = hashes(stores["first"]) == hashes(stores["second"])
            served = open_store(stores["first"]).manifest.provenance["reduction"]
            yield f"{'' if equal else 'FAILED '}{name}: two runs have {'equal' if equal else 'other'} hashes; {served}"
            first, on_cpu = (open_store(stores[key]) for key in ("first", "cpu"))
            worst = 0
            for segment, expected in zip(first.segments, on_cpu.segments, strict=True):
                path = next(path for path in segment.layouts if path.endswith("/attention"))
                difference = np.abs(segment.read(path).astype(np.int16) - expected.read(path))
                worst = max(worst, int(difference.max(initial=0)))
            yield f"{name}: codes of attention within {worst} of those of the CPU (bfloat16 weights)"


def check_waits() -> Lines:
    """Count the calls that wait for the device while batches are captured."""
    if not HAS_GPU:
        yield "not measured: torch.cuda.set_sync_debug_mode needs a GPU"
        return
    with temporary_folder() as folder:
        for name in ("BERT-base", "GPT-2", "Llama-3-8B"):
            job = make_job(folder / name, DEVICE, name)
            execute_job(job)  # builds kernels
            job = make_job(folder / f"{name}-again", DEVICE, name)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    execute_job(job)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waits = Counter(
                f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message).lower()
            )
            layers = sum(site.n_layers for site in job.spec.sites)
            yield f"{name}: {sum(waits.values())} waits in a job of {layers} layers, its checks included"
            yield from (f"    {n} at {place_of_wait}" for place_of_wait, n in waits.most_common(8))


def check_memory() -> Lines:
    """Give a job too little memory for its batches, and compare its store with that of an undisturbed run."""
    with temporary_folder() as folder:
        undisturbed = make_job(folder / "undisturbed", DEVICE, n_texts=64, small=not HAS_GPU, batch_size=2)
        execute_job(undisturbed)
        halved: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, BatchHalved):
                halved.append(event.n_examples)

        job = make_job(folder / "limited", DEVICE, n_texts=64, small=not HAS_GPU, batch_size=64)
        with little_memory(job):
            report = execute_job(job, listen)
        yield f"{'' if halved else 'FAILED '}{len(halved)} batches were halved, of {sorted(set(halved))} examples"
        first, second = (open_store(path) for path in (undisturbed.path, job.path))
        worst = 0
        for segment, expected in zip(second.segments, first.segments, strict=True):
            codes = "decoder/attention"
            worst = max(worst, int(np.abs(segment.read(codes).astype(np.int16) - expected.read(codes)).max()))
        is_complete = report.n_skipped == 0 and worst <= 1
        yield f"{'' if is_complete else 'FAILED '}{report.n_skipped} examples skipped, codes within {worst}"


@contextmanager
def little_memory(job: Job) -> Iterator[None]:
    """Leave device memory for a few texts, or raise the error of a GPU for more than four texts on the CPU."""
    if HAS_GPU:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + FREE_BYTES) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def refuse(module: torch.nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        if len(options["input_ids"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    handle = job.loaded.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def measure_speed() -> Lines:
    """Yield the speed of captures that are not written, and their idle share, beside a plain forward pass."""
    cases = [("BERT-base", 128, 8192), ("GPT-2", 512, 8192), ("Llama-3-8B", 4096, 4096)]
    for name, n_tokens, batch_tokens in cases if HAS_GPU else [("GPT-2", 32, 64)]:
        device = torch.device(DEVICE)
        loaded = capture_device.make_model(name, n_tokens, device, small=not HAS_GPU)
        with (
            temporary_folder() as folder,
            capture_device.open_generated_case(name, n_tokens, folder, loaded, batch_tokens) as case,
        ):
            for row in capture_device.measure(case, device, 3 if HAS_GPU else 1, written=False):
                yield f"{row.name}: {row.value:.3g} {row.unit}"
        del loaded, case


def measure_profile() -> Lines:
    """Yield the time of the kernel, other kernels and copies in a pass that captures everything, and its idle share."""
    if not HAS_GPU:
        yield "not measured: a profile of kernels and copies needs a GPU"
        return
    from torch.profiler import ProfilerActivity, profile

    loaded = capture_device.make_model("GPT-2", 512, torch.device(DEVICE))
    with temporary_folder() as folder, capture_device.open_generated_case("GPT-2", 512, folder, loaded, 8192) as case:
        capture = capture_device.Capture(case, capture_device.KEEPS["everything"], written=False)

        def work() -> None:
            capture.prepare()
            for batch in case.batches:
                capture.step(batch)
            capture.settle()
            torch.cuda.synchronize()

        work()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            started = time.perf_counter()
            work()
            seconds = time.perf_counter() - started
        times: Counter[str] = Counter()
        for event in profiler.events() or ():
            if event.device_type.name == "CUDA":
                kind = "our kernel" if event.name.startswith("_reduce") else "other kernels"
                times[event.name if event.name.startswith("Mem") else kind] += event.time_range.elapsed_us()
        yield f"one pass of {case.n_tokens:,} tokens: {seconds * 1e3:.1f} ms"
        yield from (f"    {kind}: {us / 1e3:.2f} ms ({us / 1e4 / seconds:.0f} %)" for kind, us in times.most_common())
        yield f"    idle: {capture_device.idle_share(work):.0%}"


STEPS: dict[str, Callable[[], Lines]] = {
    "launch": check_launch, "kernel": check_kernel, "sanitizer": check_sanitizer, "job": check_job,
    "waits": check_waits, "memory": check_memory, "speed": measure_speed, "profile": measure_profile,
}  # fmt: skip


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="headatlas-gpu-") as folder:
        yield Path(folder)
