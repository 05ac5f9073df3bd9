"""The public functions: rms_norm and layer_norm with the signatures of torch.nn.functional's, and what models add.

What they share. `input` has shape (..., *normalized_shape) and is float16, bfloat16 or float32, as is every other
tensor, each in its own dtype; statistics and products are fp32, and the output is rounded once. On CUDA one fused
Triton kernel forward, and one backward with a second, small one for the weight's gradient; on other devices, and where
Triton is not installed, PyTorch's own. Rows may lie anywhere: slices, heads of a fused qkv and expanded tensors are
read in place. A tensor is copied first only if its normalized dimensions are not contiguous, or the others take more
than three strides; so is a gradient, as that of `y.sum()`. Outputs are new and contiguous.

Gradients may be taken twice: the second time by PyTorch's own operators, as is all inside torch.func's transforms. dw
and db are accumulated in fp32 and bitwise the same in every run. Under autocast the output has the dtype that
torch.nn.functional's has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from norm_fusion.ops import EPS, Operands, as_int, ask, check, normalize, require_bool, require_tensor

__all__ = ["add_layer_norm", "add_rms_norm", "gated_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    offset: float = 0.0,
    cast_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019): `input / sqrt(mean(input^2) + eps) * (weight + offset) + bias`.

    Args:
        input: shape (..., *normalized_shape), read where it lies. Copied first only if a row is not contiguous, or the
            rows take more than three strides.
        normalized_shape: the trailing dimensions to normalize over, together.
        weight: shape normalized_shape, or (heads, *normalized_shape) where input ends with it: a weight for each head.
        eps: added to the mean square; None for float32's machine epsilon, whatever the input's dtype.
        bias: of weight's shape.
        offset: added to the weight in fp32: 1 for a weight that is stored less one, as Gemma's. A constant of the
            kernel, which is compiled anew for another.
        cast_first: round the normalized input to input's dtype before it is multiplied, as Hugging Face's Llama does.
        out_dtype: of the output, None for input's.

    Returns:
        A tensor of input's shape.

    Raises:
        ValueError: a shape, a device or a value does not fit.
        TypeError: what should be a tensor or a number is none, or a dtype or layout is not supported.
    """
    norm, shape = ask(False, normalized_shape, EPS if eps is None else eps, offset, cast_first, False, out_dtype)
    return normalize("rms_norm", norm, shape, Operands(input, None, None, weight, bias))[0]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
    cast_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """LayerNorm (Ba, Kiros and Hinton 2016): `(input - mean) / sqrt(var + eps) * (weight + offset) + bias`.

    Arguments, return and errors as `rms_norm`; eps is added to the biased variance.
    """
    norm, shape = ask(True, normalized_shape, eps, offset, cast_first, False, out_dtype)
    return normalize("layer_norm", norm, shape, Operands(input, None, None, weight, bias))[0]


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    offset: float = 0.0,
    cast_first: bool = False,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`new = input + residual; rms_norm(new), new` in one kernel.

    Args:
        residual: of input's shape, in a dtype of its own: float32 keeps a residual stream exact beside 16-bit
            activations. Read, and copied, as input is.
        residual_dtype: of the new residual, None for residual's. The sum is rounded to it, then normalized.

    The other arguments are `rms_norm`'s; out_dtype is input's dtype where None, as is what cast_first rounds to.

    Returns:
        The normalized output and the new residual, of input's shape. Either may be left unused by what follows.
    """
    require_tensor("add_rms_norm", "residual", residual)
    eps = EPS if eps is None else eps
    norm, shape = ask(False, normalized_shape, eps, offset, cast_first, False, out_dtype, residual_dtype)
    return _both(*normalize("add_rms_norm", norm, shape, Operands(input, residual, None, weight, bias)))


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
    cast_first: bool = False,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`new = input + residual; layer_norm(new), new` in one kernel; see `add_rms_norm`."""
    require_tensor("add_layer_norm", "residual", residual)
    norm, shape = ask(True, normalized_shape, eps, offset, cast_first, False, out_dtype, residual_dtype)
    return _both(*normalize("add_layer_norm", norm, shape, Operands(input, residual, None, weight, bias)))


def gated_rms_norm(
    input: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    norm_before_gate: bool = True,
    group_size: int | None = None,
    offset: float = 0.0,
    cast_first: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """RMSNorm over the last dimension with a silu gate, as Mamba2 (Dao and Gu 2024) and Qwen3-Next have it.

    Args:
        input: shape (..., cols), read, and copied, as `rms_norm`'s.
        gate: of input's shape, in a dtype of its own; read, and copied, as input is.
        weight: shape (cols,); without group_size also (heads, cols), as `rms_norm`'s.
        norm_before_gate: `rms_norm(input) * silu(gate)` as in Qwen3-Next, else `rms_norm(input * silu(gate))` as in
            Mamba2. The product is not rounded before it is normalized.
        group_size: normalize groups of so many neighbouring columns, each by itself; it must divide cols.

    The other arguments, return and errors are `rms_norm`'s.
    """
    require_tensor("gated_rms_norm", "input", input)
    require_tensor("gated_rms_norm", "gate", gate)
    if not input.dim():
        raise ValueError("input has no dimension to normalize over")
    cols = input.shape[-1]
    eps = EPS if eps is None else eps
    require_bool("norm_before_gate", norm_before_gate)
    norm, shape = ask(False, (cols,), eps, offset, cast_first, not norm_before_gate, out_dtype)
    whole = Operands(input, None, gate, weight, None)
    size = None if group_size is None else as_int(group_size)
    if size is None and group_size is not None:
        raise TypeError(f"group_size is a {type(group_size).__name__}: it must be an int, or None")
    if size is None or size == cols:
        return normalize("gated_rms_norm", norm, shape, whole)[0]
    if size < 1 or cols % size:
        raise ValueError(f"group_size is {size}, input has {cols} columns: it must divide them")
    check("gated_rms_norm", norm, shape, whole)
    if weight is not None and weight.dim() != 1:
        raise ValueError(f"weight has shape {list(weight.shape)}: with group_size it must have shape [{cols}]")
    groups = (cols // size, size)
    grouped = [None if t is None else t.view(*t.shape[:-1], *groups) for t in whole]
    return normalize("gated_rms_norm", norm, groups[1:], Operands(*grouped))[0].flatten(-2)  # type: ignore[arg-type]


def _both(y: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    assert h is not None
    return y, h
