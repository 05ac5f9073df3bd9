"""The norms of PyTorch and transformers that `patch_model` knows, one line a class, and what each computes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from norm_fusion.ops.composition import composition
from norm_fusion.ops.norm import EPS, Norm, Operands


class Form(NamedTuple):
    """What the forward of a class computes, over the last dimension, in fp32 but for the roundings named here.

    `takes` and `eps` are the names of its argument and of its attribute. `rounds`: the dtype to which the normalized
    input is rounded before it is multiplied. `out`: the output's dtype; "wider" is input's and weight's, promoted.
    """

    kind: Literal["rms", "gated rms", "torch's rms", "torch's layer"]
    takes: Literal["hidden_states", "x", "input"]
    eps: str
    offset: float = 0.0
    rounds: Literal["nothing", "input", "weight"] = "nothing"
    out: Literal["input", "wider", "weight"] = "input"


# weight * h.to(input)
LLAMA = Form("rms", "hidden_states", "variance_epsilon", rounds="input", out="wider")
# (h * (1 + weight)).type_as(input)
GEMMA = Form("rms", "x", "eps", offset=1.0)
# (weight * h).to(input)
OLMO2 = Form("rms", "hidden_states", "variance_epsilon")
# weight * h.to(weight) where the weight has 16 bits, weight * h where it has 32. Of an input in another dtype than the
# weight's the kernel rounds the product alone: nearer to the exact one, and up to 2 ulp from T5's. fp16 checkpoints of
# T5 run so: wo is kept in fp32, and with it the residual stream.
T5 = Form("rms", "hidden_states", "variance_epsilon", rounds="weight", out="weight")
# (weight * h.to(input) * silu(gate)).to(input)
QWEN_GATED = Form("gated rms", "hidden_states", "variance_epsilon", rounds="input")
TORCH_RMS = Form("torch's rms", "x", "eps")
TORCH_LAYER = Form("torch's layer", "input", "eps")
TORCHS = (TORCH_RMS.kind, TORCH_LAYER.kind)

# One line a class, as transformers 5.23 has them; tests/patching compares each with the installed one.
TABLE: Mapping[str, Form] = {
    "torch.nn.modules.normalization.LayerNorm": TORCH_LAYER,  # GPT-2, BERT, ViT, Whisper and most others
    "torch.nn.modules.normalization.RMSNorm": TORCH_RMS,
    "transformers.models.deepseek_v2.modeling_deepseek_v2.DeepseekV2RMSNorm": LLAMA,
    "transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3RMSNorm": LLAMA,
    "transformers.models.deepseek_v32.modeling_deepseek_v32.DeepseekV32RMSNorm": LLAMA,
    "transformers.models.flex_olmo.modeling_flex_olmo.FlexOlmoRMSNorm": OLMO2,
    "transformers.models.gemma.modeling_gemma.GemmaRMSNorm": GEMMA,
    "transformers.models.gemma2.modeling_gemma2.Gemma2RMSNorm": GEMMA,
    "transformers.models.gemma3.modeling_gemma3.Gemma3RMSNorm": GEMMA,
    "transformers.models.glm.modeling_glm.GlmRMSNorm": LLAMA,
    "transformers.models.glm4.modeling_glm4.Glm4RMSNorm": LLAMA,
    "transformers.models.glm4_moe.modeling_glm4_moe.Glm4MoeRMSNorm": LLAMA,
    "transformers.models.gpt_oss.modeling_gpt_oss.GptOssRMSNorm": OLMO2,
    "transformers.models.granite.modeling_granite.GraniteRMSNorm": LLAMA,
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": LLAMA,
    "transformers.models.longt5.modeling_longt5.LongT5LayerNorm": T5,
    "transformers.models.ministral.modeling_ministral.MinistralRMSNorm": LLAMA,
    "transformers.models.ministral3.modeling_ministral3.Ministral3RMSNorm": LLAMA,
    "transformers.models.mistral.modeling_mistral.MistralRMSNorm": LLAMA,
    "transformers.models.mistral3.modeling_mistral3.Mistral3RMSNorm": LLAMA,
    "transformers.models.mixtral.modeling_mixtral.MixtralRMSNorm": LLAMA,
    "transformers.models.mllama.modeling_mllama.MllamaTextRMSNorm": LLAMA,
    "transformers.models.mt5.modeling_mt5.MT5LayerNorm": T5,
    "transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm": OLMO2,
    "transformers.models.olmo3.modeling_olmo3.Olmo3RMSNorm": OLMO2,
    "transformers.models.olmoe.modeling_olmoe.OlmoeRMSNorm": LLAMA,
    "transformers.models.phi3.modeling_phi3.Phi3RMSNorm": LLAMA,
    "transformers.models.phi4_multimodal.modeling_phi4_multimodal.Phi4MultimodalRMSNorm": LLAMA,
    "transformers.models.pixtral.modeling_pixtral.PixtralRMSNorm": LLAMA,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": LLAMA,
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm": LLAMA,
    "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeRMSNorm": LLAMA,
    "transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLRMSNorm": LLAMA,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": LLAMA,
    "transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5RMSNorm": GEMMA,
    "transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5RMSNormGated": QWEN_GATED,
    "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeRMSNorm": GEMMA,
    "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeRMSNormGated": QWEN_GATED,
    "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeRMSNorm": LLAMA,
    "transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextRMSNorm": GEMMA,
    "transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated": QWEN_GATED,
    "transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLTextRMSNorm": LLAMA,
    "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeTextRMSNorm": LLAMA,
    "transformers.models.seed_oss.modeling_seed_oss.SeedOssRMSNorm": LLAMA,
    "transformers.models.smollm3.modeling_smollm3.SmolLM3RMSNorm": LLAMA,
    "transformers.models.t5.modeling_t5.T5LayerNorm": T5,
    "transformers.models.t5gemma.modeling_t5gemma.T5GemmaRMSNorm": GEMMA,
    "transformers.models.umt5.modeling_umt5.UMT5LayerNorm": T5,
    "transformers.models.vaultgemma.modeling_vaultgemma.VaultGemmaRMSNorm": GEMMA,
}


def options(form: Form, module: Any, x: Tensor) -> dict[str, Any]:
    """The keywords with which `functional` computes what a module of transformers, of this form, does to `x`.

    out_dtype is given even where it is the input's: autocast changes the dtypes of torch's functions, and of none of
    those that Hugging Face's norms are made of.
    """
    given, weight = x.dtype, module.weight.dtype
    out = given if form.out == "input" else weight if form.out == "weight" else torch.promote_types(given, weight)
    return {
        "weight": module.weight,
        "eps": getattr(module, form.eps),
        "offset": form.offset,
        "cast_first": form.rounds == "input" or (form.rounds == "weight" and given == weight),
        "out_dtype": out,
    }


def is_as_known(module: Any, form: Form) -> bool:
    """Does a module compute what its form says? Tried on two rows, on the CPU.

    TABLE was made from one version of transformers; in another a class of the same name may compute something else, and
    any class's forward may have been replaced. The module's own weights are not touched: they may be large, sharded or
    on the meta device.
    """
    cls: Any = type(module)
    probe: Any = object.__new__(cls)  # cls.__new__ of the classes that fully_shard makes calls __init__
    nn.Module.__init__(probe)
    vars(probe).update({name: value for name, value in vars(module).items() if not name.startswith("_")})
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    with _disable_current_modes(), torch.no_grad():
        shape = module.normalized_shape if form.kind in TORCHS else module.weight.shape
        for label in ("weight", "bias"):
            if hasattr(module, label):
                there = getattr(module, label) is not None
                setattr(probe, label, nn.Parameter(draw(shape)) if there else None)
        x = draw(2, *shape)
        x[1] *= (getattr(module, form.eps) or EPS) ** 0.5  # where eps counts
        gate = draw(2, *shape) if form.kind == "gated rms" else None
        try:
            found = cls.forward(probe, x) if gate is None else cls.forward(probe, x, gate)
        except Exception:  # noqa: BLE001 - a forward that takes something else is not the known one
            return False
        expected = _expected(form, probe, x, gate)
        return (
            isinstance(found, Tensor)
            and found.shape == x.shape
            and torch.allclose(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        )


def _expected(form: Form, module: Any, x: Tensor, gate: Tensor | None) -> Tensor:
    """What the form says that `module` computes."""
    if form.kind in TORCHS:
        eps = EPS if module.eps is None else module.eps
        norm = Norm(form.kind == "torch's layer", len(module.normalized_shape), eps)
    else:
        norm = Norm(False, 1, **{k: v for k, v in options(form, module, x).items() if k != "weight"})
    return composition(norm, Operands(x, None, gate, module.weight, getattr(module, "bias", None)))[0]
