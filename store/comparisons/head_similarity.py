"""Similar heads, in one model or in two models over the same corpus, compared on words.

Tokenizers split words differently, so heads are compared by their word-to-word attention (`word_rows.py`). The distance
of two heads is the mean over rows of the Jensen–Shannon divergence

    JS(p, q) = H((p + q) / 2) − (H(p) + H(q)) / 2        in bits: 0 for equal rows, 1 for rows without overlap

Words without a token, such as those behind the end of a text that was cut, are neither rows nor columns. Examples of two
stores are aligned by their ids if the words with tokens are equal. Examples that do not align are left out and counted
by reason.

The heads are compared on a sample of examples, and of each example on a random sample of its query words. Two halves of
this sample give the standard error: the half of their difference has the variance of their mean, apart from the share of
words that were drawn. Only the rows of the sampled words are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float32, Float64, Int64

from ..errors import ConfigError, NotFoundError
from ..queries.evidence.sampling_units import SamplingUnits, sampling_units
from ..reading.data_frames import ShownAsTable
from ..reading.ordered_tasks import run_in_order
from ..reading.snapshot import Snapshot
from ..reading.word_attention import Merge
from ..schema.omissions import Omission
from ..schema.traces import Site, head_index
from ..schema.words_without_tokens import words_left_out
from .example_alignment import align_examples
from .example_tests import interval
from .word_rows import counted_words, read_word_rows, summed_divergence
from .word_sample import WordTask, estimate_means, sample_words

N_EXAMPLES = 200
N_WORDS = 4_000
"""Default number of query words in the sample."""
THREADS = 2


@dataclass(frozen=True, repr=False)
class SimilarHeads(ShownAsTable):
    """Distances between the heads of one store and those of another or of the same store."""

    store: Snapshot
    other: Snapshot
    sites: tuple[Site, Site]
    merge: Merge
    sink_free: bool
    """True if the first token and special tokens were left out."""
    head: tuple[int, int] | None
    """Layer and head of `store` that was compared with every head of `other`; None if all heads were."""
    distance: xr.DataArray
    """Mean Jensen–Shannon distance in bits, dims (layer, head, other_layer, other_head)."""
    error: xr.DataArray
    """Half of the 95 % interval that sampling words adds to `distance`, in bits, same dims. 0 if every word was
    compared; NaN if no example has two sampled words."""
    example_distance: Float32[np.ndarray, "head other_head example"] = field(repr=False)
    """Sum of the distances over the rows of each example, estimated from the sampled rows. Heads are numbered layer by
    layer."""
    example: Int64[np.ndarray, "example"]
    """Numbers of the compared examples in `store`."""
    example_rows: Int64[np.ndarray, "example"]
    """Number of rows of each example, sampled or not."""
    rows: int
    """Number of query words that were compared."""
    n_shared: int
    """Number of examples that both stores have and that align."""
    is_complete: bool
    """False if the comparison was stopped before its end."""
    refused: dict[str, int]
    """Number of examples left out, by reason."""
    left_out: tuple[Omission, ...] = ()
    """Words of the compared examples that have no token."""

    @property
    def n_words(self) -> int:
        """Number of query words that the sample was drawn from."""
        return int(self.example_rows.sum())

    @property
    def n_examples(self) -> int:
        """Number of examples that were compared."""
        return len(self.example)

    @property
    def is_same_store(self) -> bool:
        """True if the heads were compared with the heads of the same store."""
        return self.store is self.other

    def table(
        self, head: tuple[int, int] | None = None, n: int | None = None, *, unit: str | None = None
    ) -> pd.DataFrame:
        """Return one row for each pair of heads, the nearest first, with a 95 % interval over sampling units.

        Columns: layer, head, other_layer, other_head, distance, low, high and error (of sampling words).

        Parameters
        ----------
        head
            Layer and head of `store`: the table has its distances to every head of `other`. The default is the head
            that was compared. If all heads were, the table has each head with the nearest head of the other store or,
            within one store, every pair once.
        n
            Number of rows. Intervals are computed for these rows only.
        unit
            Sampling unit of `store` (`sampling_units`).

        Raises
        ------
        NotFoundError
            There is no such head, or it was not compared.
        """
        head = self.head if head is None else head
        flat = self._flat(self.distance)
        if head is not None:
            row = self._row(head)
            heads, others = np.full(flat.shape[1], row), np.arange(flat.shape[1])
            if self.is_same_store:
                heads, others = heads[others != self._number(head)], others[others != self._number(head)]
        elif self.is_same_store:
            heads, others = np.triu_indices(len(flat), 1)
        else:
            heads, others = np.arange(len(flat)), flat.argmin(axis=1)
        order = np.argsort(flat[heads, others], kind="stable")[:n]
        heads, others = heads[order], others[order]
        low, high = interval(self.example_distance[heads, others], self.example_rows, self.units(unit).of(self.example))
        numbers = heads if self.head is None else np.full(len(heads), self._number(self.head))
        columns = [site.head_columns() for site in self.sites]
        return pd.DataFrame(
            {
                **{name: column[numbers] for name, column in columns[0].items()},
                **{f"other_{name}": column[others] for name, column in columns[1].items()},
                "distance": flat[heads, others],
                "low": low,
                "high": high,
                "error": self._flat(self.error)[heads, others],
            }
        )

    def units(self, name: str | None = None) -> SamplingUnits:
        """Return the sampling units of `store`; see `sampling_units`."""
        return sampling_units(self.store, name)

    def n_units(self, name: str | None = None) -> int:
        """Return the number of sampling units that were compared."""
        return self.units(name).count(self.example)

    @property
    def median(self) -> float:
        """Median distance of all pairs of different heads that were compared."""
        flat = self._flat(self.distance)
        if not self.is_same_store:
            return float(np.median(flat))
        if self.head is not None:
            return float(np.median(np.delete(flat, self._number(self.head))))
        return float(np.median(flat[np.triu_indices(len(flat), 1)])) if len(flat) > 1 else np.nan

    @property
    def largest_error(self) -> float:
        """Largest `error` of a pair of heads."""
        return float(self.error.max())

    def _flat(self, values: xr.DataArray) -> Float64[np.ndarray, "head other_head"]:
        return values.to_numpy().reshape(len(self.example_distance), -1).astype(np.float64)

    def _number(self, head: tuple[int, int]) -> int:
        """Return the number of a head of `store`, layer by layer."""
        layer_index, index = head_index(self.sites[0], *head)
        return layer_index * self.sites[0].n_heads + index

    def _row(self, head: tuple[int, int]) -> int:
        number = self._number(head)
        if self.head not in (None, head):
            raise NotFoundError(
                f"head {head[0]}.{head[1]} was not compared, only {self.head[0]}.{self.head[1]}. Compare all heads."
            )
        return number if self.head is None else 0


def similar(
    store: Snapshot,
    other: Snapshot | None = None,
    site: str | None = None,
    merge: Merge = "mean",
    *,
    head: tuple[int, int] | None = None,
    sink_free: bool = False,
    n_examples: int = N_EXAMPLES,
    n_words: int | None = N_WORDS,
    seed: int = 0,
    threads: int = THREADS,
    on_progress: Callable[[int, int], None] = lambda done, planned: None,
    stop: Callable[[], bool] = lambda: False,
) -> SimilarHeads:
    """Compare every head of a store with every head of another (default: the same store) by word-to-word attention.

    Parameters
    ----------
    head
        Layer and head of `store`. Only its rows are read from `store` (within one store: compared), with all heads of
        the other.
    sink_free
        Leave out attention to the first token and to special tokens, and divide each row by its remaining sum. Rows
        that see no other token do not count.
    n_examples
        Number of examples to sample; all of them if there are fewer.
    n_words
        Number of query words to sample from these examples, in proportion to their words; at least two of each example.
        None compares every word.
    threads
        Number of threads.
    on_progress
        Called in this thread with query words done and planned.
    stop
        Called between tasks. When it returns True, the result has the examples so far and is marked as incomplete.

    Raises
    ------
    NotFoundError
        The stores share no example with the same words, have neither attention nor query and key, or have no such head.
    ConfigError
        A site joins two texts, or `n_examples` or `n_words` is below 1.
    """
    for name, value in (("n_examples", n_examples), ("n_words", n_words)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    sites = store.site(site), (other or store).site(site if other is None or site in other.sites else None)
    for site_spec in sites:
        if site_spec.query_sequence != site_spec.key_sequence:
            raise ConfigError(
                f"site {site_spec.name} joins two texts; expected a site within one text. Choose another site."
            )
    own_head = None if head is None else head_index(sites[0], *head)
    pairs, refused = align_examples(store, other, sites)
    if not len(pairs):
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in refused.items())
        raise NotFoundError(f"{store.location}: no example can be compared ({reasons or 'the store has no example'}).")
    rng = np.random.default_rng(seed)
    sample = pairs[np.sort(rng.permutation(len(pairs))[:n_examples])]
    counted = [_counted(store, other, sites, pair, merge, sink_free) for pair in sample.tolist()]
    n_rows = np.array([len(words) for words in counted], np.int64)
    n_heads = sites[0].n_layers * sites[0].n_heads if own_head is None else 1
    shape = n_heads, sites[1].n_layers * sites[1].n_heads
    tasks = sample_words(counted, n_words, sum(shape) if other is not None else shape[1], rng)

    compare = partial(_compare_words, (store, other), sites, sample, own_head, merge, sink_free)
    half_sums, half_rows, done = np.zeros((2, *shape, len(sample)), np.float32), np.zeros((2, len(sample)), np.int64), 0
    finished = np.zeros(len(sample), np.int64)
    planned = sum(len(task.words) for task in tasks)
    for task, sums in run_in_order(compare, tasks, threads, stop):
        half_sums[..., task.sample] += sums
        half_rows[:, task.sample] += np.bincount(task.half, minlength=2)
        finished[task.sample] += 1
        done += len(task.words)
        on_progress(done, planned)
    n_tasks = np.bincount([task.sample for task in tasks], minlength=len(sample))
    has_rows = (n_tasks > 0) & (finished == n_tasks)
    estimate = estimate_means(half_sums[..., has_rows], half_rows[:, has_rows], n_rows[has_rows])
    layer_numbers = sites[0].layers if head is None else head[:1]
    coords = {
        "layer": np.array(layer_numbers),
        "head": np.arange(sites[0].n_heads) if head is None else np.array(head[1:]),
        "other_layer": np.array(sites[1].layers),
        "other_head": np.arange(sites[1].n_heads),
    }
    sizes = {name: len(values) for name, values in coords.items()}

    def labelled(values: Float64[np.ndarray, "head other_head"], name: str, text: str) -> xr.DataArray:
        attributes = {"long_name": text, "units": "bits"}
        return xr.DataArray(values.reshape(*sizes.values()), coords, tuple(sizes), name, attributes)

    return SimilarHeads(
        store,
        other or store,
        sites,
        merge,
        sink_free,
        head,
        labelled(estimate.mean, "distance", "Jensen-Shannon distance"),
        labelled(estimate.error, "error", "95 % error of sampling words"),
        estimate.example_sums,
        sample[has_rows, 0],
        n_rows[has_rows],
        int(half_rows[:, has_rows].sum()),
        len(pairs),
        bool((finished == n_tasks).all()),
        refused,
        tuple(_left_out(store, sites[0], sample[:, 0]) + _left_out(other, sites[1], sample[:, 1])),
    )


def _compare_words(
    stores: tuple[Snapshot, Snapshot | None],
    sites: tuple[Site, Site],
    sample: Int64[np.ndarray, "example side"],
    own_head: tuple[int, int] | None,
    merge: Merge,
    sink_free: bool,
    task: WordTask,
) -> Float64[np.ndarray, "half head other_head"]:
    """Sum the distances of the rows of some words, for each half of the sample."""
    (store, other), (number, other_number) = stores, sample[task.sample].tolist()
    if other is None:
        rows = others = read_word_rows(store, sites[0], number, task.words, merge, sink_free=sink_free)
        if own_head is not None:
            row = own_head[0] * sites[0].n_heads + own_head[1]
            rows = others[row : row + 1]
    else:
        rows = read_word_rows(store, sites[0], number, task.words, merge, sink_free=sink_free, head=own_head)
        others = read_word_rows(other, sites[1], other_number, task.words, merge, sink_free=sink_free)
    sums = np.zeros((2, len(rows), len(others)))
    for half in np.unique(task.half.astype(int)).tolist():
        index = np.flatnonzero(task.half == half)
        of_half = np.take(rows, index, axis=1)
        sums[half] = summed_divergence(of_half, of_half if rows is others else np.take(others, index, axis=1))
    return sums


def _counted(
    store: Snapshot,
    other: Snapshot | None,
    sites: tuple[Site, Site],
    pair: list[int],
    merge: Merge,
    sink_free: bool,
) -> Int64[np.ndarray, "row"]:
    """Return the words of an aligned example whose rows count in both stores."""
    counts = [
        counted_words(snapshot, site, number, merge, sink_free=sink_free)
        for snapshot, site, number in zip((store, other), sites, pair, strict=True)
        if snapshot is not None
    ]
    return np.flatnonzero(np.all(counts, axis=0))


def _left_out(store: Snapshot | None, site: Site, numbers: Int64[np.ndarray, "example"]) -> tuple[Omission, ...]:
    if store is None:
        return ()
    return words_left_out(
        store.segment_of(n).tokens(site.query_sequence).example(n - store.segment_of(n).first_example)
        for n in numbers.tolist()
    )
