"""Models of two towers (CLIP, SigLIP): the corpus chooses the tower. Parts of a model are loaded as they were saved."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.models.sources import load_model
from headatlas.store.errors import ConfigError, UnsupportedModelError
from headatlas.store.store import open_store

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT_IDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def towers(request, tmp_path_factory, tiny_folder):
    """A folder with a tiny model of two towers, a tokenizer and an image processor; and the model."""
    folder = tmp_path_factory.mktemp("towers") / request.param
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = getattr(transformers, f"{request.param}Config")(
        text_config={**SIZES, **TEXT_IDS, "max_position_embeddings": 64},
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{request.param}Model")(config).eval()
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder, model


def job_of(folder, tmp_path, **corpus):
    keep = {"preset": "exact"}
    settings = {"store": {"path": str(tmp_path / "store")}, "run": {"threads": 1}, "keep": keep}
    return parse_config({"model": {"source": str(folder)}, "corpus": corpus, **settings})


def test_the_corpus_chooses_the_tower(towers, tmp_path):
    folder, whole = towers
    (tmp_path / "text.txt").write_text("the nurse said that she would be late\n", encoding="utf-8")
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture).save(tmp_path / "pictures" / "one.png")
    kind = type(whole).__name__.removesuffix("Model")
    for corpus, tower in (("text", "Text"), ("images", "Vision")):
        path = tmp_path / ("text.txt" if corpus == "text" else "pictures")
        loaded = load_model(str(folder), images=corpus == "images")
        assert loaded.identity.architecture == f"{kind}{tower}Model"
        report = run_job(job_of(folder, tmp_path / corpus, kind=corpus, path=str(path)))
        other, reads = ("vision", "text") if corpus == "text" else ("text", "images")
        reason = f"corpus.kind chooses the part of the model that reads {reads}"
        site = {"what": "sites", "n": 1, "reason": reason, "names": [f"{other}_model"]}
        assert site in report.left_out
        store = open_store(tmp_path / corpus / "store")
        whole.set_attn_implementation("eager")
        with torch.no_grad():
            if corpus == "text":
                ids = torch.tensor(store.examples[0].tokens().id)[None].long()
                maps = whole.text_model(input_ids=ids, output_attentions=True).attentions
            else:
                pixels = loaded.images.pixels([store_example(tmp_path / "pictures" / "one.png")])
                maps = whole.vision_model(pixel_values=pixels, output_attentions=True).attentions
        np.testing.assert_allclose(store.examples[0].attention().values, torch.stack(maps)[:, 0].numpy(), atol=1e-5)


def test_every_part_that_is_not_read_is_named(tmp_path, tiny_folder):
    """FLAVA has a third part, which reads what the two towers return."""
    folder = tmp_path / "flava"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = transformers.FlavaConfig(
        text_config={**SIZES, "vocab_size": 64}, image_config={**SIZES, "image_size": 16, "patch_size": 8},
        multimodal_config={**SIZES, "num_hidden_layers": 1}, hidden_size=16, projection_dim=8,
    )  # fmt: skip
    transformers.FlavaModel(config).save_pretrained(folder)
    (row,) = load_model(str(folder)).left_out
    assert (row.n, row.names) == (2, ("image_model", "multimodal_model"))


def test_pruned_heads_are_refused_with_their_weights(tmp_path, tiny_folder):
    folder = tmp_path / "pruned"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.attention.self.query.weight"))
    shape = tuple(weights[name].shape)
    weights[name] = weights[name][: shape[0] // 2].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError) as refusal:
        load_model(str(folder))
    shapes = f"({shape[0] // 2}, {shape[1]}), expected ({shape[0]}, {shape[1]})"
    assert "1 weights have other shapes than config.json says" in str(refusal.value)
    assert f"self.query.weight: {shapes}" in str(refusal.value)
    assert "pruned" in str(refusal.value)


def test_a_pair_of_models_that_does_not_name_its_class_is_refused_in_one_line(tmp_path, tiny_folder):
    folder = tmp_path / "pair"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").write_text('{"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, "decoder": {"model_type": "bert"}}')  # fmt: skip
    with pytest.raises(ConfigError, match=r"EncoderDecoderConfig.*AutoModel") as refusal:
        load_model(str(folder))
    assert len(str(refusal.value)) < 300


def store_example(path):
    from headatlas.pipeline.corpora.examples import CorpusExample
    from headatlas.pipeline.corpora.image_files import read_image

    return CorpusExample("one", "", image=path, columns={"image_sha256": read_image(path)[1]})


def test_a_processor_of_other_sizes_is_named(towers, tmp_path):
    folder, _ = towers
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    transformers.ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(other)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "one.png")
    with pytest.raises(UnsupportedModelError, match=r"VisionModel cannot read the pixels .* \(3, 24, 24\)"):
        run_job(job_of(other, tmp_path, kind="images", path=str(tmp_path / "pictures")))


def test_an_encoder_that_was_saved_alone_is_loaded_alone(tmp_path, tiny_folder):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {"vocab_size": 64, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(folder)
    assert load_model(str(folder)).identity.architecture == "T5EncoderModel"


def test_block_sparse_attention_becomes_full_and_is_said(tmp_path, tiny_folder):
    folder = tmp_path / "big-bird"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    transformers.BigBirdModel(transformers.BigBirdConfig(**SIZES, vocab_size=64)).save_pretrained(folder)
    loaded = load_model(str(folder))
    assert loaded.notes == (
        "BigBirdModel was saved with block-sparse attention and runs with full attention (original_full)",
    )
    (tmp_path / "text.txt").write_text("the nurse\n", encoding="utf-8")
    job = parse_config(
        {
            "model": {"source": str(folder)}, "corpus": {"kind": "text", "path": str(tmp_path / "text.txt")},
            "store": {"path": str(tmp_path / "store")}, "keep": {"query_key": "none"}, "run": {"threads": 1},
        }
    )  # fmt: skip
    run_job(job)
    assert open_store(tmp_path / "store").manifest.provenance["model_changes"] == list(loaded.notes)


def test_a_text_model_reads_no_images(tiny_folder):
    with pytest.raises(ConfigError, match="BertModel reads no images; expected a vision model"):
        load_model(str(tiny_folder), images=True)


def test_an_image_model_reads_no_text(tmp_path, tiny_folder):
    folder = tmp_path / "vit"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r'ViTModel reads pixel_values, not text; .* set corpus.kind = "images"'):
        load_model(str(folder))
