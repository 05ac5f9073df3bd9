"""How wrong gradients are, in numbers: against autograd of the fp64 oracle, beside autograd of torch's composition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from accuracy import FLOOR, Operands, call, composition, oracle, poisoned, worst
from torch import Tensor

from norm_fusion.reference import standardized
from norm_fusion.spec import UNIT_ROUNDOFF

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Error:
    """The largest error of an element, ours and the composition's, relative to |reference| + its rms."""

    worst: float
    composition: float
    floor: float

    @property
    def ok(self) -> bool:
        return self.worst <= 2 * self.composition + self.floor


def draw_gradients(given: Operands, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """What arrives at y and, where there is one, at the new residual."""
    generator = torch.Generator().manual_seed(seed)

    def like(dtype: torch.dtype) -> Tensor:
        return torch.randn(given.x.shape, generator=generator).to(given.x.device, dtype)

    return like(given.out_dtype or given.x.dtype), None if given.residual is None else like(given.normalized.dtype)


def leaves(given: Operands, dtype: torch.dtype | None = None, wanted: Sequence[str] | None = None) -> Operands:
    """The same operands, new, wanting gradients: all of them, or those that are wanted."""
    made = {}
    for name, tensor in given.tensors.items():
        made[name] = tensor.detach().to(dtype or tensor.dtype, copy=True) if dtype else tensor.detach()
        made[name].requires_grad_(wanted is None or name in wanted)
    return replace(given, **made)


def gradients(given: Operands, dy: Tensor | None, dh: Tensor | None, wanted: Sequence[str] | None = None) -> Gradients:
    """Those of the kernels, from memory that held NaN; the incoming ones are as they were, of whatever stride."""
    mine = leaves(given, wanted=wanted)
    before = [None if g is None else g.clone() for g in (dy, dh)]
    with poisoned():
        pairs = zip(call(mine), (dy, dh), strict=True)
        outputs = [(out, g) for out, g in pairs if out is not None and g is not None and out.requires_grad]
        asked = {name: tensor for name, tensor in mine.tensors.items() if tensor.requires_grad}
        arrived = [g for _, g in outputs]
        found = torch.autograd.grad([out for out, _ in outputs], list(asked.values()), arrived, allow_unused=True)
    for now, then in zip((dy, dh), before, strict=True):
        assert now is None or torch.equal(now, then), "an incoming gradient was written to"
    made = {name: g for name, g in zip(asked, found, strict=True) if g is not None}
    for name, g in made.items():
        assert (g.shape, g.dtype) == (asked[name].shape, asked[name].dtype), name
    return made


def expected(given: Operands, dy: Tensor | None, dh: Tensor | None, forward: Callable[[Operands], Tensor]) -> Gradients:
    """Autograd of `forward`, the new residual taken as it is rounded: its gradient is x's and the residual's."""
    h = given.normalized.detach().to(torch.float64 if forward is oracle else given.normalized.dtype).requires_grad_()
    double = torch.float64 if forward is oracle else None
    mine = replace(leaves(given, double), x=h, residual=None)
    asked = mine.tensors
    if dy is None:
        found = [None] * len(asked)
    else:
        y = forward(mine)
        found = torch.autograd.grad(y, list(asked.values()), dy.to(y.dtype), allow_unused=True)
    made = {name: g for name, g in zip(asked, found, strict=True) if g is not None}
    if dh is not None:
        made["x"] = made["x"] + dh if "x" in made else dh.clone()
    if given.residual is not None:
        made["residual"] = made["x"]
    return made


def errors(found: Gradients, given: Operands, dy: Tensor | None, dh: Tensor | None) -> dict[str, Error]:
    """Of each gradient that was found.

    Rows decide the scale of dx, all of dw that of dw: sums over rows are off by a rounding of each, in fp32. What is
    subtracted in dx may leave little, of two columns nothing: the scale is that of the terms.
    """
    truth, plain = expected(given, dy, dh, oracle), expected(given, dy, dh, composition)
    made = {}
    for name, g in found.items():
        vector = name in ("weight", "bias")
        dims = None if vector else -1
        per = truth[name].abs() + truth[name].square().mean(dims, keepdim=True).sqrt()
        if not vector and dy is not None:
            per = per + _terms(name, given, dy).square().mean(-1, keepdim=True).sqrt()
        dtype = str(g.dtype).removeprefix("torch.")
        floor = FLOOR[dtype] * UNIT_ROUNDOFF[dtype]
        if given.gate is not None:
            # A GPU's exp(-z): one unit for each of |z|, up to five here, and two.
            floor += 12 * UNIT_ROUNDOFF["float32"]
        if vector:
            rows = given.x.numel() // g.numel()
            floor += 4 * rows**0.5 * UNIT_ROUNDOFF["float32"]
        made[name] = Error(worst(g, truth[name], per), worst(plain[name], truth[name], per), floor)
    return made


def check(given: Operands, wanted: Sequence[str] | None = None) -> Gradients:
    """Find the gradients and hold them against the oracle; what was asked for is there, and nothing else."""
    dy, dh = draw_gradients(given)
    found = gradients(given, dy, dh, wanted)
    assert set(found) == set(given.tensors if wanted is None else wanted)
    for name, error in errors(found, given, dy, dh).items():
        assert error.ok, (name, error)
    return found


def _terms(name: str, given: Operands, dy: Tensor) -> Tensor:
    """dx, or dz of a gate that comes first, before means are subtracted: rstd * dy * (weight + offset) and so on."""
    h, g = given.normalized.double(), dy.double()
    silu = None if given.gate is None else F.silu(given.gate.double())
    if silu is not None:
        h, g = (h * silu, g) if given.gate_first else (h, g * silu)
    g = g * standardized(given.op, h, given.eps)[1]
    if given.weight is not None:
        g = g * (given.weight.double() + given.offset)
    if silu is None or not given.gate_first:
        return g
    sigmoid, z = torch.sigmoid(given.gate.double()), given.gate.double()
    return g * (given.x.double() * sigmoid * (1 + z * (1 - sigmoid)) if name == "gate" else silu)
