"""Compare every statistic, definition and score of a store with slow loops over its attention: ``make check-definitions``.

MiniLM and SmolLM2 are captured over sentences of EWT dev twice. From float32 attention the numbers must agree within
1e-5 (relative to the largest number if that is above 1). From the default codec, each number may be off by as much as
the codec's error of its own weights allows. The loops of `slow_definitions.py` use the float32 weights and the tokens,
and nothing else of headatlas.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headatlas.store import open_store
from headatlas.store.reading.example import Example
from headatlas.store.schema.capture_statistics import STATISTICS
from headatlas.store.statistics.definitions import SINK_FREE, VARIABILITY, known_names
from headatlas.store.statistics.measurement import measured_statistics
from headatlas.store.statistics.published import DEFINITIONS, published_table
from headatlas.store.store import Store

from . import slow_definitions as slow
from .check_comparisons import comparison_lines
from .check_lines import FLIPS, ROUNDING, Line, Sums, report
from .check_scores import add_scores, score_lines
from .check_words import add_words, word_lines, word_search_lines
from .slow_definitions import Errors, Tokens, Weights

COARSE = "sqrt:20"
"""Codec of the store that differs from the first: its weights are known exactly, and far enough off to be compared."""
MODELS = {"MiniLM": "demo", "SmolLM2": "smollm2"}


def main() -> int:
    """Print a table. Return 0 if all numbers agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=200, help="number for each model (default 200)")
    parser.add_argument("--all", action="store_true", help="every sentence of the treebank")
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="check this model only")
    parser.add_argument("--treebank", type=Path, default=_treebank(), help="a CoNLL-U file")
    parser.add_argument("--work", type=Path, default=Path("build/check"), help="folder of the stores")
    options = parser.parse_args()
    if not options.treebank.is_file():
        print(
            f"{options.treebank} does not exist. Name a CoNLL-U file with --treebank, "
            "or set HEADATLAS_DATA to the folder that holds ud-english-ewt.",
            file=sys.stderr,
        )
        return 2
    agree = True
    for model in options.model or MODELS:
        n = None if options.all else options.sentences
        stores = [trace(model, codec, options.treebank, n, options.work) for codec in ("float32", "sqrt8", COARSE)]
        start = time.process_time()
        lines = check(*stores)
        seconds = time.process_time() - start
        print(f"\n{model}, {stores[0].n_examples:,} sentences ({seconds:.0f} s of slow loops)\n")
        agree &= report(lines)
    print("\nevery number agrees" if agree else "\nsome numbers do NOT agree", flush=True)
    return 0 if agree else 1


