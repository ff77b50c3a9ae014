"""Total, direct and indirect effects: compared with a slow computation on single sequences, and wrong requests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from typer.testing import CliRunner

from headatlas.pipeline.commands.mediate import app
from headatlas.pipeline.config import parse_config
from headatlas.pipeline.interventions.mediation.continuation_sequences import PairColumns
from headatlas.pipeline.interventions.mediation.effects_map import effects_map
from headatlas.pipeline.interventions.mediation.mediated_effects import MediationRequest, mediate
from headatlas.pipeline.interventions.mediation.mediation_result import Mediation
from headatlas.store.errors import ConfigError, HeadAtlasError, UnsupportedModelError

NOUNS = ("nurse", "doctor", "dog", "cat", "tree", "home", "old")
CONTINUATIONS = (("would be late", "left"), ("left home early", "said that"), ("left", "would be late and left"))
SLOW = "slow_mediation_test"


def pair_rows() -> list[dict[str, object]]:
    """Return seven pairs, and four values of the pair column that cannot be used."""
    rows: list[dict[str, object]] = []
    for i, noun in enumerate(NOUNS):
        first, second = CONTINUATIONS[i % len(CONTINUATIONS)]
        rows += [
            {
                "text": f"the {noun} said that " * (1 + i % 2) + pronoun, "pair": noun, "variant": variant, "first": first,
                "second": second, "topic": i % 3,
            }
            for pronoun, variant in (("she", "female"), ("he", "male"))
        ]  # fmt: skip
    usual = {"first": "left", "second": "would be late"}
    return [
        *rows,
        {"text": "the nurse said that she", "pair": "alone", "variant": "female", **usual},
        {"text": "the nurse said that she", "pair": "longer", "variant": "female", **usual},
        {"text": "the old nurse said that he", "pair": "longer", "variant": "male", **usual},
        {"text": "the nurse said that she", "pair": "other", "variant": "female", **usual},
        {"text": "the nurse said that he", "pair": "other", "variant": "male", **usual, "second": "left"},
        {"text": "the nurse said that she", "pair": "silent", "variant": "female", "first": "left"},
        {"text": "the nurse said that he", "pair": "silent", "variant": "male", "first": "left"},
    ]


@pytest.fixture
def job_of(folder_of, tmp_path) -> Callable[[str], dict]:
    """Function that makes a job of a tiny random model over the pairs."""

    def make(name: str) -> dict:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows()))
        return {
            "model": {"source": str(folder_of(name))},
            "corpus": {"kind": "jsonl", "path": str(tmp_path / "pairs.jsonl")},
            "run": {"threads": 1},
        }

    return make


class SlowModel:
    """A model whose attention is computed from its definition on one sequence, with some weights exchanged."""

    def __init__(self, folder: str) -> None:
        transformers.AttentionInterface.register(SLOW, self._attend)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.model.set_attn_implementation(SLOW)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.exchanged: dict[tuple[int, int], torch.Tensor] = {}
        self.weights: list[torch.Tensor] = []

    def _attend(self, module, query, key, value, mask, scaling=None, **_options):
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        n = query.shape[2]
        scores = query @ key.transpose(-1, -2) * (scaling or 1 / math.sqrt(query.shape[-1]))
        weights = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(dim=-1)
        layer = len(self.weights)
        self.weights.append(weights.clone())
        for (changed_layer, head), other in self.exchanged.items():
            if changed_layer == layer:
                m = len(other)
                weights[0, head, :m, :m] = other
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def attention(self, text: str) -> list[torch.Tensor]:
        """Return the weights of every layer on a text."""
        self._run(self.tokenizer.encode(text))
        return [weights[0] for weights in self.weights]

    def _run(self, ids: list[int]) -> torch.Tensor:
        self.weights = []
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)

    def odds(self, text: str, first: str, second: str, exchanged: dict[tuple[int, int], torch.Tensor]) -> float:
        """Return y, with the weights of some heads over the text exchanged."""
        self.exchanged = exchanged
        probability = []
        for continuation in (first, second):
            before, ids = self.tokenizer.encode(text), self.tokenizer.encode(f"{text} {continuation}")
            logarithm = self._run(ids)
            steps = [float(logarithm[i - 1, ids[i]]) for i in range(len(before), len(ids))]
            probability.append(math.exp(sum(steps) / len(steps)))
        self.exchanged = {}
        return probability[1] / probability[0]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_effects_equal_a_slow_computation(job_of, name):
    job = job_of(name)
    result = mediate(parse_config(job), MediationRequest(n_controls=3))
    assert result is not None
    assert result.pair_ids == list(NOUNS)
    slow, rows = SlowModel(job["model"]["source"]), pair_rows()
    n_layers, n_heads = result.site.n_layers, result.site.n_heads
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    for i in (0, 1, 2):
        base, other = rows[2 * i], rows[2 * i + 1]
        first, second = str(base["first"]), str(base["second"])
        of_base, of_other = slow.attention(str(base["text"])), slow.attention(str(other["text"]))
        y = slow.odds(str(base["text"]), first, second, {})
        assert result.total[i] == pytest.approx(slow.odds(str(other["text"]), first, second, {}) / y - 1, abs=1e-5)
        for changed, indirect, direct in [
            (heads, result.indirect_of_all[i], result.direct_of_all[i]),
            *(
                (
                    [head for head in heads if head[0] == k],
                    result.indirect_of_layers[k, i],
                    result.direct_of_layers[k, i],
                )
                for k in range(n_layers)
            ),
            *(([head], result.indirect[h, i], result.direct[h, i]) for h, head in enumerate(heads)),
        ]:
            from_other = {(layer, head): of_other[layer][head] for layer, head in changed}
            from_base = {(layer, head): of_base[layer][head] for layer, head in changed}
            expected = slow.odds(str(base["text"]), first, second, from_other) / y - 1
            assert indirect == pytest.approx(expected, abs=1e-5)
            expected = slow.odds(str(other["text"]), first, second, from_base) / y - 1
            assert direct == pytest.approx(expected, abs=1e-5)
    assert np.abs(result.indirect).max() > 1e-3


def test_a_masked_model_scores_a_continuation_token_by_token(job_of, tiny_folder, tmp_path):
    """The total effect on BERT: each token is predicted in place of a mask after the tokens before it."""
    folder = tmp_path / "masked"
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(tiny_folder)).eval()
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(folder)
    job = {**job_of("gpt2"), "model": {"source": str(folder)}}
    result = mediate(parse_config(job), MediationRequest(n_controls=3))
    assert result is not None

    def log_probability(text: str, continuation: str) -> float:
        before, ids = tokenizer.encode(text)[:-1], tokenizer.encode(f"{text} {continuation}")
        steps = []
        for i in range(len(before), len(ids) - 1):
            with torch.no_grad():
                masked = [*ids[:i], tokenizer.mask_token_id, ids[-1]]
                logits = model(torch.tensor([masked])).logits[0, -2]
            steps.append(float(logits.log_softmax(dim=-1)[ids[i]]))
        return sum(steps) / len(steps)

    rows = pair_rows()
    for i in range(len(NOUNS)):
        ratios = [
            log_probability(str(row["text"]), str(row["second"])) - log_probability(str(row["text"]), str(row["first"]))
            for row in rows[2 * i : 2 * i + 2]
        ]
        assert result.total[i] == pytest.approx(math.expm1(ratios[1] - ratios[0]), abs=1e-5)
    assert np.isfinite(result.indirect).all()
    assert np.abs(result.indirect).max() > 0


def test_pairs_that_cannot_be_used_are_counted(job_of):
    result = mediate(parse_config(job_of("gpt2")), MediationRequest(n_controls=3))
    assert result is not None
    assert result.left_out == {
        "without a text of the other variant": 1,
        "texts with different numbers of tokens": 1,
        "texts without the same second": 2,
    }
    assert result.between == ("female", "male")
    assert "2 pairs left out: texts without the same second." in result.remarks()


def test_the_other_direction_has_other_effects(job_of):
    job = parse_config(job_of("gpt2"))
    there = mediate(job, MediationRequest(n_controls=3))
    back = mediate(job, MediationRequest(PairColumns(between=("male", "female")), n_controls=3))
    assert there is not None
    assert back is not None
    np.testing.assert_allclose((1 + there.total) * (1 + back.total), 1, rtol=1e-5)


def test_the_quantile_keeps_pairs_whose_odds_rise(job_of):
    job = parse_config(job_of("gpt2"))
    everything = mediate(job, MediationRequest(n_controls=3))
    kept = mediate(job, MediationRequest(above_quantile=0.25, n_controls=3))
    assert everything is not None
    assert kept is not None
    rising = 1 + everything.total
    threshold = np.quantile(rising[rising > 1], 0.25)
    assert kept.threshold == pytest.approx(threshold)
    assert kept.pair_ids == [name for name, odds in zip(NOUNS, rising, strict=True) if odds > threshold]
    assert (kept.n_loaded, kept.n_aligned) == (7, int((rising > 1).sum()))
    np.testing.assert_allclose(kept.total, [t for t in everything.total if 1 + t > threshold], atol=1e-6)
    with pytest.raises(ConfigError, match="no pair is above the quantile 1 of"):
        mediate(job, MediationRequest(above_quantile=1.0))


def test_estimates_are_marked_and_compared(job_of):
    job = parse_config(job_of("gpt2"))
    exact = mediate(job, MediationRequest(n_controls=3))
    result = mediate(job, MediationRequest(estimate=True, n_exact=3, n_controls=3))
    assert exact is not None
    assert result is not None
    assert result.is_exact.sum() == 3
    # three heads form other batches than all heads, so the last bits differ
    np.testing.assert_allclose(result.indirect[result.is_exact], exact.indirect[result.is_exact], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.direct[result.is_exact], exact.direct[result.is_exact], rtol=1e-5, atol=1e-5)
    means = result.indirect.mean(axis=1), exact.indirect.mean(axis=1)
    assert np.corrcoef(*means)[0, 1] > 0.9
    assert result.table()["estimated"].tolist().count(True) == len(means[0]) - 3
    assert any("those marked ~ are estimated" in line for line in result.remarks())


def test_units_default_to_pairs_and_follow_a_column(job_of):
    job = parse_config(job_of("gpt2"))
    result = mediate(job, MediationRequest(n_controls=3))
    by_topic = mediate(job, MediationRequest(n_controls=3, unit="topic"))
    assert result is not None
    assert by_topic is not None
    assert (result.unit, result.evidence.n_units) == ("pair", 7)
    assert (by_topic.unit, by_topic.evidence.n_units) == ("topic", 3)
    topics = [by_topic.total[t::3].mean() for t in range(3)]
    assert by_topic.mean(by_topic.total).effect == pytest.approx(np.mean(topics))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (PairColumns(pair="person"), "the corpus has no column 'person'"),
        (PairColumns(continuations=("first", "third")), "the corpus has no column 'third'"),
        (PairColumns(variant="topic"), "topic has the values 0, 1, 2, None; expected two of them: --between A B"),
        (PairColumns(between=("female", "neutral")), "variant has the values female, male; expected two of them"),
    ],
)
def test_columns_that_make_no_pairs_are_refused(job_of, columns, message):
    with pytest.raises(ConfigError, match=message):
        mediate(parse_config(job_of("gpt2")), MediationRequest(columns))


@pytest.mark.parametrize("name", ["t5", "bloom"])
def test_other_models_are_refused(job_of, name):
    with pytest.raises(UnsupportedModelError):
        mediate(parse_config(job_of(name)), MediationRequest())


@pytest.fixture
def job_file(job_of, tmp_path):
    """Write the job of a GPT-2 to a file."""
    job = job_of("gpt2")
    path = tmp_path / "job.toml"
    lines = [f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in job[section].items()) for section in job]
    path.write_text("\n".join(lines))
    return path


def test_the_command(job_file, tmp_path):
    runner = CliRunner()
    arguments = [str(job_file), "--between", "female", "male", "--controls", "3", "--quiet"]
    outputs = ["--out", str(tmp_path / "pairs.csv"), "--figure", str(tmp_path / "map.svg")]
    result = runner.invoke(app, [*arguments, *outputs, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["mediation"]["pairs"] == 7
    assert {"effect", "low", "high"} == set(answer["mediation"]["total"])
    effects = [row["indirect"] for row in answer["heads"]]
    assert effects == sorted(effects, reverse=True)
    table = pd.read_csv(tmp_path / "pairs.csv")
    layers = [row["layer"] for row in answer["layers"]]
    assert layers == sorted(layers)
    assert len(table) == 7 * (1 + len(layers) + len(effects))
    indirect = table["indirect"].to_numpy()[table["heads"].to_numpy() == "all"].mean()
    assert indirect == pytest.approx(answer["mediation"]["indirect"]["effect"])
    svg = (tmp_path / "map.svg").read_text()
    assert svg.count("<title>") == len(effects)
    shown = runner.invoke(app, [*arguments, "--top", "2"])
    assert "all heads" in shown.stdout
    assert "layer 1" in shown.stdout
    by_layer = runner.invoke(app, [*arguments, "--csv", "--table", "layers"])
    assert by_layer.stdout.splitlines()[0].startswith("layer,indirect,indirect_low")
    planned = runner.invoke(app, [*arguments[:-1], "--plan"])
    assert "7 pairs; " in planned.stderr
    assert "about" in planned.stderr
    assert not planned.stdout
    with pytest.raises(HeadAtlasError, match="expected two columns"):
        runner.invoke(app, [*arguments, "--continuations", "first"], catch_exceptions=False)


def test_the_map_rings_heads_that_matter(job_of):
    result = mediate(parse_config(job_of("gpt2")), MediationRequest(n_controls=3))
    assert isinstance(result, Mediation)
    svg = effects_map(result)
    assert svg.count('stroke="#111"') == int(result.evidence.matters.sum())
