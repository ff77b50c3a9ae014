"""Tiny random configurations of the architectures that the capture must serve or refuse.

The tests and docs/models.md use the same table, so a test covers everything that the page promises. `tiny_models` builds
the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

InputKind = Literal["text", "two texts", "text after states", "image", "sound"]


@dataclass(frozen=True)
class Architecture:
    """Recipe of one model: ``transformers.{family}{head}`` of ``{family}Config(**settings)``.

    `kind` is the kind of its inputs. "text after states" is a text that attends to given encoder states. `peak`
    multiplies the matrices of the model, so that attention is far from uniform and differences become visible. It is
    smaller if scores are not scaled: a larger value would make the softmax itself ill-conditioned.
    """

    family: str
    settings: dict[str, Any]
    kind: InputKind = "text"
    peak: float = 8.0
    head: str = "Model"


N_FRAMES = 12
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
XLM = {"vocab_size": 61, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_langs": 1}
IMAGE = {**{name: value for name, value in SMALL.items() if name != "vocab_size"}, "image_size": 8, "patch_size": 4}
SERVED: dict[str, Architecture] = {
    "bert": Architecture("Bert", SMALL),
    "roberta": Architecture("Roberta", {**SMALL, "pad_token_id": 0}),
    "mobilebert": Architecture(
        "MobileBert", {**SMALL, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
    ),
    "electra": Architecture("Electra", {**SMALL, "embedding_size": 32}),
    "distilbert": Architecture(
        "DistilBert", {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    ),
    "albert": Architecture("Albert", {**SMALL, "num_hidden_layers": 3, "embedding_size": 16}),
    "esm": Architecture("Esm", {**SMALL, "pad_token_id": 0, "mask_token_id": 3, "position_embedding_type": "rotary"}),
    "modernbert": Architecture(
        "ModernBert",
        {**SMALL, "num_hidden_layers": 3, "local_attention": 4, "global_attn_every_n_layers": 3, "pad_token_id": 0},
    ),
    "gpt2": Architecture("GPT2", GPT2),
    "gpt2 scaled by layer": Architecture("GPT2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2 upcast": Architecture("GPT2", {**GPT2, "reorder_and_upcast_attn": True}),
    "gpt-neox": Architecture("GPTNeoX", {**SMALL, "max_position_embeddings": 64}),
    "opt": Architecture(
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
    "llama": Architecture("Llama", ROPED),
    "llama4": Architecture(
        "Llama4Text",
        {
            **ROPED,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "attention_chunk_size": 4,
            "no_rope_layers": [1, 1, 0],
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "mistral": Architecture("Mistral", {**ROPED, "sliding_window": 4}),
    "mixtral": Architecture("Mixtral", {**ROPED, "num_local_experts": 2}),
    "qwen2": Architecture(
        "Qwen2",
        {**ROPED, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4, "layer_types": MIXED},
    ),
    "qwen3": Architecture("Qwen3", {**ROPED, "head_dim": 8}),
    "phi": Architecture("Phi", ROPED),
    "phi3": Architecture("Phi3", ROPED),
    "olmo2": Architecture("Olmo2", ROPED),
    "gemma2": Architecture(
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
    "gemma3": Architecture(
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
    "gpt-oss": Architecture(
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
    "deepseek-v3": Architecture(
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
    "clip text": Architecture("CLIPText", {**SMALL, "max_position_embeddings": 64}, peak=4.0),
    "bert decoder": Architecture(
        "Bert", {**SMALL, "is_decoder": True, "add_cross_attention": True}, kind="text after states"
    ),
    "nomicbert": Architecture("NomicBert", {**SMALL, "max_position_embeddings": 64, "pad_token_id": 0}),
    "xlm-roberta": Architecture("XLMRoberta", {**SMALL, "pad_token_id": 0}),
    "vit": Architecture("ViT", {**IMAGE, "qkv_bias": True}, kind="image"),
    "clip vision": Architecture("CLIPVision", IMAGE, kind="image"),
    "dinov2": Architecture("Dinov2", IMAGE, kind="image"),
    "gemma": Architecture("Gemma", {**ROPED, "head_dim": 8}),
    "granite": Architecture("Granite", {**ROPED, "attention_multiplier": 0.2}),
    "starcoder2": Architecture("Starcoder2", {**ROPED, "sliding_window": 4}),
    "stablelm": Architecture("StableLm", ROPED),
    "smollm3": Architecture("SmolLM3", ROPED),
    "glm": Architecture("Glm", {**ROPED, "head_dim": 8}),
    "t5": Architecture(
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
        kind="two texts",
        peak=2.0,
    ),
    "encoder-decoder": Architecture(
        "EncoderDecoder",
        {
            "encoder": {**SMALL, "model_type": "bert"},
            "decoder": {
                **SMALL,
                "model_type": "gpt2",
                "n_layer": 3,
                "n_embd": 32,
                "n_head": 4,
                "add_cross_attention": True,
            },
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
        kind="two texts",
    ),
    "bart": Architecture("Bart", BART, kind="two texts"),
    "mbart": Architecture("MBart", BART, kind="two texts"),
    "whisper": Architecture(
        "Whisper",
        {**BART, "num_mel_bins": 6, "max_source_positions": N_FRAMES // 2, "max_target_positions": 64},
        kind="sound",
    ),
}
"""Architectures that are captured through transformers' attention interface."""

