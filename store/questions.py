"""What may be asked of a store: methods of `Store`, each a call of a module of `search/`, which read stores themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from .patterns import Pattern
    from .queries.head_similarity import SimilarHeads
    from .queries.pattern_search import SearchResult
    from .queries.query_by_example import LikeResult
    from .queries.vector_dimensions import NeuronResult
    from .reading.word_attention import Merge
    from .store import Store


class Questions:
    """The questions; the modules themselves take more options (progress, cancelling, seeds, levels)."""

    def search(self, pattern: str | Pattern, site: str | None = None, *, words: Merge | None = None) -> SearchResult:
        """Rank the heads of a site by how much of their attention follows a pattern, between tokens or between `words`.

        `headatlas.store.queries.pattern_search.search` is the same with progress, cancelling and a choice of what is read.

        Raises
        ------
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.pattern_search import search  # reads stores itself

        return search(cast("Store", self), pattern, site, words=words)

    def like(self, arcs: str | Sequence[str] | Sequence[tuple[int, int, int]], site: str | None = None) -> LikeResult:
        """Which heads draw the marked arcs and do the same everywhere: ``store.like("12:5>2 12:7>4")``.

        An arc is an example, a query position and a key position.

        Raises
        ------
        ConfigError, NotFoundError
            An arc cannot be read, or there is no such example or position.
        """
        from .queries.query_by_example import like

        return like(cast("Store", self), arcs, site)

    def neurons(self, pattern: str | Pattern, layer: int, head: int, site: str | None = None) -> NeuronResult:
        """Which dimensions of a head's query and key tell a pattern's keys from the other keys of the same rows.

        Raises
        ------
        NotFoundError
            Query and key were not kept, or there is no such head.
        PatternError
            The expression cannot be read, or names something unknown.
        """
        from .queries.vector_dimensions import neurons

        return neurons(cast("Store", self), pattern, layer, head, site)

    def similar(
        self, other: Store | None = None, site: str | None = None, *, sink_free: bool = False, n_examples: int = 200
    ) -> SimilarHeads:
        """How far apart heads are that look at words, those of this store among each other or from another model's.

        `headatlas.store.queries.head_similarity.similar` is the same with progress, a seed and the other merging of tokens.

        Raises
        ------
        NotFoundError
            No example is in both stores with the same words.
        """
        from .queries.head_similarity import similar

        return similar(cast("Store", self), other, site, sink_free=sink_free, n_examples=n_examples)
