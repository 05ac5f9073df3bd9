"""The norms of an existing model, replaced in place: `patch_model`, and `unpatch_model`, which restores them.

A module is patched by giving it another class: a subclass of its own whose forward calls `functional`. The object stays
with its parameters, buffers, hooks, name and state dict, and with what isinstance says. Which classes are known is one
table, TABLE. Any other that looks like a norm is reported and left as it is: what it computes is never guessed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from norm_fusion import functional
from norm_fusion.modules import LayerNorm, RMSNorm
from norm_fusion.ops.norm import DTYPES

__all__ = ["Left", "Report", "patch_model", "unpatch_model"]


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

# One line a class, as transformers 5.23 has them; tests/test_patching.py compares each with the installed one.
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

ORIGINAL = "_norm_fusion_original"
# "normal", as in AutoModelForNormalEstimation, is no norm; "normalize" is.
NORM = re.compile(r"norm(?!al(?!i[sz]))", re.IGNORECASE)
NORM_AT_THE_END = re.compile(r"norm(ali[sz](e|er|ation))?s?(\d+d|gated|fp\d+|zero)?$", re.IGNORECASE)
OTHER_KINDS = re.compile(r"(batch|group|instance|response|weight|spectral)_?norm", re.IGNORECASE)
FUSED: dict[type[nn.Module], type[nn.Module]] = {}  # by original class
SHOWN = 3  # module names of a class, in a report's text


class Left(NamedTuple):
    """A class that was left alone, and why."""

    cls: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `patch_model` did: names of modules, as `model.named_modules()` has them, by the full name of their class.

    `left_alone` are norms that it knows and did not replace; `unknown` are none of those, and look like norms.
    """

    replaced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_alone: Mapping[Left, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        done = sum(map(len, self.replaced.values()))
        if not (done or self.unknown or self.left_alone):
            return "no norms found, nothing replaced"
        lines = [f"{done} norm{'s' * (done != 1)} replaced"]
        lines += [_line(cls, names) for cls, names in self.replaced.items()]
        if self.unknown:
            lines.append(f"{sum(map(len, self.unknown.values()))} unknown, left untouched")
            lines += [_line(cls, names) for cls, names in self.unknown.items()]
        if self.left_alone:
            lines.append(f"{sum(map(len, self.left_alone.values()))} left alone")
            lines += [_line(f"{left.cls} ({left.reason})", names) for left, names in self.left_alone.items()]
        return "\n".join(lines)


def _line(what: str, names: tuple[str, ...]) -> str:
    shown = ", ".join(name or "the model itself" for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names):6}  {what}: {shown}{more}"


def patch_model(model: nn.Module, *, strict: bool = False) -> Report:
    """Replace the norms of a model, in place, by the fused kernels, and report what was replaced and what was not.

    What a class computes is kept: eps, offset, dtypes, and where a Llama rounds. A subclass that inherits its forward
    counts as the class it inherits it from; one that has its own is unknown. Norms in dtypes that the kernels do not
    have, float64 for one, are left alone, and inputs in such a dtype go to the original's forward. Calling this again
    replaces nothing, and says so.

    Patch what runs eagerly, and leave what goes through torch.compile: that writes a norm as fast as these, can fuse it
    with its neighbours, and calls these through PyTorch's dispatcher (measured: docs/results.md, In a model). Patch
    before what replaces forward on single modules (accelerate's hooks, Hugging Face's `kernels`): of such modules the
    class has no say, and they are left alone. `copy.deepcopy` and `torch.save` of a patched model work; to load it,
    norm_fusion must be installed, so unpatch a model before you save it whole for others. A state dict is the same
    either way.

    Args:
        model: any torch.nn.Module, a norm itself too.
        strict: raise if there is an unknown norm, before anything is replaced.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: strict, and there are unknown norms; the message names them.
    """
    _require_module("patch_model", model)
    replaced: dict[str, tuple[str, ...]] = {}
    unknown: dict[str, tuple[str, ...]] = {}
    left_alone: dict[Left, tuple[str, ...]] = {}
    modules = []
    for name, module in model.named_modules():
        cls = _identity(getattr(type(module), ORIGINAL, type(module)))
        if (reason := _obstacle(module)) is not None:
            left = Left(cls, reason)
            left_alone[left] = (*left_alone.get(left, ()), name)
        elif _form(type(module)) is not None:
            modules.append(module)
            replaced[cls] = (*replaced.get(cls, ()), name)
        elif _looks_like_a_norm(module):
            unknown[cls] = (*unknown.get(cls, ()), name)
    if strict and unknown:
        listed = "\n".join(_line(cls, names) for cls, names in unknown.items())
        raise ValueError(
            f"strict, and these norms are of classes that patch_model does not know:\n{listed}\n"
            "Nothing was replaced; without strict the others are"
        )
    for module in modules:
        module.__class__ = _fused(type(module))
    return Report(replaced, unknown, left_alone)


