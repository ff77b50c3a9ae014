"""Writer of docs/codecs.md from the measurements of `codecs.py`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from headatlas.pipeline.config import PRESETS
from headatlas.store.statistics.definitions import STATISTIC_NAMES

from .report import machine_facts

ATTENTION_COSTS = ("bits", "max", "mean", "dropped", "encode", "decode")
VECTOR_COSTS = ("bits", "max", "mean", "encode", "decode", "a weight", "max weight", "mean weight", "rebuild")
_CHANGE = {"entropy": "nats, worst head", "distance": "tokens, worst head"}
UNITS = {
    "bits": "bits a number", "max": "largest error", "mean": "mean error", "dropped": "of a row", "encode": "MB/s",
    "decode": "MB/s", "a weight": "bits a weight", "max weight": "largest error", "mean weight": "mean error",
    "rebuild": "MB/s", **{name: _CHANGE.get(name, "weight, worst head") for name in STATISTIC_NAMES},
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One line of a table: a codec of attention, or of query and key."""

    codec: str
    model: str
    length: int
    values: dict[str, float]
    """Values by column: the costs above, and the change of each statistic."""
    is_vectors: bool


def page(lines: list[Measured], sizes: dict[str, tuple[int, float]], n_tokens: int) -> str:
    """Return the page. `sizes` are bytes and error of a treebank by codec; `n_tokens` is the text of a line."""
    machine = machine_facts()
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("numpy", "torch") if name in machine["versions"]
    )
    exact = sizes["raw float32"][0]
    presets = {settings.get("attention", "sqrt8"): name for name, settings in reversed(PRESETS.items())}
    treebank = [
        f"| `{codec}` | {presets.get(codec, '')} | {n_bytes / 1e6:.1f} | 1/{exact / n_bytes:.1f} | {error:.2g} |"
        for codec, (n_bytes, error) in sizes.items()
    ]
    attention, vectors = ([line for line in lines if line.is_vectors == is_vectors] for is_vectors in (False, True))
    return PAGE.format(
        date=datetime.date.today().isoformat(),
        machine=f"{machine['cpu']}, one thread; {versions}",
        tokens=f"{n_tokens:,}",
        costs=_table(attention, ATTENTION_COSTS),
        vectors=_table(vectors, VECTOR_COSTS),
        statistics=_table(lines, STATISTIC_NAMES),
        treebank="\n".join(treebank),
        rebuilt_error=_largest(vectors, "float16", "max weight"),
    )


def _largest(lines: list[Measured], codec: str, column: str) -> str:
    """Format the largest number of a column over all lines of a codec."""
    return f"{max(line.values[column] for line in lines if line.codec == codec):.2g}"


def _table(lines: list[Measured], columns: tuple[str, ...]) -> str:
    table = [f"| codec | model | tokens | {' | '.join(columns)} |", "|---|---|" + "--:|" * (len(columns) + 1)]
    for line in lines:
        cells = (_cell(line.values.get(column)) for column in columns)
        name = f"q·k {line.codec}" if line.is_vectors else line.codec
        table.append(f"| `{name}` | {line.model} | {line.length} | {' | '.join(cells)} |")
    return "\n".join(table)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"


PAGE = """# Codecs: what each costs and loses

Made by `make bench` (alone: `make bench ARGS=codecs`) on {date} ({machine}).
Sentences of the English Web Treebank, one after the other, in blocks of so many tokens, {tokens} tokens a line and at least
one block; all layers of MiniLM (which takes 512 tokens), every sixth of SmolLM2.
Names and exact definitions: [format.md](format.md).

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

**Why 255 steps, and 79.** `sqrt7` takes about one bit a weight less and doubles the largest error to 1/127. Both
rank heads alike; the default should also serve the views, where 1/255 is one shade of grey. `small` has as
many levels as fit into a seventh of float32 on sentences; `linear8` is smaller still there, but see above.

**When to leave weights out.** `top_k:K` and `threshold:T` keep the strong weights of each row and say of each row how much
they left out (*dropped*). On texts of 512 tokens and more they are a quarter to a sixteenth of the default. But a statistic or
a sum over all keys computed from them is wrong by what was dropped, there an eighth to more than a half: searches give the mass as a span, and the
statistics that a store keeps beside it are computed before. Take them for strong edges on long texts, with `statistics`
kept; on sentences a dense codec of 16 levels (`linear:16`) takes a third of their bytes.

**When to leave attention out.** Query, key and logsumexp take the same bytes a token whatever the length, so their bits a
weight fall as texts grow, and in float16 the rebuilt attention is nearer to the model's than that of `sqrt8`: below, at
most {rebuilt_error} off. Each row is divided by the sum of its rebuilt weights; without that the same lines were up to .016 off. The
price is time: a tile is computed, not read. `bfloat16` rounds eight times as coarsely: take it only where float16
overflows. `int8` halves the bytes again and is another three to four times as coarse: enough to see what a head does, not
to measure it; statistics that are kept were computed before. What cannot be rebuilt (a bias that depends on more than the
distance of two tokens) says so when it is asked for; a model that hides other keys than its causal and window settings say
is refused at capture.

## Attention: bits, errors, speed

- **bits**: on disk, for each weight that a site has (causal sites: of the lower triangle). float32 takes 32.
- **max**, **mean**: absolute error of a weight, those that are left out included. **dropped**: mean mass of a row that a
  sparse codec leaves out.
- **encode**, **decode**: MB of float32 attention a second, rounding and zstd, on a machine that others used too: compare
  the lines with each other. Sparse codecs are encoded as `convert` does, in numpy; a capture does it on the device.

{costs}

## Query and key: bits, errors, speed

- **bits**: on disk, for each number of query and key; they are not compressed. `int8` with its scales.
- **max**, **mean**: absolute error of such a number. **encode**, **decode**: MB of float32 vectors a second.
- **a weight**: bits of query, key and logsumexp for each weight that a site has, to hold against the table above.
- **max weight**, **mean weight**: absolute error of the attention that is rebuilt from them. **rebuild**: MB of float32
  attention a second.

{vectors}

## Change of each statistic

The head whose mean changes most, where statistics are computed from what was stored (`q·k`: from rebuilt attention):
entropy in nats, distance in tokens, all others in weight. Statistics that a store keeps are computed before rounding.

{statistics}
"""
