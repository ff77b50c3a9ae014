"""Every statistic, definition and score of a store beside slow loops over its attention: ``make check-definitions``.

MiniLM and SmolLM2 are traced over sentences of EWT dev twice: with attention as float32, where numbers must agree to
1e-5 (of the largest, where that is above 1), and with the default codec, where each may be as far off as the codec's error of its own weights allows. The
loops of `slow_definitions.py` see the float32 weights and tokens, and nothing else of headatlas.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headatlas.store import open_store
from headatlas.store.reading.example import Example
from headatlas.store.reading.words import plan_segment, segment_word_attention
from headatlas.store.search.relations import MINIMUM_DEPENDENTS, WordRows, relation_atlas
from headatlas.store.search.search import search
from headatlas.store.statistics.definitions import SINK_FREE, STATISTICS, VARIABILITY, known_names
from headatlas.store.statistics.measured import measured_statistics
from headatlas.store.statistics.published import DEFINITIONS, published_table
from headatlas.store.store import Store

from . import slow_definitions as slow
from .slow_definitions import Errors, Tokens, Weights

ROUNDING = 1e-5
FLIPS = 0.001
MODELS = {"MiniLM": "demo", "SmolLM2": "smollm2"}
PATTERNS = {
    "key.position == query.position - 1": lambda t, q, k: k == q - 1,
    "key.id == query.id and key.position < query.position": lambda t, q, k: k < q and t.ids[k] == t.ids[q],
    "induction": lambda t, q, k: 0 < k < q and t.ids[k - 1] == t.ids[q],
    "key.special": lambda t, q, k: t.special[k],
    "key.word == query.head": lambda t, q, k: t.word[k] >= 0 and t.word[q] >= 0 and t.head[t.word[q]] == t.word[k],
    'query.upos == "NOUN" and key.upos == "DET"': lambda t, q, k: (_tag(t, q), _tag(t, k)) == ("NOUN", "DET"),
    "key.word == query.word and key.position != query.position": lambda t, q, k: t.word[k] == t.word[q] >= 0 and k != q,
}


def _tag(t: Tokens, i: int) -> str | None:
    return t.upos[t.word[i]] if t.word[i] >= 0 else None


@dataclass
class Line:
    """One thing that was compared."""

    name: str
    n: int
    exact: float
    """Largest difference from the float32 store."""
    coded: float = 0.0
    """Largest difference from the store with the default codec."""
    bound: float = np.inf
    """What the codec allows there."""
    share: float = 0.0
    """Largest difference over its own bound: at most 1."""
    allowed: float = ROUNDING

    @property
    def holds(self) -> bool:
        """Whether both differences are allowed."""
        return self.exact <= self.allowed and self.share <= 1


@dataclass
class Sums:
    """Totals of the slow loops over a corpus, [head of the model] a number."""

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By statistic: each example's mean."""
    bounds: dict[str, list[np.ndarray]] = field(default_factory=dict)
    columns: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    """By definition and column: Σ numerator, Σ denominator, Σ error of either."""
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    strongest_words: list[np.ndarray] = field(default_factory=list)
    """The word that each word looks at most, [head, word] of each example."""
    right: list[np.ndarray] = field(default_factory=list)
    """Whether each dependent's head was found, [head, direction, dependent] of each example."""


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
    from headatlas.pipeline.run import run_job

    out = work / f"{model.lower()}-{codec}-{n or 'all'}"
    settings = ["corpus.kind=conllu", f"corpus.path={treebank}", f"keep.attention={codec}", "keep.query_key=none"]
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
    return lines


def loop_over(store: Store, *, scores: bool = True) -> Sums:
    """Run every slow loop over a store with float32 attention; without `scores` statistics and definitions alone."""
    means, sums = mean_corners(store), Sums()
    for x, _ in examples_of(store):
        errors = Errors(x)
        add_statistics(sums, x, errors, means)
        add_definitions(sums, x, errors, means)
        if scores:
            _add_scores(sums, x, errors)
            _add_words(sums, x)
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


def _add_scores(sums: Sums, x: Weights, errors: Errors) -> None:
    t, n_heads = x.tokens, len(x.maps)
    for pattern, holds in PATTERNS.items():
        of = sums.scores.setdefault(
            pattern, {name: np.zeros(n_heads) for name in ("mass", "hits", "bound", "uniform", "rows")}
        )
        for q in range(x.n):
            keys = [k for k in x.keys(q) if holds(t, q, k)]
            if not keys:
                continue
            of["rows"] += 1
            of["uniform"] += len(keys) / len(x.keys(q))
            for k in keys:
                of["mass"] += x.at(q, k)
                of["bound"] += errors.at(q, k)
            strongest = np.argmax([x.at(q, k) for k in x.keys(q)], axis=0)
            of["hits"] += np.isin(strongest, keys)


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


