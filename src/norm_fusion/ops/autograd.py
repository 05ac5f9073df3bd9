"""Gradients: of eager calls as an autograd.Function, of all others through the library's operators (`library`).

The way through PyTorch's dispatcher to an operator that is written in Python takes five times as long as the Function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import forward_ad

from norm_fusion.ops.backward import Gradients, Wanted, backward
from norm_fusion.ops.composition import composition
from norm_fusion.ops.forward import Forward
from norm_fusion.ops.norm import Norm, Operands

_keys_of = torch._C._dispatch_keys
_PLAIN = 0  # what PyTorch's dispatcher sees in a tensor that is its memory, as bits
for _key in ("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA"):
    _PLAIN |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key)).raw_repr()


def holds_its_values(tensor: Tensor | None) -> bool:
    """Is what is at its address what it is, or is it absent? Others go through PyTorch's dispatcher.

    Those are subclasses, negatives and zeros of what they hold, sparse and nested tensors, and what functorch wraps.
    """
    if tensor is None:
        return True
    kind = type(tensor)
    return (kind is Tensor or kind is torch.nn.Parameter) and not _keys_of(tensor).raw_repr() & ~_PLAIN


def normalize_with_gradient(norm: Norm, run: Forward, given: Operands) -> tuple[Tensor, Tensor | None]:
    """y, and the new residual where one was given; `run` is of operands that look like these, and saves."""
    y, h = _apply(norm, run, *given)
    return y, h


class Normalize(torch.autograd.Function):
    """(norm, its forward, input, residual, gate, weight, bias) -> (y, new residual or None)."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, run: Forward, *given: Tensor | None) -> tuple[Tensor, Tensor | None]:
        operands = Operands(*given)  # type: ignore[arg-type]
        y, h, saved = run(operands)
        if h is not None and not (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]):
            ctx.mark_non_differentiable(h)
        remember(ctx, norm, operands, h, saved)
        return y, h

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None = None) -> Any:
        return None, None, *gradients(ctx, dy, dh, Wanted(*ctx.needs_input_grad[2:]))


# Function.apply, less what it does for torch.func's transforms, inside which this is not called: 3 us.
_apply: Any = super(torch.autograd.Function, Normalize).apply


def remember(ctx: Any, norm: Norm, given: Operands, h: Tensor | None, saved: Tensor | None) -> None:
    """Keep in an autograd context what `gradients` will want."""
    x, residual, gate, weight, bias = given
    ctx.norm = norm
    ctx.dtypes = (x.dtype, x.dtype if residual is None else residual.dtype)
    ctx.save_for_backward(x if h is None else h, gate, weight, bias, saved)
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, dy: Tensor | None, dh: Tensor | None, wanted: Wanted, dispatched: bool = False
) -> Sequence[Tensor | None]:
    """The gradients of one call, by the kernels: at once, or as the operator that PyTorch's dispatcher knows."""
    h, gate, weight, bias, saved = kept = ctx.saved_tensors
    if dy is None:  # y was not used: what arrived at the new residual passes through
        if dh is None:
            return Gradients(None, None, None, None, None)
        dx, dr = (dh.to(dtype) if want else None for dtype, want in zip(ctx.dtypes, wanted[:2], strict=True))
        return Gradients(dx, dr, None, None, None)
    # create_graph=True: the gradient will be differentiated; or many are asked for at once, is_grads_batched=True.
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or _batched(dy) or _batched(dh):
        return _differentiable(ctx, dy, dh, Operands(h, None, gate, weight, bias), wanted)
    run: Any = backward
    if dispatched or not all(map(holds_its_values, (dy, dh, *kept))):
        # Still on its way from another process, say, or the negative of what it holds: the dispatcher sees to that.
        from norm_fusion.ops.library import call_backward as run
    found: Sequence[Tensor | None] = run(ctx.norm, dy, dh, h, gate, weight, bias, saved, ctx.dtypes, wanted)
    return found


def _batched(gradient: Tensor | None) -> bool:
    """By torch.func, or by is_grads_batched."""
    return gradient is not None and (is_functorch_wrapped_tensor(gradient) or is_legacy_batchedtensor(gradient))


def _differentiable(ctx: Any, dy: Tensor, dh: Tensor | None, given: Operands, wanted: Wanted) -> Gradients:
    """The gradients by PyTorch's own operators, so that they have gradients too, and can be batched.

    Each operand goes in under a name of its own: where one was made from another, as a gate from the input may be, the
    way from that one to this is not the norm's to follow.
    """
    norm = ctx.norm._replace(out_dtype=dy.dtype, cast_first=False)  # a rounding's gradient is 1
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        again = Operands(*[None if t is None else t.view_as(t).requires_grad_() for t in given])  # type: ignore[arg-type]
        y, _ = composition(norm, again)
    wants = (wanted.x or wanted.residual, False, wanted.gate, wanted.weight, wanted.bias)
    asked = [t for t, want in zip(again, wants, strict=True) if t is not None and want]
    found = iter(torch.autograd.grad(y, asked, dy, create_graph=twice))
    by_h, _, dz, dw, db = (next(found) if t is not None and w else None for t, w in zip(again, wants, strict=True))
    if by_h is not None and dh is not None:
        by_h = by_h + dh
    dx, dr = (
        by_h.to(dtype) if want and by_h is not None else None
        for dtype, want in zip(ctx.dtypes, wanted[:2], strict=True)
    )
    return Gradients(dx, dr, dz, dw, db)
