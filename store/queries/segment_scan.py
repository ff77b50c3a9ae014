"""One segment of a search: what every head puts on the pairs that match.

The pattern is evaluated once on tokens; then each head only looks matching pairs up. Reading goes layer by layer (a
shard is one layer) and in blocks of bounded pairs, so memory depends neither on the corpus nor on the model's depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Num

from ..codecs.companding import decode_attention
from ..containers.shard_writer import CHUNK_PAIRS
from ..errors import NotFoundError, located
from ..patterns.matching import Matcher, Matches
from ..patterns.matching_rows import RowSupport
from ..reading.attention_rebuild import RebuiltRows, require_rebuilt, why_not_rebuilt
from ..reading.pair_attention import read_dropped, read_pairs
from ..reading.segment import Segment
from ..reading.stored_edges import read_edges, read_strongest
from ..reading.stored_vectors import ScoreParts, Vectors, read_heads, read_parts, read_vectors
from ..schema.traces import Site
from .edge_scan import CodedPairs, EdgeRows, scan_codes, scan_edges

Basis = Literal["attention", "edges", "rebuilt"]
RequestedBasis = Literal["auto", "exact", "approximate", "attention", "edges", "rebuilt"]
BLOCK_WEIGHTS = 12 << 20
"""Weights of one layer in memory at once, about."""


class Stopped(Exception):
    """The caller asked to stop; nothing of the segment counts."""


@dataclass
class SegmentScores:
    """Sums over the rows of one segment that have a matching key; `example` counts within the segment."""

    example_rows: Int64[np.ndarray, "example"]
    mass: Float[np.ndarray, "layer head example"]
    """Attention on matching keys, summed over the rows of each example (with edges: at least this much)."""
    hits: Int64[np.ndarray, "layer head"]
    """Rows whose strongest key matches."""
    uniform: Float[np.ndarray, "layer"]
    """The mass of uniform attention, summed over rows."""
    slack: Float[np.ndarray, "layer head"]
    """How much more mass there may be (0 where every weight was kept)."""

    @staticmethod
    def none(site: Site, n_examples: int) -> SegmentScores:
        """Sums over no rows."""
        shape = site.n_layers, site.n_heads
        mass, hits, slack = np.zeros((*shape, n_examples)), np.zeros(shape, np.int64), np.zeros(shape)
        return SegmentScores(np.zeros(n_examples, np.int64), mass, hits, np.zeros(site.n_layers), slack)


def scan_segment(
    segment: Segment, site: Site, matcher: Matcher, basis: Basis, stop: Callable[[], bool] = lambda: False
) -> SegmentScores:
    """Score every head of `site` on one segment.

    Raises
    ------
    Stopped
        `stop` answered True.
    CorruptSegmentError, FormatError
        What is stored cannot be right.
    """
    scores = SegmentScores.none(site, segment.n_examples)
    n_tokens = len(matcher.evaluator.query.table)
    for matches in _parts(matcher.blocks(0, n_tokens, BLOCK_WEIGHTS // site.n_heads)):
        support = RowSupport(matches, matcher, site)
        example = support.example[support.first_of_example]
        scores.example_rows[example] += np.diff(np.append(support.first_of_example, len(support.rows)))
        uniform = {window: support.uniform(window).sum() for window in set(site.window)}
        edge_rows = EdgeRows.of(support) if segment.spec.keep.edges and basis != "rebuilt" else None
        for layer in range(site.n_layers):
            if stop():
                raise Stopped
            scores.uniform[layer] += uniform[site.window[layer]]
            if basis == "edges":
                assert edge_rows is not None
                with located(f"{segment.where}, layer {layer}"):
                    edges = read_edges(segment, site, layer, int(support.rows[0]), int(support.rows[-1]))
                    scan_edges(edge_rows, edges, scores.mass[layer], scores.hits[layer], scores.slack[layer])
                continue
            block = _Block(segment, site, support, layer)
            if basis == "attention" and edge_rows is not None and block.is_codes:
                with located(f"{segment.where}, layer {layer}"):
                    block.by_codes(edge_rows, scores.mass[layer], scores.hits[layer])
                continue
            found = block.by_attention(edge_rows) if basis == "attention" else block.by_rebuilding()
            by_example = np.add.reduceat(found.mass, support.first_of_example, axis=1, dtype=np.float64)
            scores.mass[layer][:, example] += by_example
            scores.hits[layer] += found.hits
            scores.slack[layer] += found.slack
    return scores


def _parts(blocks: Iterator[Matches]) -> Iterator[Matches]:
    """Cut blocks between rows so far apart that a chunk of stored attention without a match lies between them."""
    for block in blocks:
        far = np.diff(block.pair) > CHUNK_PAIRS
        cuts = (np.flatnonzero(far & (np.diff(block.query) > 0)) + 1).tolist()
        for start, stop in itertools.pairwise([0, *cuts, len(block)]):
            part = slice(start, stop)
            yield Matches(block.first_pair, block.last_pair, block.pair[part], block.query[part], block.key[part])


@dataclass(frozen=True)
class _Found:
    mass: Num[np.ndarray, "head row"]
    hits: Int[np.ndarray, "head"]
    slack: Float[np.ndarray, "head"] | float = 0.0


class _Block:
    """The rows of one block in one layer."""

    def __init__(self, segment: Segment, site: Site, support: RowSupport, layer: int) -> None:
        self.segment, self.site, self.support, self.layer = segment, site, support, layer
        self.rows, self.matches = support.rows, support.matches
        self.row_start = support.matcher.row_start

    @property
    def is_codes(self) -> bool:
        """Whether attention is a byte a weight, of every pair."""
        codec = self.segment.spec.attention_codec
        return codec is not None and codec.steps is not None and codec.selection is None

    def by_codes(
        self, edge_rows: EdgeRows, mass: Float[np.ndarray, "head example"], hits: Int[np.ndarray, "head"]
    ) -> None:
        """What `by_attention` finds where attention is codes and edges were kept, added to mass and hits in one loop."""
        codec = self.segment.spec.attention_codec
        assert codec is not None
        first, last = int(self.rows[0]), int(self.rows[-1])
        start, stop = int(self.row_start[first]), int(self.row_start[last + 1])
        codes = read_pairs(self.segment, self.site, self.layer, slice(None), slice(start, stop))
        key = read_strongest(self.segment, self.site, self.layer, first, last)
        pair = self.matches.pair - start
        scan_codes(edge_rows, CodedPairs(codes, pair, self._weight_of_code, key, first), mass, hits)
        if np.isnan(mass).any():
            decode_attention(np.take(codes, pair, axis=1), codec.name)  # raises

    @cached_property
    def _weight_of_code(self) -> Float[np.ndarray, "code"]:
        """What each byte means; NaN where the codec has no such code."""
        codec = self.segment.spec.attention_codec
        assert codec is not None
        assert codec.steps is not None
        known = np.arange(codec.steps.n_steps + 1, dtype=np.uint8)
        return np.append(decode_attention(known, codec.name), np.full(256 - len(known), np.nan)).astype(np.float64)

    def by_attention(self, edge_rows: EdgeRows | None) -> _Found:
        """Exact within the codec; the strongest key comes from the edges where they were kept.

        Where a sparse codec left weights out, at least this much; `slack` is what they may add.
        """
        codec = self.segment.spec.attention_codec
        assert codec is not None
        first, last = int(self.rows[0]), int(self.rows[-1])
        start, stop = int(self.row_start[first]), int(self.row_start[last + 1])
        stored = read_pairs(self.segment, self.site, self.layer, slice(None), slice(start, stop))
        matching = np.take(stored, self.matches.pair - start, axis=1)  # [head, match]
        mass = decode_attention(matching, codec.name)
        slack = 0.0 if codec.selection is None else self._missing(matching == 0, codec.selection.largest_missing)
        if len(self.rows) < len(self.matches):
            mass = np.add.reduceat(mass, self.support.first, axis=1)  # [head, row]
        if edge_rows is not None:
            key = read_strongest(self.segment, self.site, self.layer, first, last)
            with located(f"{self.segment.where}, layer {self.layer}"):
                hit = edge_rows.is_match(key if key.shape[1] == len(self.rows) else key[:, self.rows - first])
            return _Found(mass, hit.sum(axis=1), slack)
        return _Found(mass, self._hits_of_maxima(stored, start), slack)

    def _missing(self, unseen: Bool[np.ndarray, "head match"], largest: float) -> Float[np.ndarray, "head"]:
        """How much more mass the matching pairs may have whose weights were not kept."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        dropped = read_dropped(self.segment, self.site, self.layer, slice(None), slice(first, last + 1))
        n_unseen = np.add.reduceat(unseen, self.support.first, axis=1, dtype=np.int64)  # [head, row]
        more = np.minimum(n_unseen * largest, dropped[:, self.rows - first])
        return more.sum(axis=1, dtype=np.float64)

    def by_rebuilding(self) -> _Found:
        """Exact within the rounding of query and key; holds the maps of one example, or of some of its rows."""
        support = self.support
        evaluator = support.matcher.evaluator
        vectors = _Vectors.of(self)
        match_row = np.repeat(np.arange(len(self.rows)), support.n_matches)
        key_pos = evaluator.key.position[self.matches.key]
        mass, hits = np.zeros((self.site.n_heads, len(self.rows))), np.zeros(self.site.n_heads, np.int64)
        borders = np.append(support.first_of_example, len(self.rows)).tolist()
        for start, stop in itertools.pairwise(borders):
            offset = evaluator.key.table.token_offset[support.example[start] :][:2]
            step = max(1, BLOCK_WEIGHTS // int(self.site.n_heads * (offset[1] - offset[0])))
            at = start
            while at < stop:  # a tile: the rows within `step` of the first
                end = at + int(np.searchsorted(self.rows[at:stop], self.rows[at] + step))
                tokens = slice(int(self.rows[at]), int(self.rows[end - 1]) + 1)
                weights = vectors.tile(tokens, evaluator.query.position[tokens], int(offset[0]), int(offset[1]))
                low, high = int(support.first[at]), int(support.first[end - 1] + support.n_matches[end - 1])
                row = self.matches.query[low:high] - tokens.start
                found = weights[:, row, key_pos[low:high]]  # [head, match]
                mass[:, at:end] = np.add.reduceat(found, support.first[at:end] - low, axis=1, dtype=np.float64)
                strongest = weights.argmax(axis=-1)[:, self.rows[at:end] - tokens.start]  # [head, row]
                hits += (strongest[:, match_row[low:high] - at] == key_pos[low:high]).sum(axis=1)
                at = end
        return _Found(mass, hits)

    @cached_property
    def _bits(self) -> Bool[np.ndarray, "pair"]:
        """One truth value for each pair between the first and the last row."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        bits = np.zeros(int(self.row_start[last + 1] - self.row_start[first]), dtype=bool)
        bits[self.matches.pair - self.row_start[first]] = True
        return bits

    def _hits_of_maxima(self, stored: Num[np.ndarray, "head pair"], start: int) -> Int[np.ndarray, "head"]:
        """Rows whose largest stored weight (the first of equal ones) is at a matching key."""
        begin = self.row_start[self.rows[0] : self.rows[-1] + 1] - start  # [row between first and last]
        length = np.diff(np.append(begin, stored.shape[1]))
        begin, kept = begin[length > 0], np.cumsum(length > 0) - 1  # a row between may have no key
        row_of_pair = np.repeat(np.arange(len(begin)), length[length > 0])
        wanted = kept[self.rows - self.rows[0]]
        hits = np.zeros(len(stored), np.int64)
        for head, weights in enumerate(stored):
            largest = np.maximum.reduceat(weights, begin)
            at = np.flatnonzero(weights == largest[row_of_pair])
            row = row_of_pair[at]
            strongest = at[np.concatenate([[True], row[1:] != row[:-1]])]  # [row between first and last]
            hits[head] = self._bits[strongest[wanted]].sum()
        return hits


@dataclass(frozen=True)
class _Vectors:
    """Query, key and logsumexp of all heads of one layer, from the first row of a block to its last."""

    block: _Block
    first_row: int
    first_key: int
    query: Vectors
    key: Vectors
    logsumexp: Float[np.ndarray, "head row"]
    parts: ScoreParts

    @staticmethod
    def of(block: _Block) -> _Vectors:
        site, segment, layer = block.site, block.segment, block.layer
        require_rebuilt(site, segment.spec.keep)
        offset = block.support.matcher.evaluator.key.table.token_offset
        rows = slice(int(block.rows[0]), int(block.rows[-1]) + 1)
        example = block.support.example
        keys = slice(int(offset[example[0]]), int(offset[example[-1] + 1]))
        heads, kv_heads = np.arange(site.n_heads), np.arange(site.n_kv_heads)
        return _Vectors(
            block,
            rows.start,
            keys.start,
            read_vectors(segment, site, "query", layer, heads, rows),
            read_vectors(segment, site, "key", layer, kv_heads, keys),
            read_heads(segment, f"{site.name}/logsumexp", layer, heads, rows),
            read_parts(segment, site, layer, heads),
        )

    def tile(
        self, tokens: slice, query_pos: Int[np.ndarray, "row"], key_start: int, key_stop: int
    ) -> Float[np.ndarray, "head row key_pos"]:
        """Maps of some rows of an example whose keys are `key_start:key_stop`."""
        site = self.block.site
        n_keys = key_stop - key_start
        seen = min(n_keys, int(query_pos[-1]) + 1) if site.causal else n_keys
        rows = slice(tokens.start - self.first_row, tokens.stop - self.first_row)
        start = key_start - self.first_key
        key = self.key.part(slice(start, start + seen)).repeat(site.n_heads // site.n_kv_heads)
        found = RebuiltRows(
            self.query.part(rows), self.logsumexp[:, rows], site, self.block.layer, query_pos, n_keys, self.parts
        )
        with located(f"{self.block.segment.where}, tokens {tokens.start} to {tokens.stop - 1}"):
            return found.tile(key, bounded=False).weights


def basis_for(segments: Sequence[Segment], site: Site, asked: RequestedBasis) -> Basis:
    """The basis that answers: what was asked for, or the best one that is kept.

    ``"auto"`` takes stored attention, else edges, else rebuilds; ``"exact"`` takes stored attention if every weight was
    kept, else rebuilds; ``"approximate"`` takes what bounds the answer for the least reading: edges, else what
    ``"auto"`` takes.

    Raises
    ------
    NotFoundError
        The store does not have what is needed.
    """
    if not segments:
        return "attention"
    keep = segments[0].spec.keep
    if asked == "approximate":
        asked = "edges" if keep.edges else "auto"
    codec = segments[0].spec.attention_codec
    if codec is not None and asked in (("auto", "attention") if codec.selection else ("auto", "exact", "attention")):
        return "attention"
    if asked == "attention":
        segments[0].array(f"{site.name}/attention")  # says what the job must keep
    if keep.edges and asked in ("auto", "edges"):
        return "edges"
    if asked in ("exact", "rebuilt"):
        require_rebuilt(site, keep)
        return "rebuilt"
    if asked == "auto" and why_not_rebuilt(site, keep) is None:
        return "rebuilt"
    raise NotFoundError(
        f"a search needs attention or edges of {site.name}, or query and key to rebuild it, and none was kept. "
        'Run the job again with keep.edges = 8 or keep.attention = "sqrt8".'
    )
