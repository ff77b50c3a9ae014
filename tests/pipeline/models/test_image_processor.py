"""Images in a tiny vision transformer: patches are tokens, and the store refers to the image file."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from headatlas.pipeline.config import parse_config
from headatlas.pipeline.corpora.corpus import read_corpus
from headatlas.pipeline.corpora.corpus_options import ImageCorpus
from headatlas.pipeline.corpora.examples import CorpusExample
from headatlas.pipeline.interventions.head_effects import intervene
from headatlas.pipeline.job.job_runner import run_job
from headatlas.pipeline.models.image_processor import load_image_reader
from headatlas.pipeline.models.model_folder import ModelFolder
from headatlas.store.errors import ConfigError
from headatlas.store.store import open_store
from tools.tiny_models import build_model


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    from transformers import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("model") / "tiny-vit"
    model = build_model("vit")
    model.save_pretrained(folder)
    size = model.config.image_size
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Folder with four images in two subfolders, one of them damaged, and a text file."""
    dice = np.random.default_rng(2)
    folder = tmp_path / "pictures"
    for name in ("cats/b.png", "cats/a.jpg", "dogs/a.webp", "dogs/broken.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, (20, 31, 3), dtype=np.uint8)).save(path)
    broken = folder / "dogs" / "broken.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (folder / "notes.txt").write_text("nothing", encoding="utf-8")
    return folder


def job_of(vit_folder, corpus, tmp_path, **keep):
    sections = {"model": {"source": str(vit_folder)}, "corpus": {"kind": "images", "path": str(corpus)}, "keep": keep}
    return parse_config({**sections, "store": {"path": str(tmp_path / "store")}, "run": {"threads": 1}})


def test_patches_are_tokens(vit_folder, pictures, tmp_path):
    report = run_job(job_of(vit_folder, pictures, tmp_path))
    assert (report.n_examples, report.n_quarantined) == (3, 1)
    store = open_store(tmp_path / "store")
    assert store.example_ids() == ["cats/a", "cats/b", "dogs/a"]
    model = AutoModel.from_pretrained(vit_folder, attn_implementation="eager").eval()
    reader = load_image_reader(ModelFolder(vit_folder, "vit"), model)
    records = [record for record in read_corpus(ImageCorpus(path=pictures)) if isinstance(record, CorpusExample)]
    n_side = model.config.image_size // model.config.patch_size
    for example, record in zip(store.examples, records, strict=True):
        name = example.columns["image"]
        assert name == example.text
        assert example.columns["image_sha256"] == hashlib.sha256((pictures / str(name)).read_bytes()).hexdigest()
        assert (example.columns["width"], example.columns["height"]) == (31, 20)
        assert example.columns["folder"] == Path(str(name)).parent.name
        tokens = example.tokens()
        grid_columns = [tokens.columns[axis].to_list() for axis in ("row", "column")]
        assert grid_columns[0] == [-1, *(row for row in range(n_side) for _ in range(n_side))]
        assert grid_columns[1] == [-1, *(column for _ in range(n_side) for column in range(n_side))]
        assert tokens.text[:3] == ["[CLS]", "0,0", "0,1"]
        assert tokens.special.tolist() == [True] + [False] * n_side**2
        with torch.no_grad():
            maps = model(pixel_values=reader.pixels([record]), output_attentions=True).attentions
        np.testing.assert_allclose(example.attention().values, torch.stack(maps)[:, 0].numpy(), atol=0.004)
    # A pattern over patches: attention within one row of the image.
    assert float(store.search("key.row == query.row and key.column != query.column").heads["mass"].min()) > 0


def test_a_list_names_images_and_the_job_is_resumed(vit_folder, pictures, tmp_path):
    listed = pictures / "list.txt"
    listed.write_text("dogs/a.webp\ncats/missing.png\n\ncats/b.png\n", encoding="utf-8")
    job = job_of(vit_folder, listed, tmp_path)
    report = run_job(job)
    assert (report.n_examples, report.n_quarantined) == (2, 1)
    store = open_store(tmp_path / "store")
    assert store.example_ids() == ["dogs/a", "cats/b"]
    (gone,) = store.manifest.provenance["quarantined"]
    assert (gone["line"], gone["reason"].partition(":")[0]) == (2, "cats/missing.png")
    assert run_job(job).n_segments_written == 0
    Image.new("RGB", (9, 9)).save(pictures / "dogs" / "a.webp")
    with pytest.raises(ConfigError, match=r"corpus.sha256"):
        run_job(job)


def test_what_cannot_be_read_is_explained(vit_folder, tiny_folder, pictures, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="BertModel reads no images"):
        run_job(job_of(tiny_folder, pictures, tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="a folder without images"):
        run_job(job_of(vit_folder, tmp_path / "empty", tmp_path))
    model = AutoModel.from_pretrained(vit_folder).eval()
    reader = load_image_reader(ModelFolder(vit_folder, "vit"), model)
    record = next(record for record in read_corpus(ImageCorpus(path=pictures)) if isinstance(record, CorpusExample))
    (pictures / "cats" / "a.jpg").write_bytes((pictures / "cats" / "b.png").read_bytes())
    with pytest.raises(ConfigError, match="the file changed since the corpus was read"):
        reader.pixels([record])
    monkeypatch.setitem(sys.modules, "PIL", None)
    for attempt in (
        lambda: list(read_corpus(ImageCorpus(path=pictures))),
        lambda: load_image_reader(ModelFolder(vit_folder, "vit"), model),
    ):
        with pytest.raises(
            ConfigError, match=r"needs Pillow, which is not installed; pip install 'headatlas\[images\]'"
        ):
            attempt()


def test_heads_of_an_image_model_are_changed(vit_folder, pictures, tmp_path, monkeypatch):
    """The effect on the mean of the last hidden state, beside a hook on the output projection."""
    monkeypatch.setenv("HEADATLAS_CACHE_DIR", str(tmp_path / "cache"))
    job = job_of(vit_folder, pictures, tmp_path)
    result = intervene(job, heads="1.2", n_controls=2)
    assert result.measure == "embedding"
    model = AutoModel.from_pretrained(vit_folder).eval()
    reader = load_image_reader(ModelFolder(vit_folder, "vit"), model)
    examples = [record for record in read_corpus(job.corpus) if isinstance(record, CorpusExample)]
    pixels = reader.pixels(examples[:1])
    d_head = model.config.hidden_size // model.config.num_attention_heads
    projection = model.get_submodule("layers.1.attention.o_proj")
    with torch.no_grad():
        before = model(pixel_values=pixels).last_hidden_state[0].mean(dim=0)

        def hook(_module, arguments):
            outputs = arguments[0].clone()
            outputs[..., 2 * d_head : 3 * d_head] = 0
            return (outputs,)

        handle = projection.register_forward_pre_hook(hook)
        after = model(pixel_values=pixels).last_hidden_state[0].mean(dim=0)
        handle.remove()
    expected = 1 - float(torch.cosine_similarity(before.double(), after.double(), dim=0))
    assert result.effects[0, 0] == pytest.approx(expected, abs=1e-5)
