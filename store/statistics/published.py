"""The statistics of other tools under their names, with the formula, unit and averaging that they published.

Each `Definition` sums a numerator and a denominator for every example and head over the blocks of a store, and computes
its columns from the totals. `docs/definitions.md` lists every formula with its source beside ours. The slow loops of
`tools/slow_definitions.py` implement those formulas independently of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..errors import ConfigError, NotFoundError
from ..reading.snapshot import Snapshot
from ..schema.flat_rows import Rows
from .blocks import Block, CorpusTokens, map_blocks
from .definitions import Average
from .published_sums import Sums, clark, finish_headvis, finish_voita, headvis, olsson, transformerlens, vig, voita
from .variability import FIRST, mean_corner, without_first


@dataclass(frozen=True)
class Definition:
    """The columns that one tool computes for every head."""

    name: str
    source: str
    average: Average
    """``"rows"``: ratio of the sums over the corpus; ``"examples"``: mean of the ratios of the examples."""
    sums: Callable[[Rows, Block, np.ndarray], Sums]
    """Function of the rows, their block and the layer's mean map (zeros unless `needs_mean`)."""
    columns: Mapping[str, tuple[str, str]]
    """Unit and formula of each column."""
    finish: Callable[[dict[str, Float64[np.ndarray, "layer head"]]], dict[str, np.ndarray]] = field(default=dict)
    """Function from the means over the corpus to the columns."""
    needs_mean: bool = False


_CLARK = "Clark et al. 2019, released code (General_Analysis)"
DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        Definition(
            "clark",
            _CLARK,
            "examples",
            clark,
            {
                "entropy": ("nats", "mean over rows of −Σ B ln B, B = 0.9999 A + 0.0001 / T"),
                "cls_entropy": ("nats", "entropy of row 0"),
                "self": ("share", "Σ A[q, q] / T"),
                "previous": ("share", "Σ A[q, q−1] / T"),
                "next": ("share", "Σ A[q, q+1] / T"),
                "cls": ("share", "Σ A to the special token at position 0 / T"),
                "sep": ("share", "Σ A to the other special tokens / T"),
                "punctuation": ("share", "Σ A to “.” and “,” / T"),
                "sep_to_sep": ("share", "Σ A from [SEP] to [SEP] / 2"),
                "rest_to_sep": ("share", "Σ A from other tokens to [SEP] / (T − 2)"),
            },
        ),
        Definition(
            "vig",
            "Vig and Belinkov 2019",
            "rows",
            vig,
            {
                "distance": ("tokens", "Σ A·(q − k) / Σ A"),
                "variability": ("share", "Σ |A − Ā| / (2 Σ A) over the first 10 tokens"),
                "dependency": ("share", "Σ A between words joined by a dependency / Σ A"),
                "to_TAG": ("share", "Σ A to words with the tag / Σ A"),
            },
            needs_mean=True,
        ),
        Definition(
            "voita",
            "Voita et al. 2019",
            "rows",
            voita,
            {
                "confidence": ("share", "mean over rows of maxₖ A, without the end-of-sequence token"),
                "rare": ("share", "rows whose strongest key is of the rarest token"),
                "positional": ("share", "rows whose strongest key is at the best offset"),
                "offset": ("tokens", "the best offset, −8 … +8"),
            },
            finish_voita,
        ),
        Definition(
            "olsson",
            "Olsson et al. 2022",
            "rows",
            olsson,
            {"prefix_matching": ("share", "mean over rows with an earlier copy of Σ A[q, j+1], j < q, xⱼ = x_q")},
        ),
        Definition(
            "transformerlens",
            "TransformerLens, detect_head",
            "examples",
            transformerlens,
            {
                f"{name}_head{ending}": ("share", f"{formula}, D = {plane}")
                for name, plane in (
                    ("previous_token", "1 below the diagonal"),
                    ("duplicate_token", "1[xₖ = x_q, k < q]"),
                    ("induction", "the duplicate plane moved right by one"),
                )
                for ending, formula in (("", "Σ A∘D / Σ A"), ("_abs", "1 − T·mean|A − D|"))
            },
        ),
        Definition(
            "headvis",
            "HeadVis (Neuronpedia)",
            "rows",
            headvis,
            {
                "self_attention_score": ("share", "Σ A[q, q] / N"),
                "prev_token_score": ("share", "Σ A[q, q−1] / (N − number of texts)"),
                "pattern_entropy": ("nats", "mean over rows of −Σ A ln A"),
                "qk_distance": ("tokens", "Σ A·|q − k| / N"),
                "qk_distance_variance": ("tokens²", "Σ A·(q − k)² / N − qk_distance²"),
                "induction_score": ("share", "Σ_q Σ_{j<q, xⱼ=x_q} A[q, j+1]·1[A ≥ 0.01] / rows with an earlier copy"),
            },
            finish_headvis,
        ),
    )
}


