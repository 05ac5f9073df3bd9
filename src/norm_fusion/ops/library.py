"""The operators as PyTorch's dispatcher knows them: torch.ops.norm_fusion.{rms_norm,layer_norm} and their backwards.

torch.compile, torch.export, tensor subclasses and modes see these. They return a fixed number of tensors; of those that
there is no use for, the shape is (0,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from norm_fusion.ops.autograd import gradients, remember
from norm_fusion.ops.backward import Wanted, backward
from norm_fusion.ops.forward import forward
from norm_fusion.ops.norm import Norm, Operands, check_backward_call, check_call
from norm_fusion.ops.where import FORCE_TRITON, uses_triton

NORM = (
    "int trailing, float eps, float offset, bool cast_first, bool gate_first, "
    "ScalarType? out_dtype, ScalarType? residual_dtype"
)
FORWARD = f"(Tensor input, Tensor? residual, Tensor? gate, Tensor? weight, Tensor? bias, {NORM}, bool save)"
BACKWARD = (
    "(Tensor dy, Tensor? dh, Tensor h, Tensor? gate, Tensor? weight, Tensor? bias, Tensor saved, "
    f"{NORM}, ScalarType input_dtype, ScalarType old_residual_dtype, bool[] wanted)"
)
NAMES = {False: "rms_norm", True: "layer_norm"}

library: Any = torch.library.Library("norm_fusion", "DEF")  # type: ignore[no-untyped-call]


def through_dispatcher(norm: Norm, given: Operands, save: bool) -> tuple[Tensor, Tensor | None]:
    """The operator called; `save` where a backward will follow."""
    op = torch.ops.norm_fusion.layer_norm if norm.centred else torch.ops.norm_fusion.rms_norm
    y, h, _ = op(*given, *norm[1:], save)
    return y, None if given.residual is None else h


def _forward(centred: bool, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    norm, given = Norm(centred, *args[5:-1]), Operands(*args[:5])
    check_call(norm, given)
    _require_triton(given.x)
    y, h, saved = forward(norm, given, args[-1])
    return y, _or_empty(h, y), _or_empty(saved, y)


def _forward_fake(centred: bool, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    norm, given, save = Norm(centred, *args[5:-1]), Operands(*args[:5]), args[-1]
    check_call(norm, given)
    x, residual, *_ = given
    y = x.new_empty(x.shape, dtype=norm.out_dtype or x.dtype)
    h = None if residual is None else x.new_empty(x.shape, dtype=norm.residual_dtype or residual.dtype)
    saved = None
    if save:
        count = math.prod(x.shape[: x.dim() - norm.trailing])
        saved = x.new_empty((2, count) if centred else (count,), dtype=torch.float32)
    return y, _or_empty(h, y), _or_empty(saved, y)


def _backward(centred: bool, dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dh, h, gate, weight, bias, saved, *rest = args
    norm, dtypes, wanted = Norm(centred, *rest[:-3]), tuple(rest[-3:-1]), Wanted(*rest[-1])
    check_backward_call(norm, dy, dh, Operands(h, None, gate, weight, bias), saved, dtypes)
    _require_triton(h)
    found = backward(norm, dy, dh, h, gate, weight, bias, saved, dtypes, wanted)
    if found.residual is found.x:  # an operator's outputs are no aliases of each other
        found = found._replace(residual=None)
    return tuple(_or_empty(gradient, dy) for gradient in found)


def _backward_fake(centred: bool, dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dh, h, gate, weight, bias, saved, *rest = args
    norm, dtypes, wanted = Norm(centred, *rest[:-3]), rest[-3:-1], Wanted(*rest[-1])
    check_backward_call(norm, dy, dh, Operands(h, None, gate, weight, bias), saved, dtypes)

    def like(tensor: Tensor | None, want: bool, dtype: torch.dtype | None = None) -> Tensor:
        if tensor is None or not want:
            return dy.new_empty(0)
        return tensor.new_empty(tensor.shape, dtype=dtype or tensor.dtype)

    return (
        like(h, wanted.x, dtypes[0]),
        like(h, wanted.residual and not (wanted.x and dtypes[0] == dtypes[1]), dtypes[1]),
        like(gate, wanted.gate),
        like(weight, wanted.weight),
        like(bias, wanted.bias),
    )


def _require_triton(tensor: Tensor) -> None:
    """A program that was exported with these operators may come to where they cannot run."""
    if not uses_triton(tensor.device.type):
        raise RuntimeError(
            f"torch.ops.norm_fusion are Triton kernels, which run on CUDA tensors; these are on {tensor.device}. Call "
            f"norm_fusion's functions, which take PyTorch's operators there, and export where you will run. Tests set "
            f"{FORCE_TRITON}=1"
        )


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _set_up(centred: bool, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    if not inputs[-1]:
        raise RuntimeError(f"norm_fusion::{NAMES[centred]} was called with save=False, and a gradient is wanted")
    given, (_, h, saved) = Operands(*inputs[:5]), output
    added = given.residual is not None
    constant = not (added and any(ctx.needs_input_grad[:2]))
    ctx.mark_non_differentiable(*([h, saved] if constant else [saved]))
    remember(ctx, Norm(centred, *inputs[5:-1]), given, h if added else None, saved)


def _derivative(ctx: Any, dy: Tensor | None, dh: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    return *gradients(ctx, dy, dh, Wanted(*ctx.needs_input_grad[:5]), dispatched=True), *[None] * 8


def call_backward(
    norm: Norm,
    dy: Tensor,
    dh: Tensor | None,
    h: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    dtypes: Sequence[torch.dtype],
    wanted: Wanted,
) -> Sequence[Tensor | None]:
    """`backward`, as an operator."""
    name = "layer_norm_backward" if norm.centred else "rms_norm_backward"
    op = getattr(torch.ops.norm_fusion, name)
    found = op(dy, dh, h, gate, weight, bias, saved, *norm[1:], *dtypes, list(wanted))
    asked = [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
    if wanted.x and wanted.residual and dtypes[0] == dtypes[1]:
        asked[1] = asked[0]
    return asked


for centred, name in NAMES.items():
    library.define(f"{name}{FORWARD} -> (Tensor, Tensor, Tensor)")
    library.define(f"{name}_backward{BACKWARD} -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
    for device in ("CPU", "CUDA"):
        library.impl(name, partial(_forward, centred), device)
        library.impl(f"{name}_backward", partial(_backward, centred), device)
    torch.library.register_fake(f"norm_fusion::{name}", partial(_forward_fake, centred), lib=library)
    torch.library.register_fake(f"norm_fusion::{name}_backward", partial(_backward_fake, centred), lib=library)
    torch.library.register_autograd(
        f"norm_fusion::{name}", _derivative, setup_context=partial(_set_up, centred), lib=library
    )