def score_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """Mass, hit rate, baseline and lift of some patterns."""
    for pattern, of in sums.scores.items():
        rows = of["rows"]
        ours, rounded = search(exact, pattern), search(coded, pattern)
        assert ours.rows == rounded.rows == rows[0], f"{pattern}: {ours.rows} rows, expected {rows[0]:.0f}"
        mass, bound = of["mass"] / rows, of["bound"] / rows + ROUNDING
        found, other = (result.heads["mass"].to_numpy().ravel() for result in (ours, rounded))
        off = np.abs(other - mass)
        at = int(np.argmax(off / bound))
        exactly = float(np.abs(found - mass).max())
        yield Line(
            f"mass of {pattern}", len(mass), exactly, float(off.max()), float(bound[at]), float((off / bound).max())
        )
        hits = [np.abs(r.heads["hit_rate"].to_numpy().ravel() - of["hits"] / rows) for r in (ours, rounded)]
        worst = [float(part.mean()) for part in hits]
        yield Line(f"hit rate of {pattern}", len(mass), worst[0], worst[1], FLIPS, worst[1] / FLIPS, FLIPS)
        chance = of["uniform"] / rows
        apart = np.abs(ours.heads["baseline"].to_numpy().ravel() - chance).max()
        lift = np.abs(ours.heads["lift"].to_numpy().ravel() - mass / chance) / (1 + mass / chance)
        yield Line(f"baseline, lift of {pattern}", len(mass), float(max(apart, lift.max())))


def _add_words(sums: Sums, x: Weights) -> None:
    maps, heads = slow.word_maps(x), x.tokens.head
    n = x.tokens.n_words
    sums.strongest_words.append(maps.argmax(axis=2) if n else np.zeros((len(maps), 0), np.int64))
    dependents = [i for i in range(n) if 0 <= heads[i] < n and heads[i] != i]
    right = np.zeros((len(maps), 2, len(dependents)), bool)
    for at, i in enumerate(dependents):
        right[:, 0, at] = maps[:, i, :].argmax(axis=1) == heads[i]
        right[:, 1, at] = maps[:, :, i].argmax(axis=1) == heads[i]
    sums.right.append(right)


def word_lines(sums: Sums, exact: Store, coded: Store) -> Iterator[Line]:
    """How often a head's answer is another than from float32: over all heads, and in points of a relation's accuracy."""
    expected = np.concatenate(sums.right, axis=2)
    found = [relation_atlas(store).select for store in (exact, coded)]
    answers = [one.right.reshape(expected.shape) for one in found]
    flips = [float((one != expected).mean()) for one in answers]
    yield Line("head of a dependent (flips)", expected.size, flips[0], flips[1], FLIPS, flips[1] / FLIPS, FLIPS)
    moved = [0.0, 0.0]
    for relation in found[0].names:
        chosen = found[0].of(relation)
        if len(chosen) < MINIMUM_DEPENDENTS:
            continue
        accuracy = expected[..., chosen].mean(axis=-1)
        best = np.unravel_index(int(accuracy.argmax()), accuracy.shape)
        for at, one in enumerate(answers):
            moved[at] = max(moved[at], abs(float(one[..., chosen].mean(axis=-1)[best] - accuracy[best])))
    yield Line(
        "accuracy of a relation's best head", len(found[0].names), *moved, 2 * FLIPS, moved[1] / (2 * FLIPS), ROUNDING
    )
    flips = [_flips(sums, store) for store in (exact, coded)]
    yield Line("strongest word of a word (flips)", flips[0][1], flips[0][0], flips[1][0], 2 * FLIPS, flips[1][0] / (2 * FLIPS), FLIPS)  # fmt: skip


def _flips(sums: Sums, store: Store) -> tuple[float, int]:
    site, number, differ, total = store.site(), 0, 0, 0
    for segment in store.segments:
        examples = range(segment.n_examples)
        plan = plan_segment(segment, site, examples)
        rows = WordRows.of(plan)
        parts = sums.strongest_words[number : number + segment.n_examples]
        expected = np.concatenate(parts, axis=1).reshape(site.n_layers, site.n_heads, -1)
        number += segment.n_examples
        several = np.repeat(plan.n_key_words, plan.n_query_words) > 1
        for layer in range(site.n_layers):
            for head, weights in enumerate(segment_word_attention(segment, site, layer, examples, plan)):
                weights[rows.diagonal] = 0
                differ += int((rows.strongest(weights) != expected[layer, head])[several].sum())
                total += int(several.sum())
    return differ / max(total, 1), total


def report(lines: list[Line]) -> bool:
    """Print the table; whether every line holds."""
    print(f"{'':56} {'numbers':>9} {'from float32':>13} {'sqrt8':>9} {'allowed':>9} {'of it':>6}")
    for line in lines:
        bound = f"{line.bound:9.2g}" if np.isfinite(line.bound) else f"{'':9}"
        mark = "" if line.holds else "  <-- too far"
        print(f"{line.name[:56]:56} {line.n:9,} {line.exact:13.1e} {line.coded:9.1e} {bound} {line.share:6.2f}{mark}")
    return all(line.holds for line in lines)


if __name__ == "__main__":
    sys.exit(main())
