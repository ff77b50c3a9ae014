"""Draws how the link of a head moves from "he" to "she", by the share of women in the occupation.

    python docs/tutorials/bias_occupations.py occupations.json images/bias-occupations.svg

The file is the output of `headatlas contrast --unit occupation --correlate women --json`. Each point is the mean over the
pairs of an occupation, in the head with the largest correlation. It is labelled with the first of these pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

FIELDS = ("unit", "value", "difference")
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
    """Draw the figure of the head that the output names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("correlations", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    result = json.loads(arguments.correlations.read_text(encoding="utf-8"))
    unit, women, difference = (np.array([point[name] for point in result["points"]]) for name in FIELDS)
    count = np.bincount(unit)
    first = [int(np.flatnonzero(unit == number)[0]) for number in range(len(count))]
    names = [result["points"][i]["pair"] for i in first]
    women, difference = np.bincount(unit, women) / count, np.bincount(unit, difference) / count
    title = f"Head {result['head']}: attention of the pronoun to the occupation ({len(count)} occupations)"
    arguments.figure.write_text(scatter(women, difference, names, title, "she − he"), encoding="utf-8")


if __name__ == "__main__":
    main()
