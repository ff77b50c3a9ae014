"""A model and the examples of a corpus, ready for an intervention."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from headatlas.store.errors import ConfigError
from headatlas.store.files.installed_packages import installed_version
from headatlas.store.patterns import Pattern, Vocabulary
from headatlas.store.patterns.segment_matcher import segment_matcher
from headatlas.store.reading.memory_segment import MemorySegment
from headatlas.store.schema.traces import Keep, Site, TraceSpec

from ..capture.eager import find_sites
from ..capture.eager_outputs import EagerOutputs, find_eager_outputs
from ..checks.batch_check import check_batches
from ..corpora.examples import EncodedExample
from ..progress import Event
from ..tokens.model_inputs import InputBuilder
from ..tokens.segment_tables import segment_tables
from .actions import Action
from .passes import Passes
from .request import DONOR_ACTIONS, Request, check_eager_request, parse_action, parse_measure, unit_of
from .subjects.material import open_material

if TYPE_CHECKING:
    from ..capture.sites import ModelSites
    from ..models.sources import LoadedModel
    from .subjects.stored_job import InterventionJob

_NO_TRACES = Keep(attention=None, query_key=None, edges=None, statistics=False)
Edges = Callable[[int], Bool[np.ndarray, "query key"]]


@dataclass(frozen=True)
class Subject:
    """A model and the examples of a corpus, ready for an intervention."""

    job: InterventionJob
    loaded: LoadedModel
    action: Action
    """The requested action; that of `mean` is still without means."""
    unit: str | None
    """Column whose values are the units of intervals and tests; None if every example is one."""
    passes: Passes
    """`n_rows` examples for each example of the corpus, one after the other. Their effects add up."""
    examples: list[EncodedExample]
    """Examples of the corpus that the tokenizer can encode."""
    n_rows: int
    left_out: dict[int, str]
    """Reason why an example has no effect, by its index."""
    n_not_encoded: int
    corpus: str
    """Path of the corpus or of the store."""
    notes: tuple[str, ...] = ()

    @property
    def site(self) -> Site:
        """The site whose heads are changed."""
        return self.passes.site

    def identity(self) -> dict[str, Any]:
        """Return all that effects depend on beside the heads and the request, as plain values."""
        digest = hashlib.sha256()
        for example in self.passes.examples:
            for side in (example.source, example.target):
                ids = np.zeros(0, np.int32) if side is None else side.id
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
            digest.update(json.dumps([example.example.text, example.example.text_pair, example.example.id]).encode())
            digest.update(json.dumps([example.example.columns, example.example.word_columns], sort_keys=True).encode())
        model = self.passes.model
        return {
            "model": self.loaded.identity.to_dict(),
            "class": type(model).__name__,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "examples": digest.hexdigest(),
            "site": self.site.name,
            "limits": asdict(self.passes.limits),
            "versions": [installed_version(name) for name in ("headatlas", "torch", "transformers")],
        }


def open_subject(
    job: InterventionJob, request: Request, on_event: Callable[[Event], None] = lambda event: None
) -> Subject:
    """Load the model of a job with the output head that it was saved with, and read its examples.

    Raises
    ------
    ConfigError
        Model or corpus cannot be read, the request is wrong, or no example can be measured.
    UnsupportedModelError
        The heads of the model cannot be changed as requested.
    """
    material = open_material(job, on_event)
    loaded, examples = material.loaded, material.examples
    builder = InputBuilder(loaded.model, loaded.tokenizer, loaded.images)
    sites = find_sites(loaded.model, builder.build_probe(examples[0]))
    site = sites.sites[0]
    if request.site is not None:
        site = next((row for row in sites.sites if row.name == request.site), None)
    if site is None:
        names = ", ".join(row.name for row in sites.sites)
        raise ConfigError(f"--site is {request.site!r}; {type(loaded.model).__name__} has {names}")
    action = parse_action(request, site)
    names = dict.fromkeys(name for example in examples for name in example.example.columns)
    columns = {name: [example.example.columns.get(name) for example in examples] for name in names}
    unit = unit_of(columns, request.unit or material.sampling_unit)
    eager = None
    if sites.capture == "eager":
        check_eager_request(request, sites.why_eager)
        eager = _find_outputs(loaded, sites, site, builder, examples)
    batch_check = check_batches(loaded.model, sites, builder, examples, max(2, material.limits.max_tokens // 2))
    measure, rows = parse_measure(request, loaded, examples)
    donors = _find_donors(rows.examples, rows.n_rows, request) if request.action in DONOR_ACTIONS else None
    edges = None if request.edges is None else _edges_of(rows.examples, sites.sites, site, request.edges)
    row_edges = None if request.rows is None else _edges_of(rows.examples, sites.sites, site, request.rows)
    left_out = dict(rows.left_out)
    for row in range(len(rows.examples)):
        if reason := _reason(row, request, donors, edges, row_edges):
            left_out.setdefault(row // rows.n_rows, reason)
    if len(left_out) == len(examples):
        raise ConfigError(f"no example can be measured: {', '.join(dict.fromkeys(left_out.values()))}")
    passes = Passes(
        loaded.model, sites, site, builder, rows.examples, batch_check.limits(material.limits), measure, donors, edges,
        None if row_edges is None else partial(_matching_rows, row_edges),
        frozenset(row for row in range(len(rows.examples)) if row // rows.n_rows in left_out), eager,
    )  # fmt: skip
    notes = tuple(filter(None, [batch_check.note(type(loaded.model).__name__), *material.notes]))
    return Subject(
        job,
        loaded,
        action,
        unit,
        passes,
        examples,
        rows.n_rows,
        left_out,
        material.n_not_encoded,
        material.corpus,
        notes,
    )


def _reason(
    row: int, request: Request, donors: Mapping[int, int] | None, edges: Edges | None, row_edges: Edges | None
) -> str | None:
    """Return the reason why an example of the passes has no effect, or None if it has one."""
    if donors is not None and row not in donors:
        shared = "length" if request.action == "resample" else f"{request.pair} and length"
        return f"no other example of the same {shared}"
    if edges is not None and not edges(row).any():
        return "no edge matches --edges"
    if row_edges is not None and not row_edges(row).any():
        return "no row matches --rows"
    return None


def _matching_rows(edges: Edges, index: int) -> Bool[np.ndarray, "query"]:
    return np.asarray(edges(index).any(axis=1))


def _find_outputs(
    loaded: LoadedModel, sites: ModelSites, site: Site, builder: InputBuilder, examples: Sequence[EncodedExample]
) -> EagerOutputs:
    """Find the outputs of a model outside the attention interface, from a text and a second one of other tokens."""
    import torch

    n_ids = loaded.model.config.get_text_config().vocab_size
    probe = builder.build_probe(examples[0], n_source=5, n_target=4)
    two = {
        name: torch.cat([tensor, (tensor + 1) % n_ids if name.endswith("input_ids") else tensor])
        for name, tensor in probe.items()
    }
    return find_eager_outputs(loaded.model, sites, site.name, two)


def _find_donors(examples: Sequence[EncodedExample], n_rows: int, request: Request) -> dict[int, int]:
    """Return the example that gives what is patched into each example: another one with as many tokens.

    Of a pair it is the other member; for `resample` the next example of the same length.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        lengths = i % n_rows, len(example.source), 0 if example.target is None else len(example.target)
        value = example.example.columns.get(request.pair)
        if request.action == "resample":
            groups[lengths].append(i)
        elif value is not None and value != "":
            groups[lengths, value].append(i)
    if not groups:
        raise ConfigError(f"no example has a value of {request.pair!r}; name the column of the pairs with --pair")
    return {
        i: group[(position + 1) % len(group)]
        for group in groups.values()
        if len(group) > 1
        for position, i in enumerate(group)
    }


def _edges_of(examples: Sequence[EncodedExample], sites: tuple[Site, ...], site: Site, expression: str) -> Edges:
    """Return a function that evaluates a pattern on an example."""
    spec = TraceSpec(sites=sites, keep=_NO_TRACES, statistics=(), capture="interface")
    segment = MemorySegment(spec, segment_tables(examples, spec.sequences), {})
    pattern = Pattern.parse(expression)
    tables = [segment.tokens(name) for name in (site.query_sequence, site.key_sequence)]
    vocabulary = Vocabulary.of([tables[0]], [tables[1]], [segment.columns()])
    pattern.check(vocabulary)
    matcher = segment_matcher(segment, site, pattern, vocabulary)
    starts = [table.token_offset for table in tables]

    def edges(index: int) -> Bool[np.ndarray, "query key"]:
        matches = matcher.example(index)
        shape = [int(offset[index + 1] - offset[index]) for offset in starts]
        result = np.zeros(shape, bool)
        result[matches.query - starts[0][index], matches.key - starts[1][index]] = True
        return result

    return edges
