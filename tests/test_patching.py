"""patch_model on the real classes of transformers, in small models of random weights, and on what it must not touch."""

from __future__ import annotations

import copy
import importlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from norm_fusion import functional, modules, patching
from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.ops import route
from norm_fusion.patching import TABLE, Left, Report, patch_model, unpatch_model

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Triton's interpreter in Python and threads in torch wait for each other: with one it is four times as fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each launch of a forward kernel."""
    made: list[Any] = []
    real = Dispatch.__call__

    def counted(self: Dispatch, programs: int, pointers: Any, *rest: Any) -> None:
        if len(pointers) in (7, 8):  # a forward's
            made.append(self)
        real(self, programs, pointers, *rest)

    monkeypatch.setattr(Dispatch, "__call__", counted)
    return made


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


@EACH_FAMILY
def test_logits_are_the_same_and_every_norm_ran_a_kernel(family: str, launches: list[Any]) -> None:
    model = build(family)
    expected = logits(model, family)
    assert not launches
    calls: list[nn.Module] = []
    for module in norms(model):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    report = patch_model(model)
    found = logits(model, family)
    assert difference(found, expected) < LOGITS
    assert sum(map(len, report.replaced.values())) == FAMILIES[family][2] == len(norms(model)) == len(set(calls))
    assert not report.unknown and not report.left_alone
    assert len(launches) == len(calls)


@EACH_FAMILY
def test_kernels_of_zeros_would_be_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    expected = logits(model, family)
    patch_model(model)
    monkeypatch.setattr(functional, "normalize", lambda _, norm, shape, given: (torch.zeros_like(given.x), None))
    assert difference(logits(model, family), expected) > 1e-2


@EACH_FAMILY
def test_unpatching_restores_every_bit(family: str) -> None:
    model = build(family)
    expected, classes = logits(model, family), [type(module) for module in model.modules()]
    patch_model(model)
    assert unpatch_model(model) == FAMILIES[family][2]
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(logits(model, family), expected)
    assert unpatch_model(model) == 0


@EACH_FAMILY
def test_three_training_steps_are_the_same(family: str) -> None:
    """SGD, whose step is proportional to the gradient: Adam's first is its sign, and tells 1e-9 from -1e-9.

    Weights are off by at most 1e-4 of the way that they went: 4e-5 is the largest seen; or by the roundings of three
    steps, where they went a short way from 1. In each norm by itself, and in the whole model together: a gradient that
    is zero but for its roundings, as that of a key's bias, goes any way.
    """
    plain = build(family).train()
    start, patched = copy.deepcopy(plain), copy.deepcopy(plain)
    patch_model(patched)
    losses = []
    for model in (plain, patched):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            loss = model(**batch(family, step)).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[3:] == pytest.approx(losses[:3], rel=LOGITS)
    for pick in (norms, lambda model: [model]):
        for mine, other, first in zip(*map(pick, (patched, plain, start)), strict=True):
            off, way = (
                max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))
                for model in (mine, first)
            )
            roundings = 3 * torch.finfo(F32).eps * max(p.abs().max().item() for p in first.parameters())
            assert off < 1e-4 * way + roundings


# Single norms: dtypes, roundings, arguments.


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


def ulps(found: Tensor, expected: Tensor) -> Tensor:
    """How many numbers of their dtype lie between them."""
    integers = []
    for tensor in (found, expected):
        bits = tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.itemsize]).long()
        integers.append(torch.where(bits < 0, -(bits & (2 ** (8 * tensor.itemsize - 1) - 1)), bits))
    return (integers[0] - integers[1]).abs()


def check_bits(identity: str, dtype: torch.dtype, weight: torch.dtype, rows: int, differ: float) -> None:
    """At most a fraction `differ` of 16-bit elements differs, and by one ulp."""
    norm, given = norm_of(identity, weight), arguments(identity, dtype, rows)
    expected = norm(*given)
    assert sum(map(len, patch_model(norm).replaced.values())) == 1
    found = norm(*given)
    assert found.dtype == expected.dtype
    if found.dtype == F32:  # no roundings to agree on; LayerNorm's difference from the mean may cancel
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-5)
    else:
        off = ulps(found, expected)
        assert off.max() <= 1 and (off > 0).double().mean() <= differ


