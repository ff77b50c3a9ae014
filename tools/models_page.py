"""Write docs/models.md by capturing every architecture of `architectures`; ``python -m tools.models_page PAGE``.

With ``--check`` nothing is written: the program compares the cells that do not depend on the machine, and checks that no
difference exceeds `BOUND`. The differences themselves vary in the last bits between processors.
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
from .slow_tokenizers import BUILDERS, TokenizerRow, measure_tokenizer

BOUND = 1e-5
EQUAL_LENGTHS = "in batches of equal lengths"
SERVED_HEAD = (
    "architecture",
    "model",
    "site: layers × heads",
    "scores",
    "computed by",
    "stored",
    "rebuilt",
    "batched",
    "baselines",
    "left out",
)
EAGER_HEAD = ("architecture", "model", "site: layers × heads", "stored", "batched", "baselines")
REFUSED_HEAD = ("architecture", "model", "what happens")
Row = ServedRow | EagerRow | RefusedRow
N_FIXED = 4
"""Number of columns of a served row that are equal on every machine; the fifth is too if the kernel is compiled."""
INTRODUCTION = """\
# Models

Look up here if headatlas captures the attention of an architecture, and how exactly. To try a model of your own on the
sentences of the demo:

```sh
headatlas run demo --set model.source=FOLDER_OR_HUB_NAME --out traces/mine
```

Every job compares its own model with eager attention before it writes anything. A model that makes other attention
calls than during the probe stops the job.

- **Text** models are fed by every kind of corpus except `images`.
- **Vision** models (ViT, CLIP vision, DINOv2) are fed by the corpus kind `images`; their tokens are the patches of a
  picture. See [job files](jobs.md).
- **Sound** models (Whisper) and decoders that attend to given states (`bert decoder`) are captured correctly, but no
  corpus kind feeds them yet.
- **Encoders of local blocks** (LongT5) compute attention in a way of their own. Decoder and cross-attention are captured;
  the encoder is an omission that `plan`, `run` and `info` name.

`make models` writes this page. It builds each architecture small, with random weights and attention far from uniform,
runs it on padded examples, and compares it with transformers' own eager attention. A test checks every row. Versions:
transformers {transformers}, torch {torch}.

## Captured ({n_served})

- **stored**: largest difference between the attention that fills a store, kept in float32, and eager attention.
- **rebuilt**: the same for the softmax over the captured query and key, with the scaling, mask, soft cap, bias and
  sinks that were captured with them. A bias that depends only on the distance of two tokens (T5) is kept with query and
  key.
- **batched**: largest difference between the attention of an example that runs alone and that of the same example in a
  batch of a job. In some models padding changes attention. Every job checks this, and then forms batches of equal lengths.
- **baselines**: largest difference of a store's uniform baselines and normalised entropy from plain loops over the keys
  that the model's own attention shows.
- **left out**: the error of rebuilt attention without that part. It shows that an error below {bound:g} is small.
- **computed by**: the fused kernel of the CPU, or torch operations. Half precision and other devices always use torch
  operations.

Key heads are stored once. Windows and chunks are read from the masks that the model uses.

"""
EAGER_INTRODUCTION = """
## Captured in eager mode: attention, edges and statistics ({n_eager})

These models compute attention outside transformers' attention interface. Some of them accept its name and then never
call it. A job for them runs in eager mode and keeps the attention that they return:

- Set `keep.query_key` to `"none"`, because their query and key are not accessible. Otherwise the job stops and says so.
- Manifest and `headatlas info` contain the mark `capture = "eager"`.
- The maps of all layers of a batch are in memory at once, so batches are small and the capture is slower.

**stored** is the largest difference between the attention that fills a store, kept in float32, and the softmaxes of
torch during the same forward pass. Every job checks this, and the number of layers, before it writes.

"""
REFUSED_INTRODUCTION = """
## Refused ({n_refused})

Neither way gives one map of weights for each head and layer. The job stops with this message before it writes anything.

"""
TOKENIZERS = "## Tokenizers without a fast version"
TOKENIZER_HEAD = ("tokenizer", "tokens", "with certain characters")
TOKENIZERS_INTRODUCTION = f"""
{TOKENIZERS}

Their tokens are aligned with the text, because these classes do not say which characters a token covers. A token whose
characters are not certain is kept without them and counted as an omission. The table counts the tokens of six texts with
accents, several scripts, unknown characters and spaces. A model of one of these tokenizers is captured if the tables
above say so: the tokens of CANINE have their characters, and its model is refused.

