"""What is replaced, what is not, and what the report says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import FORMS, norm_of
from torch import Tensor, nn
from torch.nn.utils import parametrize

from norm_fusion import modules, patching
from norm_fusion.patching import Left, Report, patch_model, unpatch_model

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
    model = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm(8))
    patch_model(model)
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    model[2].forward = model[2].forward  # as a hook does, with its own around it
    with pytest.warns(UserWarning, match=r"2  stay patched, as their class or forward was changed again since: 1, 2$"):
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
        (lambda: of(set_to(variance_epsilon=None)), "its variance_epsilon is None: the kernels take a number"),
        (lambda: of(set_to(variance_epsilon=-1e-6)), "its variance_epsilon is -1e-06: the kernels take a number"),
        (lambda: of(set_to(eps=-1e-6), RMS), "its eps is -1e-06: the kernels take a number"),
        (lambda: of(set_to(weight=None)), "its weight is no vector"),
        (lambda: of(set_to(weight=nn.Parameter(torch.ones(2, 48)))), "its weight is no vector"),
        (lambda: of(lambda norm: norm.to(torch.complex64)), "weight is torch.complex64"),
        (lambda: of(set_to(activation="sigmoid"), FORMS["Qwen3-Next gated"]), "its gate is sigmoid"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm((8, 8))), "parametrized"),
    ],
    ids=[
        "accelerate's hook",
        "no eps",
        "an eps of None",
        "a negative eps",
        "a negative eps of torch's",
        "no weight",
        "a matrix",
        "complex",
        "another gate",
        "parametrized",
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_what_would_not_be_computed_rightly_is_left_alone(norm: Callable[[], nn.Module], reason: str) -> None:
    model = norm()
    cls = type(model)
    report = patch_model(model)
    assert not report.replaced and not report.unknown
    assert any(reason in left.reason for left in report.left_alone)
    assert type(model) is cls


def test_a_class_that_the_table_does_not_have_is_not_loaded_as_patched() -> None:
    with pytest.raises(TypeError, match=r"UnheardOfRmsnorm is not in norm_fusion's table of norms"):
        patching._blank(UnheardOfRmsnorm)


def test_a_norm_that_two_layers_share_is_one() -> None:
    shared = nn.LayerNorm(8)
    model = nn.Sequential(shared, nn.Linear(8, 8), shared)
    assert patch_model(model).replaced == {LAYER: ("0",)} and unpatch_model(model) == 1