@pytest.mark.parametrize("identity", TABLE, ids=lambda identity: identity.rsplit(".", 1)[1])
@pytest.mark.parametrize("weight", [F16, F32], ids=["weight float16", "weight float32"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_each_class_of_the_table_is_what_the_installed_one_computes(identity: str, weight: torch.dtype) -> None:
    """float16, where rounding the normalized row or not is seen in a quarter of all elements."""
    check_bits(identity, F16, weight, rows=8, differ=0.01)


# All but what torch's LayerNorm refuses, and T5's mixtures, which are the next test's.
MIXTURES = [
    pytest.param(form, dtype, weight, id=f"{form}, {str(dtype)[6:]}, weight {str(weight)[6:]}")
    for form in FORMS
    for dtype in (F16, BF16, F32)
    for weight in (F16, BF16, F32)
    if form not in ("T5", "torch LayerNorm") or weight in (dtype, F32)
]


@pytest.mark.parametrize(("form", "dtype", "weight"), MIXTURES)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_dtypes_and_roundings_are_the_originals(form: str, dtype: torch.dtype, weight: torch.dtype) -> None:
    check_bits(FORMS[form], dtype, weight, rows=64, differ=0.001)


@pytest.mark.parametrize(("dtype", "weight"), [(F32, F16), (BF16, F16), (F32, BF16), (F16, BF16)])
def test_t5s_norm_of_an_input_in_another_dtype_is_nearer_to_the_exact_one(
    dtype: torch.dtype, weight: torch.dtype
) -> None:
    """T5 rounds the normalized row to the weight's dtype and then the product; the kernel the product alone."""
    norm, given = norm_of(FORMS["T5"], weight), arguments(FORMS["T5"], dtype)[0]
    exact = copy.deepcopy(norm).double()(given.double())
    expected = norm(given)
    patch_model(norm)
    found = norm(given)
    assert found.dtype == expected.dtype == weight
    assert ulps(found, expected).max() <= 2
    assert (found - exact).abs().mean() < (expected - exact).abs().mean()


@EACH_FORM
def test_where_triton_does_not_run_the_outputs_are_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORM_FUSION_FORCE_TRITON")
    check_bits(FORMS[form], F16, F16, rows=64, differ=0.001)


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("torch")])
def test_autocast_changes_no_dtype_that_it_did_not_change_before(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA autocast makes torch.nn.functional's norms return fp32; Hugging Face's norms do not call those."""
    monkeypatch.setattr(route, "AUTOCAST_TO_FP32", {(False, "cpu")})
    norm, given = norm_of(FORMS[form]), arguments(FORMS[form], BF16)
    with torch.autocast("cpu", BF16):
        expected = norm(*given)
        patch_model(norm)
        assert norm(*given).dtype == expected.dtype


@EACH_FORM
def test_arguments_keep_their_names(form: str) -> None:
    norm, given = norm_of(FORMS[form]), arguments(FORMS[form], F32)
    names = norm.forward.__code__.co_varnames[1 : 1 + len(given)]
    patch_model(norm)
    assert torch.equal(norm(**dict(zip(names, given, strict=True))), norm(*given))


def test_a_gated_norm_without_its_gate_is_refused() -> None:
    norm, given = norm_of(FORMS["Qwen3-Next gated"]), arguments("", F32)
    patch_model(norm)
    with pytest.raises(TypeError, match=r"gate is None: FusedQwen3NextRMSNormGated takes a torch\.Tensor"):
        norm(given[0], None)


@pytest.mark.parametrize("form", ["Llama", "Gemma", "Qwen3-Next gated", "torch LayerNorm"])
def test_an_input_that_the_kernels_do_not_have_goes_to_the_original(form: str) -> None:
    norm, given = norm_of(FORMS[form]), [tensor.double() for tensor in arguments(FORMS[form], F32)]
    if form == "torch LayerNorm":
        norm = nn.LayerNorm(COLS, elementwise_affine=False)
    expected = norm(*given)
    assert patch_model(norm).replaced
    assert torch.equal(norm(*given), expected)


# What is replaced, what is not, and what the report says.

LAYER, RMS = "torch.nn.modules.normalization.LayerNorm", "torch.nn.modules.normalization.RMSNorm"
HERE = __name__


class Inherits(nn.LayerNorm):
    """Another constructor, and torch's forward."""

    def __init__(self, cols: int) -> None:
        super().__init__(cols, eps=1e-3)


class OwnForwardNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(OwnForwardNorm):
    """Its name says nothing; that of the class it inherits from does."""


class UnheardOfRmsnorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class NormConvLayer(nn.Module):
    """Named for the norm inside, and no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(8)


class AdaptiveLayerNorm(nn.Module):
    """May compute anything besides the norm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)


class NormalHead(nn.Module):
    """Of surface normals."""


class Everything(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.LayerNorm(8),
            nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.GELU()),
            Inherits(8),
            OwnForwardNorm(8),
            UnheardOfRmsnorm(),
            NormConvLayer(),
            NormalHead(),
            nn.BatchNorm1d(8),
            nn.SyncBatchNorm(8),
            nn.GroupNorm(2, 8),
            nn.InstanceNorm2d(8),
            nn.LocalResponseNorm(2),
            nn.LayerNorm(8, dtype=torch.float64),
            modules.RMSNorm(8),
            AdaptiveLayerNorm(),
            Renamed(8),
        )