"""


def cells(row: Row) -> list[str]:
    """Return the cells of a row."""
    if isinstance(row, EagerRow):
        return [row.name, f"`{row.model}`", row.sites, f"{row.stored:.1e}", *_checks(row)]
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
        *_checks(row),
        left_out,
    ]


def _checks(row: ServedRow | EagerRow) -> list[str]:
    """Return the cells of the columns `batched` and `baselines`."""
    batched, padded = f"{row.companions.batched:.1e}", row.companions.padded
    if row.companions.equal is not None:
        batched += f" {EQUAL_LENGTHS} ({padded:.2g} with padding)"
    return [batched, f"{row.baselines:.1e}"]


def page(rows: Sequence[Row], tokenizers: Sequence[TokenizerRow] = ()) -> str:
    """Return the text of the page."""
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
    return head + tables[0] + middle + tables[1] + tail + tables[2] + tokenizer_table(tokenizers)


def tokenizer_table(rows: Sequence[TokenizerRow]) -> str:
    """Return the section of the page about tokenizers without a fast version."""
    lines = [[f"`{row.name}`", str(row.n_tokens), str(row.n_with_characters)] for row in rows]
    return TOKENIZERS_INTRODUCTION + _table(TOKENIZER_HEAD, lines)


def read_cells(text: str) -> dict[str, list[str]]:
    """Read the table rows of a page, by architecture."""
    lines = text.partition(TOKENIZERS)[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row for row in rows if row[0] not in (SERVED_HEAD[0], "---")}


def difference(row: Row, written: Sequence[str] | None) -> str | None:
    """Describe the error of an architecture's row on the page, or of the model itself. None if there is no error."""
    if written is None:
        return f"{row.name} is missing"
    errors = {
        name: value for name in ("stored", "rebuilt", "baselines") if (value := getattr(row, name, None)) is not None
    }
    if not isinstance(row, RefusedRow):
        errors["batched"] = row.companions.batched
    if not all(value <= BOUND for value in errors.values()):  # max() could skip NaN
        listing = ", ".join(f"{value:.2g} {name}" for name, value in errors.items())
        return f"{row.name}: attention is off by {listing}, more than {BOUND:g}"
    if row.name in EITHER and len(written) != len(cells(row)):
        return None  # the page was written with a transformers release that serves it in the other mode
    if any(EQUAL_LENGTHS in cell for cell in cells(row)) != any(EQUAL_LENGTHS in cell for cell in written):
        return f"{row.name}: the page says {list(written)} of its batches, the capture gave {cells(row)}"
    n = N_FIXED + (kernel.available() is not None) if isinstance(row, ServedRow) else 3
    measured = cells(row)[:n]
    return (
        None
        if measured == list(written[:n])
        else f"{row.name}: the page says {list(written[:n])}, the capture gave {measured}"
    )


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
        sys.exit(f"The page needs the fused kernel, but this machine has {kernel.explain()}.")
    rows = [measure(name) for name in ARCHITECTURES]
    written = read_cells(arguments.page.read_text(encoding="utf-8")) if arguments.check else read_cells(page(rows))
    problems = [problem for row in rows if (problem := difference(row, written.get(row.name)))]
    problems += [f"{name} is not an architecture of the table" for name in written if name not in ARCHITECTURES]
    if problems:
        remedy = "Run `make models` and commit the result." if arguments.check else "Nothing was written."
        sys.exit("\n".join([*problems, remedy]))
    if not arguments.check:
        tokenizers = [measure_tokenizer(build) for build in BUILDERS.values()]
        arguments.page.write_text(page(rows, tokenizers), encoding="utf-8")
    served = [row for row in rows if isinstance(row, ServedRow)]
    eager = [row for row in rows if isinstance(row, EagerRow)]
    worst = max(max(row.stored, row.rebuilt, row.baselines, row.companions.batched) for row in served)
    worst_eager = max((max(row.stored, row.baselines, row.companions.batched) for row in eager), default=0.0)
    print(
        f"{len(served)} captured, off by at most {worst:.1e}; {len(eager)} in eager mode, off by at most {worst_eager:.1e}; "
        f"{len(rows) - len(served) - len(eager)} refused"
    )


if __name__ == "__main__":
    main()
