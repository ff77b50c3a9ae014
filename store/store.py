"""`open_store` and `Store`: a snapshot with queries and methods that add columns. Each method calls one function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import xarray as xr
from jaxtyping import Shaped

from .files.object_source import CACHE_BYTES
from .reading.segment_index import Opening
from .reading.snapshot import Snapshot
from .reading.stored_edges import EDGES_MAX_BYTES

if TYPE_CHECKING:
    from .comparisons.head_similarity import SimilarHeads
    from .comparisons.scaled_dimensions import WhatIf
    from .comparisons.store_differences import StoreDifference
    from .patterns import Pattern
    from .queries.dependency_relations import RelationAtlas
    from .queries.head_roles import HeadRoles
    from .queries.minimal_pairs import Contrast
    from .queries.pattern_search import SearchResult
    from .queries.query_by_example import LikeResult
    from .queries.vector_dimensions import NeuronResult
    from .reading.word_attention import Merge


def open_store(
    path: str | os.PathLike[str],
    manifest: int | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_dir: str | os.PathLike[str] | None = None,
    edges_bytes: int = EDGES_MAX_BYTES,
) -> Store:
    """Open the store at `path`: the newest snapshot, or the one of a manifest number.

    Parameters
    ----------
    path
        A folder, or a URL of any protocol that fsspec knows: ``s3://bucket/traces``, ``https://host/traces``. Stores
        are read from URLs, not written.
    manifest
        The number of a snapshot. A snapshot older than the newest 16 may be deleted by any commit, unless a reader
        has it open.
    storage_options
        Options of fsspec for a URL, such as credentials or ``{"endpoint_url": "http://127.0.0.1:9000"}``. A pickle of
        the store contains them.
    cache_bytes
        Size of the memory cache for data fetched from a URL.
    cache_dir
        Folder that caches whole objects from URLs under their hash. The default is ``objects`` in the folder that the
        environment variable ``HEADATLAS_CACHE_DIR`` names. Without either, only the needed byte ranges are fetched and
        nothing is cached on disk.
    edges_bytes
        Largest size of the decoded edges that searches keep in memory; 0 keeps none.

    Raises
    ------
    NotFoundError
        There is no store at `path`, or it has no manifest with that number.
    FormatError, CorruptSegmentError
        The manifest has a newer format version, or is truncated or changed.
    ConfigError, RemoteError
        The protocol of the URL is unknown, the package for it is missing, or the server failed.
    """
    cache_folder = None if cache_dir is None else os.fspath(cache_dir)
    return Store(
        Opening(os.fspath(path), dict(storage_options or {}), cache_bytes, cache_folder, edges_bytes), manifest
    )


class Store(Snapshot):
    """A snapshot of a store with queries. `unit` names the sampling unit of intervals and tests (`sampling_units`).

    The functions behind the methods take further options: progress, cancellation, seeds, and the data to read.
    """

    def search(self, pattern: str | Pattern, site: str | None = None, *, words: Merge | None = None) -> SearchResult:
        """Rank the heads of a site by the share of their attention that follows a pattern.

        The pattern relates tokens, or words if `words` names how tokens are merged.
        `headatlas.store.queries.pattern_search.search` also takes progress, cancellation and the data to read.

        Raises
        ------
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.pattern_search import search

        return search(self, pattern, site, words=words)

    def like(
        self,
        arcs: str | Sequence[str] | Sequence[tuple[int | str, int, int]],
        site: str | None = None,
        *,
        unit: str | None = None,
    ) -> LikeResult:
        """Query by example: find heads that attend along the marked arcs and do the same in the rest of the corpus.

        ``store.like("a1:5>2 a1:7>4")``: an arc is the id of an example, a query position and a key position. For the
        number of an example pass triples: ``store.like([(12, 5, 2), (12, 7, 4)])``.

        Raises
        ------
        ConfigError, NotFoundError
            An arc cannot be read, or there is no such example or position.
        """
        from .queries.query_by_example import like

        return like(self, arcs, site, unit=unit)

    def neurons(
        self, pattern: str | Pattern, layer: int, head: int, site: str | None = None, *, unit: str | None = None
    ) -> NeuronResult:
        """Measure the dimensions of a head's query and key that separate a pattern's keys from the row's other keys.

        Raises
        ------
        NotFoundError
            The store has no query and key, or there is no such head.
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.vector_dimensions import neurons

        return neurons(self, pattern, layer, head, site, unit=unit)

    def what_if(
        self,
        layer: int,
        head: int,
        dimensions: str,
        scale: float = 0.0,
        pattern: str | Pattern | None = None,
        site: str | None = None,
    ) -> WhatIf:
        """Scale dimensions of a head's query and key, and measure what that changes in its attention over the corpus.

        ``store.what_if(4, 11, "pairs:0-4", pattern="previous_token")``: the dimensions are numbers (``12,44``) or rotary
        pairs, and `scale` is the factor of their contribution to the scores. Without a pattern the decay of attention over
        distance is compared. `headatlas.store.comparisons.scaled_dimensions.what_if` also takes the sampling unit and progress.

        Raises
        ------
        ConfigError
            The dimensions cannot be read, or there are no such dimensions.
        NotFoundError
            The store has no query and key, or there is no such head.
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .comparisons.scaled_dimensions import what_if

        return what_if(self, layer, head, dimensions, scale, pattern, site)

    def similar(
        self,
        other: Store | None = None,
        site: str | None = None,
        *,
        head: tuple[int, int] | None = None,
        sink_free: bool = False,
        n_examples: int = 200,
        n_words: int | None = 4_000,
        on_progress: Callable[[int, int], None] = lambda done, planned: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> SimilarHeads:
        """Compute the distances between heads by their word-to-word attention, within this store or to another model's.

        `n_words` query words are sampled; None compares all. With `head`, one head (layer, head) is compared with all.
        `headatlas.store.comparisons.head_similarity.similar` describes the arguments, and also takes a seed and the way
        tokens are merged.

        Raises
        ------
        NotFoundError
            The stores share no example with the same words, or there is no such head.
        """
        from .comparisons.head_similarity import similar

        return similar(
            self,
            other,
            site,
            head=head,
            sink_free=sink_free,
            n_examples=n_examples,
            n_words=n_words,
            on_progress=on_progress,
            stop=stop,
        )

    def contrast(
        self,
        pattern: str | Pattern | None = None,
        *,
        pair: str = "pair",
        variant: str = "variant",
        between: Sequence[str] | None = None,
        site: str | None = None,
        unit: str | None = None,
    ) -> Contrast:
        """Compare the members of minimal pairs: by the mass of a pattern, or without one by their attention itself.

        `pair` and `variant` are the annotations that identify pairs and their members; `between` chooses two variants.

        Raises
        ------
        NotFoundError
            The examples have no such annotations, or no example has both variants.
        ConfigError
            `between` is not two different variants.
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.minimal_pairs import attention_contrast, contrast, minimal_pairs
        from .queries.pattern_search import search

        pairs = minimal_pairs(self, pair, variant, between)
        if pattern is None:
            return attention_contrast(self, pairs, site, unit=unit)
        return contrast(search(self, pattern, site), pairs, unit=unit)

    def relations(
        self,
        score: Store | None = None,
        site: str | None = None,
        merge: Merge = "mean",
        *,
        subtypes: bool = False,
        unit: str | None = None,
        on_progress: Callable[[int, int], None] = lambda done, planned: None,
    ) -> RelationAtlas:
        """Measure the accuracy with which each head finds the governors of a treebank, by dependency relation.

        With `score`, heads are chosen on this store and scored on that one. `RelationAtlas.table` ranks the heads.

        Raises
        ------
        NotFoundError
            The words have no dependency tree.
        """
        from .queries.dependency_relations import relation_atlas

        return relation_atlas(self, score, site, merge, subtypes=subtypes, unit=unit, on_progress=on_progress)

    def roles(self, site: str | None = None, *, least_mass: float = 0.3, unit: str | None = None) -> HeadRoles:
        """Find the heads that have a role: previous token, induction, syntactic relations, sinks and others.

        A head has a role if its attention on the role's pattern exceeds the role's null (q < 0.05) and its mass is at
        least `least_mass`. `headatlas.store.queries.head_roles.head_roles` also takes progress.

        Raises
        ------
        ConfigError
            `least_mass` is not between 0 and 1.
        NotFoundError
            There is no such site or unit, or the store keeps no attention.
        """
        from .queries.head_roles import head_roles

        return head_roles(self, site, least_mass=least_mass, unit=unit)

    def diff(
        self,
        *others: Store,
        site: str | None = None,
        statistics: Sequence[str] | None = None,
        n_examples: int = 200,
        unit: str | None = None,
        on_progress: Callable[[int, int], None] = lambda done, planned: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[StoreDifference]:
        """Compare each head with the same head of another store over the same corpus; several stores are a series.

        `headatlas.store.comparisons.store_differences.diff` describes the arguments.

        Raises
        ------
        ConfigError
            The sites have different heads.
        NotFoundError
            The stores share no example with the same tokens.
        """
        from .comparisons.store_differences import diff

        return diff(
            [self, *others],
            site,
            statistics=statistics,
            n_examples=n_examples,
            unit=unit,
            on_progress=on_progress,
            stop=stop,
        )

    def annotate(
        self,
        name: str,
        values: Mapping[str, Any] | Mapping[int, Any],
        *,
        kind: Literal["example", "word", "token"] = "example",
        sequence: str = "source",
        description: str = "",
        replace: bool = False,
    ) -> Self:
        """Add an annotation to the store on disk and return the new snapshot. No segment is rewritten.

        `values` maps an example's id or number to a number or text, or, for words and tokens, to a list with one value
        for each of them. Patterns can then use ``query.NAME`` or ``example.NAME``. The values belong to the examples of
        this snapshot; segments that were committed later have none. Values of dropped examples are left out.

        Raises
        ------
        ConfigError
            The name already exists, the values have mixed types, or another writer dropped or replaced a segment of
            this snapshot in the meantime.
        NotFoundError, ShapeError
            There is no such example, or its number of words or tokens differs.
        """
        from .writing.annotate import annotate_store

        annotate_store(self, name, values, kind=kind, sequence=sequence, description=description, replace=replace)
        return self.refresh()

    def add_statistic(
        self,
        name: str,
        values: Shaped[np.ndarray, "layer head example"] | xr.DataArray,
        *,
        site: str | None = None,
        unit: str = "",
        description: str = "",
        replace: bool = False,
    ) -> Self:
        """Add a statistic and return the new snapshot.

        `values` has one value for each head and example, in the order of this snapshot's `example_numbers`. Segments
        that were committed later, and dropped examples, have no value (NaN).

        Raises
        ------
        ConfigError
            The name already exists, or another writer dropped or replaced a segment of this snapshot in the meantime.
        ShapeError
            The shape differs.
        """
        from .writing.annotate import add_statistic

        add_statistic(self, name, np.asarray(values), site=site, unit=unit, description=description, replace=replace)
        return self.refresh()
