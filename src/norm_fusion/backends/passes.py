"""From a forward function to the launch that is timed: the same of an input that is one tensor, or its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch import config as functorch
from torch.autograd.graph import get_gradient_edge

from norm_fusion.spec import Pass, parts_of

if TYPE_CHECKING:
    from norm_fusion.backends.builtin import Operands

# From an input, all its parts stacked, shape (parts * rows, cols), to the output or outputs.
Launch = Callable[[Tensor], Any]
# From activations, and the residual where one is added, to the output, and the sum where one was added.
Forward = Callable[..., Any]


def differentiable(p: Operands) -> Operands:
    """The same operands; for a backward the parameters ask for gradients."""
    if p.pass_ is Pass.FORWARD:
        return p
    return replace(
        p,
        weight=p.weight.detach().requires_grad_(),
        bias=None if p.bias is None else p.bias.detach().requires_grad_(),
    )


def through(forward: Forward, p: Operands) -> Launch:
    """The launch of an operator's pass, given its forward, which has its parameters from `differentiable` operands."""
    if p.pass_ is Pass.BACKWARD:
        return Backward(forward, p)
    count = len(parts_of(p.op, p.pass_))
    return forward if count == 1 else _Stacked(forward, count)


def get_ready(launch: Launch, x: Tensor) -> None:
    """Do for this input what is not timed: a backward's forward. Again when it holds other activations.

    Outside of a CUDA graph's capture, on the stream of the calls to come.
    """
    if isinstance(launch, Backward):
        launch.get_ready(x)


def _parts(x: Tensor, count: int) -> list[Tensor]:
    """The parts of an input. `data`: a change of one of them, by way of `x`, is none of what autograd has saved."""
    return [part.detach() for part in x.data.view(count, -1, x.shape[-1])]


class _Stacked:
    """A forward of several tensors: parts of an input, split once for each address."""

    def __init__(self, forward: Forward, count: int) -> None:
        self.forward, self.count = forward, count
        self.parts: dict[tuple[int, int], list[Tensor]] = {}

    def __call__(self, x: Tensor) -> Any:
        key = x.data_ptr(), len(x)
        if key not in self.parts:
            self.parts[key] = _parts(x, self.count)
        return self.forward(*self.parts[key])


class Backward:
    """All gradients of a forward: (dx, dw, db), with the residual's second where one was added.

    The forward runs once for each input, by `get_ready` or at the first call, and its graph is kept. What was saved of
    the activations is of their values then; the gradients that come in lie in the input too, and may change.
    """

    def __init__(self, forward: Forward, p: Operands) -> None:
        self.forward = forward
        self.count = len(parts_of(p.op, Pass.BACKWARD))
        self.given = len(parts_of(p.op, Pass.FORWARD))
        self.parameters = [parameter for parameter in (p.weight, p.bias) if parameter is not None]
        self.graphs: dict[tuple[int, int], tuple[list[Any], list[Tensor], list[Tensor]]] = {}

    def get_ready(self, x: Tensor) -> None:
        parts = _parts(x, self.count)
        wanted = [part.requires_grad_() for part in parts[: self.given]]
        # A compiled backward may write into what was saved for it, unless it is to run again.
        with torch.enable_grad(), functorch.patch(donated_buffer=False):
            found = self.forward(*wanted)
        outputs = found if isinstance(found, tuple) else (found,)
        if not all(isinstance(y, Tensor) and y.requires_grad for y in outputs):
            raise ValueError("its output has no gradient: a backward was asked for")
        edges = [get_gradient_edge(y) for y in outputs]  # the outputs themselves need not stay
        self.graphs[x.data_ptr(), len(x)] = edges, [*wanted, *self.parameters], parts[self.given :]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        key = x.data_ptr(), len(x)
        if key not in self.graphs:
            self.get_ready(x)
        outputs, wanted, incoming = self.graphs[key]
        return torch.autograd.grad(outputs, wanted, incoming, retain_graph=True)
