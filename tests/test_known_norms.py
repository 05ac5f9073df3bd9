"""A class of transformers is what it was when the table was made, or it is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed.fsdp import FSDPModule

from norm_fusion.known_norms import TABLE, is_as_known
from norm_fusion.patching import patch_model

llama: Any = pytest.importorskip("transformers.models.llama.modeling_llama")
qwen3_next: Any = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")

CHANGED: dict[str, Callable[..., Any]] = {
    "an offset": lambda self, x: torch.rms_norm(x, x.shape[-1:], 1 + self.weight, self.variance_epsilon),
    "another eps": lambda self, x: torch.rms_norm(x, x.shape[-1:], self.weight, 2 * self.variance_epsilon),
    "no weight": lambda self, x: torch.rms_norm(x, x.shape[-1:], None, self.variance_epsilon),
    "another argument": lambda self, x, residual: x + residual,
    "two outputs": lambda self, x: (x, x),
    "another attribute": lambda self, x: x * self.scale,
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_class_that_computes_something_else_is_left_alone(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", CHANGED[change])
    model = nn.Sequential(llama.LlamaRMSNorm(48), nn.LayerNorm(48))
    report = patch_model(model)
    ((left, names),) = report.left_alone.items()
    assert names == ("0",) and "computes something else than in transformers" in left.reason
    assert list(report.replaced.values()) == [("1",)]


@pytest.mark.parametrize("cls", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("change", ["another eps", "no weight"])
def test_so_is_a_class_of_torchs(change: str, cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cls, "variance_epsilon", property(lambda self: self.eps or 1e-7), raising=False)
    monkeypatch.setattr(cls, "forward", CHANGED[change])
    ((left, _),) = patch_model(cls(48)).left_alone.items()
    assert left.reason == "it computes something else than in torch.nn, for which it is known"


def test_a_small_difference_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = llama.LlamaRMSNorm.forward
    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", lambda self, x: forward(self, x) * 1.001)
    assert not patch_model(llama.LlamaRMSNorm(48)).replaced


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((4, 6)),
        nn.LayerNorm(48, bias=False),
        nn.LayerNorm(48, elementwise_affine=False),
        nn.RMSNorm((4, 6)),
        nn.RMSNorm(48, eps=0.0),
        nn.RMSNorm(48, elementwise_affine=False),
    ],
    ids=str,
)
def test_torchs_norms_of_every_kind_are_as_known(norm: nn.Module) -> None:
    assert patch_model(norm).replaced


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_is_of_no_account(dtype: torch.dtype) -> None:
    """PyTorch's own eps of None is that of the dtype that it is tried in."""
    norm = nn.RMSNorm(48)
    torch.set_default_dtype(dtype)
    try:
        assert patch_model(norm).replaced
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_gate_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = qwen3_next.Qwen3NextRMSNormGated(48)
    form = TABLE["transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated"]
    assert is_as_known(norm, form)
    forward = type(norm).forward
    monkeypatch.setattr(type(norm), "forward", lambda self, x, gate: forward(self, x * gate, gate))
    assert not is_as_known(norm, form)


def test_asking_touches_nothing() -> None:
    """Neither weights, wherever they are, nor random numbers; and no mode sees it."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with torch.device("meta"):
        assert patch_model(llama.LlamaRMSNorm(48)).replaced
    with FakeTensorMode():
        norm = llama.LlamaRMSNorm(48)
        assert patch_model(norm).replaced
    assert torch.equal(torch.rand(1), expected)
    kept = llama.LlamaRMSNorm(48).half().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    assert patch_model(kept).replaced
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.state_dict().items())


def test_a_class_that_fully_shard_made_is_not_constructed() -> None:
    """FSDPModule's __new__ calls the original's __init__."""
    norm = llama.LlamaRMSNorm(48)
    norm.__class__ = type("FSDPLlamaRMSNorm", (FSDPModule, llama.LlamaRMSNorm), {})
    assert patch_model(norm).replaced
