"""Argument checks and dispatch: a CUDA tensor goes to the Triton kernels, any other to PyTorch's own operators.

NORM_FUSION_FORCE_TRITON=1 sends CPU tensors through the kernels too, in Triton's interpreter: for tests.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import nullcontext
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.kernels.launch import pick_layer_norm, pick_rms_norm

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FORCE_TRITON = "NORM_FUSION_FORCE_TRITON"
MAX_COLS = 2**31 - 1  # columns are counted in 32 bits
_HERE = nullcontext()


def rms_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the trailing dimensions `shape` of x; see `functional.rms_norm`."""
    _check("rms_norm", x, shape, weight=weight)
    if not _uses_triton(x):
        return F.rms_norm(x, shape, weight, eps)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        x, cols, stride = _rows(x, len(shape))
        vec = _vec(cols, stride, x.itemsize)
        dispatch = _rms_norm(cols, x.itemsize, vec, weight is not None)
        # Triton wants a pointer where there is no weight; the kernel never reads it.
        w = x if weight is None else weight.contiguous()
        with _on(x.device):
            dispatch((x, w, y), (y.numel() // cols, stride // vec, cols // vec), eps)
    return y


def layer_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the trailing dimensions `shape` of x; see `functional.layer_norm`."""
    _check("layer_norm", x, shape, weight=weight, bias=bias)
    if not _uses_triton(x):
        return F.layer_norm(x, shape, weight, bias, eps)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        x, cols, stride = _rows(x, len(shape))
        vec = _vec(cols, stride, x.itemsize)
        dispatch = _layer_norm(cols, x.itemsize, vec, weight is not None, bias is not None)
        w = x if weight is None else weight.contiguous()
        b = x if bias is None else bias.contiguous()
        with _on(x.device):
            dispatch((x, w, b, y), (y.numel() // cols, stride // vec, cols // vec), eps)
    return y


@cache
def _rms_norm(cols: int, itemsize: int, vec: int, has_weight: bool) -> Dispatch:
    from norm_fusion.kernels import rms_norm as kernels

    launch = pick_rms_norm(cols, itemsize)
    if launch.wide:
        return Dispatch(kernels.rms_norm_wide, launch, (cols, vec, has_weight, launch.body))
    tile = (launch.block_rows, launch.body, launch.tail, launch.lean)
    return Dispatch(kernels.rms_norm_rows, launch, (cols, vec, has_weight, *tile))


@cache
def _layer_norm(cols: int, itemsize: int, vec: int, has_weight: bool, has_bias: bool) -> Dispatch:
    from norm_fusion.kernels import layer_norm as kernels

    launch = pick_layer_norm(cols, itemsize)
    if launch.wide:
        return Dispatch(kernels.layer_norm_wide, launch, (cols, vec, has_weight, has_bias, launch.body))
    tile = (launch.block_rows, launch.body, launch.tail, launch.lean)
    return Dispatch(kernels.layer_norm_rows, launch, (cols, vec, has_weight, has_bias, *tile))


def _check(name: str, x: Tensor, shape: tuple[int, ...], **vectors: Tensor | None) -> None:
    """Refuse what the operator cannot do, naming the argument, what was seen and what is allowed."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input is a {type(x).__name__}: {name} takes a torch.Tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"input is {x.dtype}: {name} takes {', '.join(str(d) for d in DTYPES)}")
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(
            f"normalized_shape is {list(shape)}, input has shape {list(x.shape)}: "
            "it must be one or more of input's trailing dimensions"
        )
    if math.prod(shape) > MAX_COLS:
        raise ValueError(f"normalized_shape is {list(shape)}: a row has at most {MAX_COLS:,} elements")
    for label, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != shape:
            raise ValueError(
                f"{label} has shape {list(vector.shape)}, normalized_shape is {list(shape)}: they must match"
            )
        if vector.dtype != x.dtype:
            raise TypeError(
                f"{label} is {vector.dtype}, input is {x.dtype}: they must match; use {label}.to(input.dtype)"
            )
        if vector.device != x.device:
            raise ValueError(f"{label} is on {vector.device}, input on {x.device}: they must be on one device")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *vectors.values())):
        raise RuntimeError(
            f"norm_fusion.{name} has no backward yet, and a gradient would be needed here: "
            f"call it under torch.no_grad(), or use torch.nn.functional.{name}"
        )


def _uses_triton(x: Tensor) -> bool:
    if x.device.type == "cuda":
        return True
    if x.device.type != "cpu" or os.environ.get(FORCE_TRITON) != "1":
        return False
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    import triton

    # Triton's own functions are made at its import: the variable set later is seen, and does not reach them.
    if not triton.knobs.runtime.interpret or isinstance(triton.language.sum, triton.JITFunction):
        raise RuntimeError(
            f"{FORCE_TRITON}=1 needs Triton's interpreter: set TRITON_INTERPRET=1 before importing triton"
        )
    return True


def _rows(x: Tensor, trailing: int) -> tuple[Tensor, int, int]:
    """x as evenly spaced rows: the tensor (a copy only where its layout forces one), columns, elements between rows."""
    leading = x.dim() - trailing
    cols = math.prod(x.shape[leading:])
    if x.is_contiguous():
        return x, cols, cols
    inner = _spacing(x.shape[leading:], x.stride()[leading:])
    outer = _spacing(x.shape[:leading], x.stride()[:leading])
    if inner != 1 or outer is None:
        return x.contiguous(), cols, cols
    return x, cols, outer


def _spacing(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The one stride at which these dimensions, flattened, are spaced; None if there is none."""
    dims = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    if not dims:
        return 1
    for (_, stride), (inner_size, inner_stride) in pairwise(dims):
        if stride != inner_size * inner_stride:
            return None
    return dims[-1][1]


def _vec(cols: int, stride: int, itemsize: int) -> int:
    """Elements that divide both the row and the distance between rows, up to 16 bytes: how wide an access may be."""
    return math.gcd(16 // itemsize, cols, stride)


def _on(device: torch.device) -> torch.cuda.device | nullcontext[None]:
    """Triton launches on the current device: make it the tensor's, where it is another."""
    if device.type != "cuda" or _device_count() == 1 or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


@cache
def _device_count() -> int:
    return torch.cuda.device_count()
