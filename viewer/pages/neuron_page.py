"""The neuron view of one example: the scores of the pinned query in one head, dimension by dimension."""

from __future__ import annotations

from functools import partial
from typing import Any

import panel as pn

from headatlas.store.errors import HeadAtlasError, NotFoundError
from headatlas.store.schema.head_dimensions import factors_text, parse_factors, rotary_pairs

from ..components.background import Check
from ..components.neuronview import NeuronView
from ..data.example_reader import AT_ONCE_BYTES, Reader, reader_of
from ..frames.geometry import clearest_query
from ..frames.view_frames import Head, NeuronFrame, NeuronRow, message_frame, neuron_frame, sides_frame
from ..state.reader_state import Problem
from .example_view import ExampleView, is_renormalised
from .layout import two_columns

MAX_BYTES = 32 << 20
"""Largest size of the key vectors of a row that are sent to the browser."""
_READ = {"page", "view", "site", "example", "layer", "head", "pin", "specials", "weights"}


class NeuronViewPage(ExampleView):
    """View with picker and vectors."""

    def layout(self) -> pn.Column:
        """Build the layout, once."""
        self.vectors = NeuronView()
        self.picker.give(lines=False, single=True)
        self.vectors.param.watch(self._pin, "pin")
        self.link(self.vectors, order="dimension_order", factors="factors", dim="dimension", measured="measured")
        self._row: tuple[Any, ...] = ()
        self._query = 0
        self._tokens_of = ""
        self.vectors.document = partial(self.document, "neuron")
        return two_columns(self.picker, self.vectors)

    @property
    def reader(self) -> Reader:
        """The reader of the chosen example with weights as stored: the browser scales those that it shows."""
        return reader_of(self.data, self.state.example, self.state.site)

    def _pin(self, event: Any) -> None:
        if event.new != self.state.pin:
            self.change(pin=event.new)

    @property
    def _selection(self) -> str:
        return super()._selection.split(",")[0]

    def _selected(self, event: Any) -> None:
        layer, _, head = str(event.new).partition(".")
        if event.new and event.new != self._selection:
            self.change(layer=layer, head=head)

    def draw(self, reader: Reader, changed: frozenset[str]) -> None:
        """Fill the components for the pinned query, or for the query with the clearest row."""
        head, site = self.heads[0], reader.site
        pin = self.pinned(reader)
        query_pos = pin[1] if pin and (pin[0] == "q" or reader.same_text) else self._clearest_query(reader, head)
        self._explain(reader)
        self.fill_picker(reader)
        if reader.id != self._tokens_of:
            self.vectors.tokens = sides_frame(reader.queries, None if reader.same_text else reader.keys, reader.id)
            self._tokens_of = reader.id
        if reader.keep.query_key is None:
            self.fail(
                "Query and key are not in this store",
                'This view needs the vectors. Run the job into another store with keep.query_key = "float16".',
            )
            return
        n_bytes = 4 * reader.shape[1] * (site.d_head + 4)
        if n_bytes > MAX_BYTES:
            raise NotFoundError(
                f"the keys of {reader.shape[1]:,} tokens take {n_bytes >> 20} MiB; this view shows at most "
                f"{MAX_BYTES >> 20} MiB. Open the head view, which shows a part of the text."
            )

        def work(check: Check) -> NeuronFrame:
            query, keys, logsumexp = reader.vectors(head, query_pos)
            layer = site.layer_index(head[0])
            stored = None if reader.keep.attention is None else reader.weights(head, "q", query_pos, check)
            row = NeuronRow(
                query, keys, logsumexp, stored, head, query_pos, site.scaling[layer],
                kv_head=reader.example.kv_head(head[1], site.name), n_sharing=site.n_heads // site.n_kv_heads,
                softcap=site.softcap[layer], mask=reader.visible_keys(head[0], query_pos), rotary=site.rotary,
                position_bias=site.has_position_bias, bias=reader.bias(head, query_pos), codec=reader.keep.query_key or "float16",
                pairs=rotary_pairs(site), store=self.data.name,
                site="" if site.name == self.data.store.spec.sites[0].name else site.name,
            )  # fmt: skip
            return neuron_frame(row, reader.id)

        def done(frame: NeuronFrame) -> None:
            self.vectors.frame = frame
            self._show_choices(reader)

        if changed & _READ or not self.vectors.frame:
            key = reader.id, head, query_pos
            self.reads.start(key, work, done, self.failed, at_once=n_bytes <= AT_ONCE_BYTES)
        else:
            self._show_choices(reader)

    def _clearest_query(self, reader: Reader, head: Head) -> int:
        """Return the query to open with. In a text whose map takes long to read it is the first ordinary token."""
        row = reader.id, head
        if self._row != row:
            n_queries = reader.shape[0]
            map_ = None
            if reader.has_attention and reader.cost(1, n_queries) <= AT_ONCE_BYTES:
                map_ = reader.maps([head])[0]
            first = reader.site.causal or reader.site.has_sinks
            specials = reader.queries["special"], reader.keys["special"]
            self._row, self._query = row, clearest_query(map_, *specials, is_same_text=reader.same_text, has_sink=first)
        return self._query

    def _show_choices(self, reader: Reader) -> None:
        """Show the order, the factors, and the marked dimension and key. What does not exist is reported."""
        state, site = self.state, reader.site
        problems: list[Problem] = []
        factors = dimension = measured = ""
        try:
            factors = factors_text(parse_factors(state.factors, site)) if state.factors else ""
        except HeadAtlasError as error:
            problems.append(Problem("factors", state.factors, self.data.error_text(error)))
        if state.dimension and int(state.dimension) >= site.d_head:
            problems.append(Problem("dimension", state.dimension, f"a head has dimensions 0 to {site.d_head - 1}"))
        else:
            dimension = state.dimension
        if state.measured and int(state.measured) >= reader.shape[1]:
            problems.append(Problem("measured", state.measured, f"the keys have positions 0 to {reader.shape[1] - 1}"))
        else:
            measured = state.measured
        if problems:
            self.session.report(problems)
        self.vectors.give(
            pin=state.pin, hide_special=self.hide_special, order=state.dimension_order, factors=factors, dim=dimension,
            measured=measured, renormalised=is_renormalised(state),
        )  # fmt: skip

    def _explain(self, reader: Reader) -> None:
        site, (layer, head) = reader.site, self.heads[0]
        n_sharing = site.n_heads // site.n_kv_heads
        kv_head = reader.example.kv_head(head, site.name)
        sharing_text = (
            "Each head has its own keys."
            if n_sharing == 1
            else f"Heads {kv_head * n_sharing}\u2013{kv_head * n_sharing + n_sharing - 1} share key head {kv_head}."
        )
        vectors = "After rotary embedding, before scaling." if site.rotary else "Before scaling."
        facts = [("Key head", sharing_text), ("Vectors", vectors)]
        if not (mask := site.masks[site.layer_index(layer)]).is_open:
            described = "a mask of its own" if mask.stored is not None else f"{mask} tokens"
            facts.append(("Mask", f"Layer {layer} attends within {described}."))
        if site.has_position_bias:
            has_bias = reader.bias((layer, head), 0) is not None
            facts.append(("Position bias", "Added to each score." if has_bias else "Not in this store."))
        if site.has_sinks:
            facts.append(("Sink", "A learned sink receives the attention that the keys do not."))
        self.picker.facts = facts

    def fail(self, title: str, reason: str) -> None:
        """Show why there is no picture."""
        self.vectors.frame = message_frame(title, reason)
