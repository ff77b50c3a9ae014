"""Draws how a head's link moves from one pronoun to the other, by the share of women in the occupation.

    python docs/tutorials/bias_figure.py contrast.json links.jsonl images/bias-occupations.svg >occupations.json

`contrast.json` is the output of `headatlas contrast … --json`. Each point is an occupation: the mean difference over its
pairs. Prints Spearman's rank correlation with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from headatlas.store.comparisons.example_tests import rank_correlation

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
    """Read the contrast and the texts, write the figure, and print the correlation as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contrast", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    contrast = json.loads(arguments.contrast.read_text(encoding="utf-8"))
    texts = [json.loads(line) for line in arguments.texts.read_text(encoding="utf-8").splitlines()]
    occupation_of = {text["pair"]: (text["occupation"], text["women"]) for text in texts}
    by_occupation = defaultdict[str, list[float]](list)
    for pair in contrast["pairs"]:
        by_occupation[occupation_of[pair["pair"]][0]].append(pair["difference"])
    share = dict(occupation_of.values())
    names = sorted(by_occupation)
    women = np.array([share[name] for name in names])
    difference = np.array([np.mean(by_occupation[name]) for name in names])
    n = len(names)
    correlation = rank_correlation(difference[None, None], np.ones(n), women, np.arange(n))
    head, (first, second) = contrast["head"], (contrast["contrast"][name] for name in ("first", "second"))
    title = f"Head {head}: attention of the pronoun to the occupation, {second} − {first} ({n} occupations)"
    axis = f"{second} − {first}"
    arguments.figure.write_text(scatter(women, difference, names, title, axis), encoding="utf-8")
    numbers = {name: float(np.ravel(getattr(correlation, name))[0]) for name in ("rho", "low", "high", "p_value")}
    print(json.dumps({"head": head, "occupations": n, **numbers}))


if __name__ == "__main__":
    main()
