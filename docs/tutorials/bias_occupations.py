"""Correlates how the link of a head moves from "he" to "she" with the share of women in the occupation.

    python docs/tutorials/bias_occupations.py traces/bias images/bias-occupations.svg >occupations.json

The link is the attention of the pronoun to the occupation; its move is that of "she" minus that of "he", mean over the
pairs of an occupation. Prints Spearman's rank correlation of every head with its 95 % interval and its false-discovery rate
over all heads, and draws the head with the largest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from headatlas.store import open_store
from headatlas.store.comparisons.example_tests import q_values, rank_correlation

LINK = 'query.role == "pronoun" and key.role == "occupation"'

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 320, 64, 44, 34, 14


def scatter(women: np.ndarray, difference: np.ndarray, names: list[str], title: str, axis: str) -> str:
    """Draw one point for each occupation as SVG."""
    low, high = min(0.0, float(difference.min())), max(0.0, float(difference.max()))
    margin = (high - low or 1) * 0.08
    low, high = low - margin, high + margin
    x = LEFT + women / 100 * (WIDTH - LEFT - RIGHT)
    y = TOP + (high - difference) / (high - low) * (HEIGHT - TOP - BOTTOM)
    zero = TOP + high / (high - low) * (HEIGHT - TOP - BOTTOM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="12">{title}</text>',
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{zero + 4:.1f}" text-anchor="end" fill="#555">0</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">women in the occupation (%)'
        "</text>",
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" fill="#555">{axis}'
        "</text>",
    ]
    for value in (low + margin, high - margin):
        position = TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
        if value:
            label = f"{value:+.2f}".replace("-", "−")
            parts.append(f'<text x="{LEFT - 6}" y="{position + 4:.1f}" text-anchor="end" fill="#555">{label}</text>')
    for share in range(0, 101, 25):
        position = LEFT + share / 100 * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text x="{position:g}" y="{HEIGHT - 26}" text-anchor="middle" fill="#555">{share}</text>')
    for i, name in enumerate(names):
        parts.append(
            f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="3.5" fill="#b2182b" fill-opacity="0.65">'
            f"<title>{name}: {women[i]:.0f} % women, {difference[i]:+.3f}</title></circle>"
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Read the store, draw the figure, and print the correlations as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    store = open_store(arguments.store)
    result = store.contrast(LINK, between=("male", "female"))
    examples = np.searchsorted(store.example_numbers(), result.pairs.first[result.pair_index])
    columns = {name: store.example_columns()[name].take(examples).to_list() for name in ("occupation", "women")}
    names, unit = np.unique(np.array(columns["occupation"], str), return_inverse=True)
    women = np.bincount(unit, np.array(columns["women"], float)) / np.bincount(unit)
    correlation = rank_correlation(result.difference, np.ones(len(unit)), np.array(columns["women"], float), unit)
    q_value = q_values(correlation.p_value)
    layers = result.heads["layer"].to_numpy().tolist()
    order = np.argsort(-np.abs(np.nan_to_num(correlation.rho)), axis=None)
    heads = [divmod(int(i), q_value.shape[1]) for i in order]
    rows = [
        {
            "layer": layers[layer], "head": head, "rho": float(correlation.rho[layer, head]),
            "low": float(correlation.low[layer, head]), "high": float(correlation.high[layer, head]),
            "q_value": float(q_value[layer, head]),
        }
        for layer, head in heads
    ]  # fmt: skip
    layer, head = heads[0]
    difference = np.bincount(unit, result.difference[layer, head]) / np.bincount(unit)
    title = f"Head {layers[layer]}.{head}: attention of the pronoun to the occupation ({len(names)} occupations)"
    arguments.figure.write_text(scatter(women, difference, names.tolist(), title, "she − he"), encoding="utf-8")
    print(json.dumps({"occupations": len(names), "heads": rows, "n_below": int((q_value < 0.05).sum())}))


if __name__ == "__main__":
    main()
