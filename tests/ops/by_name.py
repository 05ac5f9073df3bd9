"""Our operators and PyTorch's own, by name."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

import norm_fusion

COLS, EPS = 24, 1e-5

NAMES = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "gated_rms_norm", "gated_rms_norm of groups")


def ours(name: str, *given: Any) -> tuple[Tensor, ...]:
    """One of NAMES of input, residual or gate if it has one, weight and bias."""
    if name == "gated_rms_norm":
        return (norm_fusion.gated_rms_norm(*given, EPS),)
    if name == "gated_rms_norm of groups":
        return (norm_fusion.gated_rms_norm(*given, EPS, group_size=COLS // 4, norm_before_gate=False),)
    *rows, weight, bias = given
    found = getattr(norm_fusion, name)(*rows, (COLS,), weight, bias=bias, eps=EPS)
    return found if isinstance(found, tuple) else (found,)


def torchs(name: str, x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    if name == "gated_rms_norm":
        return (F.rms_norm(x, (COLS,), given[1], EPS) * F.silu(given[0]),)
    if name == "gated_rms_norm of groups":
        groups = (x * F.silu(given[0])).unflatten(-1, (4, COLS // 4))
        return (F.rms_norm(groups, (COLS // 4,), None, EPS).flatten(-2) * given[1],)
    weight, bias = given[-2:]
    x = x + given[0] if "add" in name else x
    y = F.layer_norm(x, (COLS,), weight, bias, EPS) if "layer" in name else F.rms_norm(x, (COLS,), weight, EPS) + bias
    return (y, x) if "add" in name else (y,)
