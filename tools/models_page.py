"""Write docs/models.md by capturing every architecture of `architectures`; ``python -m tools.models_page PAGE``.

With ``--check`` nothing is written: cells that do not depend on the machine are compared, and differences are held to
`BOUND`. Differences themselves vary in the last bits from processor to processor.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from headatlas.pipeline.reduce import kernel

from .architectures import ARCHITECTURES, EITHER
from .model_rows import EagerRow, RefusedRow, ServedRow, measure

BOUND = 1e-5
SERVED_HEAD = (
    "architecture",
    "model",
    "site: layers × heads",
    "scores",
    "computed by",
    "stored",
    "rebuilt",
    "left out",
)
EAGER_HEAD = ("architecture", "model", "site: layers × heads", "stored")
REFUSED_HEAD = ("architecture", "model", "what happens")
Row = ServedRow | EagerRow | RefusedRow
N_FIXED = 4
"""Columns of a served row that are the same on every machine; the fifth is where the kernel is compiled."""
INTRODUCTION = """\
# Models

Written by `make models`: each architecture is built small, with random weights and attention far from uniform, run on
padded examples, and compared with transformers' own eager attention. A test holds this page to that. Versions:
transformers {transformers}, torch {torch}.

- **stored**: largest difference of the attention that fills a store, kept in float32, from eager attention.
- **rebuilt**: the same for the softmax over the captured query and key with the scaling, mask, soft cap, bias and sinks
  that were captured with them. A bias that depends on the distance of two tokens alone (T5) is kept with query and key.
- **left out**: how far rebuilt attention would be off without that part, so that {bound:g} means something.
- **computed by**: the fused kernel of the CPU, or torch operations. Half precision and other devices are for torch
  operations everywhere.

Key heads are stored once. Windows are inside the masks; their width is recorded. A model that makes other attention calls
than when it was probed stops the job, and every job compares its own model with eager attention before it writes. Jobs
read texts: for models of images (ViT, CLIP vision, DINOv2) and sounds (Whisper), and for decoders over given states, the
capture works, but no corpus feeds them yet.

## Captured ({n_served})

"""
EAGER_INTRODUCTION = """
## Captured in eager mode: attention, edges and statistics ({n_eager})

They compute attention outside transformers' attention interface; some accept its name in silence and never call it. A job
for them runs in eager mode and keeps what they return: say `query_key = "none"`, for their query and key cannot be seen
(the job stops and says so otherwise). Manifest and `headatlas info` carry the mark `capture = "eager"`. All layers' maps of
a batch are in memory at once, so batches are small and this is slower.

- **stored**: largest difference of the attention that fills a store, kept in float32, from the softmaxes that torch saw
  during the same forward pass. Every job checks that, and the number of layers, before it writes.

"""
REFUSED_INTRODUCTION = """
## Refused ({n_refused})

Neither way gives one map of weights for each head and layer. The job stops before anything is written, with this message.

"""


def cells(row: Row) -> list[str]:
    """The cells of a row."""
    if isinstance(row, EagerRow):
        return [row.name, f"`{row.model}`", row.sites, f"{row.stored:.1e}"]
    if isinstance(row, RefusedRow):
        return [row.name, f"`{row.model}`", row.message]
    left_out = ", ".join(f"{part} {value:.2g}" for part, value in row.left_out.items()) or "–"
    return [
        row.name,
        f"`{row.model}`",
        row.sites,
        row.scores,
        row.served_by,
        f"{row.stored:.1e}",
        f"{row.rebuilt:.1e}",
        left_out,
    ]


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    served, eager, refused = (
        [cells(row) for row in rows if isinstance(row, kind)] for kind in (ServedRow, EagerRow, RefusedRow)
    )
    head = INTRODUCTION.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        bound=BOUND,
        n_served=len(served),
    )
    middle = EAGER_INTRODUCTION.format(n_eager=len(eager))
    tail = REFUSED_INTRODUCTION.format(n_refused=len(refused))
    tables = _table(SERVED_HEAD, served), _table(EAGER_HEAD, eager), _table(REFUSED_HEAD, refused)
    return head + tables[0] + middle + tables[1] + tail + tables[2]


def read_cells(text: str) -> dict[str, list[str]]:
    """The table rows of a page, by architecture."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row for row in rows if row[0] not in (SERVED_HEAD[0], "---")}


def difference(row: Row, written: Sequence[str] | None) -> str | None:
    """What is wrong with an architecture's row on the page, or with the model itself; None: nothing."""
    if written is None:
        return f"{row.name} is missing"
    off = {name: value for name in ("stored", "rebuilt") if (value := getattr(row, name, None)) is not None}
    if not all(value <= BOUND for value in off.values()):  # not max(): it may pass over NaN
        said = ", ".join(f"{value:.2g} {name}" for name, value in off.items())
        return f"{row.name}: attention is off by {said}, more than {BOUND:g}"
    if row.name in EITHER and len(written) != len(cells(row)):
        return None  # the page was written with a transformers that serves it in the other way
    n = N_FIXED + (kernel.available() is not None) if isinstance(row, ServedRow) else 3
    found = cells(row)[:n]
    return None if found == list(written[:n]) else f"{row.name}: the page says {list(written[:n])}, found {found}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if kernel.available() is None and not arguments.check:
        sys.exit(f"the page says what the fused kernel serves, but here it is {kernel.explain()}")
    rows = [measure(name) for name in ARCHITECTURES]
    written = read_cells(arguments.page.read_text(encoding="utf-8")) if arguments.check else read_cells(page(rows))
    wrong = [problem for row in rows if (problem := difference(row, written.get(row.name)))]
    wrong += [f"{name} is not an architecture of the table" for name in written if name not in ARCHITECTURES]
    if wrong:
        sys.exit(
            "\n".join([*wrong, "run `make models` and commit the result" if arguments.check else "nothing written"])
        )
    if not arguments.check:
        arguments.page.write_text(page(rows), encoding="utf-8")
    served = [row for row in rows if isinstance(row, ServedRow)]
    eager = [row for row in rows if isinstance(row, EagerRow)]
    worst = max(max(row.stored, row.rebuilt) for row in served)
    worst_eager = max((row.stored for row in eager), default=0.0)
    print(
        f"{len(served)} captured, off by at most {worst:.1e}; {len(eager)} in eager mode, off by at most {worst_eager:.1e}; "
        f"{len(rows) - len(served) - len(eager)} refused"
    )


if __name__ == "__main__":
    main()
