"""Speed of capture on a GPU: random weights in the shapes of BERT-base, GPT-2 and Llama-3-8B, generated texts.

``python -m benchmarks.capture_device [--models BERT-base,GPT-2] [--lengths 128,512,4096] [--repeats 5]``. Ways of
keeping traces take turns with a plain SDPA forward of the same batches in one process, one pass over all batches each.
Rows compare wall time until the device is idle and every trace is in the segment. *Not written*: traces stay in the
host's memory; a job writes them while it computes the next segment. The idle share of a pass is the time that no kernel
and no copy on the device covers. Without a GPU the benchmark says so and measures nothing; ``--device cpu --small``
runs the same code on tiny models. Llama-3-8B takes 40 GB of the device, and at 4,096 tokens 110 GB of the host's
memory, or half of that with ``--batches 1``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from headatlas.pipeline.models.sources import LoadedModel, ModelIdentity
from headatlas.pipeline.tokens.batch_plan import BatchPlan

from .capture_cases import KEEPS, Capture, Case, open_case
from .inputs import WORDS, generated_text
from .interleave import Mode, interleave, speed_ratio
from .report import Row, keep_rows

BATCH_TOKENS = 8192
"""Tokens of a batch: many texts of 128 tokens, or two of 4,096."""
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4}
LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


def make_model(name: str, n_tokens: int, device: torch.device, *, small: bool = False) -> LoadedModel:
    """Make a model of a known shape with random weights and a tokenizer of words, for texts of up to `n_tokens`."""
    from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig

    tokenizer = make_tokenizer(n_tokens)
    longest: dict[str, Any] = {"max_position_embeddings": n_tokens}
    grouped = SMALL | {"num_key_value_heads": 2} if small else LLAMA
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "BERT-base": (BertConfig, longest | (SMALL if small else {})),
        "GPT-2": (GPT2Config, {"n_positions": n_tokens} | (SMALL_GPT2 if small else {})),
        "Llama-3-8B": (LlamaConfig, longest | grouped),
    }
    config_class, shape = models[name]
    config = config_class(**shape)
    config.pad_token_id = tokenizer.pad_token_id
    with device:
        model = AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16).eval()
    return LoadedModel(model, tokenizer, ModelIdentity(name, type(model).__name__, config.model_type))


def make_tokenizer(n_tokens: int) -> Any:
    """Make a tokenizer whose tokens are the words of generated texts, with special tokens around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)]
    tokenizer: Any = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=n_tokens, **special)


@contextmanager
def open_generated_case(
    model: str, n_tokens: int, folder: Path, loaded: LoadedModel, batch_tokens: int, n_examples: int | None = None
) -> Iterator[Case]:
    """Open a case of generated texts of `n_tokens` tokens; by default as many as a batch holds."""
    n_examples = n_examples or max(1, batch_tokens // n_tokens)
    text = generated_text(n_examples * n_tokens)
    with open_case(model, str(n_tokens), folder, n_examples, loaded, batch_tokens, text) as case:
        yield case


def measure(case: Case, device: torch.device, repeats: int, *, written: bool = True) -> list[Row]:
    """Compare every way of keeping traces with the bare model. With `written`, also the ways that write a store."""

    def passing(
        step: Callable[[BatchPlan], object], settle: Callable[[], None] = lambda: None
    ) -> Callable[[Sequence[BatchPlan]], None]:
        def run(batches: Sequence[BatchPlan]) -> None:
            for batch in batches:
                step(batch)
            settle()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    captures = {name: Capture(case, keep) for name, keep in KEEPS.items()} if written else {}
    captures |= {f"{name}, not written": Capture(case, keep, written=False) for name, keep in KEEPS.items()}
    modes = {"plain": Mode(passing(case.plain_mode.step))}
    modes |= {
        name: Mode(passing(c.step, c.settle), c.prepare, c.finish if c.written else None)
        for name, c in captures.items()
    }
    timings = interleave(modes, [case.batches], repeats)
    setting = f"{device.type}, bfloat16"
    beside = (
        f"plain SDPA forward, {len(case.job.examples)} generated texts, {case.n_tokens:,} tokens, wall time, {setting}"
    )
    rows = []
    for name, capture in captures.items():
        ratio = speed_ratio(timings, name, "plain", "wall")
        rows.append(Row(f"{name} · {case.name} · {device.type}", ratio.median, "of its speed", ratio.spread, beside))
        if device.type == "cuda" and not capture.written:
            capture.prepare()
            share = idle_share(lambda run=modes[name].step: run(case.batches))
            rows.append(Row(f"idle, {name} · {case.name} · cuda", share, "of the time", None, f"of a pass; {setting}"))
        capture.close()
    seconds = sorted(timings["plain"].wall_s)
    spread = (seconds[0], seconds[-1])
    rows.append(Row(f"plain · {case.name} · {device.type}", seconds[len(seconds) // 2], "s", spread, setting))
    return rows


def idle_share(work: Callable[[], object]) -> float:
    """Share of the time of `work` during which the device is idle, 0 to 1."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        work()
        microseconds = (time.perf_counter() - started) * 1e6
    on_device = [event.time_range for event in profiler.events() or () if event.device_type.name == "CUDA"]
    return max(0.0, 1 - covered((interval.start, interval.end) for interval in on_device) / microseconds)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, stop)."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def main(arguments: Sequence[str] = ()) -> None:
    """Measure the models and lengths that the arguments name; rows go to build/bench/capture-device.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture_device", description=__doc__)
    parser.add_argument("--models", default="BERT-base,GPT-2,Llama-3-8B", help="some of: %(default)s")
    parser.add_argument("--lengths", default="128,512,4096", help="tokens of a text. Default: %(default)s")
    parser.add_argument(
        "--batches", type=int, default=2, help="batches of 8,192 tokens in a pass. Default: %(default)s"
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=BATCH_TOKENS, help="tokens of a batch. Default: %(default)s"
    )
    parser.add_argument("--not-written", action="store_true", help="only the ways that do not write a store")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every way. Default: %(default)s")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny models and two texts, to try the code")
    options = parser.parse_args(list(arguments))
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("Capture on a GPU is skipped: PyTorch finds no GPU.")
        return
    with tempfile.TemporaryDirectory(prefix="headatlas-bench-") as folder:
        for model in options.models.split(","):
            for n_tokens in map(int, options.lengths.split(",")):
                case_folder = Path(folder) / f"{model}-{n_tokens}"
                case_folder.mkdir()
                loaded = make_model(model, n_tokens, device, small=options.small)
                n_examples = 2 if options.small else options.batches * max(1, BATCH_TOKENS // n_tokens)
                with open_generated_case(model, n_tokens, case_folder, loaded, BATCH_TOKENS, n_examples) as case:
                    keep_rows(measure(case, device, options.repeats), "capture-device")


if __name__ == "__main__":
    main(sys.argv[1:])
