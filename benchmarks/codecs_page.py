"""Text of docs/codecs.md from the measurements of `codecs.py`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from headatlas.pipeline.config import PRESETS
from headatlas.store.schema.capture_statistics import STATISTIC_NAMES

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
    """Line of a table: a codec of attention, or of query and key."""

    codec: str
    model: str
    length: int
    values: dict[str, float]
    """Numbers by column: the costs above, and the change of each statistic."""
    is_vectors: bool


def page(lines: list[Measured], sizes: dict[str, tuple[int, float]], n_tokens: int) -> str:
    """Return the text of docs/codecs.md.

    `lines` belong to both tables. `sizes` are bytes and largest error by codec, of a treebank. `n_tokens` is the number
    of tokens of text for each line.
    """
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
    """Return the largest number of a column over all lines of a codec, as text."""
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


PAGE = """# Codecs: size and error

Choose a preset, or a codec for attention and one for query and key, and set it in the job file or on the command line:

```sh
headatlas run JOB --set keep.preset=small
headatlas run JOB --set keep.attention=sqrt7 --set keep.query_key=none
```

A setting that you give takes precedence over the preset. `headatlas convert --codec` changes the codec of an existing
store. Exact definitions of the codecs: [format.md](format.md#codecs).

## Which to choose

| `keep.preset` | settings | use it for |
|---|---|---|
| `"default"` | `attention = "sqrt8"`, `query_key = "float16"`, `edges = 8`, `statistics = true` | sentences: exact enough for every statistic, all views are fast |
| `"small"` | `attention = "sqrt:80"`, `query_key = "none"`, the rest as above | many sentences: less than a seventh of float32, three times the error |
| `"long"` | `attention = "none"`, the rest as above | documents: bytes grow with tokens, not with their square |
| `"exact"` | `attention = "float32"`, `query_key = "float32"` | tests, and models whose maps you need bit by bit |

`statistics` may be a list, `["entropy", "first", "induction"]`. Statistics that the capture does not compute are added
from the stored attention at the end.

The whole attention of MiniLM on EWT dev (2,001 sentences), captured once in float32 and converted by
`headatlas convert --codec`:

| codec | preset | MB on disk | of float32 | largest error |
|---|---|--:|--:|--:|
{treebank}

### Square root or linear

At the same number of steps a linear codec has half the largest error and needs fewer bits. But most weights in rows of
hundreds of keys are smaller than its first step. They become 0, which makes entropy and distance wrong; see the lines
of `linear8` at 256 tokens and more. Use linear codes for short texts, or if only strong weights matter.

### Number of steps

`sqrt8` has 255 steps, `small` has 79. `sqrt7` needs about one bit a weight less and doubles the largest error to 1/127.
Both rank heads in the same order. The default must also serve the views, in which 1/255 is one shade of grey. `small`
has as many levels as fit into a seventh of float32 on sentences. `linear8` is still smaller there, but see above.

### Sparse codecs

`top_k:K` and `threshold:T` keep the strong weights of each row and record how much of each row they left out
(*dropped*). On texts of 512 tokens and more they take a quarter to a sixteenth of the default. But a statistic or a sum
over all keys that is computed from them is wrong by the dropped mass, which is an eighth to more than a half there.
Searches therefore report the mass as a range. The statistics that a store keeps are computed before weights are
dropped, so they are exact. Use sparse codecs for strong edges on long texts, and keep `statistics`. On sentences a
dense codec of 16 levels (`linear:16`) takes a third of their bytes.

### Query and key without attention

Query, key and logsumexp take the same bytes a token for every length, so their bits a weight decrease as texts grow. In
float16 the rebuilt attention is closer to the model's than that of `sqrt8`: at most {rebuilt_error} off in the table
below. Each row is divided by the sum of its rebuilt weights; without this step the same lines were up to 0.016 off. The
price is time: a tile is computed, not read.

- `bfloat16` rounds eight times as coarsely. Use it only if float16 overflows.
- `int8` halves the bytes again, and its error is another three to four times as large: enough to see what a head does,
  but not to measure it. The kept statistics are computed before.
- If attention cannot be rebuilt (a bias that depends on more than the distance of two tokens), reading it raises an
  error that says so. The capture skips an example that hides other keys than the mask of its layer does.

### Compression

Codes of one byte and key positions are compressed by zstd with few matches (`window_log` 17, `hash_log` 8, `chain_log`
6, `min_match` 7, strategy fast), other attention by zstd level 1. Vectors and the weights of edges are not compressed.
All of this are ordinary zstd frames behind Zarr's plain `zstd` codec or HDF5's filter 32015, so a reader does not need
these settings.

## Measurements

Made by `make bench` (alone: `make bench ARGS=codecs`) on {date} ({machine}). Sentences of the English Web Treebank are
concatenated and cut into blocks of the given number of tokens, {tokens} tokens a line and at least one block. All
layers of MiniLM (which takes at most 512 tokens), every sixth layer of SmolLM2.

### Attention: bits, errors, speed

- **bits**: bits on disk for each weight of a site (causal sites: of the lower triangle). float32 takes 32.
- **max**, **mean**: absolute error of a weight, including weights that are left out. **dropped**: mean mass of a row
  that a sparse codec leaves out.
- **encode**, **decode**: MB of float32 attention a second, rounding and zstd, on a machine with other load: compare the
  lines with each other. Sparse codecs are encoded as in `convert`, in numpy; a capture encodes them on the device.

{costs}

### Query and key: bits, errors, speed

- **bits**: bits on disk for each number of query and key, without compression. `int8` includes its scales.
- **max**, **mean**: absolute error of such a number. **encode**, **decode**: MB of float32 vectors a second.
- **a weight**: bits of query, key and logsumexp for each weight of a site. Compare it with the table above.
- **max weight**, **mean weight**: absolute error of the attention that is rebuilt from them. **rebuild**: MB of float32
  attention a second.

{vectors}

### Change of each statistic

The largest change of a head's mean if the statistic is computed from the stored numbers (`q·k`: from rebuilt
attention): entropy in nats, distance in tokens, all others in weight. Statistics that a store keeps are computed before
rounding and do not change.

{statistics}
"""