def unpatch_model(model: nn.Module) -> int:
    """Give the norms that `patch_model` replaced their own classes back; how many there were.

    Of a norm to which something else has given a class of its own since, fully_shard or parametrize for two, it warns:
    unpatch before those.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    _require_module("unpatch_model", model)
    patched = {name: module for name, module in model.named_modules() if hasattr(type(module), ORIGINAL)}
    changed = tuple(name for name, module in patched.items() if ORIGINAL not in vars(type(module)))
    for name, module in patched.items():
        if name not in changed:
            module.__class__ = getattr(type(module), ORIGINAL)
    if changed:
        listed = _line("stay patched, as their class was changed again since", changed)
        warnings.warn(f"unpatch_model: {listed.strip()}", stacklevel=2)
    return len(patched) - len(changed)


def _require_module(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: {name} takes a torch.nn.Module")


def _identity(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _form(cls: type) -> Form | None:
    """The form of the class that `cls` has its forward from; None if TABLE has it not, or `cls` has its own _norm."""
    for base in cls.__mro__:
        if "forward" in vars(base):
            return TABLE.get(_identity(base))
        if not vars(base).keys().isdisjoint(("_norm", "__call__")):
            return None
    return None


def _obstacle(module: nn.Module) -> str | None:
    """Why a norm that is no unknown is not replaced; None if nothing speaks against it, or it is no norm."""
    cls = type(module)
    if hasattr(cls, ORIGINAL):
        return "patched already"
    if isinstance(module, (RMSNorm, LayerNorm)):
        return "norm_fusion's own"
    form = _form(cls)
    if form is None:
        other = _looks_like_a_norm(module) and any(OTHER_KINDS.search(base.__name__) for base in cls.__mro__)
        return "another kind of normalization" if other else None
    if "forward" in vars(module):
        return "its forward was replaced on the module itself"
    if parametrize.is_parametrized(module):
        return "parametrized"
    if not hasattr(module, form.eps):
        return f"it has no {form.eps}"
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    for label, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in DTYPES:
            return f"{label} is {tensor.dtype}: the kernels have {', '.join(map(str, DTYPES))}"
    if form.kind in ("rms", "gated rms") and (weight is None or weight.dim() != 1):
        return "its weight is no vector"
    if form.kind == "gated rms" and getattr(module, "activation", "silu") not in ("silu", "swish"):
        return f"its gate is {module.activation}: the kernels have silu"
    return None


def _looks_like_a_norm(module: nn.Module) -> bool:
    """By the names of its class and of those it inherits from.

    With modules inside such a name must end so: LayerNormConvLayer has a norm, and is none.
    """
    name = NORM if next(module.children(), None) is None else NORM_AT_THE_END
    return any(name.search(base.__name__) for base in type(module).__mro__)


def _fused(original: type[nn.Module]) -> type[nn.Module]:
    """The subclass that modules of class `original` are given, always the same one."""
    if original in FUSED:
        return FUSED[original]
    form = _form(original)
    if form is None:
        raise TypeError(
            f"{_identity(original)} is not in norm_fusion's table of norms: it was patched by another version of "
            "norm_fusion or transformers; load the model by its state dict"
        )
    # Its name holds the original's: Hugging Face initializes what has "RMSNorm" or "LayerNorm" in its name.
    members = {
        "forward": _forward(form, original),
        "__reduce_ex__": _reduce_ex,
        "__module__": __name__,
        ORIGINAL: original,
    }
    FUSED[original] = type(f"Fused{original.__name__}", (original,), members)
    return FUSED[original]


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """For copy and pickle, which cannot find the made class by its name: the original, from which to make it again."""
    return _blank, (getattr(type(self), ORIGINAL),), self.__getstate__()  # type: ignore[no-untyped-call]


def _blank(original: type[nn.Module]) -> nn.Module:
    cls = _fused(original)
    return cls.__new__(cls)


def _forward(form: Form, original: type[nn.Module]) -> Callable[..., Tensor]:
    """A forward with the argument names of the original's, which takes what the kernels do not.

    It gives out_dtype even where that is the input's: autocast changes the dtypes of torch's functions, and of none of
    those that Hugging Face's norms are made of.
    """

    def options(module: Any, x: Tensor) -> dict[str, Any]:
        given, weight = x.dtype, module.weight.dtype
        out = given if form.out == "input" else weight if form.out == "weight" else torch.promote_types(given, weight)
        return {
            "weight": module.weight,
            "eps": getattr(module, form.eps),
            "offset": form.offset,
            "cast_first": form.rounds == "input" or (form.rounds == "weight" and given == weight),
            "out_dtype": out,
        }

    def run(module: Any, x: Tensor) -> Tensor:
        if x.dtype not in DTYPES:
            y: Tensor = original.forward(module, x)
            return y
        if form.kind == "torch's rms":
            return RMSNorm.forward(module, x)
        if form.kind == "torch's layer":
            return LayerNorm.forward(module, x)
        return functional.rms_norm(x, module.weight.shape, **options(module, x))

    def of_hidden_states(self: Any, hidden_states: Tensor) -> Tensor:
        return run(self, hidden_states)

    def of_x(self: Any, x: Tensor) -> Tensor:
        return run(self, x)

    def of_input(self: Any, input: Tensor) -> Tensor:  # noqa: A002, torch's own argument name
        return run(self, input)

    def gated(self: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
        if gate is None:
            raise TypeError(f"gate is None: {type(self).__name__} takes a torch.Tensor")
        if hidden_states.dtype not in DTYPES:
            y: Tensor = original.forward(self, hidden_states, gate)
            return y
        return functional.gated_rms_norm(hidden_states, gate, **options(self, hidden_states))

    if form.kind == "gated rms":
        return gated
    return {"hidden_states": of_hidden_states, "x": of_x, "input": of_input}[form.takes]
