"""The scan of one segment in a search: the mass of every head on the matching pairs.

The pattern is evaluated once on tokens. Each head then looks up the matching pairs. Data are read layer by layer (a
shard is one layer) and in blocks of bounded size, so memory depends neither on the corpus nor on the depth of the
model.
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
from ..errors import NotFoundError, located
from ..files.containers.shard_writer import CHUNK_PAIRS
from ..patterns.matching import Matcher, Matches
from ..patterns.matching_rows import MatchingRows
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
"""Approximate number of weights of one layer in memory at once."""
JOINED_MATCHES = 1 << 12
"""Most matches of joined blocks."""


class Stopped(Exception):
    """Raised when the caller stops the search. The scores of the segment are discarded."""


@dataclass
class SegmentScores:
    """Sums over the rows of one segment that see a matching key. Axis `example` is that of the segment."""

    matched_rows: Int64[np.ndarray, "example"]
    """Number of rows that have a matching key, whether or not a layer sees it."""
    rows: Int64[np.ndarray, "layer example"]
    """Number of rows that see a matching key in each layer."""
    mass: Float[np.ndarray, "layer head example"]
    """Attention on matching keys, summed over the rows of each example. A lower bound for sparse data."""
    hits: Int64[np.ndarray, "layer head"]
    """Number of rows whose strongest key matches."""
    uniform: Float[np.ndarray, "layer"]
    """Mass of uniform attention, summed over rows."""
    slack: Float[np.ndarray, "layer head"]
    """Upper bound of the mass that is missing from `mass`; 0 if every weight is stored."""

    @staticmethod
    def zeros(site: Site, n_examples: int) -> SegmentScores:
        """Create sums over no rows."""
        shape = site.n_layers, site.n_heads
        mass, hits, slack = np.zeros((*shape, n_examples)), np.zeros(shape, np.int64), np.zeros(shape)
        rows = np.zeros((site.n_layers, n_examples), np.int64)
        return SegmentScores(np.zeros(n_examples, np.int64), rows, mass, hits, np.zeros(site.n_layers), slack)


def scan_segment(
    segment: Segment, site: Site, matcher: Matcher, basis: Basis, stop: Callable[[], bool] = lambda: False
) -> SegmentScores:
    """Score every head of `site` on one segment.

    Raises
    ------
    Stopped
        `stop` returned True.
    CorruptSegmentError, FormatError
        The stored data are invalid.
    """
    scores = SegmentScores.zeros(site, segment.n_examples)
    n_tokens = len(matcher.evaluator.query.table)
    blocks = matcher.blocks(0, n_tokens, BLOCK_WEIGHTS // site.n_heads)
    for matches in _joined(blocks) if basis == "edges" else _split_at_gaps(blocks):
        every_row = MatchingRows(matches, matcher, site, segment)
        every_row.count_rows(scores.matched_rows)
        for mask, layers in site.layers_of_masks.items():
            matching_rows = every_row.of_mask(mask)
            if matching_rows is None:
                continue
            uniform = matching_rows.uniform(mask).sum()
            edge_rows = EdgeRows.of(matching_rows) if segment.spec.keep.edges and basis != "rebuilt" else None
            for layer in layers:
                if stop():
                    raise Stopped
                matching_rows.count_rows(scores.rows[layer])
                scores.uniform[layer] += uniform
                _add_layer(scores, matching_rows, edge_rows, layer, basis)
    return scores


def _add_layer(
    scores: SegmentScores, matching_rows: MatchingRows, edge_rows: EdgeRows | None, layer: int, basis: Basis
) -> None:
    """Add the mass, hits and slack of the rows of a block in one layer."""
    segment, site = matching_rows.segment, matching_rows.site
    if basis == "edges":
        assert edge_rows is not None
        with located(f"{segment.where}, layer {site.layers[layer]}"):
            edges = read_edges(segment, site, layer, int(matching_rows.rows[0]), int(matching_rows.rows[-1]))
            scan_edges(edge_rows, edges, scores.mass[layer], scores.hits[layer], scores.slack[layer])
        return
    block = _LayerBlock(segment, site, matching_rows, layer)
    if basis == "attention" and edge_rows is not None and block.is_codes:
        with located(f"{segment.where}, layer {site.layers[layer]}"):
            block.add_codes(edge_rows, scores.mass[layer], scores.hits[layer])
        return
    row_scores = block.score_attention(edge_rows) if basis == "attention" else block.score_rebuilt()
    example = matching_rows.example[matching_rows.first_of_example]
    example_mass = np.add.reduceat(row_scores.mass, matching_rows.first_of_example, axis=1, dtype=np.float64)
    scores.mass[layer][:, example] += example_mass
    scores.hits[layer] += row_scores.hits
    scores.slack[layer] += row_scores.slack


def _split_at_gaps(blocks: Iterator[Matches]) -> Iterator[Matches]:
    """Split blocks between rows if a chunk of stored attention without a match is between them."""
    for block in blocks:
        far = np.diff(block.pair) > CHUNK_PAIRS
        cuts = (np.flatnonzero(far & (np.diff(block.query) > 0)) + 1).tolist()
        for start, stop in itertools.pairwise([0, *cuts, len(block)]):
            yield block.select(slice(start, stop))


def _joined(blocks: Iterator[Matches]) -> Iterator[Matches]:
    """Join blocks up to about `JOINED_MATCHES` matches. Each block reads all edges of its rows, in large chunks."""
    waiting: list[Matches] = []
    for block in blocks:
        if waiting and sum(map(len, waiting)) + len(block) > JOINED_MATCHES:
            yield _join(waiting)
            waiting = []
        waiting.append(block)
    if waiting:
        yield _join(waiting)


def _join(blocks: list[Matches]) -> Matches:
    if len(blocks) == 1:
        return blocks[0]
    pair, query, key = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("pair", "query", "key"))
    return Matches(blocks[0].first_pair, blocks[-1].last_pair, pair, query, key)


@dataclass(frozen=True)
class _RowScores:
    """Scores of the rows of one block in one layer; the fields are those of `SegmentScores`."""

    mass: Num[np.ndarray, "head row"]
    hits: Int[np.ndarray, "head"]
    slack: Float[np.ndarray, "head"] | float = 0.0


class _LayerBlock:
    """The rows of one block in one layer."""

    def __init__(self, segment: Segment, site: Site, matching_rows: MatchingRows, layer: int) -> None:
        self.segment, self.site, self.matching_rows, self.layer = segment, site, matching_rows, layer
        self.rows, self.matches = matching_rows.rows, matching_rows.matches
        self.row_start = matching_rows.matcher.row_start

    @property
    def is_codes(self) -> bool:
        """True if attention is stored as one byte for each pair."""
        codec = self.segment.spec.attention_codec
        return codec is not None and codec.steps is not None and codec.selection is None

    def add_codes(
        self, edge_rows: EdgeRows, mass: Float[np.ndarray, "head example"], hits: Int[np.ndarray, "head"]
    ) -> None:
        """Add the scores to mass and hits in one loop, from attention codes and the strongest keys of the edges."""
        codec = self.segment.spec.attention_codec
        assert codec is not None
        first, last = int(self.rows[0]), int(self.rows[-1])
        start, stop = int(self.row_start[first]), int(self.row_start[last + 1])
        codes = read_pairs(self.segment, self.site, self.layer, slice(None), slice(start, stop))
        key = read_strongest(self.segment, self.site, self.layer, first, last)
        pair = self.matches.pair - start
        scan_codes(edge_rows, CodedPairs(codes, pair, self._weight_of_code, key, first), mass, hits)
        if np.isnan(mass).any():
            decode_attention(np.take(codes, pair, axis=1), codec.name)  # raises the error for an invalid code

    @cached_property
    def _weight_of_code(self) -> Float[np.ndarray, "code"]:
        """Weight of each byte; NaN for bytes that are not codes of the codec."""
        codec = self.segment.spec.attention_codec
        assert codec is not None
        assert codec.steps is not None
        codes = np.arange(codec.steps.n_steps + 1, dtype=np.uint8)
        return np.append(decode_attention(codes, codec.name), np.full(256 - len(codes), np.nan)).astype(np.float64)

    def score_attention(self, edge_rows: EdgeRows | None) -> _RowScores:
        """Compute the scores from stored attention; the strongest key is from the edges if the store has them.

        The mass is exact within the codec. With a sparse codec it is a lower bound, and `slack` bounds the dropped
        weights.
        """
        codec = self.segment.spec.attention_codec
        assert codec is not None
        first, last = int(self.rows[0]), int(self.rows[-1])
        start, stop = int(self.row_start[first]), int(self.row_start[last + 1])
        stored = read_pairs(self.segment, self.site, self.layer, slice(None), slice(start, stop))
        matching = np.take(stored, self.matches.pair - start, axis=1)  # [head, match]
        mass = decode_attention(matching, codec.name)
        slack = 0.0 if codec.selection is None else self._dropped_mass(matching == 0, codec.selection.largest_missing)
        if len(self.rows) < len(self.matches):
            mass = np.add.reduceat(mass, self.matching_rows.first, axis=1)  # [head, row]
        if edge_rows is not None:
            key = read_strongest(self.segment, self.site, self.layer, first, last)
            with located(f"{self.segment.where}, layer {self.site.layers[self.layer]}"):
                hit = edge_rows.is_match(key if key.shape[1] == len(self.rows) else key[:, self.rows - first])
            return _RowScores(mass, hit.sum(axis=1), slack)
        return _RowScores(mass, self._hits_of_maxima(stored, start), slack)

    def _dropped_mass(self, is_dropped: Bool[np.ndarray, "head match"], largest: float) -> Float[np.ndarray, "head"]:
        """Compute an upper bound of the mass of the matching pairs whose weights were dropped."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        dropped = read_dropped(self.segment, self.site, self.layer, slice(None), slice(first, last + 1))
        n_dropped = np.add.reduceat(is_dropped, self.matching_rows.first, axis=1, dtype=np.int64)  # [head, row]
        bound = np.minimum(n_dropped * largest, dropped[:, self.rows - first])
        return bound.sum(axis=1, dtype=np.float64)

    def score_rebuilt(self) -> _RowScores:
        """Compute the scores from rebuilt attention, exact within the rounding of query and key.

        Only the maps of one example, or of some of its rows, are in memory at once.
        """
        matching_rows = self.matching_rows
        evaluator = matching_rows.matcher.evaluator
        vectors = _BlockVectors.of(self)
        match_row = np.repeat(np.arange(len(self.rows)), matching_rows.n_matches)
        key_pos = evaluator.key.position[self.matches.key]
        mass, hits = np.zeros((self.site.n_heads, len(self.rows))), np.zeros(self.site.n_heads, np.int64)
        borders = np.append(matching_rows.first_of_example, len(self.rows)).tolist()
        for start, stop in itertools.pairwise(borders):
            offset = evaluator.key.table.token_offset[matching_rows.example[start] :][:2]
            step = max(1, BLOCK_WEIGHTS // int(self.site.n_heads * (offset[1] - offset[0])))
            begin = start
            while begin < stop:  # a tile: the rows within `step` of the first
                end = begin + int(np.searchsorted(self.rows[begin:stop], self.rows[begin] + step))
                tokens = slice(int(self.rows[begin]), int(self.rows[end - 1]) + 1)
                weights = vectors.tile(tokens, evaluator.query.position[tokens], int(offset[0]), int(offset[1]))
                low, high = (
                    int(matching_rows.first[begin]),
                    int(matching_rows.first[end - 1] + matching_rows.n_matches[end - 1]),
                )
                row = self.matches.query[low:high] - tokens.start
                matching = weights[:, row, key_pos[low:high]]  # [head, match]
                mass[:, begin:end] = np.add.reduceat(
                    matching, matching_rows.first[begin:end] - low, axis=1, dtype=np.float64
                )
                strongest = weights.argmax(axis=-1)[:, self.rows[begin:end] - tokens.start]  # [head, row]
                hits += (strongest[:, match_row[low:high] - begin] == key_pos[low:high]).sum(axis=1)
                begin = end
        return _RowScores(mass, hits)

    @cached_property
    def _is_match(self) -> Bool[np.ndarray, "pair"]:
        """True for each matching pair between the first and the last row."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        bits = np.zeros(int(self.row_start[last + 1] - self.row_start[first]), dtype=bool)
        bits[self.matches.pair - self.row_start[first]] = True
        return bits

    def _hits_of_maxima(self, stored: Num[np.ndarray, "head pair"], start: int) -> Int[np.ndarray, "head"]:
        """Count the rows whose largest stored weight (the first of equal ones) is at a matching key."""
        begin = self.row_start[self.rows[0] : self.rows[-1] + 1] - start  # [row between first and last]
        length = np.diff(np.append(begin, stored.shape[1]))
        begin, compact_row = begin[length > 0], np.cumsum(length > 0) - 1  # rows without keys are skipped
        row_of_pair = np.repeat(np.arange(len(begin)), length[length > 0])
        block_row = compact_row[self.rows - self.rows[0]]
        hits = np.zeros(len(stored), np.int64)
        for head, weights in enumerate(stored):
            largest = np.maximum.reduceat(weights, begin)
            pair = np.flatnonzero(weights == largest[row_of_pair])
            row = row_of_pair[pair]
            strongest = pair[np.concatenate([[True], row[1:] != row[:-1]])]  # [row between first and last]
            hits[head] = self._is_match[strongest[block_row]].sum()
        return hits


@dataclass(frozen=True)
class _BlockVectors:
    """Query, key and logsumexp of all heads of one layer, from the first row of a block to its last."""

    block: _LayerBlock
    first_row: int
    first_key: int
    query: Vectors
    key: Vectors
    logsumexp: Float[np.ndarray, "head row"]
    parts: ScoreParts

    @staticmethod
    def of(block: _LayerBlock) -> _BlockVectors:
        site, segment, layer = block.site, block.segment, block.layer
        require_rebuilt(site, segment.spec.keep)
        offset = block.matching_rows.matcher.evaluator.key.table.token_offset
        rows = slice(int(block.rows[0]), int(block.rows[-1]) + 1)
        example = block.matching_rows.example
        keys = slice(int(offset[example[0]]), int(offset[example[-1] + 1]))
        heads, kv_heads = np.arange(site.n_heads), np.arange(site.n_kv_heads)
        return _BlockVectors(
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
        """Rebuild the maps of some rows of an example whose keys are `key_start:key_stop`."""
        site = self.block.site
        n_keys = key_stop - key_start
        n_visible = min(n_keys, int(query_pos[-1]) + 1) if site.causal else n_keys
        rows = slice(tokens.start - self.first_row, tokens.stop - self.first_row)
        start = key_start - self.first_key
        key = self.key.part(slice(start, start + n_visible)).repeat(site.n_heads // site.n_kv_heads)
        rebuilt_rows = RebuiltRows(
            self.query.part(rows), self.logsumexp[:, rows], site, self.block.layer, query_pos, n_keys, self.parts
        )
        with located(f"{self.block.segment.where}, tokens {tokens.start} to {tokens.stop - 1}"):
            return rebuilt_rows.tile(key, bounded=False).weights


def basis_for(segments: Sequence[Segment], site: Site, requested: RequestedBasis) -> Basis:
    """Choose the basis of a search from the requested basis and the data that the store has.

    ``"auto"`` is stored attention, else edges, else rebuilt attention. ``"exact"`` is stored attention if every weight
    is stored, else rebuilt attention. ``"approximate"`` is the basis that reads least: edges, else that of ``"auto"``.

    Raises
    ------
    NotFoundError
        The store has no data for the requested basis.
    """
    if not segments:
        return "attention"
    keep = segments[0].spec.keep
    if requested == "approximate":
        requested = "edges" if keep.edges else "auto"
    codec = segments[0].spec.attention_codec
    if codec is not None and requested in (
        ("auto", "attention") if codec.selection else ("auto", "exact", "attention")
    ):
        return "attention"
    if requested == "attention":
        segments[0].array(f"{site.name}/attention")  # raises an error that says what the job must keep
    if keep.edges and requested in ("auto", "edges"):
        return "edges"
    if requested in ("exact", "rebuilt"):
        require_rebuilt(site, keep)
        return "rebuilt"
    if requested == "auto" and why_not_rebuilt(site, keep) is None:
        return "rebuilt"
    raise NotFoundError(
        f"a search needs attention, edges, or query and key of {site.name}; the store has none of them. "
        'Run the job into another store with keep.edges = 8 or keep.attention = "sqrt8".'
    )
