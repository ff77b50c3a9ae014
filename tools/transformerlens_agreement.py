"""Compare headatlas with TransformerLens: scores of heads, and effects of interventions. Needs transformer-lens.

``python -m tools.transformerlens_agreement STORE MODEL_FOLDER`` runs the model again in TransformerLens, on the tokens of
the store, and compares the scores of `detect_head` (mean over texts) with
``headatlas stats STORE --definition transformerlens``.

``python -m tools.transformerlens_agreement`` without arguments compares `headatlas intervene` with hooks of
TransformerLens on random models of the shapes of GPT-2 and Llama: zero, mean and patch of every head, on the loss.

TransformerLens pins versions, so it needs an environment of its own, or ``pip install --no-deps --target FOLDER
transformer-lens==4.3.0 einops datasets multiprocess dill xxhash …`` with that folder at the end of PYTHONPATH.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headatlas.pipeline.capture.sites import discover_sites
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, TokenSequence
from headatlas.pipeline.interventions.actions import Action, Edit, Mean, PatchOutput, PositionClass, Variant, Zero
from headatlas.pipeline.interventions.measures.predictions import NextTokenLoss
from headatlas.pipeline.interventions.passes import Passes
from headatlas.pipeline.tokens.batch_plan import BatchLimits
from headatlas.pipeline.tokens.model_inputs import InputBuilder
from headatlas.store import open_store
from headatlas.store.statistics.headvis import rank_correlation
from headatlas.store.statistics.published import published_table

PATTERNS = ("previous_token_head", "duplicate_token_head", "induction_head")
TOP = 5
SHAPES = ("gpt2", "llama")
LENGTHS = (9, 6, 9, 4)
DONORS = {0: 2, 2: 0}
"""Texts of the same length whose outputs are patched into each other."""
TOLERANCE = 1e-5


def compare_effects() -> int:
    """Print the largest difference of the effects of each action. Return 0 if all are within `TOLERANCE`."""
    worst = 0.0
    for shape in SHAPES:
        passes, lens = open_shape(shape)
        site = passes.site
        caches = [lens.run_with_cache(_tokens(example))[1] for example in passes.examples]
        outputs = [
            [cache[f"blocks.{layer}.attn.hook_z"][0] for layer in range(site.n_layers)] for cache in caches
        ]  # [query, head, d_value]
        actions: dict[str, Action] = {
            "zero": Zero(), "mean": Mean(passes.measure_heads().means), "patch": PatchOutput(),
        }  # fmt: skip
        heads = [(layer, head) for layer in range(site.n_layers) for head in range(site.n_heads)]
        for name, action in actions.items():
            effects = passes.run([Variant((Edit(layer, head, action),)) for layer, head in heads])
            expected = np.full(effects.shape, np.nan)
            for row, (layer, head) in enumerate(heads):
                for index, example in enumerate(passes.examples):
                    if name == "patch" and index not in DONORS:
                        continue
                    value = replacement(name, outputs, index, layer, head)
                    expected[row, index] = lens_effect(lens, _tokens(example), layer, head, value)
            difference = float(np.nanmax(np.abs(effects - expected)))
            agrees = bool((np.isnan(effects) == np.isnan(expected)).all()) and difference < TOLERANCE
            worst = max(worst, difference if agrees else np.inf)
            print(
                f"{shape} {name}: {len(heads)} heads, {int(np.isfinite(expected).sum())} effects, the largest "
                f"{np.nanmax(np.abs(expected)):.3f} nats, largest difference {difference:.1e}"
            )
    return 0 if worst < TOLERANCE else 1


def open_shape(shape: str) -> tuple[Passes, Any]:
    """Build a random model and a few texts, and load the same model in TransformerLens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from .tiny_models import build_model

    bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
    model = build_model(shape, head=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0").save_pretrained(folder)
        lens = bridge.boot_transformers(folder, device="cpu")
    examples = list(random_examples())
    builder = InputBuilder(model, None)
    sites = discover_sites(model, builder.build_probe(examples[0]))
    return Passes(model, sites, sites.sites[0], builder, examples, BatchLimits(), NextTokenLoss(), donors=DONORS), lens


def random_examples() -> Iterator[EncodedExample]:
    """Yield texts of random tokens."""
    rng = np.random.default_rng(0)
    for number, n in enumerate(LENGTHS):
        zeros = np.zeros(n, np.int32)
        ids = rng.integers(1, 60, n).astype(np.int32)
        sequence = TokenSequence(ids, zeros, zeros, zeros, np.zeros(n, np.uint8), ("x",) * n, ("x",) * n)
        yield EncodedExample(CorpusExample(str(number), "x"), sequence)


def replacement(name: str, outputs: list[list[Tensor]], index: int, layer: int, head: int) -> Tensor:
    """Return what an action puts in place of a head's output ``[query, d_value]``, from the outputs of TransformerLens."""
    own = outputs[index][layer][:, head]
    if name == "zero":
        return torch.zeros_like(own)
    if name == "patch":
        return outputs[DONORS[index]][layer][:, head]
    means = {
        PositionClass.FIRST: torch.stack([text[layer][0, head] for text in outputs]).mean(dim=0),
        PositionClass.OTHER: torch.cat([text[layer][1:, head] for text in outputs]).mean(dim=0),
    }
    return torch.stack([means[PositionClass.FIRST], *[means[PositionClass.OTHER]] * (len(own) - 1)])


def lens_effect(lens: Any, tokens: Tensor, layer: int, head: int, value: Tensor) -> float:
    """Return the change of the mean loss if a hook of TransformerLens exchanges the output of a head."""

    def exchange(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[0, :, head] = value
        return z

    with torch.no_grad():
        before, after = lens(tokens), lens.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", exchange)])
    losses = [float(F.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])) for logits in (before, after)]
    return losses[1] - losses[0]


