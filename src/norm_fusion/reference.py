"""One plain torch function per operator, in fp64: the single oracle that every kernel and contestant answers to.

Gradients are autograd's of these, or the formulas of `gradients`, which are tested against those.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.spec import Op


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    bias: Tensor | None = None,
    offset: float = 0.0,
    gate: Tensor | None = None,
    gate_first: bool = False,
) -> Tensor:
    """RMSNorm over the last dimension in fp64 (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * (weight + offset).

    A gate multiplies by silu(gate) after the norm, or with `gate_first` before it.
    """
    x = x.double()
    silu = None if gate is None else gate.double() * torch.sigmoid(gate.double())
    if silu is not None and gate_first:
        x = x * silu
    y = _scaled(standardized(Op.RMSNORM, x, eps)[0], weight, bias, offset)
    return y * silu if silu is not None and not gate_first else y


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, offset: float = 0.0) -> Tensor:
    """LayerNorm over the last dimension in fp64 (Ba, Kiros and Hinton 2016), variance biased."""
    return _scaled(standardized(Op.LAYERNORM, x, eps)[0], weight, bias, offset)


def reference(op: Op, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The oracle of `op`: shape of x, fp64."""
    return layer_norm(x, weight, bias, eps) if op.centred else rms_norm(x, weight, eps)


def standardized(op: Op, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Each row over its root mean square, less its mean first where `op` is centred; and one over that. In fp64."""
    x = x.double()
    if op.centred:
        x = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * rstd, rstd


class Gradients(NamedTuple):
    """dx, of shape of x, and the row's own terms of dw and db, both of shape of x: these are their sums over rows.

    `terms`: the sum of the magnitudes of what dx is a difference of: no rounding of them can be smaller.
    """

    dx: Tensor
    dw: Tensor
    db: Tensor
    terms: Tensor


def gradients(op: Op, x: Tensor, weight: Tensor, dy: Tensor, eps: float) -> Gradients:
    """The oracle of the gradients of `op`, without a residual's own, in fp64.

    With n = (x - mean) rstd, RMSNorm's without the mean, and g = weight dy, all means over the row:
    dx = rstd (g - mean(g) - n mean(g n)), RMSNorm's without mean(g); dw = sum over rows of dy n; db = that of dy.
    """
    n, rstd = standardized(op, x, eps)
    dy = dy.double()
    g = weight.double() * dy
    along = n * (g * n).mean(-1, keepdim=True)
    mean = g.mean(-1, keepdim=True) if op.centred else torch.zeros_like(rstd)
    return Gradients(rstd * (g - mean - along), dy * n, dy, rstd * (g.abs() + mean.abs() + along.abs()))


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, offset: float) -> Tensor:
    if weight is not None:
        y = y * (weight.double() + offset)
    return y if bias is None else y + bias.double()