KIND = "another kind of normalization"
DTYPE = "weight is torch.float64: the kernels have torch.float16, torch.bfloat16, torch.float32"
NORMALIZATION, BATCH = "torch.nn.modules.normalization.", "torch.nn.modules.batchnorm."


def test_each_norm_is_replaced_unknown_or_left_alone_with_a_reason() -> None:
    report = patch_model(Everything())
    assert report == Report(
        replaced={LAYER: ("0", "5.layer_norm", "14.norm"), RMS: ("1.1",), f"{HERE}.Inherits": ("2",)},
        unknown={
            f"{HERE}.OwnForwardNorm": ("3",),
            f"{HERE}.UnheardOfRmsnorm": ("4",),
            f"{HERE}.AdaptiveLayerNorm": ("14",),
            f"{HERE}.Renamed": ("15",),
        },
        left_alone={
            Left(f"{BATCH}BatchNorm1d", KIND): ("7",),
            Left(f"{BATCH}SyncBatchNorm", KIND): ("8",),
            Left(f"{NORMALIZATION}GroupNorm", KIND): ("9",),
            Left("torch.nn.modules.instancenorm.InstanceNorm2d", KIND): ("10",),
            Left(f"{NORMALIZATION}LocalResponseNorm", KIND): ("11",),
            Left(LAYER, DTYPE): ("12",),
            Left("norm_fusion.modules.RMSNorm", "norm_fusion's own"): ("13",),
        },
    )


def test_the_report_in_words() -> None:
    model = nn.Sequential(*(nn.LayerNorm(8) for _ in range(5)), UnheardOfRmsnorm(), nn.BatchNorm1d(8))
    assert str(patch_model(model)).splitlines() == [
        "5 norms replaced",
        f"     5  {LAYER}: 0, 1, 2 and 2 more",
        "1 unknown, left untouched",
        f"     1  {HERE}.UnheardOfRmsnorm: 5",
        "1 left alone",
        f"     1  {BATCH}BatchNorm1d ({KIND}): 6",
    ]
    assert str(patch_model(nn.LayerNorm(8))) == f"1 norm replaced\n     1  {LAYER}: the model itself"
    assert str(patch_model(nn.Linear(8, 8))) == "no norms found, nothing replaced"


def test_patching_twice_replaces_nothing_and_says_so() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
    patch_model(model)
    classes = [type(module) for module in model]
    report = patch_model(model)
    assert [type(module) for module in model] == classes
    assert report == Report(left_alone={Left(LAYER, "patched already"): ("0",), Left(RMS, "patched already"): ("1",)})
    assert str(report).startswith("0 norms replaced\n2 left alone\n")
    assert unpatch_model(model) == 2 and [type(module) for module in model] == [nn.LayerNorm, nn.RMSNorm]


def test_strict_names_what_is_unknown_and_changes_nothing() -> None:
    model = Everything()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(
        ValueError, match=r"(?s)strict, .*OwnForwardNorm: 3\n.*UnheardOfRmsnorm: 4\n.*Nothing was replaced"
    ):
        patch_model(model, strict=True)
    assert [type(module) for module in model.modules()] == classes
    assert patch_model(nn.Sequential(nn.LayerNorm(8), nn.BatchNorm1d(8)), strict=True).replaced == {LAYER: ("0",)}


@pytest.mark.parametrize("call", [patch_model, unpatch_model])
def test_a_model_is_a_module(call: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=rf"model is a dict: {call.__name__} takes a torch\.nn\.Module"):
        call({})


def test_a_subclass_with_its_own_helper_is_unknown() -> None:
    """Gemma's forward calls _norm: whoever redefines that computes something else."""
    gemma = type(norm_of(FORMS["Gemma"]))
    own = type("OwnNorm", (gemma,), {"_norm": lambda self, x: x})
    assert patch_model(type("Same", (gemma,), {})(8)).replaced == {f"{HERE}.Same": ("",)}
    assert patch_model(own(8)).unknown == {f"{HERE}.OwnNorm": ("",)}


def test_a_float64_module_keeps_working() -> None:
    model, x = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8)).double(), torch.randn(3, 8, dtype=torch.float64)
    expected = model(x)
    assert not patch_model(model).replaced
    assert torch.equal(model(x), expected)


def test_unpatching_says_what_it_cannot_restore() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
    patch_model(model)
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    with pytest.warns(UserWarning, match=r"1  stay patched, as their class was changed again since: 1$"):
        assert unpatch_model(model) == 1
    assert type(model[0]) is nn.LayerNorm


