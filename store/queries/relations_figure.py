"""The relation atlas as an SVG figure with one row for each relation, in light and dark colours.

A dot is the accuracy of the best head, with its 95 % interval. A bar ends at the fixed-offset baseline. A tick marks
chance. The distance between bar and dot is the gain of the head over the baseline.
"""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

import pandas as pd

ROW = 20
LEFT, PLOT, RIGHT = 148, 420, 130
TOP = 84
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .dim { fill: #656d76 } .title { font-weight: 600 }
  .grid { stroke: #d0d7de } .bar { fill: #c8cdd3 } .tick { stroke: #656d76; stroke-width: 2 }
  .dot { fill: #2f6feb } .interval { stroke: #2f6feb; stroke-width: 2 } .end { text-anchor: end }
  .middle { text-anchor: middle }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .dim { fill: #9198a1 } .grid { stroke: #3d444d } .bar { fill: #4a525c }
    .tick { stroke: #9198a1 } .dot { fill: #6ea8fe } .interval { stroke: #6ea8fe }
  }
"""


def relations_figure(table: pd.DataFrame, title: str) -> str:
    """Draw `RelationAtlas.table` (one row for each relation) as an SVG document."""
    height = TOP + ROW * len(table) + 16
    bottom = height - 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + PLOT + RIGHT} {height}" role="img" '
        f'aria-label="{_attribute(title)}">',
        f"<style>{_STYLE}</style>",
        _text(8, 18, "The best head of each relation", "title"),
        _text(8, 36, title),
        _text(8, 54, "dot: best head, 95 % interval · bar: best fixed offset · tick: chance · left: dependents", "dim"),
    ]
    for percent in range(0, 101, 20):
        x = LEFT + PLOT * percent / 100
        parts += [
            f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{TOP - 6}" y2="{bottom}"/>',
            _text(x, TOP - 10, f"{percent} %", "dim middle"),
        ]
    for index, row in enumerate(table.to_dict("records")):
        parts += _row(TOP + ROW * index + ROW / 2, row)
    return "\n".join([*parts, "</svg>", ""])


def _row(y: float, row: dict) -> list[str]:
    def x(share: float) -> float:
        return LEFT + PLOT * share

    arrow = "→" if row["direction"] == "to_head" else "←"
    title = (
        f"{row['relation']}: head {row['layer']}.{row['head']} {row['accuracy']:.1%} "
        f"({row['low']:.1%}–{row['high']:.1%}), offset {'/'.join(f'{offset:+d}' for offset in row['offsets'])} {row['offset_baseline']:.1%}, "
        f"chance {row['baseline']:.1%}, n = {row['n']:,}"
    )
    # There is no interval for a single sentence.
    ends = [x(share) for share in (row["low"], row["high"]) if math.isfinite(share)]
    interval = [f'<line class="interval" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y:g}" y2="{y:g}"/>'] if ends else []
    return [
        f"<g><title>{escape(_visible(title))}</title>",
        _text(LEFT - 48, y + 4, str(row["relation"]), "end"),
        _text(LEFT - 8, y + 4, f"{row['n']:,}", "dim end"),
        f'<rect class="bar" x="{LEFT}" y="{y - 4:g}" width="{PLOT * row["offset_baseline"]:.1f}" height="8"/>',
        f'<line class="tick" x1="{x(row["baseline"]):.1f}" x2="{x(row["baseline"]):.1f}" y1="{y - 6:g}" y2="{y + 6:g}"/>',
        *interval,
        f'<circle class="dot" cx="{x(row["accuracy"]):.1f}" cy="{y:g}" r="4"/>',
        _text(LEFT + PLOT + 12, y + 4, f"{row['layer']}.{row['head']} {arrow}  {row['accuracy']:.1%}"),
        "</g>",
    ]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:g}" y="{y:g}">{escape(_visible(text))}</text>'


def _attribute(text: str) -> str:
    return escape(_visible(text), {'"': "&quot;"})


def _visible(text: str) -> str:
    """Replace characters that XML does not allow."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
