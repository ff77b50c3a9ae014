"""Compare headatlas with TransformerLens's `detect_head` on the texts of a store. Needs `pip install transformer-lens`.

``python -m tools.transformerlens_agreement STORE MODEL_FOLDER`` runs the model again in TransformerLens, on the tokens of
the store, and compares the scores of `detect_head` (mean over texts) with
``headatlas stats STORE --definition transformerlens``.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import torch

from headatlas.store import open_store
from headatlas.store.statistics.headvis import rank_correlation
from headatlas.store.statistics.published import published_table

PATTERNS = ("previous_token_head", "duplicate_token_head", "induction_head")
TOP = 5


def main(store_path: str, model_folder: str) -> int:
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
    sys.exit(main(*sys.argv[1:3]))
