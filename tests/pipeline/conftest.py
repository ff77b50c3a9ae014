"""Tiny random models of every architecture the capture must serve, and of those it must refuse."""

from __future__ import annotations

import pytest
import torch

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROPED = {
    **SMALL,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
BART = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
ONE_SIDED = {
    "bert": ("Bert", SMALL),
    "roberta": ("Roberta", {**SMALL, "pad_token_id": 0}),
    "electra": ("Electra", {**SMALL, "embedding_size": 32}),
    "distilbert": ("DistilBert", {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "albert": ("Albert", {**SMALL, "num_hidden_layers": 3, "embedding_size": 16}),
    "esm": ("Esm", {**SMALL, "pad_token_id": 0, "mask_token_id": 3, "position_embedding_type": "rotary"}),
    "modernbert": (
        "ModernBert",
        {**SMALL, "num_hidden_layers": 3, "local_attention": 4, "global_attn_every_n_layers": 3, "pad_token_id": 0},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2 scaled by layer": ("GPT2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2 upcast": ("GPT2", {**GPT2, "reorder_and_upcast_attn": True}),
    "gpt-neox": ("GPTNeoX", {**SMALL, "max_position_embeddings": 64}),
    "opt": (
        "OPT",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "pad_token_id": 0,
        },
    ),
    "llama": ("Llama", ROPED),
    "mistral": ("Mistral", {**ROPED, "sliding_window": 4}),
    "mixtral": ("Mixtral", {**ROPED, "num_local_experts": 2}),
    "qwen2": (
        "Qwen2",
        {**ROPED, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4, "layer_types": MIXED},
    ),
    "qwen3": ("Qwen3", {**ROPED, "head_dim": 8}),
    "phi": ("Phi", ROPED),
    "phi3": ("Phi3", ROPED),
    "olmo2": ("Olmo2", ROPED),
    "gemma2": (
        "Gemma2",
        {
            **ROPED,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 5.0,
            "sliding_window": 4,
            "layer_types": MIXED,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **ROPED,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 4,
            "layer_types": MIXED,
        },
    ),
    "gpt-oss": (
        "GptOss",
        {
            **ROPED,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "sliding_window": 4,
            "layer_types": MIXED,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **ROPED,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "clip text": ("CLIPText", {**SMALL, "max_position_embeddings": 64}),
}
TWO_SIDED = {
    "t5": (
        "T5",
        {
            "vocab_size": 61,
            "d_model": 32,
            "d_kv": 8,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "d_ff": 48,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("Bart", BART),
}
REFUSED = {
    "gpt-j": ("GPTJ", {**GPT2, "rotary_dim": 4}),
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "intermediate_size": 48,
        },
    ),
    "bloom": ("Bloom", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("Mpt", {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "deberta-v2": (
        "DebertaV2",
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    ),
    "mpnet": ("MPNet", SMALL),
    "xlnet": ("XLNet", {"vocab_size": 61, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "falcon": ("Falcon", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
}
PEAKED = {"t5": 2.0, "clip text": 4.0}
"""Their scores are not scaled: more would make softmax itself ill-conditioned."""
ALL = {**ONE_SIDED, **TWO_SIDED, **REFUSED}


def build_model(name: str):
    """A random model of one architecture, in evaluation mode, with attention far from uniform."""
    import transformers

    family, settings = ALL[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in parameter_name.lower():
                parameter.mul_(PEAKED.get(name, 8.0))  # attention far from uniform: differences show
            if "relative_attention_bias" in parameter_name or "sinks" in parameter_name:
                parameter.normal_()
    return model.eval()


def build_inputs(name: str, lengths=(9, 6, 3), target_lengths=(5, 7, 2)):
    """A right-padded batch of random tokens."""
    generator = torch.Generator().manual_seed(1)

    def side(lengths):
        ids = torch.randint(4, 60, (len(lengths), max(lengths)), generator=generator)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            mask[row, :length] = 1
        return ids * mask, mask

    ids, mask = side(lengths)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name in TWO_SIDED:
        ids, mask = side(target_lengths)
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return inputs


@pytest.fixture
def model_of():
    return build_model


@pytest.fixture
def inputs_of():
    return build_inputs


WORDS = [
    "the",
    "a",
    "nurse",
    "doctor",
    "said",
    "that",
    "she",
    "he",
    "would",
    "be",
    "late",
    "and",
    "left",
    "home",
    "early",
    "with",
    "his",
    "her",
    "old",
    "dog",
    "cat",
    "near",
    "tree",
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a tiny random BERT and a fast word tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    fast.save_pretrained(folder)
    model = build_model("bert")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_job(tiny_folder, tmp_path):
    """A job as a dictionary: 40 sentences of 1 to 13 words, in 5 segments."""
    generator = torch.Generator().manual_seed(5)
    lines = []
    for i in range(40):
        picked = torch.randint(0, len(WORDS), (1 + i * 7 % 13,), generator=generator).tolist()
        lines.append(" ".join(WORDS[k] for k in picked))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "model": {"source": str(tiny_folder)},
        "corpus": {"kind": "text", "path": str(corpus)},
        "store": {"path": str(tmp_path / "store"), "segment_examples": 8},
        "run": {"batch_size": 4, "threads": 1},
    }
