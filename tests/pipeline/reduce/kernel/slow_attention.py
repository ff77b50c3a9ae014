"""Test cases of the kernel, and a slow reference implementation in float64 that follows the definitions."""

from dataclasses import dataclass

import numpy as np
import torch

from headatlas.pipeline.reduce.kernel import (
    AttentionInputs,
    BatchPlacement,
    Destination,
    Execution,
    Library,
    prepare_attention,
)
from headatlas.store.codecs.attention_codecs import attention_codec

STATISTICS = (
    "special",
    "first",
    "next",
    "previous",
    "self",
    "maximum",
    "distance",
    "entropy",
)  # not the kernel's order


@dataclass(frozen=True)
class Case:
    """Options of one call, small enough to print if the test fails."""

    lengths: tuple[int, ...]
    padding: int = 0
    kv_heads: int = 1
    group: int = 1
    d_head: int = 16
    d_value: int = 16
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float = 1.0
    n_edges: int = 8
    key_lengths: tuple[int, ...] | None = None
    has_biases: bool = False
    has_sinks: bool = False
    codec: str = "sqrt8"
    band: int | None = None
    edge_type: str = "u2"
    seed: int = 0

    def tensors(self):
        generator = torch.Generator().manual_seed(self.seed)
        n, heads = len(self.lengths), self.kv_heads * self.group
        n_queries = max(self.lengths) + self.padding
        n_keys = n_queries if self.key_lengths is None else max(self.key_lengths) + self.padding

        def random_tensor(
            positions, n_heads, d
        ):  # the memory layout of models: [example, position, head, d], transposed
            return torch.randn((n, positions, n_heads, d), generator=generator).transpose(1, 2)

        query, key, value = (
            random_tensor(n_queries, heads, self.d_head),
            random_tensor(n_keys, self.kv_heads, self.d_head),
            random_tensor(n_keys, self.kv_heads, self.d_value),
        )
        for tensor, lengths in ((query, self.lengths), (key, self.keys), (value, self.keys)):
            for example, length in enumerate(lengths):
                tensor[example, :, length:] = float("nan")  # padding must never be read
        return query, key, value

    @property
    def biases(self):
        """Two biases: one by head for all examples, and one by example that hides every seventh key."""
        if not self.has_biases:
            return ()
        query, key, _ = self.tensors()
        generator = torch.Generator().manual_seed(self.seed + 1)
        by_head = torch.randn((1, query.shape[1], query.shape[2], key.shape[2]), generator=generator)
        by_example = torch.zeros((len(self.lengths), 1, query.shape[2], key.shape[2]))
        by_example[..., 6::7] = torch.finfo(torch.float32).min
        return by_head, by_example

    @property
    def sinks(self):
        if not self.has_sinks:
            return None
        heads = self.kv_heads * self.group
        return torch.linspace(-2, 6, heads) if heads > 1 else torch.tensor([3.0])

    @property
    def keys(self):
        return self.lengths if self.key_lengths is None else self.key_lengths

    @property
    def scaling(self):
        return self.scale / self.d_head**0.5

    def has_code(self, example):
        """Return a mask of the pairs that have a code, [query_pos, key_pos]."""
        distance = np.arange(self.lengths[example])[:, None] - np.arange(self.keys[example])
        mask = distance >= 0 if self.causal else np.ones_like(distance, bool)
        return mask if self.band is None else mask & (np.abs(distance) < self.band)

    def special(self):
        n_keys = max(self.keys) + self.padding
        return np.random.default_rng(self.seed).random((len(self.lengths), n_keys)) < 0.3


@dataclass(frozen=True)
class Arrays:
    codes: np.ndarray
    logsumexp: np.ndarray
    edge_key: np.ndarray
    edge_weight: np.ndarray
    statistics: np.ndarray
    valid: np.ndarray
    destination: Destination
    placement: BatchPlacement


GUARD = 32  # elements before, between and after the examples, which must not change


