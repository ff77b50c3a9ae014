"""Texts of the command line to heads, actions and measures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.store.errors import ConfigError, NotFoundError, UnsupportedModelError
from headatlas.store.queries.evidence.sampling_units import EXAMPLE, default_unit
from headatlas.store.schema.head_dimensions import MAX_FACTOR, parse_factors
from headatlas.store.schema.traces import Site

from ..corpora.examples import EncodedExample
from ..models.position_limit import token_limit
from .actions import (
    Action,
    Block,
    Mean,
    PatchAttention,
    PatchOutput,
    Scale,
    ScaleDimensions,
    ScaleEdges,
    Uniform,
    UniformEdges,
    Zero,
)
from .controls import Heads
from .measures.candidates import CandidateRows, Candidates, candidate_rows
from .measures.hidden_states import EmbeddingChange
from .measures.measure import Measure
from .measures.predictions import Divergence, LabelLogit, MaskedLoss, NextTokenLoss, default_measure, mask_id_of

if TYPE_CHECKING:
    from ..models.sources import LoadedModel

ACTIONS = (
    "zero",
    "mean",
    "uniform",
    "scale:FACTOR",
    "dimensions:DIMENSIONS:FACTOR",
    "block",
    "patch",
    "patch-attention",
    "resample",
)
DONOR_ACTIONS = ("patch", "patch-attention", "resample")
"""Actions that need another example."""
EAGER_ACTIONS = ("zero", "mean", "scale", "patch", "resample")
"""Actions on outputs alone, which work in models outside the attention interface."""
MEASURES = ("loss", "masked-loss", "kl", "candidates", "label", "embedding")
ACTION_NAMES = frozenset(action.partition(":")[0] for action in ACTIONS)
MAX_FILE_BYTES = 64 << 20
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Request:
    """An intervention as a user asks for it: heads, action and measure."""

    action: str = "zero"
    heads: str | None = None
    """Heads such as ``3.1,5.8``, or a JSON file with them; None for every head."""
    kv_groups: str | None = None
    """Key heads such as ``3.0``, whose query heads are changed together; ``all`` for every one."""
    together: bool = False
    """True if all heads are changed at the same time."""
    rows: str | None = None
    """Pattern of the rows that are changed: those with at least one matching edge; None for all."""
    edges: str | None = None
    """Pattern of the edges that are changed."""
    measure: str | None = None
    candidates: tuple[str, ...] = ()
    """One or two continuations; ``@COLUMN`` is the value of a column of the corpus."""
    label: str | None = None
    site: str | None = None
    n_controls: int = 20
    unit: str | None = None
    estimate: bool = False
    pair: str = "pair"
    """Column with the same value in both members of a pair, for the actions that patch."""
    seed: int = 0

    def describe(self) -> str:
        """Return the action with its patterns: ``block edges of induction``."""
        edges = "" if self.edges is None else f" edges of {self.edges}"
        return f"{self.action}{edges}" + ("" if self.rows is None else f" in rows of {self.rows}")


def parse_targets(request: Request, site: Site, n_key_heads: Callable[[], Sequence[int]]) -> list[Heads]:
    """Return the heads of each intervention of a request.

    `n_key_heads` returns the number of key heads of each layer.

    Raises
    ------
    ConfigError
        The request names no heads, a head twice, or heads and groups.
    NotFoundError
        The site has no such head or key head.
    """
    if request.kv_groups is None:
        if request.heads is None and not request.together:
            return [((layer, head),) for layer in range(site.n_layers) for head in range(site.n_heads)]
        if request.heads is None:
            raise ConfigError("--together changes named heads at the same time; add --heads or --kv-groups")
        return parse_heads(request.heads, site, together=request.together)
    if request.heads is not None:
        raise ConfigError("--heads and --kv-groups name the same thing in two ways; expected one of them")
    groups = key_groups(site, n_key_heads())
    if request.kv_groups == "all":
        targets = list(groups.values())
    else:
        names = [name.strip() for name in request.kv_groups.split(",") if name.strip()]
        targets = [_find_group(name, site, groups) for name in dict.fromkeys(names)]
        if not targets or len(targets) < len(names):
            raise ConfigError(f"--kv-groups is {request.kv_groups!r}; expected key heads such as 3.0,5.1, each once")
    return [tuple(sorted(head for heads in targets for head in heads))] if request.together else targets


def key_groups(site: Site, n_key_heads: Sequence[int]) -> dict[tuple[int, int], Heads]:
    """Return the query heads of each key head, by (index on the layer axis, key head)."""
    return {
        (layer, group): tuple((layer, head) for head in range(site.n_heads) if head * n // site.n_heads == group)
        for layer, n in enumerate(n_key_heads)
        for group in range(n)
    }


def _find_group(name: str, site: Site, groups: Mapping[tuple[int, int], Heads]) -> Heads:
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", name)
    if match is None:
        raise ConfigError(f"the key head is {name[:40]!r}; expected LAYER.KEY_HEAD, such as 4.1, or all")
    layer, group = int(match[1]), int(match[2])
    heads = groups.get((site.layers.index(layer), group)) if layer in site.layers else None
    if heads is None:
        n = sum(index == 0 for index, _ in groups)
        raise NotFoundError(
            f"the {site.name} site has no key head {name}; it has layers {site.layers[0]} to {site.layers[-1]}, and "
            f"{n} key heads in the first one"
        )
    return heads


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
    names = (
        _read_heads(path, site)
        if path.suffix == ".json"
        else [name.strip() for name in text.split(",") if name.strip()]
    )
    if not names:
        raise ConfigError(f"{text} names no head; expected heads such as 3.1,5.8, or a JSON file with them")
    heads = [_find_head(name, site) for name in names]
    if len(set(heads)) < len(heads):
        raise ConfigError(f"{text} names a head twice; expected each once")
    return [tuple(sorted(heads))] if together else [(head,) for head in heads]


def _read_heads(path: Path, site: Site) -> list[str]:
    """Read the names of heads from a JSON file, and check that they are those of the site if the file names one."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{path} is not JSON: {error}; expected a list of heads such as ["3.1", "5.8"]') from error
    rows = content.get("heads") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ConfigError(f'{path} has no list of heads; expected ["3.1", "5.8"], or the output of search --json')
    if isinstance(content, dict):
        parts = [content, *(part for part in content.values() if isinstance(part, dict))]
        name = next((part["site"] for part in parts if isinstance(part.get("site"), str)), site.name)
        if name != site.name:
            raise ConfigError(
                f"{path} has heads of the site {name}, and the intervention is at {site.name}; add --site {name}"
            )
    names: list[str] = []
    for row in rows:
        if isinstance(row, dict) and "layer" in row and "head" in row:
            names.append(f"{row['layer']}.{row['head']}")
        elif isinstance(row, str):
            names.append(row)
        else:  # the number 5.10 would be head 5.1
            raise ConfigError(
                f'{path} has the head {str(row)[:40]}; expected text such as "5.10", or "layer" and "head"'
            )
    return names


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


