"""Compares scaled dimensions in a store with a model whose weights are scaled alike, for the tutorial on neurons.

    python docs/tutorials/neurons_agreement.py STORE HEAD DIMENSIONS >agreement.json

The dimensions carry factors, such as pairs:5,7:0. The rows of the head's query projection that give these dimensions are
multiplied by the factors. Both dimensions of a rotary pair need the same factor, so that the rotation does not mix
them. The model then runs in eager mode on the first texts of the store, and returns its attention.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from headatlas.pipeline.config import load_config
from headatlas.pipeline.models.attention_implementation import implementation
from headatlas.pipeline.models.sources import load_configured
from headatlas.store import open_store
from headatlas.store.reading.rescaled_attention import rescaled_rows
from headatlas.store.schema.head_dimensions import factor_vector, parse_factors

N_TEXTS = 4


def main() -> None:
    """Print the largest and the mean difference of the attention as JSON."""
    path, name, dimensions = sys.argv[1:]
    layer, head = map(int, name.split("."))
    store = open_store(path)
    site = store.site()
    factors = factor_vector(parse_factors(dimensions, site), site.d_head)
    model = load_configured(load_config("prose").model).model
    rows = slice(head * site.d_head, (head + 1) * site.d_head)
    differences, changes = [], []
    with torch.no_grad(), implementation(model, "eager"):
        model.get_submodule(f"layers.{layer}.self_attn.q_proj").get_parameter("weight")[rows] *= torch.from_numpy(
            factors
        )[:, None]
        for piece in rescaled_rows(store.segments[0], site, layer, head, factors):
            if piece.example == N_TEXTS:
                break
            ids = torch.from_numpy(store.examples[piece.example].tokens().id.astype(np.int64))[None]
            attention = model(ids, output_attentions=True).attentions[layer][0, head].numpy()
            differences.append(np.abs(piece.after - attention[piece.query_pos, : piece.after.shape[1]]))
            changes.append(np.abs(piece.after - piece.before))
    sizes = {"texts": len(differences), "rows": sum(map(len, differences))}
    largest = {"difference": max(map(np.max, differences)), "change": max(map(np.max, changes))}
    print(json.dumps({**sizes, **{name: float(value) for name, value in largest.items()}}))


if __name__ == "__main__":
    main()