def arrays_for(case: Case) -> Arrays:
    heads, n = case.kv_heads * case.group, len(case.lengths)
    queries = np.array(case.lengths)
    pairs = np.array([case.has_code(example).sum() for example in range(n)])
    order = np.random.default_rng(case.seed).permutation(n)  # examples need not lie in the order of the batch

    def lay_out(counts):
        starts = np.zeros(n, np.int64)
        offset = GUARD
        for example in order:
            starts[example] = offset
            offset += counts[example] + GUARD
        return starts, offset

    pair_offset, n_pairs = lay_out(pairs)
    row_offset, n_rows = lay_out(queries)
    codes = np.full((heads, n_pairs), 77, attention_codec(case.codec).dtype)
    logsumexp = np.full((heads, n_rows), 77, np.float32)
    edge_key = np.full((heads, n_rows, case.n_edges), 77, case.edge_type)
    edge_weight = np.full((heads, n_rows, case.n_edges), 77, np.float16)
    statistics = np.full((len(STATISTICS), 3, heads, n + 2), 77, np.float32)[:, 1]
    valid = np.zeros((n, heads), bool)
    steps = attention_codec(case.codec).steps
    kind = (steps.scale, steps.n_steps) if steps else (case.codec, 255)
    destination = Destination(codes, *kind, logsumexp, edge_key, edge_weight, statistics, STATISTICS, valid)
    placement = BatchPlacement(
        case.lengths, case.causal, case.key_lengths, pair_offset, row_offset, order + 1, case.special(), case.band
    )  # fmt: skip
    return Arrays(codes, logsumexp, edge_key, edge_weight, statistics, valid, destination, placement)


def inputs_of(case: Case) -> AttentionInputs:
    return AttentionInputs(*case.tensors(), case.scaling, case.window, case.softcap, case.biases, case.sinks)


def run(case: Case, library: Library, arrays: Arrays | None = None, *, into=None, output=True, **execution):
    arrays = arrays or arrays_for(case)
    prepared = prepare_attention(
        inputs_of(case),
        arrays.placement,
        into or arrays.destination,
        output=output,
        execution=Execution(library=library, **execution),
    )
    return prepared.run(), arrays


def oracle(case: Case, example: int, head: int):
    """Return weights, scores and output of one head in float64."""
    query, key, value = (t[example].double().numpy() for t in case.tensors())
    n_queries, n_keys, kv_head = case.lengths[example], case.keys[example], head // case.group
    weights, scores = np.zeros((n_queries, n_keys)), np.full((n_queries, n_keys), -np.inf)
    for q in range(n_queries):
        for k in range(n_keys):
            if case.causal and k > q:
                continue
            if case.window is not None and not (k > q - case.window if case.causal else abs(k - q) <= case.window):
                continue
            if case.band is not None and abs(k - q) >= case.band:
                continue
            score = np.dot(query[head, q], key[kv_head, k]) * case.scaling
            scores[q, k] = case.softcap * np.tanh(score / case.softcap) if case.softcap else score
            for bias in case.biases:
                scores[q, k] += float(bias[example % len(bias), head % bias.shape[1], q, k])
            if scores[q, k] < -1e30:
                scores[q, k] = -np.inf
        sink = float(case.sinks[head]) if case.has_sinks else -np.inf
        top = max(scores[q].max(), sink)
        weights[q] = np.exp(scores[q] - top)
        weights[q] /= weights[q].sum() + np.exp(sink - top)
    return weights, scores, weights @ value[kv_head, :n_keys]


def expected_statistics(weights, special, crossing):
    n_queries, n_keys = weights.shape
    rows, logs = np.arange(n_queries), np.log(np.where(weights > 0, weights, 1))
    distance = np.abs(rows[:, None] - np.arange(n_keys))
    statistics = {
        "entropy": -(weights * logs).sum(1).mean(),
        "distance": (weights * distance).sum(1).mean(),
        "maximum": weights.max(1).mean(),
        "first": weights[:, 0].mean(),
        "special": weights[:, special].sum(1).mean(),
        "self": np.nan,
        "previous": np.nan,
        "next": np.nan,
    }
    if not crossing:
        statistics["self"] = np.diagonal(weights).mean()
        if n_queries > 1:
            statistics["previous"] = np.diagonal(weights, -1).mean()
            statistics["next"] = np.diagonal(weights, 1).mean()
    return np.array([statistics[name] for name in STATISTICS])


