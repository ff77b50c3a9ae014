"""Texts of the command line to heads, actions and measures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.queries.evidence.sampling_units import EXAMPLE, default_unit
from headatlas.store.schema.traces import Site

from .actions import Action, Block, Mean, PatchAttention, PatchOutput, Scale, ScaleDimensions, Uniform, Zero
from .controls import Heads
from .measures import (
    CandidateRatio,
    Divergence,
    EmbeddingChange,
    LabelLogit,
    MaskedLoss,
    Measure,
    NextTokenLoss,
    candidate_ids,
    default_measure,
    mask_id_of,
)
from .passes import HeadOutputs

if TYPE_CHECKING:
    from ..models.sources import LoadedModel

ACTIONS = (
    "zero",
    "mean",
    "uniform",
    "scale:FACTOR",
    "dimensions:D,D,…:FACTOR",
    "block",
    "patch",
    "patch-attention",
    "resample",
)
MEASURES = ("loss", "masked-loss", "kl", "candidates", "label", "embedding")
MAX_FILE_BYTES = 64 << 20
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Request:
    """An intervention as a user asks for it: action, heads and measure.

    `heads` are lists of heads that are changed together; None for every head alone. `donors` says which examples give
    what is patched: those with the same value of `pair`, or any of the same length.
    """

    action: str = "zero"
    heads: str | None = None
    together: bool = False
    """True if all heads are changed at the same time."""
    measure: str | None = None
    candidates: tuple[str, ...] = ()
    label: str | None = None
    edges: str | None = None
    """Pattern whose edges are blocked."""
    site: str | None = None
    n_controls: int = 20
    unit: str | None = None
    estimate: bool = False
    pair: str = "pair"
    """Column with the same value in both members of a pair, for the actions that patch."""
    seed: int = 0
    only_plan: bool = False


def parse_heads(text: str, site: Site, *, together: bool) -> list[Heads]:
    """Parse heads such as ``3.1,5.8``, or a JSON file: a list of such names, or the output of `headatlas search --json`.

    Returns
    -------
    One intervention for each head, or one for all of them with `together`.

    Raises
    ------
    ConfigError
        The text is neither, or a head is named twice.
    NotFoundError
        The site has no such head.
    """
    path = Path(text)
    names = _read_heads(path) if path.suffix == ".json" else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{text} names no head; expected heads such as 3.1,5.8, or a JSON file with them")
    heads = [_find_head(name, site) for name in names]
    if len(set(heads)) < len(heads):
        raise ConfigError(f"{text} names a head twice; expected each once")
    return [tuple(sorted(heads))] if together else [(head,) for head in heads]


def _read_heads(path: Path) -> list[str]:
    """Read the names of heads from a JSON file."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f'{path} is not JSON: {error}; expected a list of heads such as ["3.1", "5.8"]') from error
    rows = content.get("heads") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ConfigError(f'{path} has no list of heads; expected ["3.1", "5.8"], or the output of search --json')
    return [f"{row.get('layer')}.{row.get('head')}" if isinstance(row, dict) else str(row) for row in rows]


def _find_head(name: str, site: Site) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", name)
    if match is None:
        raise ConfigError(f"the head is {name[:40]!r}; expected LAYER.HEAD, such as 4.11")
    layer, head = int(match[1]), int(match[2])
    if layer not in site.layers or head >= site.n_heads:
        raise NotFoundError(
            f"the {site.name} site has no head {name}; it has layers {site.layers[0]} to {site.layers[-1]} and heads 0 to "
            f"{site.n_heads - 1}"
        )
    return site.layers.index(layer), head


