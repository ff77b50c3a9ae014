"""Pictures of patterns: evaluate the pattern on a small text, and draw the matches as arcs and as a matrix.

The SVG has its own colours for light and dark pages. Arcs above the line point back in the text, arcs below it forward.
The dot is at the key. In the matrix, rows are queries and columns are keys; cells that a causal model hides are omitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

from headatlas.store.patterns import Pattern, Vocabulary
from headatlas.store.patterns.evaluate import Evaluator
from headatlas.store.patterns.matching import Layout, Matcher
from headatlas.store.patterns.token_fields import Texts, TokenFields

from .pattern_examples import Text, phrase, token_table

GAP, CHARACTER, CELL = 12, 7.4, 11
_STYLE = """
  text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328 } .dim { fill: #656d76 }
  .special { fill: #8c959f } .arc { fill: none; stroke: #2f6feb; stroke-width: 1.5; stroke-opacity: .75 }
  .key { fill: #2f6feb } .cell { fill: #eaeef2 } .hit { fill: #2f6feb } .forward { stroke: #bc4c00 } .key.forward { fill: #bc4c00; stroke: none }
  .middle { text-anchor: middle } .name { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .dim { fill: #9198a1 } .special { fill: #767e88 } .arc { stroke: #6ea8fe } .key, .hit { fill: #6ea8fe }
    .cell { fill: #262c36 } .forward { stroke: #f0883e } .key.forward { fill: #f0883e }
  }
"""


def matching_pairs(expression: str, text: Text) -> list[tuple[int, int]]:
    """Return the query and key positions of a text for which an expression is true."""
    table, string = token_table(text)
    fields = TokenFields(table, Texts([string], [string]))
    vocabulary = Vocabulary.of([table], [table])
    pattern = Pattern.parse(expression)
    pattern.check(vocabulary)
    n = len(table)
    layout = Layout(np.array([0, n * (n + 1) // 2 if text.causal else n * n]), text.causal)
    matches = Matcher(pattern.node, Evaluator(fields, fields, {}, vocabulary, expression), layout).example(0)
    return list(zip(matches.query.tolist(), matches.key.tolist(), strict=True))


def pattern_picture(expression: str, text: Text, title: str) -> str:
    """Draw the arcs and the matrix of an expression on a text, as an SVG document."""
    pairs, (table, _) = matching_pairs(expression, text), token_table(text)
    centre, width = _word_centres(table.text)
    back, ahead = ([abs(q - k) for q, k in pairs if sign * (q - k) > 0] for sign in (1, -1))
    above, below = (max([_height(n) for n in reach], default=0) for reach in (back, ahead))
    above = max(above, 18 if any(q == k for q, k in pairs) else 0)
    side = CELL * len(table)
    line = max(14 + above, (side - below) / 2 + 8)
    height = max(line + 12 + below + 10, side + 16)
    left = width + 28
    parts = _arcs(pairs, centre, line)
    parts += [
        _text(x, line, word, "special" if special else "", middle=True)
        for x, word, special in zip(centre, table.text, table.special.tolist(), strict=True)
    ]
    matched, top = set(pairs), (height - side) / 2
    cells: dict[str, list[str]] = {"cell": [], "hit": []}
    for q in range(len(table)):
        for k in range(q + 1 if text.causal else len(table)):
            square = f"M{left + k * CELL:g} {top + q * CELL:g}h{CELL - 1}v{CELL - 1}h-{CELL - 1}z"
            cells["hit" if (q, k) in matched else "cell"].append(square)
    parts += [f'<path class="{kind}" d="{"".join(squares)}"/>' for kind, squares in cells.items() if squares]
    return _document(left + side + 8, height, title, parts)


def relations_picture(relations: Sequence[str], columns: int = 4, cell: tuple[int, int] = (176, 84)) -> str:
    """Draw `dependent_of` and `dependents_of` for every relation on its phrase, as an SVG document."""
    parts = []
    for index, relation in enumerate(relations):
        x, y = (index % columns) * cell[0] + 8, (index // columns) * cell[1]
        text = phrase(relation)
        table, _ = token_table(text)
        centre = [x + c for c in _word_centres(table.text)[0]]
        upward = matching_pairs(f'dependent_of(relation="{relation}")', text)
        downward = matching_pairs(f'dependents_of(relation="{relation}")', text)
        parts.append(_text(x + 4, y + 14, relation, "name"))
        line = y + 54
        parts += _arcs(upward, centre, line, above=True) + _arcs(downward, centre, line, above=False)
        parts += [_text(c, line, word, middle=True) for c, word in zip(centre, table.text, strict=True)]
    rows = -(-len(relations) // columns)
    title = "The relations of Universal Dependencies; above: dependent to head, below: head to dependent"
    return _document(columns * cell[0], rows * cell[1] + 4, title, parts)


def _word_centres(words: Sequence[str]) -> tuple[list[float], float]:
    """Return the centre of each word on the line, and the length of the line."""
    centre, x = [], 8.0
    for word in words:
        width = CHARACTER * len(word)
        centre.append(x + width / 2)
        x += width + GAP
    return centre, x


def _height(reach: int) -> float:
    return 8 + 7 * reach**0.85


def _arcs(
    pairs: Sequence[tuple[int, int]], centre: Sequence[float], line: float, above: bool | None = None
) -> list[str]:
    """Draw arcs above and below a line of words. `above` puts all of them on one side."""
    parts = []
    for query, key in pairs:
        up = key <= query if above is None else above
        of_side = "" if up else " forward"
        y = line - 13 if up else line + 5
        if query == key:
            parts.append(f'<circle class="arc" cx="{centre[key]:.1f}" cy="{y - 5:.1f}" r="4"/>')
            continue
        lift = min(_height(abs(query - key)), 18.0) if above is not None else _height(abs(query - key))
        top = y - 4 / 3 * lift if up else y + 4 / 3 * lift
        # The feet of arcs that leave a word and of arcs that reach it are a little apart.
        toward = 2.5 if key > query else -2.5
        a, b = centre[query] + toward, centre[key] - toward
        parts += [
            f'<path class="arc{of_side}" d="M{a:.1f} {y:.1f} C{a:.1f} {top:.1f} {b:.1f} {top:.1f} {b:.1f} {y:.1f}"/>',
            f'<circle class="key{of_side}" cx="{b:.1f}" cy="{y:.1f}" r="2.6"/>',
        ]
    return parts


def _text(x: float, y: float, text: str, kind: str = "", *, middle: bool = False) -> str:
    names = " ".join(name for name in (kind, "middle" * middle) if name)
    of_kind = f' class="{names}"' if names else ""
    return f'<text{of_kind} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    quoted = escape(title, {'"': "&quot;"})
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{quoted}">',
            f"<style>{_STYLE}</style>",
            f"<title>{escape(title)}</title>",
            *parts,
            "</svg>",
            "",
        ]
    )