def check_eager_request(request: Request, reason: str) -> None:
    """Check that a request can be fulfilled in a model outside the attention interface.

    Raises
    ------
    UnsupportedModelError
        It needs the query, key or mask of the model.
    """
    name = request.action.partition(":")[0]
    beside = "--edges" if request.edges is not None else "--kv-groups" if request.kv_groups is not None else None
    if name in ACTION_NAMES and (name not in EAGER_ACTIONS or beside):
        raise UnsupportedModelError(
            f"{reason} Only the outputs of its heads can be changed ({', '.join(EAGER_ACTIONS)}, also with --rows), so "
            f"{beside or name} is not available."
        )


def parse_action(request: Request, site: Site) -> Action:
    """Return the action of a request; that of `mean` is still without means.

    Raises
    ------
    ConfigError
        There is no such action, or its arguments are wrong.
    """
    name, _, argument = request.action.partition(":")
    simple: dict[str, type[Zero | Uniform | PatchOutput | PatchAttention]] = {
        "zero": Zero, "uniform": Uniform, "patch": PatchOutput, "patch-attention": PatchAttention, "resample": PatchOutput,
    }  # fmt: skip
    if request.edges is not None:
        if name in ("zero", "scale") and re.fullmatch(_NUMBER if name == "scale" else "", argument):
            return ScaleEdges(_factor(argument or "0"))
        if request.action in ("uniform", "block"):
            return UniformEdges() if name == "uniform" else Block()
        raise ConfigError(
            f"--edges names edges to change, and the action is {request.action}; expected block, zero, scale:FACTOR or uniform"
        )
    if not argument:
        if name in simple:
            return simple[name](name)
        if name == "mean":
            return Mean(())
        if name == "block":
            raise ConfigError("block needs the edges; add --edges PATTERN, such as --edges 'key.id == query.id'")
    if name == "scale" and re.fullmatch(_NUMBER, argument):
        return Scale(_factor(argument))
    if name == "dimensions" and argument:
        return ScaleDimensions(parse_factors(argument, site))
    raise ConfigError(f"the action is {request.action!r}; expected {', '.join(ACTIONS)}")


