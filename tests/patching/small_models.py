"""Small models of random weights of the real classes of transformers, and single norms of each form."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers: Any = pytest.importorskip("transformers")

TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
LLM = TOKENS | SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 32}
HEADS = LLM | {"head_dim": 16}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 16}
LINEAR |= {"linear_value_head_dim": 16, "shared_expert_intermediate_size": 16}
LINEAR |= {"layer_types": ["linear_attention", "full_attention"]}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT |= {"num_experts_per_tok": 1, "moe_intermediate_size": 16, "num_key_value_heads": 2}
BERT = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
WHISPER = TOKENS | {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
WHISPER |= {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_target_positions": 16, "dropout": 0.0}
WHISPER |= {"num_mel_bins": 8, "max_source_positions": 6, "decoder_start_token_id": 1}

# The model, the sizes in its config, and how many norms there are in it.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama": ("LlamaForCausalLM", LLM, 5),
    "Mistral": ("MistralForCausalLM", LLM, 5),
    "Mixtral": ("MixtralForCausalLM", LLM | {"num_local_experts": 2, "num_experts_per_tok": 1}, 5),
    "Qwen2": ("Qwen2ForCausalLM", LLM, 5),
    "Qwen3": ("Qwen3ForCausalLM", HEADS, 9),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", HEADS | EXPERTS, 9),
    "Qwen3-Next": ("Qwen3NextForCausalLM", HEADS | EXPERTS | LINEAR, 8),
    "Gemma": ("GemmaForCausalLM", HEADS, 5),
    "Gemma2": ("Gemma2ForCausalLM", HEADS, 9),
    "Gemma3": ("Gemma3ForCausalLM", HEADS, 13),
    "Phi-3": ("Phi3ForCausalLM", LLM, 5),
    "OLMo2": ("Olmo2ForCausalLM", LLM, 9),
    "GLM-4": ("Glm4ForCausalLM", HEADS, 9),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", LLM | LATENT, 9),
    "T5": ("T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0}, 7),
    "GPT-2": ("GPT2LMHeadModel", GPT2, 5),
    "BERT": ("BertForMaskedLM", BERT | {"vocab_size": 96, "max_position_embeddings": 32}, 6),
    "ViT": ("ViTForImageClassification", BERT | {"image_size": 8, "patch_size": 4, "num_labels": 5}, 5),
    "Whisper": ("WhisperForConditionalGeneration", WHISPER, 7),
}
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)

# A class for each form that TABLE has.
FORMS = {
    "Llama": "transformers.models.llama.modeling_llama.LlamaRMSNorm",
    "Gemma": "transformers.models.gemma.modeling_gemma.GemmaRMSNorm",
    "OLMo2": "transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm",
    "T5": "transformers.models.t5.modeling_t5.T5LayerNorm",
    "Qwen3-Next gated": "transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated",
    "torch RMSNorm": "torch.nn.modules.normalization.RMSNorm",
    "torch LayerNorm": "torch.nn.modules.normalization.LayerNorm",
}
EACH_FORM = pytest.mark.parametrize("form", FORMS)
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def build(family: str) -> nn.Module:
    """A small model of a family; norm weights are random, so that a mistaken offset or a forgotten weight is seen."""
    name, sizes, _ = FAMILIES[family]
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**sizes))
    for module in norms(model):
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    return model.eval()


def enlarged(model: Any) -> Any:
    """With matrices ten times as large as by default: what is in the blocks then counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model


def norms(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if "norm" in type(module).__name__.lower() and list(module.children()) == []
    ]


def batch(family: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 96, (2, 4), generator=generator)
    if family == "ViT":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator), "labels": torch.tensor([1, 2])}
    if family == "Whisper":
        return {"input_features": torch.randn(2, 8, 12, generator=generator), "labels": ids}
    return {"input_ids": ids, "labels": ids}


def logits(model: nn.Module, family: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch(family)).logits
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


# fp32: both round at every step, in another order. 4e-7 is the largest difference seen, three of fp32's roundoffs.
LOGITS = 5e-6


COLS = 96


def norm_of(identity: str, dtype: torch.dtype = F32) -> nn.Module:
    module, name = identity.rsplit(".", 1)
    norm: nn.Module = getattr(importlib.import_module(module), name)(COLS, eps=1e-3)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return norm.to(dtype)


def arguments(identity: str, dtype: torch.dtype, rows: int = 8) -> list[Tensor]:
    """Rows from so small that eps matters to large, and a gate where there is one."""
    generator = torch.Generator().manual_seed(3)
    scales = torch.logspace(-3, 1, rows)[:, None]
    tensors = [scales * torch.randn(rows, COLS, generator=generator), 2 * torch.randn(rows, COLS, generator=generator)]
    return [tensor.to(dtype) for tensor in tensors[: 2 if identity.endswith("Gated") else 1]]
