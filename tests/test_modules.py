"""norm_fusion.modules beside torch.nn: what a caller, a checkpoint and a print see is the same."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import DTYPES
from torch import Tensor, nn

from norm_fusion import functional, modules

EACH = pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm"])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def pair(name: str, *args: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, of one state dict that is neither ones nor zeros."""
    theirs, ours = getattr(nn, name)(*args, **options), getattr(modules, name)(*args, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1).to(dtype)


@EACH
def test_a_constructor_is_torchs_and_so_is_forward(name: str) -> None:
    ours, theirs = getattr(modules, name), getattr(nn, name)
    assert issubclass(ours, theirs) and ours.__init__ is theirs.__init__
    assert list(inspect.signature(ours.forward).parameters) == list(inspect.signature(theirs.forward).parameters)


@EACH
@pytest.mark.parametrize(
    ("args", "options"),
    [((8,), {}), (([4, 8],), {"eps": 1e-3}), ((8,), {"elementwise_affine": False}), ((8,), {"dtype": torch.bfloat16})],
    ids=["a width", "two dimensions", "no weight", "bfloat16"],
)
def test_text_and_state_dict_are_torchs(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    ours, theirs = pair(name, *args, **options)
    assert repr(ours) == repr(theirs)
    assert {k: v.dtype for k, v in ours.state_dict().items()} == {k: v.dtype for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())


def test_a_layer_norm_may_have_no_bias() -> None:
    ours, theirs = pair("LayerNorm", 64, bias=False)
    assert repr(ours) == repr(theirs) and ours.bias is None
    torch.testing.assert_close(ours(rows(5, 64)), theirs(rows(5, 64)))


@EACH
@EACH_DTYPE
@pytest.mark.parametrize("shape", [(64,), (4, 16)], ids=["one dimension", "two"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_outputs_are_torchs(name: str, dtype: torch.dtype, shape: tuple[int, ...], affine: bool) -> None:
    """assert_close's own tolerances: a few units in the last place of each dtype; the two sum in different orders."""
    ours, theirs = pair(name, shape, elementwise_affine=affine, dtype=dtype)
    x = rows(2, 3, *shape, dtype=dtype)
    y = ours(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, theirs(x))


@EACH
def test_gradients_are_torchs(name: str) -> None:
    results = []
    for module in pair(name, 64):
        x = rows(2, 3, 64).requires_grad_()
        module(x).square().sum().backward()
        results.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@EACH
def test_forward_calls_functional(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(name, 64)
    monkeypatch.setattr(functional, "normalize", lambda *_: ("the kernel's", None))
    assert ours(rows(5, 64)) == "the kernel's"


@EACH
@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: load(save(module))], ids=["deepcopy", "pickle"])
def test_copies_are_the_same_module(name: str, again: Callable[[nn.Module], nn.Module]) -> None:
    ours, _ = pair(name, 64)
    copied = again(ours)
    assert type(copied) is type(ours) and torch.equal(copied(rows(5, 64)), ours(rows(5, 64)))


def save(module: nn.Module) -> bytes:
    torch.save(module, file := io.BytesIO())
    return file.getvalue()


def load(data: bytes) -> nn.Module:
    loaded: nn.Module = torch.load(io.BytesIO(data), weights_only=False)
    return loaded


@EACH
def test_float64_is_torchs_own(name: str) -> None:
    ours, theirs = pair(name, 64, dtype=torch.float64)
    x = rows(5, 64, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x)) and ours(x).dtype == torch.float64


@EACH
def test_what_is_no_tensor_is_refused_by_name(name: str) -> None:
    ours, _ = pair(name, 64)
    with pytest.raises(TypeError, match="input is a list: .*_norm takes a torch.Tensor"):
        ours([1.0])


@EACH
def test_a_compiled_module_is_one_graph(name: str) -> None:
    ours, theirs = pair(name, 64)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = rows(5, 64).requires_grad_()
    y, expected = compiled(x), theirs(x)
    torch.testing.assert_close(y, expected)
    found, gradients = (
        torch.autograd.grad(out.pow(3).sum(), [x, *module.parameters()])
        for out, module in ((y, ours), (expected, theirs))
    )
    for mine, torchs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)
