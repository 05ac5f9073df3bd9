"""Tensors that are not what lies at their address, and what autograd's hooks make of those that were saved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accuracy import normal
from test_autograd import SHAPE, close, operands, wanting
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

import norm_fusion as nf

BOTH = (nf.rms_norm, F.rms_norm)


def test_a_tensor_that_is_the_negative_of_what_it_holds() -> None:
    """As the imaginary part of a conjugate is."""
    x, _, w, _ = wanting()
    ours, theirs = (norm(torch._neg_view(x), SHAPE, w, 1e-5) for norm in (nf.rms_norm, F.rms_norm))
    close(ours, theirs)
    dy = torch._neg_view(normal(5, 64))
    for given in (x, torch._neg_view(x)):
        ys = (norm(given, SHAPE, w, 1e-5) for norm in (nf.rms_norm, F.rms_norm))
        for mine, other in zip(*(torch.autograd.grad(y, (x, w), dy) for y in ys), strict=True):
            close(mine, other)
    with torch.no_grad():
        close(nf.rms_norm(x, SHAPE, torch._neg_view(w), 1e-5), theirs)


def test_zeros_that_are_nowhere() -> None:
    """As forward-mode differentiation makes them."""
    zeros = torch._efficientzerotensor((5, 64))
    x, _, w, _ = wanting()
    assert torch.equal(nf.rms_norm(zeros, SHAPE, w, 1e-5), torch.zeros(5, 64))
    dx, dw = torch.autograd.grad(nf.rms_norm(x, SHAPE, w, 1e-5), (x, w), zeros)
    assert torch.equal(dx, torch.zeros(5, 64)) and torch.equal(dw, torch.zeros(64))


class Leaky(nn.Module):
    """Keeps an activation, which outlives the transform that it was made in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        return self.last.sum()


def test_what_escaped_a_function_transform() -> None:
    x, _, w, _ = operands()
    leaky = Leaky()
    torch.func.grad(lambda given: torch.func.functional_call(leaky, given, (x,)))(dict(leaky.named_parameters()))
    for weight in (w, w.clone().requires_grad_()):
        ours, theirs = (norm(leaky.last, SHAPE, weight, 1e-5) for norm in BOTH)
        close(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(y.sum(), weight) for y in (ours, theirs)), strict=True):
        close(mine, other)


def test_a_forward_mode_gradient_of_an_eager_graph() -> None:
    x, _, w, _ = wanting()
    ys = [norm(x, SHAPE, w, 1e-5) for norm in BOTH]
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(normal(5, 64, seed=8), normal(5, 64, seed=9))
        ours, theirs = (forward_ad.unpack_dual(torch.autograd.grad(y, x, dy)[0]) for y in ys)
    close(ours.primal, theirs.primal)
    close(ours.tangent, theirs.tangent)


HOOKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "transposed": (lambda t: t.t().contiguous() if t.dim() == 2 else t, lambda t: t.t() if t.dim() == 2 else t),
    "every second": (lambda t: torch.stack([t, t], -1), lambda t: t[..., 0]),
    "negative": (lambda t: -t, torch._neg_view),
}


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_what_was_saved_comes_back_as_it_is_stored(name: str, hooks: str) -> None:
    """The same values at other strides, or negated."""
    x, _, w, _ = wanting()
    dy = normal(5, 64, seed=8)
    with saved_tensors_hooks(*HOOKS[hooks]):
        y = getattr(nf, name)(x, SHAPE, w, eps=1e-5)
    expected = getattr(F, name)(x, SHAPE, w, eps=1e-5)
    for mine, other in zip(*(torch.autograd.grad(out, (x, w), dy) for out in (y, expected)), strict=True):
        close(mine, other)


def test_what_was_saved_keeps_its_dtype() -> None:
    x, _, w, _ = wanting()
    with saved_tensors_hooks(lambda t: t.half(), lambda t: t):
        y = nf.rms_norm(x, SHAPE, w, 1e-5)
    with pytest.raises(TypeError, match=r"came back as torch.float16: a saved tensor's hook must keep its dtype"):
        y.sum().backward()


def test_outputs_have_the_strides_of_new_tensors() -> None:
    """Also where a dimension is 1, whose stride is of no account."""
    x = torch.as_strided(normal(64), (1, 64), (7, 1))
    assert nf.rms_norm(x, SHAPE).stride() == (64, 1)
    nf.layer_norm(torch.as_strided(normal(5), (5, 1), (1, 0)), (1,)).view(torch.int16)
