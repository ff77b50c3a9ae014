"""Every statistic, definition and score of a store beside slow loops over its attention: ``make check-definitions``.

MiniLM and SmolLM2 are traced over sentences of EWT dev twice: with attention as float32, where numbers must agree to
1e-5 (of the largest, where that is above 1), and as a job keeps it by default, where each may be as far off as the
codec's error of its own weights allows. The loops of `slow_definitions.py` see the float32 weights and tokens, and
nothing else of headatlas.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from headatlas.store import open_store
from headatlas.store.reading.example import Example
from headatlas.store.statistics.definitions import SINK_FREE, STATISTICS, VARIABILITY, known_names
from headatlas.store.statistics.measurement import measured_statistics
from headatlas.store.statistics.published import DEFINITIONS, published_table
from headatlas.store.store import Store

from . import slow_definitions as slow
from .check_lines import FLIPS, ROUNDING, Line, Sums, report
from .check_scores import add_scores, score_lines
from .check_words import add_words, word_lines, word_search_lines
from .slow_definitions import Errors, Tokens, Weights

MODELS = {"MiniLM": "demo", "SmolLM2": "smollm2"}


def main() -> int:
    """Print a table; 0 if everything holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=200, help="of each model (default 200)")
    parser.add_argument("--all", action="store_true", help="every sentence of the treebank")
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="only this one")
    parser.add_argument("--treebank", type=Path, default=_treebank(), help="a CoNLL-U file")
    parser.add_argument("--work", type=Path, default=Path("build/check"), help="folder of the stores")
    options = parser.parse_args()
    if not options.treebank.is_file():
        print(
            f"{options.treebank}: no such file; name the treebank with --treebank, or set HEADATLAS_DATA",
            file=sys.stderr,
        )
        return 2
    holds = True
    for model in options.model or MODELS:
        n = None if options.all else options.sentences
        stores = [trace(model, codec, options.treebank, n, options.work) for codec in ("float32", "sqrt8")]
        began = time.process_time()
        lines = check(*stores)
        print(f"\n{model}, {stores[0].n_examples:,} sentences ({time.process_time() - began:.0f} s of slow loops)\n")
        holds &= report(lines)
    print("\nevery number holds" if holds else "\nsome numbers do NOT hold", flush=True)
    return 0 if holds else 1