def _treebank() -> Path:
    data = Path(os.environ.get("HEADATLAS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    return data / "ud-english-ewt" / "en_ewt-ud-dev.conllu"


def trace(model: str, codec: str, treebank: Path, n: int | None, work: Path) -> Store:
    """Capture a model over the first `n` sentences, unless the store of this treebank is there already."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.job_runner import run_job

    key = hashlib.sha256(treebank.read_bytes()).hexdigest()[:12]
    out = work / f"{model.lower()}-{codec.replace(':', '')}-{n or 'all'}-{key}"
    settings = ["corpus.kind=conllu", f"corpus.path={treebank}", f"keep.attention={codec}"]
    settings += ["keep.query_key=none"] if codec in ("float32", COARSE) else []
    settings += ["keep.edges=none"] if codec == COARSE else []
    settings += [f"corpus.max_examples={n}"] if n else []
    config = load_config(MODELS[model], settings)
    config = config.model_copy(update={"store": config.store.model_copy(update={"path": out})})
    run_job(config)
    return open_store(out)


def examples_of(store: Store) -> Iterator[tuple[Weights, Example]]:
    """Yield each example in the form that the slow loops read."""
    counts: dict[int, int] = {}
    for segment in store.segments:
        for token in segment.tokens().id.tolist():
            counts[token] = counts.get(token, 0) + 1
    causal = store.site().causal
    for example in store.examples:
        table = example.tokens()
        columns = {name: column.to_list() for name, column in table.word_columns.items()}
        n_words = int(table.word_offset[-1])
        tokens = Tokens(
            table.id.tolist(),
            table.special.tolist(),
            table.second.tolist(),
            table.text,
            table.word.tolist(),
            n_words,
            [int(head) for head in columns["head"]],  # type: ignore[arg-type]
            [tag if isinstance(tag, str) else None for tag in columns["upos"]],
        )
        maps = example.attention().to_numpy()
        yield Weights(maps.reshape(maps.shape[0] * maps.shape[1], *maps.shape[2:]), tokens, causal, counts), example


def check(exact: Store, coded: Store, coarse: Store) -> list[Line]:
    """Compare all numbers of the first two stores with the loops over the first one, and the first with the third."""
    sums = loop_over(exact)
    lines = list(statistic_lines(sums, exact, coded))
    lines += definition_lines(sums, exact, coded)
    lines += score_lines(sums, exact, coded)
    lines += word_lines(sums, exact, coded)
    lines += word_search_lines(sums, exact, coded)
    lines += comparison_lines(exact, coarse, lambda: (x for x, _ in examples_of(exact)))
    return lines


def loop_over(store: Store, *, scores: bool = True) -> Sums:
    """Run every slow loop over a store with float32 attention. Without `scores`, run statistics and definitions only."""
    means, sums = mean_corners(store), Sums()
    for x, _ in examples_of(store):
        errors = Errors(x)
        add_statistics(sums, x, errors, means)
        add_definitions(sums, x, errors, means)
        if scores:
            add_scores(sums, x, errors)
            add_words(sums, x, errors)
    return sums


def mean_corners(store: Store) -> dict[str, np.ndarray]:
    """Compute Ā of the first ten tokens and its error, with and without sinks, [head, 10, 10]."""
    names = ("all", "sink_free")
    total: dict[str, np.ndarray] = {}
    n_examples = np.zeros((10, 10))
    for x, _ in examples_of(store):
        for name, w, e in zip(names, (x, x.without_sinks(10)), (Errors(x), Errors(x).without_sinks(10)), strict=True):
            for kind, source in (("", w), (" error", e)):
                sums = total.setdefault(name + kind, np.zeros((len(x.maps), 10, 10)))
                for q, k in slow.corner(x):
                    sums[:, q, k] += source.at(q, k)
        for q, k in slow.corner(x):
            n_examples[q, k] += 1
    return {name: sums / np.maximum(n_examples, 1) for name, sums in total.items()}


def add_statistics(sums: Sums, x: Weights, errors: Errors, means: dict[str, np.ndarray]) -> None:
    """Add the statistics of an example, and the largest change that the codec may cause."""
    for ending, w, e in (("", x, errors), (SINK_FREE, x.without_sinks(), errors.without_sinks())):
        for name in slow.STATISTICS:
            if ending and name in slow.NOT_SINK_FREE:
                continue
            for target, source in ((sums.values, w), (sums.bounds, e)):
                total, n = slow.statistic(name, source)
                target.setdefault(name + ending, []).append(total / n if n else np.full(len(x.maps), np.nan))
        mean = "sink_free" if ending else "all"
        above, below = slow.variability(w, means[mean])
        off, mass = slow.variability(e, -means[f"{mean} error"])
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.where(below > 0, above / below, np.nan)
            room = below - mass
            bound = np.where(room > 0, (off + value * mass) / room, np.inf)
        sums.values.setdefault(VARIABILITY + ending, []).append(value)
        sums.bounds.setdefault(VARIABILITY + ending, []).append(bound)


def add_definitions(sums: Sums, x: Weights, errors: Errors, means: dict[str, np.ndarray]) -> None:
    """Add the columns of an example, and the largest change that the codec may cause."""
    null = np.arange(10) > 0
    for name, (formula, average) in slow.DEFINITIONS.items():
        values = formula(x, means["all"] * null)
        changes = formula(errors, -means["all error"] * null)
        columns = sums.columns.setdefault(name, {})
        for column, (above, below) in values.items():
            above_off, below_off = changes.get(column, (np.zeros_like(above), np.zeros_like(above)))
            divided = column in slow.DIVIDED_BY_MASS or column.startswith("to_")
            parts = [above, below, above_off, below_off if divided and name != "headvis" else np.zeros_like(above)]
            parts = [np.broadcast_to(part, above.shape).astype(np.float64) for part in parts]
            if average == "examples":
                has_value = parts[1] > 0
                safe = np.where(has_value, parts[1], 1)
                value = np.where(has_value, parts[0] / safe, 0)
                room = np.where(has_value, parts[1] - parts[3], 1)
                bound = np.where(has_value, (parts[2] + np.abs(value) * parts[3]) / np.maximum(room, 1e-12), 0)
                parts = [value, has_value.astype(np.float64), bound, np.zeros_like(value)]
            before = columns.setdefault(column, [np.zeros_like(part) for part in parts])
            for total, part in zip(before, parts, strict=True):
                total += part


def statistic_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Compare every statistic of each example and head."""
    names = list(sums.values)
    assert set(names) == set(known_names()), "the loops know every statistic"
    ours, rounded = (measured_statistics(store, names, cache=False) for store in (exact, coded))
    captured = set(STATISTICS)
    for name in names:
        expected = np.stack(sums.values[name], axis=-1)
        bound = np.stack(sums.bounds[name], axis=-1)
        from_exact, from_coded = (m[name].values.reshape(expected.shape) for m in (ours, rounded))
        assert np.array_equal(np.isnan(from_exact), np.isnan(expected)), f"{name}: other examples have a value"
        has_value = np.isfinite(expected)
        if not has_value.any():
            yield Line(f"{name} (no such rows)", 0, 0.0)
            continue
        exact_error = float(np.abs(from_exact - expected)[has_value].max())
        allowed = ROUNDING * max(1.0, float(np.abs(expected[has_value]).max()))
        errors = np.abs(from_coded - expected)[has_value]
        # Statistics that the job computed before rounding are as exact as those from float32.
        limit = np.full(errors.shape, allowed) if name in captured else bound[has_value] + allowed
        worst = int(np.argmax(errors / limit))
        share = float(errors[worst] / limit[worst])
        yield Line(name, int(has_value.sum()), exact_error, float(errors.max()), float(limit[worst]), share, allowed)


def definition_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Compare every column of every tool's definition, of each head."""
    for name in DEFINITIONS:
        ours, rounded = published_table(exact, name), published_table(coded, name)
        expected, bounds = _columns(name, sums.columns[name])
        assert set(expected) == {str(c) for c in ours} - {"layer", "head"}, f"{name}: other columns"
        for column, values in expected.items():
            exact_errors = np.abs(ours[column].to_numpy() - values)
            errors = np.abs(rounded[column].to_numpy() - values)
            allowed = ROUNDING * max(1.0, float(np.nanmax(np.abs(values))))  # tokens² reach 10⁴
            limit = bounds.get(column, np.zeros_like(errors)) + allowed
            if name == "voita" and column != "confidence":  # the strongest key may change: mean over all heads
                errors = np.array([(errors != 0).mean() if column == "offset" else errors.mean()])
                limit = np.array([0.01 if column == "offset" else FLIPS])
            worst = int(np.nanargmax(errors / limit))
            exact_error, largest = float(np.nanmax(exact_errors)), float(np.nanmax(errors))
            share = float(errors[worst] / limit[worst])
            yield Line(f"{name}: {column}", len(values), exact_error, largest, float(limit[worst]), share, allowed)


def _columns(name: str, sums: dict[str, list[np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Compute a definition's columns, and the largest change of each by the codec, from the totals of the loops."""
    totals = dict(sums)
    if name == "vig":  # the denominator includes every word, also if its sentence lacks the tag
        for column in totals:
            if column.startswith("to_") or column == "dependency":
                totals[column] = [totals[column][0], totals["distance"][1], totals[column][2], totals["distance"][3]]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = {column: above / below for column, (above, below, _, _) in totals.items()}
        bound = {
            column: (off + np.abs(value[column]) * mass) / np.maximum(below - mass, 1e-12)
            for column, (_, below, off, mass) in totals.items()
        }
    if name == "voita":
        shares = np.stack([value.pop(f"at {o}") for o in range(-8, 9)])
        value |= {"positional": shares.max(axis=0), "offset": shares.argmax(axis=0) - 8.0}
    if name == "headvis":
        second, off = value.pop("second"), bound.pop("second")
        value["qk_distance_variance"] = second - value["qk_distance"] ** 2
        bound["qk_distance_variance"] = off + bound["qk_distance"] * (2 * value["qk_distance"] + bound["qk_distance"])
    return value, bound


if __name__ == "__main__":
    sys.exit(main())
