"""Speed of interventions: every head of a model set to zero in turn, compared with loops of hooks.

``python -m benchmarks.intervene [--models MiniLM,SmolLM2] [--examples 64] [--repeats 3]``. Four ways take turns in one
process on the same sentences (UD English EWT, development set): `headatlas intervene`; the same batches with a hook on
each output projection and a whole forward pass for each head; one example at a time with such hooks; and the estimate
from gradients. Every way measures the same effect, and the first two are compared number by number.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headatlas.pipeline.capture.eager import find_sites
from headatlas.pipeline.capture.sites import run_model
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions.actions import Edit, Variant, Zero
from headatlas.pipeline.interventions.measures.predictions import default_measure
from headatlas.pipeline.interventions.passes import Passes
from headatlas.pipeline.models.attention_implementation import implementation
from headatlas.pipeline.models.sources import load_model
from headatlas.pipeline.tokens.batch_plan import plan_batches
from headatlas.pipeline.tokens.corpus_encoding import encode_corpus, open_corpus
from headatlas.pipeline.tokens.model_inputs import InputBuilder

from .capture_cases import MODELS
from .inputs import EWT_DEV, ewt_file
from .interleave import Mode, interleave, speed_ratio
from .report import Row, report

PROJECTIONS = {"bert": "attention.output.dense", "llama": "self_attn.o_proj"}
"""End of the name of the module whose input is the output of the heads, by type of model."""


def open_passes(source: str, n_examples: int) -> Passes:
    """Load a model and encode the first sentences of the treebank."""
    document = {
        "model": {"source": source},
        "corpus": {"kind": "conllu", "path": str(ewt_file(EWT_DEV)), "max_examples": n_examples},
        "run": {"threads": torch.get_num_threads(), "max_batch_tokens": 1024},
    }
    config = parse_config(document)
    loaded = load_model(source, saved_head=True)
    examples, skipped = encode_corpus(config.encoding, loaded, open_corpus(config.corpus))
    present = [example for i, example in enumerate(examples) if i not in skipped]
    builder = InputBuilder(loaded.model, loaded.tokenizer)
    sites = find_sites(loaded.model, builder.build_probe(present[0]))
    measure = default_measure(loaded.model, loaded.tokenizer)
    return Passes(loaded.model, sites, sites.sites[0], builder, present, config.run.limits, measure)


@contextmanager
def zeroed(module: torch.nn.Module, head: int, n_heads: int) -> Iterator[None]:
    """Set the output of one head to zero, in the input of the output projection."""

    def hook(_module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        outputs = arguments[0].clone()
        outputs.view(*outputs.shape[:2], n_heads, -1)[:, :, head] = 0
        return outputs, *arguments[1:]

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hook_loop(passes: Passes, batches: list[list[int]]) -> np.ndarray:
    """Measure every head with one whole forward pass for each head and batch."""
    model, measure, site = passes.model, passes.measure, passes.site
    end = PROJECTIONS[str(model.config.model_type)]
    projections = [module for name, module in model.named_modules() if name.endswith(end)]
    effects = np.full((site.n_layers * site.n_heads, len(passes.examples)), np.nan)
    with torch.no_grad(), implementation(model, "sdpa"):
        for indices in batches:
            inputs = passes.builder.build([passes.examples[i] for i in indices])
            before = measure.read(run_model(model, inputs.arguments, **measure.options), inputs)
            for row in range(len(effects)):
                layer, head = divmod(row, site.n_heads)
                with zeroed(projections[layer], head, site.n_heads):
                    after = measure.read(run_model(model, inputs.arguments, **measure.options), inputs)
                effects[row, indices] = measure.effect(before, after, inputs).reshape(len(indices), -1)[:, 0].numpy()
    return effects


def measure_model(name: str, n_examples: int, repeats: int) -> list[Row]:
    """Compare the four ways with one model."""
    passes = open_passes(MODELS[name], n_examples)
    site = passes.site
    variants = [Variant((Edit(layer, head, Zero()),)) for layer in range(site.n_layers) for head in range(site.n_heads)]
    lengths = {"source": np.array([len(example.source) for example in passes.examples])}
    batches = [list(batch.examples) for batch in plan_batches(lengths, passes.limits)]
    results: dict[str, np.ndarray] = {}

    def keep(way: str, work: Any) -> Mode[int]:
        def step(_: int) -> None:
            results[way] = work()

        return Mode(step)

    ways = {
        "sweep": partial(passes.run, variants),
        "batched loop": partial(hook_loop, passes, batches),
        "loop": partial(hook_loop, passes, [[i] for i in range(len(passes.examples))]),
        "estimate": partial(passes.estimate, variants),
    }
    timings = interleave({way: keep(way, work) for way, work in ways.items()}, [0], repeats)
    difference = float(np.nanmax(np.abs(results["sweep"] - results["batched loop"])))
    correlation = float(np.corrcoef(rank(results["sweep"]), rank(results["estimate"]))[0, 1])
    text = f"{len(passes.examples)} sentences, {len(variants)} heads"
    rows = []
    for way, beside in (("sweep", "batched loop"), ("sweep", "loop"), ("estimate", "sweep")):
        ratio = speed_ratio(timings, way, beside)
        rows.append(
            Row(f"{way} / {beside} · {name}", ratio.median, "times as fast", ratio.spread, f"{text}, processor time")
        )
    rows.append(Row(f"sweep − batched loop · {name}", difference, passes.measure.meaning, None, "largest difference"))
    rows.append(Row(f"estimate · {name}", correlation, "rank correlation", None, "with the sweep, over all heads"))
    return rows


def rank(effects: np.ndarray) -> np.ndarray:
    """Return the rank of each head's mean effect. A sentence of one token has no loss (NaN)."""
    return np.nanmean(effects, axis=1).argsort().argsort()


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write build/bench/intervene.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervene", description=__doc__)
    parser.add_argument("--models", default="MiniLM,SmolLM2")
    parser.add_argument("--examples", type=int, default=64, help="number of sentences")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="folder of the report")
    chosen = parser.parse_args(arguments or [])
    rows = []
    for name in chosen.models.split(","):
        n_examples = chosen.examples if name == "MiniLM" else max(2, chosen.examples // 8)
        rows += measure_model(name, n_examples, chosen.repeats)
    report("intervene", rows, **({} if chosen.folder is None else {"folder": chosen.folder}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
