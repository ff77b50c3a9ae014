"""Draw the figures of docs/figures.md from the store of the demo, as SVG, PDF and PNG.

``python -m tools.paper_figures`` needs traces/demo (`make demo VIEW=0`) and the extra `figures`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FIGURES = {
    "lines": "page=views&view=head&example=0&head=5.8&pin=q8",
    "difference": "page=views&view=compare&example=0&head=5.8",
    "ranked-heads": 'page=search&pattern=query.upos == "PRON" and key.entity == "occupation"',
    "head-map": "page=corpus&statistic=previous",
    "one-row": "page=views&view=neuron&example=0&head=5.8&pin=q8&dimension_order=part",
}
"""Address of each figure."""
DPI = 300


def main() -> None:
    """Draw all figures in one column of a paper."""
    from headatlas.viewer import draw_figure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="traces/demo")
    parser.add_argument("--out", type=Path, default=Path("docs/images/figures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, address in FIGURES.items():
        figure = draw_figure([options.store], address)
        for ending in ("svg", "pdf", "png"):
            path = figure.save(options.out / f"{name}.{ending}", DPI)
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