def of(change: Callable[[Any], object], identity: str = FORMS["Llama"]) -> nn.Module:
    norm = norm_of(identity)
    change(norm)
    return norm


def set_to(**values: Any) -> Callable[[Any], object]:
    return lambda norm: [setattr(norm, name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (lambda: of(lambda norm: setattr(norm, "forward", norm.forward)), "forward was replaced on the module"),
        (lambda: of(lambda norm: delattr(norm, "variance_epsilon")), "it has no variance_epsilon"),
        (lambda: of(set_to(weight=None)), "its weight is no vector"),
        (lambda: of(set_to(weight=nn.Parameter(torch.ones(2, 48)))), "its weight is no vector"),
        (lambda: of(lambda norm: norm.to(torch.complex64)), "weight is torch.complex64"),
        (lambda: of(set_to(activation="sigmoid"), FORMS["Qwen3-Next gated"]), "its gate is sigmoid"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm((8, 8))), "parametrized"),
    ],
    ids=["accelerate's hook", "no eps", "no weight", "a matrix", "complex", "another gate", "parametrized"],
)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_what_would_not_be_computed_rightly_is_left_alone(norm: Callable[[], nn.Module], reason: str) -> None:
    model = norm()
    cls = type(model)
    report = patch_model(model)
    assert not report.replaced and not report.unknown
    assert any(reason in left.reason for left in report.left_alone)
    assert type(model) is cls


# The patched module is the same object, and can be copied, stored and compiled.


@EACH_FORM
def test_parameters_hooks_and_isinstance_stay(form: str) -> None:
    norm, given = norm_of(FORMS[form]), arguments(FORMS[form], F32)
    seen: list[str] = []
    norm.register_forward_pre_hook(lambda *_: seen.append("before"))
    norm.register_forward_hook(lambda *_: seen.append("after"))
    norm.register_full_backward_hook(lambda *_: seen.append("backward"))
    before, text, cls = dict(norm.state_dict(keep_vars=True)), norm.extra_repr(), type(norm)
    patch_model(norm)
    norm(*(tensor.requires_grad_() for tensor in given)).sum().backward()
    assert seen == ["before", "after", "backward"]
    after = norm.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert isinstance(norm, cls) and norm.extra_repr() == text and cls.__name__ in repr(norm)
    norm_of(FORMS[form]).load_state_dict(norm.state_dict())


def saved(model: nn.Module) -> bytes:
    torch.save(model, file := io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize("family", ["Qwen3-Next", "BERT"])
@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_copies_are_patched_and_independent(family: str, how: str) -> None:
    model = build(family)
    patch_model(model)
    expected = logits(model, family)
    copied = copy.deepcopy(model) if how == "deepcopy" else torch.load(io.BytesIO(saved(model)), weights_only=False)
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]
    assert unpatch_model(copied) == FAMILIES[family][2]
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(model, family), expected)


def test_a_saved_model_is_patched_in_another_process_and_transformers_is_not_imported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
    patch_model(model)
    (tmp_path / "model.pt").write_bytes(saved(model))
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False); import norm_fusion.patching as p; "
        "print(m(torch.ones(1, 8)).shape, p.unpatch_model(m), m, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("torch.Size([1, 8]) 2 Sequential(\n  (0): LayerNorm(("), done.stderr
    assert done.stdout.endswith(" False\n")


def test_a_class_that_the_table_does_not_have_is_not_loaded_as_patched() -> None:
    with pytest.raises(TypeError, match=r"UnheardOfRmsnorm is not in norm_fusion's table of norms"):
        patching._blank(UnheardOfRmsnorm)


def test_a_norm_that_two_layers_share_is_one() -> None:
    shared = nn.LayerNorm(8)
    model = nn.Sequential(shared, nn.Linear(8, 8), shared)
    assert patch_model(model).replaced == {LAYER: ("0",)} and unpatch_model(model) == 1


def test_patched_norms_compile_into_one_graph() -> None:
    torch._dynamo.reset()
    norms_of_all = [norm_of(FORMS[form]) for form in ("Llama", "Gemma", "OLMo2", "T5", "torch LayerNorm")]
    model = nn.Sequential(*norms_of_all)
    x = torch.randn(4, COLS, generator=torch.Generator().manual_seed(4)).requires_grad_()
    expected = model(x)
    (dx,) = torch.autograd.grad(expected.pow(3).sum(), x)
    patch_model(model)
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    y.pow(3).sum().backward()
    assert difference(y.detach(), expected.detach()) < LOGITS
    torch.testing.assert_close(x.grad, dx, rtol=1e-3, atol=1e-4)
