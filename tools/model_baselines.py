"""Compare an architecture's batch-mates and baselines with plain loops: two columns of docs/models.md."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headatlas.pipeline.calls.segment_buffers import SegmentBuffers
from headatlas.pipeline.capture.collector import TraceCollector
from headatlas.pipeline.capture.eager import forwarding, read_attentions
from headatlas.pipeline.capture.sites import ModelSites, run_model
from headatlas.pipeline.checks.selfcheck import eager_attention
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, TokenSequence
from headatlas.pipeline.tokens.model_inputs import ModelInputs
from headatlas.pipeline.tokens.segment_tables import build_token_table
from headatlas.store.schema.text_tables import SegmentTables
from headatlas.store.schema.token_table import TokenTable
from headatlas.store.schema.traces import Keep, SequenceName, Site, TraceSpec
from headatlas.store.statistics.measurement import corpus_means
from headatlas.store.store import open_store
from headatlas.store.writing.store_writer import StoreWriter

Lengths = Mapping[str, Sequence[int]]
Maps = Mapping[str, Sequence[Sequence[np.ndarray]]]
"""Attention ``[head, query, key]`` by site, layer and example."""


def own_maps(model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor], lengths: Lengths) -> Maps:
    """Return transformers' eager attention of a padded batch, without the padding."""
    if sites.capture == "eager":
        maps = {
            str(name): layers
            for name, layers in read_attentions(model, sites, run_model(model, inputs, output_attentions=True)).items()
        }
    else:
        maps, _ = eager_attention(model, sites, inputs)
    result = {}
    for site in sites.sites:
        sizes = list(zip(lengths[site.query_sequence], lengths[site.key_sequence], strict=True))
        result[str(site.name)] = [
            [layer[i, :, :n, :m].float().cpu().numpy() for i, (n, m) in enumerate(sizes)] for layer in maps[site.name]
        ]
    return result


def alone_difference(
    model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor], lengths: Lengths, *, equal: bool
) -> float:
    """Return the largest difference between the attention of an example alone and in the batch.

    With `equal` each example shares a batch with one of equal lengths instead: itself, with its tokens in reverse order.
    """
    batched, worst = own_maps(model, sites, inputs, lengths), 0.0
    for i in range(len(next(iter(lengths.values())))):
        after_states = "encoder_hidden_states" in inputs
        example = {
            name: _cut(name, values[i : i + 1], lengths, i, after_states=after_states)
            for name, values in inputs.items()
        }
        own = {name: [values[i]] for name, values in lengths.items()}
        alone = own_maps(model, sites, example, own)
        together = {name: [[maps[i]] for maps in layers] for name, layers in batched.items()}
        if equal:
            pair = {name: torch.cat([values, values.flip(1)]) for name, values in example.items()}
            together = own_maps(model, sites, pair, {name: [*values, *values] for name, values in own.items()})
        for name, layers in alone.items():
            for maps, others in zip(layers, together[name], strict=True):
                worst = max(worst, float(np.abs(maps[0] - others[0]).max()))
    return worst


def _cut(name: str, values: Tensor, lengths: Lengths, i: int, *, after_states: bool) -> Tensor:
    """Return one example's argument without padding. Images and sounds have none."""
    if name in ("pixel_values", "input_features"):
        return values
    is_target = name.startswith("decoder_") or (after_states and not name.startswith("encoder_"))
    return values[:, : lengths["target" if is_target else "source"][i]]


