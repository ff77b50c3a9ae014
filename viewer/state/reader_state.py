"""Choices of one reader: a flat record that every page and view watches, and its form as a URL query.

The record is the only state that parts of the viewer share. A query names only the fields that differ from the start,
so a fresh page has an empty query. Every value from outside (a URL, a component in the browser) passes `apply`, which
sets valid values and reports invalid ones. An invalid value is neither set nor silently dropped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import quote, unquote_to_bytes

import param
from param.parameterized import batch_call_watchers

from .address_values import (
    ARCS,
    FACTORS,
    HEAD,
    INTEGER,
    PIN,
    SPAN,
    ZOOM,
    facets_json,
    matching,
    missing_example,
    number_text,
    option,
    parse_span,
    share,
    text_value,
)
from .page_table import PAGES, VIEWS

MEASURES = ("mass", "hit_rate", "lift")
ORDERS = ("corpus", "strongest", "weakest")
SPECIALS = ("hide", "show")
UNITS = ("token", "word", "sentence")
SEGMENTS = ("all", "aa", "ab", "ba", "bb")
WEIGHTS = ("stored", "renormalised")
LAYOUTS = ("columns", "rows")
POOLINGS = ("maximum", "mean")
SCALES = ("sqrt", "linear", "log")
SAMPLES = ("strongest", "deciles", "random", "weakest")
ARRANGEMENTS = ("layer", "weight", "search")
DIMENSION_ORDERS = ("dimension", "part", "pairs")
COMPARISONS = ("auto", "examples", "heads", "models")
THEMES = ("auto", "light", "dark")
MAX_QUERY, MAX_FIELDS = 32_000, 500
"""Most characters and fields of an address."""
MAX_HEADS = 256
"""Most heads beside the chosen one. The first twelve have colours that readers with colour blindness can tell apart."""


_FIELDS = (
    "store", "page", "view", "site", "statistic", "x", "y", "pattern", "measure", "layer", "head", "heads", "example",
    "pin", "share", "keys", "specials", "unit", "segments", "weights", "layout", "pooling", "scale", "zoom", "arrange",
    "dimension_order", "dimension", "measured", "factors",
    "compare", "pairs", "other_example", "other_head", "other_store", "shade", "sample", "arcs", "where", "text", "order", "row",
    "lengths", "scores", "theme",
)  # fmt: skip

_DEPENDENT = {
    ("store", "site", "layer", "head"): ("factors", "dimension", "measured"),
    ("example", "pin"): ("measured",),
}
"""Fields that are cleared when one of others changes: dimensions belong to a head, a measured key to a row."""


@dataclass(frozen=True)
class Bounds:
    """Contents of a store that choices are checked against.

    Attributes
    ----------
    sites
        Numbers of the layers, and number of heads, of each site.
    statistics
        Names of the statistics.
    examples
        Numbers of the examples. None if they are not checked.
    start
        Choices of a fresh page that differ from the defaults, such as the head with the highest statistic.
    stores
        Names of the stores that are served together. The first one is shown by default.
    """

    sites: Mapping[str, tuple[Sequence[int], int]] = field(default_factory=dict)
    statistics: tuple[str, ...] = ()
    examples: Collection[int] | None = None
    start: Mapping[str, Any] = field(default_factory=dict)
    stores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A value that was rejected: `field` and `value` as they arrived, and the `reason` as text."""

    field: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field} = {self.value[:80]!r}: {self.reason}"


