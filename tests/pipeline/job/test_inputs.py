"""Whole jobs over inputs other than plain sentences: windows of documents, source and target, continuations."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.job.prepared_job import prepare_job
from headatlas.pipeline.progress import Stage
from headatlas.pipeline.tokens import generation
from headatlas.store.errors import ConfigError, HeadAtlasError
from headatlas.store.schema.token_table import TokenFlag
from headatlas.store.store import open_store


def write_rows(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path)}


def test_windows_of_long_documents_are_examples_of_their_own(tiny_job, tmp_path):
    """A document far over the limit is stored in windows that overlap by half and record their origin."""
    text = " ".join(["the nurse", "said that", "a doctor", "left home"] * 5)
    corpus = write_rows(tmp_path, {"id": "a", "text": text}, {"id": "b", "text": "the dog"})
    windows = {"max_tokens": 18, "too_long": "windows", "stride": 8}
    events = []
    run_job(parse_config({**tiny_job, "corpus": corpus, "tokens": windows}), events.append)
    notes = [event.text for event in events if isinstance(event, Stage)]
    assert any(note.startswith("2 texts are 5 examples, because long texts are cut into windows") for note in notes)
    store = open_store(tiny_job["store"]["path"])
    assert store.example_ids() == ["a@0", "a@1", "a@2", "a@3", "b"]
    for i, example in enumerate(store.examples):
        of, first, last = (example.columns[name] for name in ("window_of", "window_start", "window_end"))
        assert (of, example.columns["window"]) == (("a", i) if i < 4 else ("b", 0))
        assert example.text == (text if of == "a" else "the dog")[first:last]
        np.testing.assert_allclose(example.attention().values.sum(axis=-1), 1, atol=0.1)
        if of == "a":
            assert example.tokens().text[1:-1] == text.split()[8 * i : 8 * i + 16]
    assert store.manifest.provenance["config"]["tokens"]["stride"] == 8


def eager_maps(folder, ids):
    """Return the attention that transformers computes on these tokens: [layer, head, query, key]."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return torch.stack(model(torch.tensor([ids]), output_attentions=True).attentions)[:, 0].numpy()


def greedy_tokens(model, ids, n_new, end):
    """Run greedy search with one full forward pass for each token."""
    ids = list(ids)
    for _ in range(n_new):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompts_are_captured_with_what_the_model_writes(name, tiny_job, folder_of):
    folder = folder_of(name)
    job = {**tiny_job, "model": {"source": str(folder)}, "generate": {"max_new_tokens": 6}}
    run_job(parse_config({**job, "corpus": {**tiny_job["corpus"], "max_examples": 7}}))
    store = open_store(tiny_job["store"]["path"])
    generator = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = Path(tiny_job["corpus"]["path"]).read_text(encoding="utf-8").splitlines()
    for i in range(7):
        example = store.examples[i]
        tokens = example.tokens()
        generated = (tokens.flags & TokenFlag.GENERATED) != 0
        n_prompt = int((~generated).sum())
        assert generated.tolist() == [False] * n_prompt + [True] * (len(tokens) - n_prompt)
        prompt = AutoTokenizer.from_pretrained(folder)(texts[i])["input_ids"]
        assert tokens.id.tolist() == greedy_tokens(generator, prompt, 6, generator.generation_config.eos_token_id)
        assert example.text.startswith(texts[i])
        assert example.columns["prompt_end"] == len(texts[i])
        for text, start, stop in zip(tokens.text, tokens.char_start, tokens.char_end, strict=True):
            assert example.text[start:stop] in (text, "")
        np.testing.assert_allclose(example.attention().values, eager_maps(folder, tokens.id.tolist()), atol=0.004)
    result = store.search("query.generated and not key.generated")
    assert float(result.heads["mass"].max()) > 0
    assert store.manifest.provenance["config"]["generate"] == {"max_new_tokens": 6, "temperature": 0.0, "seed": 0}


def test_sampling_is_seeded(tiny_job, folder_of, tmp_path):
    token_ids = {}
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        job = {**tiny_job, "model": {"source": str(folder_of("llama"))}, "store": {"path": str(tmp_path / run)}}
        job["generate"] = {"max_new_tokens": 5, "temperature": 1.5, "seed": seed}
        run_job(parse_config({**job, "corpus": {**tiny_job["corpus"], "max_examples": 6}}))
        token_ids[run] = [example.tokens().id.tolist() for example in open_store(tmp_path / run).examples]
    assert token_ids["a"] == token_ids["b"] != token_ids["c"]


@pytest.mark.parametrize("name", ["t5", "bart", "encoder-decoder"])
def test_source_and_target_texts(name, tiny_job, folder_of, tmp_path):
    """Stores have encoder, decoder and cross attention. The decoder reads its start token and then the target."""
    folder = folder_of(name)
    rows = [
        {"text": "the nurse said that", "target": "a doctor left"},
        {"text": "the dog", "target": "he said she left"},
    ]
    job = {**tiny_job, "corpus": write_rows(tmp_path, *rows, {"text": "no target"}), "model": {"source": str(folder)}}
    run_job(parse_config(job))
    store = open_store(tiny_job["store"]["path"])
    assert [site.name for site in store.spec.sites] == ["encoder", "decoder", "cross"]
    (note,) = store.manifest.skipped
    assert (note.example, note.reason.split(",")[0]) == (2, "no target text")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    for example, row in zip(store.examples, rows, strict=False):
        source, target = tokenizer(row["text"])["input_ids"], tokenizer(row["target"])["input_ids"]
        target = [model.config.decoder_start_token_id, *target[:-1]]
        assert (example.tokens("source").id.tolist(), example.tokens("target").id.tolist()) == (source, target)
        assert example.target_text == row["target"]
        assert list(example.tokens("target").text[1:]) == row["target"].split()
        inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([target])}
        with torch.no_grad():
            out = model(**inputs, output_attentions=True)
        for site, maps in (
            ("encoder", out.encoder_attentions),
            ("decoder", out.decoder_attentions),
            ("cross", out.cross_attentions),
        ):
            expected = torch.stack(maps)[:, 0].numpy()
            np.testing.assert_allclose(example.attention(site=site).values, expected, atol=0.004)


