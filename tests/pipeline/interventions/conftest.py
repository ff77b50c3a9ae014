"""Models with a few random texts, ready for interventions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from headatlas.pipeline.capture.eager import find_sites
from headatlas.pipeline.capture.eager_outputs import find_eager_outputs
from headatlas.pipeline.corpora.examples import CorpusExample, EncodedExample, TokenSequence
from headatlas.pipeline.interventions.passes import Passes
from headatlas.pipeline.tokens.batch_plan import BatchLimits
from headatlas.pipeline.tokens.model_inputs import InputBuilder
from headatlas.store.schema.token_table import TokenFlag


def sequence(ids: list[int]) -> TokenSequence:
    n = len(ids)
    zeros = np.zeros(n, np.int32)
    flags = np.zeros(n, np.uint8)
    flags[0] = int(TokenFlag.SPECIAL)
    return TokenSequence(np.array(ids, np.int32), zeros, zeros, zeros, flags, ("x",) * n, ("x",) * n)


def make_passes(model, measure, lengths: Sequence[int] = (7, 5, 7, 4), site=None, max_tokens=4096) -> Passes:
    generator = torch.Generator().manual_seed(3)
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    vocabulary = model.config.get_text_config().vocab_size
    examples = []
    for i, n in enumerate(lengths):
        ids = torch.randint(5, min(60, vocabulary), (n,), generator=generator).tolist()
        target = torch.randint(5, min(60, vocabulary), (n - 1,), generator=generator).tolist()
        examples.append(
            EncodedExample(CorpusExample(str(i), "x"), sequence(ids), sequence(target) if two_sided else None)
        )
    builder = InputBuilder(model, None)
    sites = find_sites(model, builder.build_probe(examples[0]))
    chosen = sites.site(site) if site else sites.sites[0]
    eager = None
    if sites.capture == "eager":
        probe = {name: tensor.repeat(2, 1) for name, tensor in builder.build_probe(examples[0], 5, 4).items()}
        probe["input_ids"][1] += 1
        eager = find_eager_outputs(model, sites, chosen.name, probe)
    return Passes(
        model,
        sites,
        chosen,
        builder,
        examples,
        BatchLimits(max_tokens=max_tokens),
        measure,
        donors={0: 2, 2: 0},
        eager=eager,
    )


@pytest.fixture(name="make_passes")
def make_passes_fixture():
    """Function that gives a model a few random texts."""
    return make_passes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Keep unfinished sweeps of a test in its own folder."""
    monkeypatch.setenv("HEADATLAS_CACHE_DIR", str(tmp_path / "cache"))