_LINEAR = {
    **ROPED, "num_hidden_layers": 4, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_FOUR = {**ROPED, "num_hidden_layers": 4}

HYBRIDS: dict[str, Architecture] = {
    "lfm2": Architecture("Lfm2", {**_FOUR, "layer_types": ["conv", "full_attention"] * 2}),
    "lfm2-moe": Architecture(
        "Lfm2Moe", {**_FOUR, **_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2}
    ),
    "qwen3-next": Architecture("Qwen3Next", {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3.5": Architecture("Qwen3_5Text", _LINEAR),
    "olmo-hybrid": Architecture("OlmoHybrid", {**_LINEAR, "linear_num_key_heads": 4}),
    "minimax": Architecture(
        "MiniMax",
        {
            **_FOUR,
            "head_dim": 8,
            "layer_types": _LINEAR["layer_types"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "granite-moe-hybrid": Architecture(
        "GraniteMoeHybrid",
        {
            **_FOUR,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 0,
            "shared_intermediate_size": 32,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.3,
        },
    ),
    "jamba": Architecture(
        "Jamba",
        {
            **_FOUR,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": Architecture("Bamba", {**_FOUR, **_MAMBA, "attn_layer_indices": [1, 3]}),
    "zamba2": Architecture(
        "Zamba2",
        {
            **_FOUR,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "num_mem_blocks": 1,
            "adapter_rank": 4,
        },
    ),
    "nemotron-h": Architecture(
        "NemotronH",
        {
            **ROPED,
            **_EXPERTS,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "attention", "moe", "attention"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    "falcon-h1": Architecture("FalconH1", {**ROPED, **_MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4, "head_dim": 8}),
    "recurrent-gemma": Architecture(
        "RecurrentGemma",
        {
            **_FOUR,
            "lru_width": 32,
            "block_types": ["recurrent", "attention"],
            "head_dim": 8,
            "attention_window_size": 4,
        },
        peak=3.0,
    ),
    "gemma4": Architecture(
        "Gemma4Text",
        {
            **ROPED,
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 61,
        },
    ),
}
"""Architectures in which layers differ: some have no attention, or heads of another size."""

TASK_HEADS: dict[str, Architecture] = {
    f"bert, {task}": Architecture("Bert", SMALL, head=head)
    for task, head in (
        ("classifier", "ForSequenceClassification"),
        ("multiple choice", "ForMultipleChoice"),
        ("next sentence", "ForNextSentencePrediction"),
        ("question answering", "ForQuestionAnswering"),
        ("token classifier", "ForTokenClassification"),
    )
} | {
    "llama, classifier": Architecture("Llama", ROPED, head="ForSequenceClassification"),
    "bart, classifier": Architecture("Bart", BART, kind="two texts", head="ForSequenceClassification"),
}
"""Models with a task head. They run without it."""

TOWERS: dict[str, Architecture] = {
    "siglip text": Architecture("SiglipText", {**SMALL, "max_position_embeddings": 64}, peak=1.5),
    "siglip vision": Architecture(
        "SiglipVision",
        {**{name: SMALL[name] for name in SMALL if name != "vocab_size"}, "image_size": 16, "patch_size": 4},
        kind="image",
        peak=1.5,
    ),
}
"""Towers of a model that compares texts with images, and models of which a part is outside the interface."""
SERVED |= HYBRIDS | TOWERS | TASK_HEADS
SERVED["longt5"] = Architecture(
    "LongT5",
    {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4},
    kind="two texts",
    peak=1.5,
)

EITHER: dict[str, Architecture] = {
    "gpt-j": Architecture("GPTJ", {**GPT2, "rotary_dim": 4}),
    "codegen": Architecture("CodeGen", {**GPT2, "rotary_dim": 4}),
}
"""Through the interface from transformers 5.24 on, in eager mode before. The capture finds out by running the model."""

EAGER: dict[str, Architecture] = {
    "gpt-neo": Architecture(
        "GPTNeo",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "intermediate_size": 48,
        },
    ),
    "bloom": Architecture("Bloom", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": Architecture("Mpt", {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "deberta-v2": Architecture(
        "DebertaV2",
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    ),
    "mpnet": Architecture("MPNet", SMALL),
    "xlnet": Architecture("XLNet", {"vocab_size": 61, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "falcon": Architecture(
        "Falcon", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ),
    "deberta": Architecture(
        "Deberta", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}
    ),
    "openai-gpt": Architecture("OpenAIGPT", {name: value for name, value in GPT2.items() if not name.endswith("_id")}),
    "xlm": Architecture("XLM", XLM),
    "flaubert": Architecture("Flaubert", XLM),
    "convbert": Architecture("ConvBert", {**SMALL, "embedding_size": 32}),
    "xglm": Architecture(
        "XGLM", {"vocab_size": 61, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}
    ),
    "big bird, full": Architecture("BigBird", {**SMALL, "attention_type": "original_full"}),
}
"""Architectures that compute attention elsewhere; the maps that they return are captured in eager mode."""

REFUSED: dict[str, Architecture] = {
    "longformer": Architecture("Longformer", {**SMALL, "attention_window": 4, "pad_token_id": 0}),
    "led": Architecture(
        "LED",
        {
            **{name: value for name, value in BART.items() if name != "max_position_embeddings"},
            "attention_window": 4,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
        kind="two texts",
    ),
    "prophetnet": Architecture(
        "ProphetNet",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 3,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 0,
        },
        kind="two texts",
    ),
    "funnel": Architecture(
        "Funnel", {"vocab_size": 61, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]}
    ),
    "squeezebert": Architecture("SqueezeBert", {**SMALL, "embedding_size": 32}),
    "fnet": Architecture("FNet", SMALL),
    "mamba": Architecture("Mamba", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}),
    "canine": Architecture(
        "Canine",
        {
            **{name: value for name, value in SMALL.items() if name != "vocab_size"},
            "num_hash_functions": 4,
            "num_hash_buckets": 64,
            "local_transformer_stride": 8,
            "downsampling_rate": 2,
            "upsampling_kernel_size": 2,
        },
    ),
}
"""Architectures that are refused with a message, because neither way gives one map for each head."""

ARCHITECTURES = {**SERVED, **EITHER, **EAGER, **REFUSED}
