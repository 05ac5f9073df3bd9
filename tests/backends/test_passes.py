"""What is timed of a forward: itself, or its backward, of one tensor that holds all that goes in."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.backends.builtin import Operands, prepare
from norm_fusion.backends.passes import differentiable, get_ready, through
from norm_fusion.spec import Op, Pass

CPU = torch.device("cpu")
NATIVE: Any = {False: F.rms_norm, True: F.layer_norm}


def operands(op: Op, pass_: Pass) -> Operands:
    torch.manual_seed(0)
    return Operands(op, torch.randn(8), torch.randn(8) if op.centred else None, 1e-5, pass_)


@torch.enable_grad()
def gradients(p: Operands, x: Tensor) -> tuple[Tensor, ...]:
    """As one would write them."""
    parts = x.clone().view(4 if p.op.added else 2, -1, 8)
    given = [part.requires_grad_() for part in parts[: 2 if p.op.added else 1].unbind()]
    h = given[0] + given[1] if p.op.added else given[0]
    parameters = [one.clone().requires_grad_() for one in (p.weight, p.bias) if one is not None]
    y = NATIVE[p.op.centred](h, (8,), *parameters, eps=p.eps)
    outputs = [y, h] if p.op.added else [y]
    return torch.autograd.grad(outputs, [*given, *parameters], list(parts[len(given) :]))


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("profile", ["torch-eager", "torch-native", "torch-compile"])
def test_a_backward_gives_all_gradients(op: Op, profile: str) -> None:
    p = operands(op, Pass.BACKWARD)
    launch = prepare(profile, p, CPU).launch
    x = torch.randn(4 * 12, 8)
    with torch.no_grad():
        for _ in range(3):  # what was saved is used more than once
            for mine, other in zip(launch(x), gradients(p, x), strict=True):
                torch.testing.assert_close(mine, other)


def test_gradients_that_come_in_may_change_and_activations_not_until_it_is_made_ready_again() -> None:
    p = operands(Op.RMSNORM, Pass.BACKWARD)
    launch = prepare("torch-native", p, CPU).launch
    x = torch.randn(24, 8)
    with torch.no_grad():
        launch(x)
        x[12:] = torch.randn(12, 8)
        torch.testing.assert_close(launch(x)[0], gradients(p, x)[0])
        x[:12] = 2 * torch.randn(12, 8)
        assert not torch.allclose(launch(x)[0], gradients(p, x)[0])
        get_ready(launch, x)
        torch.testing.assert_close(launch(x)[0], gradients(p, x)[0])


def test_each_input_has_a_graph_of_its_own() -> None:
    p = operands(Op.ADD_LAYERNORM, Pass.BACKWARD)
    calls = []

    def forward(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x)
        return 2 * (x + residual), x + residual

    launch = through(forward, differentiable(replace(p, bias=None)))
    one, other = torch.randn(48, 8), torch.randn(48, 8)
    with pytest.raises(RuntimeError, match="not have been used"):  # the weight: told as autograd tells it
        launch(one)
    assert len(calls) == 1
    get_ready(launch, other)
    assert len(calls) == 2


@pytest.mark.parametrize("output", [lambda x: x.detach(), lambda x: None, lambda x: (x * 2, 3)])
def test_what_has_no_gradient_is_named(output: Any) -> None:
    launch = through(output, operands(Op.RMSNORM, Pass.BACKWARD))
    with pytest.raises(ValueError, match="its output has no gradient: a backward was asked for"):
        launch(torch.randn(24, 8))


def test_a_forward_of_one_tensor_is_the_launch_itself() -> None:
    assert through(F.relu, operands(Op.RMSNORM, Pass.FORWARD)) is F.relu
    p = operands(Op.LAYERNORM, Pass.FORWARD)
    assert differentiable(p) is p


def test_a_residual_is_the_second_half() -> None:
    launch = through(lambda x, residual: (x, residual), operands(Op.ADD_RMSNORM, Pass.FORWARD))
    x = torch.randn(24, 8)
    y, h = launch(x)
    assert torch.equal(y, x[:12]) and torch.equal(h, x[12:])
    assert h.data_ptr() == x[12:].data_ptr(), "no copy"
