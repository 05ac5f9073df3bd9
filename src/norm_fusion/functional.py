"""The public functions, with the signatures of torch.nn.functional's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from norm_fusion import ops


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019): `input / sqrt(mean(input^2) + eps) * weight`, statistics in fp32.

    On CUDA a fused Triton kernel; on other devices PyTorch's own operator. Forward only for now.

    Args:
        input: shape (..., *normalized_shape), float16, bfloat16 or float32. Rows may have any stride; a layout whose
            rows are not contiguous inside, or not evenly spaced, is copied first.
        normalized_shape: the trailing dimensions to normalize over, together.
        weight: shape normalized_shape, input's dtype and device, or None for no scaling.
        eps: added to the mean square; None for float32's machine epsilon, whatever the input's dtype.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is not supported or differs.
        RuntimeError: a gradient would be needed.
    """
    if eps is None:
        eps = torch.finfo(torch.float32).eps
    return ops.rms_norm(input, tuple(normalized_shape), weight, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm (Ba, Kiros and Hinton 2016): `(input - mean) / sqrt(var + eps) * weight + bias`, statistics in fp32.

    On CUDA a fused Triton kernel; on other devices PyTorch's own operator. Forward only for now.

    Args:
        input: shape (..., *normalized_shape), float16, bfloat16 or float32. Rows may have any stride; a layout whose
            rows are not contiguous inside, or not evenly spaced, is copied first.
        normalized_shape: the trailing dimensions to normalize over, together.
        weight: shape normalized_shape, input's dtype and device, or None for no scaling.
        bias: likewise, or None for no shift.
        eps: added to the biased variance.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype is not supported or differs.
        RuntimeError: a gradient would be needed.
    """
    return ops.layer_norm(input, tuple(normalized_shape), weight, bias, eps)
