"""One plain torch function per operator, in fp64: the single oracle that every kernel and contestant answers to."""

from __future__ import annotations

import torch
from torch import Tensor

from norm_fusion.spec import Op


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension in fp64 (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight."""
    x = x.double()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight.double()


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension in fp64 (Ba, Kiros and Hinton 2016), variance biased."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.double()
    return y if bias is None else y + bias.double()


def reference(op: Op, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The oracle of `op`: shape of x, fp64."""
    return rms_norm(x, weight, eps) if op is Op.RMSNORM else layer_norm(x, weight, bias, eps)
