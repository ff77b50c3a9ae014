"""A store holds the attention of each text as if it had run alone, also where padding or batch-mates change attention."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel, LlamaConfig, LlamaModel

from headatlas.pipeline import trace
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import execute_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.models.sources import load_configured
from headatlas.pipeline.progress import Stage
from headatlas.pipeline.tokens.batch_plan import BatchLimits, plan_batches
from headatlas.store.store import open_store
from tools.architectures import ROPED
from tools.tiny_models import build_model

from ..conftest import save_tokenizer


class MeanOfTheBatch(BertModel):
    """A model in which each text depends on the others of its batch, padded or not."""

    def forward(self, input_ids, attention_mask=None, **options):
        states = self.get_input_embeddings()(input_ids)
        states = states + 5 * (states - states.mean(dim=0, keepdim=True))
        return super().forward(inputs_embeds=states, attention_mask=attention_mask, **options)


def dynamic_rope():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 4}
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**{**ROPED, "max_position_embeddings": 4}, rope_parameters=rope))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.rotary_emb.config = copy.deepcopy(model.config)
    model.config.max_position_embeddings = 64  # so that longer texts are not cut
    return model.eval()


BUILDERS = {
    "bert": lambda: build_model("bert"),
    "mobilebert": lambda: build_model("mobilebert"),
    "convbert": lambda: build_model("convbert"),
    "dynamic rope": dynamic_rope,
    "mean of the batch": lambda: build_model("bert"),
}


@pytest.fixture
def job_of(tiny_job, tmp_path):
    """Return a function that prepares a job over texts of different lengths, in 2 segments."""

    def prepare(name, on_event=lambda event: None, out="store"):
        folder = tmp_path / "model"
        if not folder.exists():
            BUILDERS[name]().save_pretrained(folder)
            save_tokenizer(folder, "$A")
        corpus = {**tiny_job["corpus"], "max_examples": 12}
        keep = {"attention": "float32", "query_key": "none"}
        store = {"path": str(tmp_path / out), "segment_examples": 6}
        job = {**tiny_job, "model": {"source": str(folder)}, "corpus": corpus, "keep": keep, "store": store}
        config = parse_config(job)
        loaded = load_configured(config.model)
        if name == "mean of the batch":
            loaded = replace(loaded, model=MeanOfTheBatch.from_pretrained(folder).eval())
        if name == "dynamic rope":
            loaded = replace(loaded, model=dynamic_rope())
        return prepare_job(config, on_event, loaded=loaded)

    return prepare


@pytest.mark.parametrize(
    ("name", "companions", "words"),
    [
        ("bert", "any", ""),
        ("mobilebert", "equal", "the padding of a batch changes the attention of MobileBertModel"),
        ("convbert", "equal", "the padding of a batch changes the attention of ConvBertModel"),
        ("dynamic rope", "equal", "the padding of a batch changes the attention of LlamaModel"),
        ("mean of the batch", "none", "the other examples of a batch changes the attention of MeanOfTheBatch"),
    ],
)
def test_a_store_holds_each_text_as_if_it_ran_alone(name, companions, words, job_of):
    events = []
    job = job_of(name, events.append)
    assert job.batch_check.companions == companions
    said = [event.text for event in events if isinstance(event, Stage) and "a batch" in event.text]
    assert [words in text for text in said] == [True] * bool(words)
    execute_job(job)
    store = open_store(job.path)
    notes = store.manifest.provenance.get("batches", [])
    assert [words in note for note in notes] == [True] * bool(words)
    tokenizer = AutoTokenizer.from_pretrained(job.config.model.source)
    for example in (store.examples[i] for i in range(store.n_examples)):
        model = dynamic_rope() if name == "dynamic rope" else job.loaded.model
        model.set_attn_implementation("eager")
        inputs = tokenizer(example.text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            maps = torch.cat(model(**inputs, output_attentions=True).attentions)
        np.testing.assert_allclose(example.attention().values, maps.numpy(), atol=2e-5)
        traced = trace(job.loaded.model, tokenizer, example.text)
        np.testing.assert_allclose(traced.attention().values, maps.numpy(), atol=2e-5)


def test_a_resumed_job_makes_the_same_bytes(job_of):
    whole = job_of("mobilebert", out="whole")
    execute_job(whole)
    first = job_of("mobilebert", out="resumed")
    with pytest.raises(KeyboardInterrupt):
        execute_job(first, _stop_after_one_segment)
    execute_job(job_of("mobilebert", out="resumed"))
    hashes = [[entry.sha256 for entry in open_store(job.path).manifest.segments] for job in (whole, first)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 2


def _stop_after_one_segment(event):
    if type(event).__name__ == "SegmentDone":
        raise KeyboardInterrupt


def test_batches_of_equal_lengths():
    lengths = {"source": np.array([3, 5, 3, 0, 5, 5, 4]), "target": np.array([2, 1, 2, 0, 1, 2, 1])}
    batches = plan_batches(lengths, BatchLimits(equal_lengths=True))
    assert sorted(batch.examples for batch in batches) == [(0, 2), (1, 4), (5,), (6,)]
    assert all(batch.n_tokens == batch.n_padded_tokens for batch in batches)
