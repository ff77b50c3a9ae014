"""Draws the figures of the tutorial on neurons.

    python docs/tutorials/neurons_figures.py pairs neurons.json images/neurons-pairs.svg
    python docs/tutorials/neurons_figures.py decay store 18.5 images/neurons-decay.svg pairs:5,7,9,10,12:0 pairs:20-24:0

The first is a bar for each rotary pair, from `headatlas neurons --json`: the score of matching keys minus that of the others.
The second is the mean attention of a head at each distance in a store: as it is, and with dimensions scaled in each of the
given ways.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headatlas.store import open_store
from headatlas.store.reading.rescaled_attention import rescaled_rows
from headatlas.store.schema.head_dimensions import factor_vector, parse_factors

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 300, 62, 14, 34, 44
REACH = 64
"""Largest distance of the second figure."""
COLOURS = ("#222", "#b2182b", "#2166ac", "#1b7837")


def frame(title: str, below: str, beside: str, content: Sequence[str]) -> str:
    """Return a picture with a title, the names of both axes, and its content."""
    middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="12">{title}</text>',
        f'<text x="{middle[0]:g}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">{below}</text>',
        f'<text transform="translate(14 {middle[1]:g}) rotate(-90)" text-anchor="middle" fill="#555">{beside}</text>',
    ]
    return "\n".join([*parts, *content, "</svg>", ""])


def pairs_figure(path: Path) -> str:
    """Draw one bar for each rotary pair."""
    document = json.loads(path.read_text(encoding="utf-8"))
    values = {int(row["pair"]): float(row["difference"]) for row in document["pairs"]}
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    step = (WIDTH - LEFT - RIGHT) / len(values)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    content = [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="#999"/>']
    for pair, value in sorted(values.items()):
        x = LEFT + step * pair
        content.append(
            f'<rect x="{x + 1:.1f}" y="{y(max(value, 0)):.1f}" width="{step - 2:.1f}" height="{abs(y(value) - y(0)):.1f}" '
            f'fill="#2166ac"><title>pair {pair}: {value:+.3f}</title></rect>'
        )
        if pair % 4 == 0:
            content.append(
                f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 26}" text-anchor="middle" fill="#555">{pair}</text>'
            )
    content += [
        f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>'
        for value in (0.0, round(high, 1))
    ]
    title = f"Head {document['neurons']['head']}: what each rotary pair adds to the score of nearby keys"
    return frame(title, "rotary pair (0 is the fastest)", "difference of scores", content)


def decay_figure(store: str, head: str, changes: Sequence[str]) -> str:
    """Draw the mean attention at each distance, on logarithmic scales."""
    opened = open_store(store)
    site = opened.site()
    layer, number = map(int, head.split("."))
    curves = dict[str, np.ndarray]()
    for change in changes:
        sums, counts = np.zeros((2, REACH)), np.zeros(REACH)
        factors = factor_vector(parse_factors(change, site), site.d_head)
        for segment in opened.segments:
            for piece in rescaled_rows(segment, site, layer, number, factors):
                for row, query in enumerate(piece.query_pos.tolist()):
                    n = min(REACH, query)
                    keys = query - 1 - np.arange(n) - piece.first_key
                    sums[0, :n] += piece.before[row, keys]
                    sums[1, :n] += piece.after[row, keys]
                    counts[:n] += 1
        curves.setdefault("as it is", sums[0] / counts)
        curves[f"{change.rpartition(':')[0]} set to 0"] = sums[1] / counts
    top = math.log10(max(curve.max() for curve in curves.values()))
    bottom = math.log10(min(curve.min() for curve in curves.values()))

    def point(distance: int, mass: float) -> str:
        x = LEFT + math.log(distance) / math.log(REACH) * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{TOP + (top - math.log10(mass)) / (top - bottom) * (HEIGHT - TOP - BOTTOM):.1f}"

    content = []
    for i, (name, curve) in enumerate(curves.items()):
        points = " ".join(point(distance, mass) for distance, mass in enumerate(curve.tolist(), 1))
        content.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[i]}" stroke-width="1.6"/>')
        content.append(
            f'<text x="{WIDTH - RIGHT}" y="{TOP + 14 * (i + 1)}" text-anchor="end" fill="{COLOURS[i]}">{name}</text>'
        )
    for distance in (1, 2, 4, 8, 16, 32, 64):
        x = point(distance, 1.0).partition(",")[0]
        content.append(f'<text x="{x}" y="{HEIGHT - 26}" text-anchor="middle" fill="#555">{distance}</text>')
    for power in range(math.ceil(bottom), math.floor(top) + 1):
        y = point(1, 10.0**power).partition(",")[2]
        content.append(
            f'<text x="{LEFT - 6}" y="{float(y) + 4:g}" text-anchor="end" fill="#555">{10.0**power:g}</text>'
        )
    return frame(f"Head {head}: attention by distance", "distance in tokens", "attention", content)


def main() -> None:
    """Write the figure that the command line names."""
    kind, *arguments = sys.argv[1:]
    if kind == "pairs":
        text, path = pairs_figure(Path(arguments[0])), arguments[1]
    else:
        text, path = decay_figure(arguments[0], arguments[1], arguments[3:]), arguments[2]
    Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