class ViewState(param.Parameterized):
    """All choices of one reader. `FIELDS` lists the fields that a URL may hold.

    `heads` lists further heads beside (`layer`, `head`), in the order in which they were added. `pin` is empty, or a
    side and a position: ``q14`` pins query 14, ``k3`` pins key 3, and ``q14k3`` pins query 14 with its edge to key 3.
    """

    page = param.Selector(default="corpus", objects=[row.route for row in PAGES])
    view = param.Selector(default="head", objects=[row.route for row in VIEWS])
    site = param.String(default="")
    statistic = param.String(default="")
    x = param.String(default="", doc="statistic across the scatter of heads")
    y = param.String(default="", doc="statistic up the scatter of heads")
    pattern = param.String(default="")
    measure = param.Selector(default="mass", objects=list(MEASURES))
    layer = param.Integer(default=0, bounds=(0, None))
    head = param.Integer(default=0, bounds=(0, None))
    heads = param.String(default="")
    example = param.Integer(default=0, bounds=(0, None))
    pin = param.String(default="")
    share = param.Number(default=0.75, bounds=(0.0, 1.0))
    keys = param.Integer(default=8, bounds=(1, 64))
    specials = param.Selector(
        default="hide", objects=list(SPECIALS), doc="special tokens, and the first token of a causal site, in the views"
    )
    unit = param.Selector(default="token", objects=list(UNITS), doc="units that a line of the head view joins")
    segments = param.Selector(default="all", objects=list(SEGMENTS), doc="texts of a pair that the lines join")
    weights = param.Selector(
        default="stored", objects=list(WEIGHTS), doc="as stored, or scaled so that each row adds up to 1"
    )
    layout = param.Selector(default="columns", objects=list(LAYOUTS), doc="layout of the head view's tokens")
    pooling = param.Selector(
        default="maximum", objects=list(POOLINGS), doc="pooling of a matrix that is zoomed out, and of many heads"
    )
    scale = param.Selector(default="sqrt", objects=list(SCALES), doc="scale of the matrix's colours")
    zoom = param.String(default="", doc="first row, first column and width of the matrix's window")
    arrange = param.Selector(default="layer", objects=list(ARRANGEMENTS), doc="order of the model view's heads")
    dimension_order = param.Selector(
        default="dimension", objects=list(DIMENSION_ORDERS), doc="order of the dimensions in the neuron view"
    )
    dimension = param.String(default="", doc="number of the marked dimension; empty: the one with the largest part")
    measured = param.String(default="", doc="position of the key whose score is measured; empty: the strongest key")
    factors = param.String(default="", doc="factors of dimensions, as 12,44:0+7:0.5 or pairs:0-4:0")
    compare = param.Selector(
        default="auto", objects=list(COMPARISONS), doc="kind of comparison; auto: the first that the example allows"
    )
    pairs = param.String(
        default="", doc="pairs that rank the heads: empty: the shown one; all; or column=value, the pairs of a label"
    )
    other_example = param.String(default="", doc="number of the second example; empty: the other of the pair")
    other_head = param.String(default="", doc="second head as layer.head, in `other_store` if models are compared")
    other_store = param.String(default="", doc="name of the second store")
    shade = param.String(default="side", doc="colouring of the query-key space: side, position, token or an annotation")
    where = param.String(default="", doc="annotations of the listed examples, as a JSON object of texts")
    text = param.String(default="", doc="text filter of the example list")
    order = param.Selector(default="corpus", objects=list(ORDERS), doc="order of the example list")
    row = param.Integer(default=0, bounds=(0, None), doc="first row of the example list")
    lengths = param.String(default="", doc="numbers of tokens of the listed examples, as 5..40, 5.. or ..40")
    scores = param.String(default="", doc="range of the chosen head's statistic in the listed examples, as .2..1")
    sample = param.Selector(default="strongest", objects=list(SAMPLES), doc="part of a search's ranking that is listed")
    arcs = param.String(default="", doc="arcs drawn on the example, as 7>5,3>2; none: no arc is drawn yet")
    theme = param.Selector(default="auto", objects=list(THEMES))
    store = param.String(default="", doc="name of the store, if several are served")

    FIELDS: ClassVar[tuple[str, ...]] = _FIELDS
    HISTORY: ClassVar[frozenset[str]] = frozenset(
        {"page", "view", "site", "pattern", "layer", "head", "heads", "example", "pin", "unit", "segments"}
        | {"compare", "pairs", "other_example", "other_head", "other_store", "where", "lengths", "scores"}
    )
    """Fields whose change adds a history entry. Changes of others (sliders, colours) replace the current one."""

    def __init__(self, bounds: Bounds | None = None, **params: Any) -> None:
        super().__init__()
        self._bounds = bounds or Bounds()
        first = next(iter(self._bounds.statistics), "")
        start = {"site": next(iter(self._bounds.sites), ""), "statistic": first, "x": first, "y": first}
        self.param.update(**{**start, **self._bounds.start})
        self._start = {name: getattr(self, name) for name in self.FIELDS}
        self._parts: dict[str, str] | None = None
        self.named: frozenset[str] = frozenset()
        """Fields that the address or a choice has set, even to the value of the start."""
        self.param.update(**params)

    @property
    def bounds(self) -> Bounds:
        """Contents of the store that choices are checked against."""
        return self._bounds

    @property
    def heads_shown(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of the chosen head, then of the further heads. Each head occurs once."""
        further = [(int(m[1]), int(m[2])) for m in map(HEAD.fullmatch, self.heads.split(",")) if m]
        return tuple(dict.fromkeys([(self.layer, self.head), *further]))

    @property
    def facets(self) -> dict[str, str]:
        """Annotations of the listed examples: text by name."""
        return json.loads(self.where) if self.where else {}

    @property
    def length_span(self) -> tuple[float, float]:
        """Fewest and most tokens of the listed examples. A missing bound is infinite."""
        return parse_span(self.lengths)

    @property
    def score_span(self) -> tuple[float, float]:
        """Least and greatest statistic of the listed examples. A missing bound is infinite."""
        return parse_span(self.scores)

    @property
    def pinned(self) -> tuple[Literal["q", "k"], int] | None:
        """Side and position of the pinned token. None if no token is pinned."""
        match = PIN.fullmatch(self.pin)
        return (match[1], int(match[2])) if match else None  # type: ignore[return-value]

    @property
    def pinned_edge(self) -> tuple[int, int] | None:
        """(query, key) of the pinned edge. None if no edge is pinned, also if one token is."""
        match = PIN.fullmatch(self.pin)
        if not match or match[4] is None:
            return None
        ends = {match[1]: int(match[2]), match[3]: int(match[4])}
        return ends["q"], ends["k"]

    def to_query(self, **changes: Any) -> str:
        """Return the query (without ``?``) of this state with some `changes`. It is empty for the start."""
        if self._parts is None:  # a page writes about twenty links of one state
            self._parts = {name: self._part(name, getattr(self, name)) for name in self.FIELDS}
        parts = self._parts | {name: self._part(name, value) for name, value in changes.items()}
        if changes.get("view", self.view) == "compare" and "head" in self.named:  # without it, the view chooses a head
            parts |= {name: f"{name}={changes.get(name, getattr(self, name))}" for name in ("layer", "head")}
        return "&".join(filter(None, parts.values()))

    def _part(self, name: str, value: Any) -> str:
        """Return one field as part of a query. It is empty if the value is that of the start."""
        if value == self._start[name]:
            return ""
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return f"{name}={quote(text, safe='.,:')}"

    @param.depends(*_FIELDS, watch=True)
    def _clear_parts(self) -> None:
        """Clear the parts of the query. This runs before the other watchers of a change."""
        self._parts = None

    def from_query(self, query: str) -> list[Problem]:
        """Set the state to that of `query`; reset the fields that it does not name. Returns the rejected values."""
        patch: dict[str, Any] = {name: value for name, value in self._start.items() if name != "theme"}
        if len(query) > MAX_QUERY or query.count("&") >= MAX_FIELDS:
            reason = (
                f"is longer than {MAX_QUERY:,} characters or has more than {MAX_FIELDS} fields. It changes nothing."
            )
            return [Problem("address", query[:80], reason)]
        problems: list[Problem] = []
        if self._bounds.examples is not None and not self._bounds.examples:
            del patch["example"]  # an empty store has no first example
        for part in query.removeprefix("?").split("&"):
            name, _, value = part.partition("=")
            if name:
                text = _unquote(value)
                patch[_unquote(name)] = text
                if "�" in text and "%EF%BF%BD" not in value.upper():
                    problems.append(Problem(_unquote(name), value, "is not UTF-8 text"))
        problems += self.apply(patch)
        self.named = frozenset(_unquote(part.partition("=")[0]) for part in query.removeprefix("?").split("&"))
        return problems

    def apply(self, patch: Mapping[str, Any]) -> list[Problem]:
        """Set the valid values of `patch` in one step. Returns the rejected values with the reasons."""
        problems: list[Problem] = []
        values: dict[str, Any] = {}
        patch = self._completed(patch)
        for name in sorted(patch, key=lambda n: n != "site"):  # the site determines the numbers of layers and heads
            value = patch[name]
            try:
                values[name] = self._valid_value(name, value, values)
            except ValueError as error:
                problems.append(Problem(name, _short_repr(value), str(error)))
        if values.get("site", self.site) != self.site:
            values = self._site_changes(values["site"]) | values
        self.named |= values.keys()
        with batch_call_watchers(self):
            for name, value in values.items():
                if getattr(self, name) != value:
                    setattr(self, name, value)
        return problems

    def _completed(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Split ``head=5.8`` into layer and head, and clear what belongs to the row or head that is left."""
        completed = dict(patch)
        if isinstance(head := patch.get("head"), str) and (match := HEAD.fullmatch(head)):
            completed["layer"], completed["head"] = match[1], match[2]
        for fields, dependent in _DEPENDENT.items():
            if any(name in completed and str(completed[name]) != str(getattr(self, name)) for name in fields):
                completed = {**dict.fromkeys(dependent, ""), **completed}
        return completed

    def _valid_value(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        if name not in self.FIELDS:
            raise ValueError(f"there is no such field; expected one of {', '.join(self.FIELDS)}")
        parameter = self.param[name]
        if isinstance(parameter, param.Selector):
            return option(value, parameter.objects)
        if name == "site":
            return option(value, self._bounds.sites) if self._bounds.sites else text_value(value)
        if name in ("statistic", "x", "y"):
            return option(value, self._bounds.statistics) if self._bounds.statistics else text_value(value)
        if name == "store":
            return option(value, self._bounds.stores) if self._bounds.stores else text_value(value)
        if name == "other_store":
            return option(value, ("", *self._bounds.stores)) if self._bounds.stores else text_value(value)
        if name == "zoom":
            return matching(ZOOM, value, "expected row,column,width of the matrix's window, such as 0,120,64")
        if name in ("dimension", "measured"):
            return matching(INTEGER, value, "expected a whole number, or nothing")
        if name == "factors":
            return matching(FACTORS, value, "expected dimensions with factors, such as 12,44:0+7:0.5 or pairs:0-4:0")
        if name == "arcs":
            return matching(ARCS, value, "expected at most 12 arcs as query>key, separated by commas, such as 7>5,3>2")
        if name == "other_head":
            return matching(HEAD, value, "expected layer.head, such as 5.8")
        if name == "other_example":
            return str(self._integer("example", value, values)) if value != "" else ""
        if name == "where":
            return facets_json(value)
        if name == "lengths":
            return matching(SPAN, value, "expected fewest..most tokens, such as 5..40, 5.. or ..40")
        if name == "scores":
            return matching(SPAN, value, "expected least..most, such as .2..0.8 or .5..")
        if name == "share":
            return share(value)
        if isinstance(parameter, param.Integer):
            return self._integer(name, value, values)
        if name == "pin":
            if value != "" and not PIN.fullmatch(text_value(value)):
                raise ValueError("expected a token such as q14 or k3, or an edge such as q14k3")
            return value
        if name == "heads":
            return self._head_list(text_value(value), values)
        return text_value(value)

    def _integer(self, name: str, value: Any, values: Mapping[str, Any]) -> int:
        text = str(value) if not isinstance(value, bool) else ""
        if isinstance(value, float) and value.is_integer():  # JavaScript has no integers
            text = str(int(value))
        if not INTEGER.fullmatch(text) or not text.isascii():
            raise ValueError("expected a whole number")
        number = int(text)
        layers, heads = self._site_shape(values)
        choices = {"layer": layers, "head": None if heads is None else range(heads)}.get(name)
        if choices is not None and number not in choices:
            raise ValueError(f"this store has {name} {number_text(choices)}")
        examples = self._bounds.examples
        if name == "example" and examples is not None and number not in examples:
            raise ValueError(missing_example(examples))
        if name == "keys" and not 1 <= number <= 64:
            raise ValueError("expected 1 to 64")
        return number

    def _site_changes(self, site: str) -> dict[str, Any]:
        """Return the changes that follow from another site: its missing heads are deselected and the pin is cleared."""
        layers, heads = self._bounds.sites.get(site, (None, None))
        if layers is None or heads is None:
            return {"pin": ""}
        others = [head for head in self.heads_shown[1:] if head[0] in layers and head[1] < heads]
        return {
            "pin": "",
            "layer": max((layer for layer in layers if layer <= self.layer), default=layers[0]),
            "head": min(self.head, heads - 1),
            "heads": ",".join(f"{layer}.{head}" for layer, head in others),
        }

    def _site_shape(self, values: Mapping[str, Any]) -> tuple[Sequence[int], int] | tuple[None, None]:
        return self._bounds.sites.get(values.get("site", self.site), (None, None))

    def _head_list(self, text: str, values: Mapping[str, Any]) -> str:
        layers, heads = self._site_shape(values)
        names = []
        for item in filter(None, text.split(",")):
            match = HEAD.fullmatch(item)
            if not match:
                raise ValueError("expected heads as layer.head, separated by commas, such as 5.8,5.10")
            layer, head = int(match[1]), int(match[2])
            if layers is not None and heads is not None and (layer not in layers or head >= heads):
                raise ValueError(
                    f"head {item[:20]} is not in this store: layers {number_text(layers)} of {heads} heads"
                )
            names.append(f"{layer}.{head}")
        if len(names) > MAX_HEADS:
            raise ValueError(f"{len(names)} heads; at most {MAX_HEADS} can be shown together")
        return ",".join(dict.fromkeys(names))


def query_of_arguments(arguments: Mapping[str, list[bytes]]) -> str:
    """Convert the arguments of a request to a query. The last value of each name counts."""
    return "&".join(f"{quote(name)}={quote(values[-1])}" for name, values in arguments.items() if values)


def _unquote(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ").encode("utf-8", "replace")).decode("utf-8", "replace")


def _short_repr(value: Any) -> str:
    return value[:200] if isinstance(value, str) else repr(value)[:200]
