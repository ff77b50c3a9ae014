"""Figures of sampling units on real corpora: ``python -m tools.real_figures``, for docs/calibration.md.

For EWT's documents and WinoBias's occupations and sentence pairs: how much the interval of a head's mass widens if the
units count instead of the examples, and how often pairs that do not differ are told apart by a test over pairs and by one
over occupations. MiniLM is captured into the folder on the first call.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path

import numpy as np

from headatlas.store import Store
from headatlas.store.queries.evidence.resampling import bootstrap_interval, false_discovery_rate, p_two_sided
from headatlas.store.queries.evidence.sampling_units import sampling_units, unit_sums
from headatlas.store.queries.minimal_pairs import contrast, minimal_pairs
from headatlas.store.queries.pattern_search import search

from .calibration import ROOT, capture

LOOKING_BACK = 'query.text in {"he", "she", "him", "her", "his"} and key.position < query.position and not key.special'
"""Mass of a pronoun on the words before it."""
PATTERNS = {
    "ewt": ("previous_token", 'key.upos == "NOUN"'),
    "winobias": ("previous_token", LOOKING_BACK),
}
UNITS = {"ewt": "document", "winobias": "occupation"}


def write_winobias(pairs: Path, path: Path) -> None:
    """Write aligned sentence pairs as JSON lines: pair, variant (he or she) and the occupation that the pronoun means."""
    lines = []
    with pairs.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["aligned"] != "1" or row["n_diff_tokens"] != "1":
                continue
            occupation = re.sub(r"^(the|a|an) ", "", row["pro_spans"].split("|")[0].lower())
            for side in ("pro", "anti"):
                pronoun = row[f"{side}_spans"].split("|")[-1].lower()
                lines.append(
                    {
                        "id": f"{row['pair_id']}.{side}",
                        "text": row[f"{side}_sentence"],
                        "pair": row["pair_id"],
                        "variant": "she" if pronoun in ("she", "her", "hers") else "he",
                        "occupation": occupation,
                    }
                )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def inflation(store: Store, pattern: str, unit: str) -> np.ndarray:
    """Return (width of the interval over units / width over examples)², the inflation of the variance, of each head."""
    result = search(store, pattern)
    numbers, widths = result.example_mass["example"].to_numpy(), []
    for name in (unit, "example"):
        code = sampling_units(store, name).of(numbers)
        low, high = bootstrap_interval(unit_sums(result.example_sums, code), unit_sums(result.example_rows, code))
        widths.append(high - low)
    return (widths[0] / widths[1]).ravel() ** 2


def null_contrasts(store: Store, unit: str, n_sets: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Compare pairs whose variants were exchanged at random, all pairs of a unit together, so that none differs.

    Returns for tests over pairs and over units the share of heads with p < .05, and of data sets with a q < .05.
    """
    result = contrast(search(store, LOOKING_BACK), minimal_pairs(store))
    first = result.pairs.first[result.pair_index]
    codes = {name: sampling_units(store, name).of(first) for name in ("example", unit)}
    rng, rates = np.random.default_rng(seed), {name: ([], []) for name in codes}
    for _ in range(n_sets):
        signs = rng.choice((-1.0, 1.0), int(codes[unit].max()) + 1)[codes[unit]]
        for name, code in codes.items():
            p_value = p_two_sided(unit_sums(result.difference * signs, code))
            rates[name][0].append(float((p_value < 0.05).mean()))
            rates[name][1].append(bool((false_discovery_rate(p_value) < 0.05).any()))
    return {name: (float(np.mean(below)), float(np.mean(flagged))) for name, (below, flagged) in rates.items()}


def real_store(name: str, folder: Path, data: Path) -> Store:
    """Open the store of a corpus, or capture it with MiniLM."""
    if name == "ewt":
        settings = {"corpus.kind": "conllu", "corpus.path": str(data / "ud-english-ewt/en_ewt-ud-dev.conllu")}
    else:
        path = folder / "winobias.jsonl"
        if not path.exists():
            write_winobias(data / "winobias/pairs.tsv", path)
        settings = {"corpus.kind": "jsonl", "corpus.path": str(path)}
    return capture(folder / name, settings)


def main() -> None:
    """Measure, and print the tables of docs/calibration.md."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.real_figures", description="Figures of sampling units on real corpora."
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build/calibration", help="folder of the stores")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder of the corpora")
    parser.add_argument("--sets", type=int, default=200, help="null data sets of the contrast")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, unit in UNITS.items():
        store = real_store(name, options.folder, options.data)
        n_units = int(sampling_units(store, unit).unit.max()) + 1
        for pattern in PATTERNS[name]:
            factor = inflation(store, pattern, unit)
            median, largest = float(np.median(factor)), float(factor.max())
            print(
                f"| {name} | `{pattern}` | {store.n_examples:,} | {unit} ({n_units:,}) | {median:.1f} | {largest:.1f} | "
                f"{median**0.5:.1f} | {largest**0.5:.1f} |",
                flush=True,
            )
        if name == "winobias":
            for counted, (below, flagged) in null_contrasts(store, unit, options.sets).items():
                print(f"| {counted} | {100 * below:.1f} | {100 * flagged:.1f} |", flush=True)


if __name__ == "__main__":
    main()
