"""Results of a sweep, filled in pass by pass, and kept on disk while it is not finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from headatlas.store.files.cache_folder import cache_folder, read_arrays, write_arrays

N_TOKENS = 10
"""Number of tokens that are listed for each intervention: those whose loss it raises most."""
SAVE_SECONDS = 20.0
"""Time between two writings of unfinished results."""


@dataclass
class SweepResults:
    """Effects of variants on examples. Arrays grow along their last axis when the first pass shows what is measured."""

    effects: Float64[np.ndarray, "variant example"]
    """NaN where there is none."""
    is_done: Bool[np.ndarray, "variant example"]
    of_layers: Float32[np.ndarray, "variant example layer"]
    """Effects on the hidden state after each layer; no layers if the measure has none."""
    token_change: Float32[np.ndarray, "variant rank"]
    """The largest changes of single tokens, descending; −inf where there are fewer, or the measure has none."""
    token_example: Int64[np.ndarray, "variant rank"]
    token_position: Int64[np.ndarray, "variant rank"]

    @staticmethod
    def empty(n_variants: int, n_examples: int) -> SweepResults:
        """Return results of nothing."""
        shape = n_variants, N_TOKENS
        return SweepResults(
            np.full((n_variants, n_examples), np.nan),
            np.zeros((n_variants, n_examples), bool),
            np.full((n_variants, n_examples, 0), np.nan, np.float32),
            np.full(shape, -np.inf, np.float32),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
        )

    def add(
        self,
        variants: Sequence[int],
        examples: Sequence[int],
        effect: Float[np.ndarray, "variant example part"],
        changes: Float[np.ndarray, "variant example predicted"] | None,
        lengths: Sequence[int],
    ) -> None:
        """Add the results of one pass.

        Parameters
        ----------
        effect
            The effect, then those on the hidden states of layers.
        changes
            Changes of single tokens, the last ones of the longest example; None if the measure has none.
        lengths
            Number of tokens of each example.
        """
        rows = np.ix_(list(variants), list(examples))
        self.effects[rows] = effect[..., 0]
        if effect.shape[2] > 1:
            if not self.of_layers.shape[2]:
                self.of_layers = np.full((*self.effects.shape, effect.shape[2] - 1), np.nan, np.float32)
            self.of_layers[rows] = effect[..., 1:]
        if changes is not None:
            self._add_tokens(variants, examples, changes, lengths)
        self.is_done[rows] = True

    def join(self, other: SweepResults, examples: Sequence[int]) -> None:
        """Take over the results of some examples from results of the same variants and examples."""
        if other.of_layers.shape[2] and not self.of_layers.shape[2]:
            self.of_layers = np.full(other.of_layers.shape, np.nan, np.float32)
        for name in ("effects", "is_done", "of_layers"):
            getattr(self, name)[:, examples] = getattr(other, name)[:, examples]
        for variant in range(len(self.effects)):
            self._rank_tokens(variant, self._ranked(variant) | other._ranked(variant))

    def _add_tokens(
        self,
        variants: Sequence[int],
        examples: Sequence[int],
        changes: Float[np.ndarray, "variant example predicted"],
        lengths: Sequence[int],
    ) -> None:
        n_hidden = max(lengths) - changes.shape[2]  # the first token is not predicted
        for variant, of_variant in zip(variants, changes, strict=True):
            largest = self._ranked(variant)
            for example, length, of_example in zip(examples, lengths, of_variant, strict=True):
                values = of_example[: max(0, length - n_hidden)]
                for i in np.argsort(-values, kind="stable")[:N_TOKENS].tolist():
                    largest[example, i + n_hidden] = float(values[i])
            self._rank_tokens(variant, largest)

    def _ranked(self, variant: int) -> dict[tuple[int, int], float]:
        """Return the largest changes of a variant by example and position."""
        tokens = zip(self.token_example[variant].tolist(), self.token_position[variant].tolist(), strict=True)
        changes = zip(tokens, self.token_change[variant].tolist(), strict=True)
        return {token: change for token, change in changes if np.isfinite(change)}

    def _rank_tokens(self, variant: int, changes: dict[tuple[int, int], float]) -> None:
        """Keep the largest of some changes."""
        entries = sorted(((change, *token) for token, change in changes.items()), key=lambda e: (-e[0], *e[1:]))
        for rank, (change, example, position) in enumerate(entries[:N_TOKENS]):
            self.token_change[variant, rank] = change
            self.token_example[variant, rank] = example
            self.token_position[variant, rank] = position


@dataclass
class UnfinishedSweep:
    """File of an unfinished sweep in the cache folder. Its name is a checksum of all that the results depend on."""

    path: Path
    results: SweepResults
    _saved: float = field(default_factory=time.monotonic)

    @staticmethod
    def open(identity: Mapping[str, Any], n_variants: int, n_examples: int) -> UnfinishedSweep:
        """Return the sweep with this identity: as far as it was, or at its beginning if there is no sound file."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        path = cache_folder("sweeps") / f"{digest[:32]}.npz"
        results = SweepResults.empty(n_variants, n_examples)
        arrays = read_arrays(path, *vars(results))
        if arrays is None:
            return UnfinishedSweep(path, results)
        stored = dict(zip(vars(results), arrays, strict=True))
        shapes = {name: getattr(results, name) for name in stored}
        if all(
            stored[name].dtype == array.dtype and stored[name].shape[:2] == array.shape[:2]
            for name, array in shapes.items()
        ):
            results = SweepResults(**stored)
        return UnfinishedSweep(path, results)

    def save(self, *, at_once: bool = False) -> None:
        """Write the results; unless `at_once`, only if `SAVE_SECONDS` have passed since the last time.

        A cache folder that cannot be written is no error: the sweep then starts anew.
        """
        if not at_once and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        write_arrays(self.path, **vars(self.results))
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a sweep whose results have been used."""
        self.path.unlink(missing_ok=True)