@pytest.mark.parametrize("name", ["bart", "encoder-decoder"])
def test_an_encoder_decoder_writes_its_target(name, tiny_job, folder_of):
    folder = folder_of(name)
    job = {**tiny_job, "model": {"source": str(folder)}, "generate": {"max_new_tokens": 5}}
    run_job(parse_config({**job, "corpus": {**tiny_job["corpus"], "max_examples": 3}}))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    for example in open_store(tiny_job["store"]["path"]).examples:
        source, target = example.tokens("source"), example.tokens("target")
        inputs = {
            "input_ids": torch.tensor([source.id.tolist()]),
            "decoder_input_ids": torch.tensor([target.id.tolist()]),
        }
        with torch.no_grad():
            out = model(**inputs, output_attentions=True)
        predicted = out.logits[0].argmax(-1).tolist()
        assert target.id.tolist() == [model.config.decoder_start_token_id, *predicted[: len(target) - 1]]
        assert len(target) == 6 or predicted[-1] == model.config.eos_token_id
        assert (target.flags & TokenFlag.GENERATED != 0).tolist() == [False] + [True] * (len(target) - 1)
        assert not (source.flags & TokenFlag.GENERATED).any()
        cross = torch.stack(out.cross_attentions)[:, 0].numpy()
        np.testing.assert_allclose(example.attention(site="cross").values, cross, atol=0.004)


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_the_model_that_generates_is_the_model_that_is_captured(name, tiny_job, folder_of, tmp_path, monkeypatch):
    """Count loaded models, and the bytes of all weights that exist while text is generated and after it."""
    folder = tmp_path / name
    shutil.copytree(folder_of(name), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if name == "t5":  # transformers caches as many decoder layers as there are encoder layers
        config["num_decoder_layers"] = config["num_layers"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    n_bytes, n_loads = list[int](), list[str]()
    generate, load = generation.generate_continuations, PreTrainedModel.from_pretrained.__func__
    gc.collect()
    earlier_weights = weights()  # held, so that no id is used again
    earlier = set(map(id, earlier_weights))

    def new_bytes():
        gc.collect()
        return sum(weight.nbytes for weight in weights() if id(weight) not in earlier and not weight.is_meta)

    def spied_generate(*arguments):
        n_bytes.append(new_bytes())
        return generate(*arguments)

    def spied_load(kind, *arguments, **options):
        n_loads.append(kind.__name__)
        return load(kind, *arguments, **options)

    monkeypatch.setattr(generation, "generate_continuations", spied_generate)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(spied_load))
    job = {**tiny_job, "model": {"source": str(folder)}, "generate": {"max_new_tokens": 2}}
    prepared = prepare_job(parse_config({**job, "corpus": {**tiny_job["corpus"], "max_examples": 2}}))
    n_bytes.append(new_bytes())
    captured = sum(parameter.nbytes for parameter in prepared.loaded.model.parameters())
    head = AutoModelForSeq2SeqLM if name in ("t5", "bart") else AutoModelForCausalLM
    whole = sum(parameter.nbytes for parameter in head.from_pretrained(folder).parameters())
    assert len(n_loads) == 2  # the second is that of this test
    assert n_bytes == [whole, captured]
    assert type(prepared.loaded.model) is AutoModel.from_config(prepared.loaded.model.config).__class__


def weights() -> list[torch.Tensor]:
    return [item for item in gc.get_objects() if type(item) is torch.nn.Parameter]


def test_what_writes_nothing_is_refused(tiny_job, folder_of):
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        run_job(
            parse_config({**tiny_job, "model": {"source": str(folder_of("gpt2"))}, "generate": {"max_new_tokens": 64}})
        )
    with pytest.raises(HeadAtlasError, match=r"would be random|sees later tokens"):
        run_job(parse_config({**tiny_job, "generate": {"max_new_tokens": 4}}))
    with pytest.raises(ConfigError, match="a window of a document cannot be a prompt"):
        parse_config({**tiny_job, "generate": {"max_new_tokens": 4}, "tokens": {"too_long": "windows"}})


def test_corrupt_lines_are_quarantined_and_the_counts_add_up(tiny_job, tmp_path):
    """A line of the file becomes an example of the store, or is recorded with its number and a reason."""
    lines = [b'{"text": "the nurse"}', b"{not json", b'{"text": "caf\xe9"}', b'{"text": ""}', b'{"id": 7}', b"[1, 2]"]
    lines += [b'{"text": "a dog", "id": "last"}', b'{"text": "x\\ud800"}', b""]
    path = tmp_path / "corrupt.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = run_job(parse_config({**tiny_job, "corpus": {"kind": "jsonl", "path": str(path)}}))
    assert (report.n_examples, report.n_quarantined, report.n_skipped) == (2, 6, 0)
    store = open_store(tiny_job["store"]["path"])
    assert store.example_ids() == ["corrupt-000001", "last"]
    records = store.manifest.provenance["quarantined"]
    assert [record["line"] for record in records] == [2, 3, 4, 5, 6, 8]
    for record, reason in zip(records, ("JSON", "utf-8", "empty", "no 'text'", "list", "surrogate"), strict=True):
        assert reason in record["reason"], record
    assert store.manifest.provenance["corpus"]["n_quarantined"] == len(records)