def definition_of(name: str) -> Definition:
    """Return a definition by its name.

    Raises
    ------
    ConfigError
        The name is unknown.
    """
    if name not in DEFINITIONS:
        raise ConfigError(f"no definition {name!r}; expected one of {', '.join(DEFINITIONS)}")
    return DEFINITIONS[name]


def published_table(
    store: Snapshot,
    name: str,
    site: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
) -> pd.DataFrame:
    """Compute every head by another tool's definition: a table of layer, head and the tool's columns, float64.

    Raises
    ------
    ConfigError
        There is no such definition.
    NotFoundError
        The store has neither attention nor query and key, or no example.
    """
    definition, site_spec = definition_of(name), store.site(site)
    if not store.n_examples:
        raise NotFoundError(f"{store.location} has no example yet; expected at least one. Run its job first.")
    corpus = CorpusTokens.of(store, site_spec)
    mean = mean_corner(store, site_spec, without_first, corpus) if definition.needs_mean else None
    shape = site_spec.n_layers, site_spec.n_heads
    numerators: dict[str, np.ndarray] = {}
    denominators: dict[str, np.ndarray] = {}
    done = 0
    for n_examples, sums in map_blocks(partial(_block_sums, name, mean), store, site_spec, corpus):
        for column, (top, bottom) in sums.items():
            for totals, values in ((numerators, top), (denominators, bottom)):
                totals.setdefault(column, np.zeros(shape))
                totals[column] += values
        done += n_examples
        on_progress(done, store.n_examples)
    means = {
        column: np.divide(top, denominators[column], out=np.full(shape, np.nan), where=denominators[column] > 0)
        for column, top in numerators.items()
    }
    columns = definition.finish(means)
    return pd.DataFrame({**site_spec.head_columns(), **{key: value.ravel() for key, value in columns.items()}})


def _block_sums(
    name: str, mean: Float64[np.ndarray, "layer head cell"] | None, block: Block
) -> dict[str, tuple[Float64[np.ndarray, "layer head"], Float64[np.ndarray, "layer head"]]]:
    """Sum numerator and denominator of each column of a definition over the examples of a block."""
    definition, site = DEFINITIONS[name], block.site
    result: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for layer in range(site.n_layers):
        rows, masked_block = block.rows(layer), block.of_mask(site.masks[layer])
        layer_mean = np.zeros((site.n_heads, FIRST * FIRST)) if mean is None else mean[layer]
        for column, (top, bottom) in definition.sums(rows, masked_block, layer_mean).items():
            bottom = np.broadcast_to(bottom, top.shape)
            if definition.average == "examples":
                top = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
                bottom = (bottom > 0).astype(np.float64)
            sums = result.setdefault(
                column, (np.zeros((site.n_layers, site.n_heads)), np.zeros((site.n_layers, site.n_heads)))
            )
            for totals, values in zip(sums, (top, bottom), strict=True):
                totals[layer] = values.sum(axis=1)
    return result