def _tokens(example: EncodedExample) -> Tensor:
    return torch.tensor(example.source.id.tolist())[None]


def compare_scores(store_path: str, model_folder: str) -> int:
    """Print both rankings. Return 0 if the first heads are the same."""
    detect_head = importlib.import_module("transformer_lens.head_detector").detect_head  # not installed with headatlas
    bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
    store = open_store(store_path)
    site = store.site()
    lens = bridge.boot_transformers(model_folder, device="cpu")
    # detect_head tokenizes its text, but these are tokens already
    runner = SimpleNamespace(cfg=lens.cfg, to_tokens=lambda tokens: tokens)
    scores = {name: np.zeros((site.n_layers, site.n_heads)) for name in PATTERNS}
    for example in store.examples:
        tokens = torch.tensor(example.tokens().id.tolist())[None]
        with torch.inference_mode():
            _, cache = lens.run_with_cache(tokens, remove_batch_dim=True)
            for name in PATTERNS:
                scores[name] += detect_head(runner, tokens, name, cache=cache).numpy()
    ours, agree = published_table(store, "transformerlens"), True
    for name, total in scores.items():
        theirs, mine = total / store.n_examples, ours[name].to_numpy().reshape(total.shape)
        rankings, texts = [], []
        for values in (theirs, mine):
            ranking = [divmod(int(index), site.n_heads) for index in np.argsort(-values, axis=None)[:TOP]]
            rankings.append(ranking)
            texts.append(", ".join(f"{layer}.{head} {values[layer, head]:.3f}" for layer, head in ranking))
        agree &= rankings[0][0] == rankings[1][0]
        print(f"{name}\n  detect_head  {texts[0]}\n  headatlas    {texts[1]}")
        print(
            f"  rank correlation over {total.size} heads {rank_correlation(theirs.ravel(), mine.ravel()):.4f}, "
            f"largest difference {np.abs(theirs - mine).max():.1e}"
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(compare_scores(*sys.argv[1:3]) if len(sys.argv) > 1 else compare_effects())