def parse_action(request: Request, site: Site, outputs: HeadOutputs) -> Action:
    """Return the action of a request.

    Raises
    ------
    ConfigError
        There is no such action, or its arguments are wrong.
    """
    name, _, argument = request.action.partition(":")
    simple: dict[str, type[Zero | Uniform | PatchOutput | PatchAttention]] = {
        "zero": Zero, "uniform": Uniform, "patch": PatchOutput, "patch-attention": PatchAttention, "resample": PatchOutput,
    }  # fmt: skip
    if request.edges is not None and name != "block":
        raise ConfigError(f"--edges names edges to block, but the action is {request.action}; expected block")
    if not argument:
        if name in simple:
            return simple[name](name)
        if name == "mean":
            return Mean(outputs.means)
        if name == "block":
            if request.edges is None:
                raise ConfigError("block needs the edges; add --edges PATTERN, such as --edges 'key.id == query.id'")
            return Block()
    if name == "scale" and re.fullmatch(_NUMBER, argument):
        return Scale(float(argument))
    if name == "dimensions" and (match := re.fullmatch(rf"(\d+(?:,\d+)*):({_NUMBER})", argument)):
        dimensions = tuple(dict.fromkeys(int(d) for d in match[1].split(",")))
        if max(dimensions) >= site.d_head:
            raise ConfigError(f"dimension {max(dimensions)}: the heads have dimensions 0 to {site.d_head - 1}")
        return ScaleDimensions(dimensions, float(match[2]))
    raise ConfigError(f"the action is {request.action!r}; expected {', '.join(ACTIONS)}")


def parse_measure(request: Request, loaded: LoadedModel) -> Measure:
    """Return the measure of a request, or that of the model's output head.

    Raises
    ------
    ConfigError
        There is no such measure, the model cannot be measured so, or arguments are missing.
    """
    name = request.measure or ("candidates" if request.candidates else "label" if request.label else "")
    model, tokenizer, kind = loaded.model, loaded.tokenizer, type(loaded.model).__name__
    if not name:
        return default_measure(model, tokenizer)
    if name not in MEASURES:
        raise ConfigError(f"the measure is {name!r}; expected {', '.join(MEASURES)}")
    is_masked = "MaskedLM" in kind or "PreTraining" in kind
    has_words = model.base_model is not model and model.get_output_embeddings() is not None
    needs = {
        "loss": (has_words and not is_masked, "a language model that predicts the next token"),
        "masked-loss": (is_masked, "a masked language model"),
        "kl": (model.base_model is not model, "a model with an output head"),
        "candidates": (has_words, "a language model"),
        "label": ("SequenceClassification" in kind, "a classifier"),
        "embedding": (model.base_model is model, "a model without an output head"),
    }
    fits, expected = needs[name]
    if not fits:
        raise ConfigError(f"the measure {name} needs {expected}; this model is loaded as {kind}")
    if name == "candidates":
        assert tokenizer is not None
        return CandidateRatio(
            candidate_ids(tokenizer, request.candidates), mask_id_of(tokenizer) if is_masked else None
        )
    if name == "label":
        labels = {str(label): int(i) for i, label in (model.config.id2label or {}).items()}
        if request.label not in labels:
            raise ConfigError(f"the label is {request.label!r}; the classifier has {', '.join(map(repr, labels))}")
        return LabelLogit(labels[request.label])
    if name == "masked-loss":
        return MaskedLoss(mask_id_of(tokenizer), request.seed)
    return {"loss": NextTokenLoss, "kl": Divergence, "embedding": EmbeddingChange}[name]()


def unit_of(columns: Mapping[str, Sequence[object]], requested: str | None) -> str | None:
    """Return the column whose values are the units of intervals and tests; None if every example is one.

    The default is that of searches (`default_unit`).

    Raises
    ------
    ConfigError
        The corpus has no such column.
    """
    if requested == EXAMPLE:
        return None
    if requested is not None:
        if requested not in columns:
            names = ", ".join(columns) or "none"
            raise ConfigError(f"the unit is {requested!r}; expected example, or a column of the corpus: {names}")
        return requested
    counts = {name: _n_units(values) for name, values in columns.items()}
    name = default_unit(counts, max((len(values) for values in columns.values()), default=0))
    return None if name == EXAMPLE else name


def _n_units(values: Sequence[object]) -> int:
    """Count the units of a column. An example without a value is a unit of its own."""
    present = [value for value in values if value not in (None, "")]
    return len(set(present)) + len(values) - len(present)
