"""The operators in PyTorch's own steps: on a CPU, where Triton is missing, and wherever a gradient's gradient is asked.

The same function as the kernels': fp32 from the first step to the one rounding at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.ops.norm import Norm, Operands


def composition(norm: Norm, given: Operands) -> tuple[Tensor, Tensor | None]:
    """y, and the new residual where a residual was given. Shapes and dtypes are those of `forward`.

    Both are contiguous: F.rms_norm's output is channels last where its input is.
    """
    x, residual, gate, weight, bias = given
    dtype = x.dtype if norm.out_dtype is None else norm.out_dtype
    h = None
    if residual is not None:
        held = residual.dtype if norm.residual_dtype is None else norm.residual_dtype
        x = h = (x.float() + residual.float()).to(held).contiguous()
    shape = x.shape[x.dim() - norm.trailing :]
    if _is_torchs(norm, given, dtype, x):
        if norm.centred:
            return F.layer_norm(x, shape, weight, bias, norm.eps), h
        return F.rms_norm(x, shape, weight, norm.eps).contiguous(), h

    cast = given.x.dtype
    z = None if gate is None else F.silu(gate.float())
    y = x.float()
    if z is not None and norm.gate_first:
        y = y * z
    y = F.layer_norm(y, shape, eps=norm.eps) if norm.centred else F.rms_norm(y, shape, eps=norm.eps)
    if norm.cast_first:
        y = y.to(cast).float()
    if weight is not None:
        y = y * (weight.float() + norm.offset)
        if norm.cast_first:
            y = y.to(torch.promote_types(cast, weight.dtype)).float()
    if bias is not None:
        y = y + bias.float()
    if z is not None and not norm.gate_first:
        y = y * z
    return y.to(dtype).contiguous(), h


def _is_torchs(norm: Norm, given: Operands, dtype: torch.dtype, x: Tensor) -> bool:
    """Is this just what torch.nn.functional has?"""
    vectors = [vector for vector in (given.weight, given.bias) if vector is not None]
    return (
        given.gate is None
        and not norm.offset
        and (not norm.cast_first or given.x.dtype is torch.float32)  # which is what it is computed in
        and dtype == x.dtype
        and all(vector.dtype == x.dtype and vector.dim() == norm.trailing for vector in vectors)
        and (norm.centred or given.bias is None)
    )