def _factor(text: str) -> float:
    if not abs(factor := float(text)) <= MAX_FACTOR:
        raise ConfigError(f"the factor is {text[:40]}; expected -{MAX_FACTOR:g} to {MAX_FACTOR:g}")
    return factor


def parse_measure(
    request: Request, loaded: LoadedModel, examples: Sequence[EncodedExample]
) -> tuple[Measure, CandidateRows]:
    """Return the measure of a request, or that of the model's output head, and the examples that the model runs on.

    Raises
    ------
    ConfigError
        There is no such measure, the model cannot be measured so, or arguments are missing.
    """
    name = request.measure or ("candidates" if request.candidates else "label" if request.label else "")
    model, tokenizer, kind = loaded.model, loaded.tokenizer, type(loaded.model).__name__
    rows = CandidateRows(list(examples))
    if not name:
        return default_measure(model, tokenizer), rows
    if name not in MEASURES:
        raise ConfigError(f"the measure is {name!r}; expected {', '.join(MEASURES)}")
    for option, value in (("candidates", request.candidates), ("label", request.label)):
        if value and name != option:
            raise ConfigError(
                f"--{option} belongs to the measure {option}, and the measure is {name}; leave one of them out"
            )
    is_masked = "MaskedLM" in kind or "PreTraining" in kind
    has_words = model.get_output_embeddings() is not None
    has_head = has_words or model.base_model is not model  # T5 with a language-model head is its own base model
    needs = {
        "loss": (has_words and not is_masked, "a language model that predicts the next token"),
        "masked-loss": (is_masked, "a masked language model"),
        "kl": (has_head, "a model with an output head"),
        "candidates": (has_words, "a language model"),
        "label": ("SequenceClassification" in kind, "a classifier"),
        "embedding": (not has_head, "a model without an output head"),
    }
    fits, expected = needs[name]
    if not fits:
        raise ConfigError(f"the measure {name} needs {expected}; this model is loaded as {kind}")
    if name == "candidates":
        assert tokenizer is not None, "a language model has a tokenizer"
        mask_id = mask_id_of(tokenizer) if is_masked else None
        limit = token_limit(model, tokenizer).positions
        rows = candidate_rows(examples, request.candidates, tokenizer, mask_id, limit)
        return Candidates(rows.terms), rows
    if name == "label":
        labels = {str(label): int(i) for i, label in (model.config.id2label or {}).items()}
        if request.label not in labels:
            names = ", ".join(map(repr, labels))
            raise ConfigError(f"the label is {request.label!r}; name one that the classifier has with --label: {names}")
        return LabelLogit(labels[request.label]), rows
    if name == "masked-loss":
        return MaskedLoss(mask_id_of(tokenizer), request.seed), rows
    return {"loss": NextTokenLoss, "kl": Divergence, "embedding": EmbeddingChange}[name](), rows


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