def baseline_difference(
    model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor], lengths: Lengths, folder: Path
) -> float:
    """Return the largest difference of a store's uniform baselines and normalised entropy from loops over own maps."""
    keep = Keep(attention="float32", query_key=None, edges=None, statistics=False)
    spec = TraceSpec(sites=sites.sites, keep=keep, statistics=(), capture=sites.capture)
    buffers = SegmentBuffers(spec, {name: np.asarray(counts, np.int64) for name, counts in lengths.items()})
    n_examples, collector = len(next(iter(lengths.values()))), TraceCollector(spec, sites)
    with forwarding(model, sites, collector) as forward:
        batch = collector.begin(buffers, range(n_examples), {})
        forward(ModelInputs(dict(inputs), {}))
    if batch.failures:
        raise RuntimeError(f"{type(model).__name__}: {batch.failures}")
    writer = StoreWriter.create(folder, spec=spec, provenance={}, n_examples_planned=n_examples, n_segments_planned=1)
    writer.write(0, 0, _tables(spec, lengths, n_examples), buffers.arrays, [])
    store, maps, worst = open_store(folder), own_maps(model, sites, inputs, lengths), 0.0
    for site in sites.sites:
        patterns = {"first_token": 0, "previous_token": 1} if site.name != "cross" else {"key.position == 0": 0}
        loops = [_loop(site, layer) for layer in maps[site.name]]
        entropy = corpus_means(store, ["normalised_entropy"], site.name)["normalised_entropy"]
        for pattern, column in patterns.items():
            result = store.search(pattern, site=site.name)
            baseline = result.heads["baseline"].to_numpy().reshape(site.n_layers, -1)[:, 0]
            expected = np.array([loop[0][column] for loop in loops])
            if not np.array_equal(np.isnan(baseline), np.isnan(expected)):
                raise RuntimeError(f"{type(model).__name__}: the layers with rows for {pattern} differ")
            worst = max(worst, float(np.nan_to_num(np.abs(baseline - expected)).max()))
        worst = max(worst, float(np.abs(np.nan_to_num(entropy - [loop[1] for loop in loops])).max()))
    return worst


def _tables(spec: TraceSpec, lengths: Lengths, n_examples: int) -> SegmentTables:
    def tokens(n: int) -> TokenSequence:
        zeros, texts = np.zeros(n, np.int32), ("x",) * n
        return TokenSequence(zeros, zeros - 1, zeros, zeros, np.zeros(n, np.uint8), texts, texts)

    encoded = [
        EncodedExample(
            CorpusExample(str(i), "", target="" if "target" in lengths else None, words=()),
            tokens(lengths["source"][i]),
            tokens(lengths["target"][i]) if "target" in lengths else None,
        )
        for i in range(n_examples)
    ]
    no_texts: list[str | None] = [None] * n_examples
    tables: dict[SequenceName, TokenTable] = {name: build_token_table(encoded, name) for name in spec.sequences}
    return SegmentTables([e.example.id for e in encoded], [""] * n_examples, no_texts, no_texts, tokens=tables)


def _loop(site: Site, maps: Sequence[np.ndarray]) -> tuple[tuple[float, float], np.ndarray]:
    """Return the uniform mass on the first and the previous key, and the normalised entropy of each head.

    A row sees the keys on which a head of the layer has a weight. The first two are means over the rows that see the key,
    and NaN without such a row.
    """
    shares: tuple[list[float], list[float]] = ([], [])
    entropies = []
    for weights in maps:
        for q in range(weights.shape[1]):
            visible = [k for k in range(weights.shape[2]) if (weights[:, q, k] > 0).any()]
            for share, key in zip(shares, (0, q - 1), strict=True):
                if key in visible:
                    share.append(1 / len(visible))
            if len(visible) > 1:
                row = weights[:, q, visible].astype(np.float64)
                entropies.append(-(row * np.log(np.where(row > 0, row, 1))).sum(axis=1) / np.log(len(visible)))
    first, previous = (float(np.mean(share or [np.nan])) for share in shares)
    return (first, previous), np.mean(entropies, axis=0)


def measure_baselines(
    model: PreTrainedModel, sites: ModelSites, inputs: Mapping[str, Tensor], lengths: Lengths
) -> float:
    """Return `baseline_difference` with a store in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return baseline_difference(model, sites, inputs, lengths, Path(folder) / "store")