def _treebank() -> Path:
    data = Path(os.environ.get("HEADATLAS_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    return data / "ud-english-ewt" / "en_ewt-ud-dev.conllu"


def trace(model: str, codec: str, treebank: Path, n: int | None, work: Path) -> Store:
    """The store of a model over the first `n` sentences; one that is there already is used."""
    from headatlas.pipeline.config import load_config
    from headatlas.pipeline.job.job_runner import run_job

    out = work / f"{model.lower()}-{codec}-{n or 'all'}"
    settings = ["corpus.kind=conllu", f"corpus.path={treebank}", f"keep.attention={codec}"]
    settings += ["keep.query_key=none"] if codec == "float32" else []
    settings += [f"corpus.max_examples={n}"] if n else []
    config = load_config(MODELS[model], settings)
    config = config.model_copy(update={"store": config.store.model_copy(update={"path": out})})
    run_job(config)
    return open_store(out)


def examples_of(store: Store) -> Iterator[tuple[Weights, Example]]:
    """Each example as the slow loops want it."""
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


def check(exact: Store, coded: Store) -> list[Line]:
    """Compare everything of the two stores with the loops over the first."""
    sums = loop_over(exact)
    lines = list(statistic_lines(sums, exact, coded))
    lines += definition_lines(sums, exact, coded)
    lines += score_lines(sums, exact, coded)
    lines += word_lines(sums, exact, coded)
    lines += word_search_lines(sums, exact, coded)
    return lines


def loop_over(store: Store, *, scores: bool = True) -> Sums:
    """Run every slow loop over a store with float32 attention; without `scores` statistics and definitions alone."""
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
    """Ā of the first ten tokens and its error, as it is and without sinks, [head, 10, 10]."""
    names = ("all", "sink_free")
    total: dict[str, np.ndarray] = {}
    seen = np.zeros((10, 10))
    for x, _ in examples_of(store):
        for name, w, e in zip(names, (x, x.without_sinks(10)), (Errors(x), Errors(x).without_sinks(10)), strict=True):
            for kind, source in (("", w), (" error", e)):
                of = total.setdefault(name + kind, np.zeros((len(x.maps), 10, 10)))
                for q, k in slow.corner(x):
                    of[:, q, k] += source.at(q, k)
        for q, k in slow.corner(x):
            seen[q, k] += 1
    return {name: sums / np.maximum(seen, 1) for name, sums in total.items()}


def add_statistics(sums: Sums, x: Weights, errors: Errors, means: dict[str, np.ndarray]) -> None:
    """Add an example, and how far the codec may move it."""
    for ending, w, e in (("", x, errors), (SINK_FREE, x.without_sinks(), errors.without_sinks())):
        for name in slow.STATISTICS:
            if ending and name in slow.NOT_SINK_FREE:
                continue
            for store, source in ((sums.values, w), (sums.bounds, e)):
                total, n = slow.statistic(name, source)
                store.setdefault(name + ending, []).append(total / n if n else np.full(len(x.maps), np.nan))
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
    """Add an example, and how far the codec may move it."""
    null = np.arange(10) > 0
    for name, (formula, average) in slow.DEFINITIONS.items():
        found = formula(x, means["all"] * null)
        off = formula(errors, -means["all error"] * null)
        of = sums.columns.setdefault(name, {})
        for column, (above, below) in found.items():
            above_off, below_off = off.get(column, (np.zeros_like(above), np.zeros_like(above)))
            divided = column in slow.DIVIDED_BY_MASS or column.startswith("to_")
            parts = [above, below, above_off, below_off if divided and name != "headvis" else np.zeros_like(above)]
            parts = [np.broadcast_to(part, above.shape).astype(np.float64) for part in parts]
            if average == "examples":
                there = parts[1] > 0
                safe = np.where(there, parts[1], 1)
                value = np.where(there, parts[0] / safe, 0)
                room = np.where(there, parts[1] - parts[3], 1)
                bound = np.where(there, (parts[2] + np.abs(value) * parts[3]) / np.maximum(room, 1e-12), 0)
                parts = [value, there.astype(np.float64), bound, np.zeros_like(value)]
            before = of.setdefault(column, [np.zeros_like(part) for part in parts])
            for total, part in zip(before, parts, strict=True):
                total += part


def statistic_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Every statistic, of each example and head."""
    names = list(sums.values)
    assert set(names) == set(known_names()), "the loops know every statistic"
    ours, rounded = (measured_statistics(store, names, cache=False) for store in (exact, coded))
    held = set(STATISTICS)
    for name in names:
        expected = np.stack(sums.values[name], axis=-1)
        bound = np.stack(sums.bounds[name], axis=-1)
        found, other = (m[name].values.reshape(expected.shape) for m in (ours, rounded))
        assert np.array_equal(np.isnan(found), np.isnan(expected)), f"{name}: other examples have a value"
        there = np.isfinite(expected)
        if not there.any():
            yield Line(f"{name} (no such rows)", 0, 0.0)
            continue
        exactly = float(np.abs(found - expected)[there].max())
        allowed = ROUNDING * max(1.0, float(np.abs(expected[there]).max()))
        apart = np.abs(other - expected)[there]
        # What the job computed before rounding is as exact as from float32.
        limit = np.full(apart.shape, allowed) if name in held else bound[there] + allowed
        at = int(np.argmax(apart / limit))
        share = float(apart[at] / limit[at])
        yield Line(name, int(there.sum()), exactly, float(apart.max()), float(limit[at]), share, allowed)


def definition_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Every column of every tool's definition, of each head."""
    for name in DEFINITIONS:
        ours, rounded = published_table(exact, name), published_table(coded, name)
        expected, bounds = _columns(name, sums.columns[name])
        assert set(expected) == {str(c) for c in ours} - {"layer", "head"}, f"{name}: other columns"
        for column, values in expected.items():
            apart = np.abs(ours[column].to_numpy() - values)
            off = np.abs(rounded[column].to_numpy() - values)
            allowed = ROUNDING * max(1.0, float(np.nanmax(np.abs(values))))  # tokens² go to 10⁴
            limit = bounds.get(column, np.zeros_like(off)) + allowed
            if name == "voita" and column != "confidence":  # what is strongest may flip: over all heads
                off = np.array([(off != 0).mean() if column == "offset" else off.mean()])
                limit = np.array([0.01 if column == "offset" else FLIPS])
            at = int(np.nanargmax(off / limit))
            exactly = float(np.nanmax(apart))
            share = float(off[at] / limit[at])
            yield Line(
                f"{name}: {column}", len(values), exactly, float(np.nanmax(off)), float(limit[at]), share, allowed
            )


def _columns(name: str, sums: dict[str, list[np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A definition's columns and how far the codec may move each, from the loops' totals."""
    totals = dict(sums)
    if name == "vig":  # every word is in the denominator, whether its sentence has the tag or not
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
