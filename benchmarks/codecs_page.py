"""docs/codecs.md out of what `codecs.py` measured."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np

from headatlas.pipeline.config import PRESETS
from headatlas.store.statistics.definitions import STATISTIC_NAMES

from .report import machine_facts

COLUMNS = ("bits", "max", "mean", "dropped", "encode", "decode", *STATISTIC_NAMES)
_CHANGE = {"entropy": "nats, worst head", "distance": "tokens, worst head"}
UNITS = (
    "bits a weight", "weight", "weight", "of a row", "MB/s", "MB/s",
    *(_CHANGE.get(name, "weight, worst head") for name in STATISTIC_NAMES),
)  # fmt: skip
N_COSTS = 6
"""How many of the columns are not statistics."""


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    codec: str
    model: str
    length: int
    values: tuple[float, ...]
    """In the order of `COLUMNS`; NaN where there is nothing to tell."""


def page(lines: list[Measured], sizes: dict[str, tuple[int, float]], n_tokens: int) -> str:
    """docs/codecs.md: lines of both tables, bytes and error by codec of a treebank, tokens of text a line."""
    machine = machine_facts()
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("numpy", "torch") if name in machine["versions"]
    )
    exact = sizes.get("raw float32", (0, 0.0))[0]
    presets = {settings.get("attention", "sqrt8"): name for name, settings in reversed(PRESETS.items())}
    treebank = [
        f"| `{codec}` | {presets.get(codec, '')} | {n_bytes / 1e6:.1f} | 1/{exact / n_bytes:.1f} | {error:.2g} |"
        for codec, (n_bytes, error) in sizes.items()
    ]
    return PAGE.format(
        date=datetime.date.today().isoformat(),
        machine=f"{machine['cpu']}, one thread; {versions}",
        tokens=f"{n_tokens:,}",
        costs=_table(lines, slice(0, N_COSTS)),
        statistics=_table(lines, slice(N_COSTS, None)),
        treebank="\n".join(treebank),
    )


def _table(lines: list[Measured], columns: slice) -> str:
    names = COLUMNS[columns]
    table = [f"| codec | model | tokens | {' | '.join(names)} |", "|---|---|" + "--:|" * (len(names) + 1)]
    for line in lines:
        values = line.values[columns]
        cells = ("" if np.isnan(v) else f"{v:.0f}" if v >= 99.5 else f"{v:.2g}" for v in values)
        table.append(f"| `{line.codec}` | {line.model} | {line.length} | {' | '.join(cells)} |")
    return "\n".join(table)


PAGE = """# Codecs: what each costs and loses

Made by `python -m benchmarks.codecs --docs` on {date} ({machine}). Sentences of the English Web Treebank, one after the
other, in blocks of so many tokens, about {tokens} tokens a line; all layers of MiniLM (which takes 512 tokens), every
sixth of SmolLM2. Names and exact definitions: [format.md](format.md).

## Which to choose

| `keep.preset` | is | for |
|---|---|---|
| `"default"` | `attention = "sqrt8"`, `query_key = "float16"`, `edges = 8`, `statistics = true` | sentences: exact enough for every statistic, all views fast |
| `"small"` | `attention = "sqrt:80"`, `query_key = "none"`, the rest as above | many sentences: less than a seventh of float32, three times the error |
| `"long"` | `attention = "none"`, the rest as above | documents: bytes grow with tokens, not with their square |
| `"exact"` | `attention = "float32"`, `query_key = "float32"` | tests, and models whose maps you want bit by bit |

`statistics` may be a list, `["entropy", "first", "induction"]`: what the capture does not compute is added from the stored
attention at the end. `headatlas run JOB --set keep.preset=small`; any setting beside the preset comes first. Codes in a byte and key
positions are compressed by zstd with few matches (`window_log` 17, `hash_log` 8, `chain_log` 6, `min_match` 7, strategy
fast), other attention by zstd level 1, vectors and the weights of edges not at all. All of it are ordinary zstd frames behind Zarr's plain `zstd`
codec or HDF5's filter 32015: no reader needs to know the settings.

The whole attention of MiniLM on EWT dev (2,001 sentences), captured once in float32 and converted by
`headatlas convert --codec`:

| codec | preset | MB on disk | of float32 | largest error |
|---|---|--:|--:|--:|
{treebank}

**Why square roots.** At the same number of steps a linear codec has half the largest error and fewer bits, but rows of
hundreds of keys are made of weights below its first step: they become 0, and entropy and distance with them. See the
`linear8` lines at 256 tokens and more. Linear codes are for short texts, or where only strong weights matter.

**Why 255 steps, and 79.** `sqrt7` takes about one bit a weight less and doubles the largest error to 1/127; `sqrt6` again.
Any of them ranks heads alike; the default should also serve the views, where 1/255 is one shade of grey. `small` has as
many levels as fit into a seventh of float32 on sentences; `linear8` is smaller still there, but see above.

**When to leave weights out.** `top_k:K` and `threshold:T` keep the strong weights of each row and say of each row how much
they left out (*dropped*). On long texts they are a tenth of the default. But a statistic or a sum over all keys computed
from them is wrong by what was dropped, which on long rows is a third to a half: searches give the mass as a span, and the
statistics that a store keeps beside it are computed before. Take them for strong edges on long texts, with `statistics`
kept; on sentences a dense codec of 16 levels (`linear:16`) takes a third of their bytes.

**When to leave attention out.** Query, key and logsumexp take the same bytes a token whatever the length, so their bits a
weight fall as texts grow, and in float16 the rebuilt attention is nearer to the model's than that of `sqrt8`: below, at
most .0025 off. Each row is divided by the sum of its rebuilt weights; without that the same lines were up to .016 off. The
price is time: a tile is computed, not read. `bfloat16` rounds eight times as coarsely: take it only where float16
overflows. `int8` halves the bytes again and is another three times as coarse: enough to see what a head does, not to
measure it; statistics that are kept were computed before. What cannot be rebuilt (a bias that depends on more than the
distance of two tokens) says so when it is asked for; a model that hides other keys than its causal and window settings say
is refused at capture.

## Bits, errors, speed

- **bits**: on disk, for each weight that a site has (causal sites: of the lower triangle). float32 takes 32.
- **max**, **mean**: absolute error of a weight, those that are left out included. **dropped**: mean mass of a row that a
  sparse codec leaves out.
- **encode**, **decode**: MB of float32 attention a second, rounding and zstd, on a machine that others used too: compare
  the lines with each other. Sparse codecs are encoded as `convert` does, in numpy; a capture does it on the device.
- `q·k` lines: attention rebuilt from query, key and logsumexp; bits of all three. Decode is rebuilding.

{costs}

## Change of each statistic

The head whose mean changes most, where statistics are computed from what was stored: entropy in nats, distance in tokens,
all others in weight. Statistics that a store keeps are computed before rounding.

{statistics}
"""