def check_edges(keys, edge_weights, weights, visible):
    """Check the edges of every row: strongest first, no key twice, no stronger key missing, then padding."""
    for q, row in enumerate(weights):
        n = min(int(visible[q].sum()), keys.shape[1])
        assert (keys[q, n:] == np.iinfo(keys.dtype).max).all()
        assert (edge_weights[q, n:] == 0).all()
        listed, stored = keys[q, :n].astype(int), edge_weights[q, :n].astype(np.float64)
        assert len(set(listed)) == n
        assert visible[q, listed].all()
        assert (np.diff(stored) <= 0).all()
        np.testing.assert_allclose(stored, row[listed], rtol=6e-4, atol=1e-7)
        np.testing.assert_allclose(row[listed], np.sort(row[visible[q]])[::-1][:n], rtol=2e-5, atol=1e-9)


def check(case: Case, out, arrays: Arrays):
    assert arrays.valid.all()
    query_rows = out.shape[1]
    assert (out.numpy()[[[q >= n for q in range(query_rows)] for n in case.lengths]] == 0).all()
    touched_pairs, touched_rows = np.zeros(arrays.codes.shape[1], bool), np.zeros(arrays.logsumexp.shape[1], bool)
    for example, (n_queries, n_keys) in enumerate(zip(case.lengths, case.keys, strict=True)):
        for head in range(case.kv_heads * case.group):
            weights, scores, expected = oracle(case, example, head)
            np.testing.assert_allclose(out[example, :n_queries, head], expected, atol=2e-5, rtol=2e-5)
            pair, row = arrays.placement.pair_offset[example], arrays.placement.row_offset[example]
            has_code = case.has_code(example)
            codes = arrays.codes[head, pair : pair + has_code.sum()]
            if attention_codec(case.codec).steps is not None:
                is_root = attention_codec(case.codec).steps.scale == "sqrt"
                position = np.sqrt(weights[has_code]) if is_root else weights[has_code]
                true_codes = np.floor(attention_codec(case.codec).steps.n_steps * position + 0.5)
                assert np.abs(codes.astype(int) - true_codes).max(initial=0) <= 1
                assert codes.size < 1000 or np.mean(codes != true_codes) < 0.01
            else:
                loose = 6e-4 if case.codec == "float16" else 2e-5
                np.testing.assert_allclose(codes, weights[has_code], rtol=loose, atol=1e-7)
            rows = slice(row, row + n_queries)
            if case.has_sinks:
                sink = np.full((n_queries, 1), float(case.sinks[head]))
                logsumexp = np.logaddexp.reduce(np.concatenate([scores, sink], axis=1), axis=1)
            else:
                logsumexp = np.logaddexp.reduce(scores, axis=1)
            np.testing.assert_allclose(arrays.logsumexp[head, rows], logsumexp, rtol=1e-5, atol=1e-5)
            visible = np.isfinite(scores)
            if not case.has_biases:  # a key that a bias hides may fill a short row, with weight 0
                check_edges(arrays.edge_key[head, rows], arrays.edge_weight[head, rows], weights, visible)
            touched_pairs[pair : pair + has_code.sum()] = touched_rows[rows] = True
            if n_queries:
                special = case.special()[example, :n_keys]
                np.testing.assert_allclose(
                    arrays.statistics[:, head, arrays.placement.column[example]],
                    expected_statistics(weights, special, case.key_lengths is not None),
                    rtol=1e-5,
                    atol=2e-6,
                )
    assert (arrays.codes[:, ~touched_pairs] == 77).all()
    for array in (arrays.logsumexp, arrays.edge_key, arrays.edge_weight):
        assert (array[:, ~touched_rows] == 77).all()
    assert (arrays.statistics[:, :, [0, -1]] == 77).all()
    assert (arrays.statistics.base[:, [0, 2]] == 77).all()
