"""Views of a traced model, and views of an executed notebook, in a browser."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from headatlas.store.reading.example import Example
from headatlas.viewer import head_view, model_view, neuron_view
from headatlas.viewer.frames.geometry import strongest_edges

from ..view_data import PATIENCE_S

TEXT, PAIR = "The nurse said that she would be late.", "She called the doctor."


@pytest.fixture(scope="module")
def traced(minilm_dir) -> Example:
    from transformers import AutoModel, AutoTokenizer

    from headatlas.pipeline import trace

    return trace(AutoModel.from_pretrained(minilm_dir), AutoTokenizer.from_pretrained(minilm_dir), TEXT, PAIR)


@pytest.mark.browser
def test_a_trace_goes_through_all_three_views(traced, opened):
    document = opened(head_view(traced, layer=4, heads=[7], html_action="return"))
    document.page.locator("select[data-control='range']").select_option(label="A \u2192 B")
    document.page.get_by_text("sentence A \u2192 sentence B").wait_for()
    tokens, maps = traced.tokens(), traced.attention(4, 7).values
    b = int(np.flatnonzero(tokens.second)[0])
    part = strongest_edges(maps[:b, b:], query_shown=~tokens.special[:b], key_shown=~tokens.special[b:])
    assert document.edges() == pytest.approx(
        {
            ("4.7", int(q), int(k) + b): float(w)
            for q, k, w in zip(part.query_pos, part.key_pos, part.weight, strict=True)
        },
        abs=1e-6,
    )
    document = opened(model_view(traced, html_action="return"))
    document.page.locator("[data-query]").first.wait_for()
    assert len(document.mirror("strongest cell of each head")) == 72
    document = opened(neuron_view(traced, 4, 7, query=3, html_action="return"))
    assert float(document.page.locator("[data-worst]").get_attribute("data-worst") or 1) < 1e-5


CELLS = [
    "import torch\nfrom transformers import AutoModel, AutoTokenizer\nfrom headatlas.pipeline import trace\n"
    "from headatlas.viewer import head_view, model_view, neuron_view",
    "model = AutoModel.from_pretrained(FOLDER, attn_implementation='eager')\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
    "inputs = tokenizer(TEXT, PAIR, return_tensors='pt')\nattention = model(**inputs, output_attentions=True).attentions\n"
    "tokens = tokenizer.convert_ids_to_tokens(inputs['input_ids'][0])\n"
    "sentence_b_start = inputs['token_type_ids'][0].tolist().index(1)",
    "head_view(attention, tokens, sentence_b_start)",
    "model_view(attention, tokens, sentence_b_start, html_action='return')",
    "neuron_view(trace(model, tokenizer, TEXT, PAIR), layer=2, head=5)",
]


@pytest.mark.browser
def test_a_notebook_runs_offline_and_its_views_respond(minilm_dir, repository, browser, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    kernel = tmp_path / "share" / "jupyter" / "kernels" / "here"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    path = [part for part in (str(Path(part).resolve()) for part in sys.path) if Path(part).is_dir()]
    for name, value in {
        "JUPYTER_PATH": str(tmp_path / "share" / "jupyter"), "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    constants = f"FOLDER, TEXT, PAIR = {str(minilm_dir)!r}, {TEXT!r}, {PAIR!r}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (constants, *CELLS)])
    nbclient.NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="here").execute()

    shown = [output["data"]["text/html"] for cell in notebook.cells[-3:] for output in cell.outputs if "data" in output]
    assert len(shown) == 3
    context = browser.new_context(offline=True)
    context.set_default_timeout(1000 * PATIENCE_S)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.set_content("<!doctype html>" + "".join(f"<section>{html}</section>" for html in shown))
    head, model, neuron = (page.locator("section").nth(i).frame_locator("iframe") for i in range(3))
    head.locator(".t[data-side='q'][data-index='2']").click()
    head.locator(".pinned .tok", has_text="nurse").wait_for()
    model.get_by_role("group", name="model view").focus()
    page.keyboard.press("ArrowDown")
    model.get_by_role("heading", name="Head 1.0").wait_for()
    neuron.locator("[data-zero]").first.click()
    neuron.get_by_text("1 changed").wait_for()
    assert float(neuron.locator("[data-worst]").get_attribute("data-worst") or 1) < 1e-5
    context.close()
    assert errors == []
