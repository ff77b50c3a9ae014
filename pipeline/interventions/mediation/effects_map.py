"""A map of the indirect effects of all heads, as SVG."""

from __future__ import annotations

import numpy as np

from .mediation_result import Mediation

CELL, LEFT, TOP, GAP = 22, 44, 46, 2
POSITIVE, NEGATIVE = (178, 24, 43), (33, 102, 172)


def effects_map(result: Mediation) -> str:
    """Draw one cell for each head, layers from top to bottom. Red raises the odds, blue lowers them; a ring: it matters.

    A cell's title has the number. The darkest colour is the largest effect.
    """
    site, table = result.site, result.table()
    largest = max(float(np.abs(table["indirect"].to_numpy()).max()), 1e-12)
    width, height = LEFT + CELL * site.n_heads + 12, TOP + CELL * site.n_layers + 12
    width = max(width, 360)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Indirect effect of each head" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="16" font-size="12">Indirect effect of each head, {result.between[0]} to '
        f"{result.between[1]} ({len(result.pair_ids)} pairs)</text>",
        f'<text x="{LEFT}" y="{TOP - 18}" fill="#555">darkest: {largest:.3f}; red raises, blue lowers the odds</text>',
    ]
    for head in range(site.n_heads):
        x = LEFT + CELL * head + CELL / 2
        parts.append(f'<text x="{x:g}" y="{TOP - 4}" text-anchor="middle" fill="#555">{head}</text>')
    for row, layer in enumerate(site.layers):
        y = TOP + CELL * row + CELL / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{y:g}" text-anchor="end" fill="#555">{layer}</text>')
    for entry in table.to_dict("records"):
        x = LEFT + CELL * entry["head"] + GAP / 2
        y = TOP + CELL * site.layers.index(entry["layer"]) + GAP / 2
        share = abs(entry["indirect"]) / largest
        colour = POSITIVE if entry["indirect"] > 0 else NEGATIVE
        fill = ",".join(str(round(255 + (channel - 255) * share)) for channel in colour)
        stroke = "#111" if entry["matters"] else "#ddd"
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{CELL - GAP}" height="{CELL - GAP}" fill="rgb({fill})" stroke="{stroke}">'
            f"<title>{entry['layer']}.{entry['head']}: {entry['indirect']:+.4f}</title></rect>"
        )
    return "\n".join([*parts, "</svg>", ""])
