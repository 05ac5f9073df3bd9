"""The forward kernels, launched: outputs allocated, rows laid out, constants chosen.

Small inputs wait for this Python, not for the GPU: what depends on shapes and dtypes alone is found once and kept.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch, device_of
from norm_fusion.kernels.launch import pick_cooperative, pick_layer_norm, pick_rms_norm
from norm_fusion.ops.norm import Norm, Operands
from norm_fusion.ops.rows import PLANS, Dtypes, Rows, evenly, lay_out


def forward(norm: Norm, given: Operands, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y; the new residual h, where a residual was given; and with `save` what a backward wants of each row.

    That is fp32 of shape (rows,): rstd, of LayerNorm (2, rows): mean and rstd.
    """
    x, residual, gate, weight, bias = given
    even = (
        x.is_contiguous() and (residual is None or residual.is_contiguous()) and (gate is None or gate.is_contiguous())
    )
    if even and norm.out_dtype is None:
        y = torch.empty_like(x)
    else:
        y = torch.empty(x.shape, dtype=norm.out_dtype or x.dtype, device=x.device)
    h = None
    if residual is not None:
        h = torch.empty(x.shape, dtype=norm.residual_dtype or residual.dtype, device=x.device)
    saved = None
    if save:
        count = math.prod(x.shape[: x.dim() - norm.trailing])
        saved = x.new_empty((2, count) if norm.centred else (count,), dtype=torch.float32)
    if not x.numel():
        return y, h, None if saved is None else saved.zero_()

    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    vector = bias if weight is None else weight
    width = 0 if vector is None else vector.numel()
    dtypes = tuple([None if t is None else t.dtype for t in given])
    if even:
        plan = _evenly(norm, save, x.shape[x.dim() - norm.trailing :], width, dtypes, x.device)
    else:
        (x, residual, gate), rows = lay_out((x, residual, gate), norm.trailing)  # type: ignore[assignment]
        plan = _plan(norm, save, rows, width, dtypes, x.device)
    count = x.numel() // plan.cols
    pointers: tuple[Tensor | None, ...] = (x, residual, gate, weight, bias, y, h, saved)
    kernel, programs = plan.kernel, -(-count // plan.kernel.block_rows)
    if kernel.sharing:
        programs = min(count // plan.heads, kernel.sharing) * plan.heads * kernel.chunks
        pointers = (*pointers, x.new_zeros((count, kernel.chunks), dtype=torch.int64))
    elif norm.centred:
        pointers = (x, residual, weight, bias, y, h, saved)
    kernel.dispatch(programs, pointers, (count, *plan.sizes), (norm.eps,))
    return y, h, saved


class Plan(NamedTuple):
    """A kernel and its integers for rows that lie in one way, their number apart; `heads`: how many weights."""

    cols: int
    heads: int
    kernel: Kernel
    sizes: tuple[int | None, ...]


@lru_cache(PLANS)
def _evenly(norm: Norm, save: bool, row: tuple[int, ...], width: int, dtypes: Dtypes, device: torch.device) -> Plan:
    """For tensors that are contiguous; `width`: elements of weight or bias, 0 where there is neither."""
    return _plan(norm, save, evenly(math.prod(row), dtypes[:3]), width, dtypes, device)


def _plan(norm: Norm, save: bool, rows: Rows, width: int, dtypes: Dtypes, device: torch.device) -> Plan:
    heads = max(1, width // rows.cols)
    norm = norm._replace(trailing=1, eps=0.0)  # whatever these are, the kernel is the same
    kernel = _kernel(Form(norm, save, rows.cols, rows.vec, rows.inner is None, heads, dtypes), device)
    strides = rows.strides[:2] if norm.centred else rows.strides
    return Plan(rows.cols, heads, kernel, (rows.inner, rows.middle, *(s for one in strides for s in one)))


class Form(NamedTuple):
    """What a forward kernel is compiled for; `dtypes` of the operands, None for what is not there."""

    norm: Norm
    save: bool
    cols: int
    vec: int
    even: bool
    heads: int
    dtypes: Dtypes


class Kernel(NamedTuple):
    """A kernel, and how many rows one of its programs takes at a time.

    `sharing` where a row is cut into `chunks`, a program each: how many at most share the rows of a chunk; else 0.
    """

    dispatch: Dispatch
    block_rows: int
    chunks: int = 1
    sharing: int = 0


@cache
def _kernel(form: Form, device: torch.device) -> Kernel:
    from triton import language

    from norm_fusion.kernels import cooperative, layer_norm, rms_norm

    norm, (x, residual, gate, weight, _) = form.norm, form.dtypes
    assert x is not None
    rounded = {torch.float16: language.float16, torch.bfloat16: language.bfloat16}  # fp32 values are not
    held = x if residual is None else norm.residual_dtype or residual
    gate_first = gate is not None and norm.gate_first
    itemsize = 4 if gate_first else held.itemsize
    cast = x if norm.cast_first else None
    product = cast if weight in (None, cast) else torch.float32
    constants: list[object] = [form.cols, form.vec, form.heads, norm.offset]
    constants += [None if dtype is None else rounded.get(dtype) for dtype in (cast, product)]

    shared = None if norm.centred else pick_cooperative(form.cols, itemsize)
    if shared is not None and device_of(device).cooperative:
        sharing = shared.sharing(form.cols, form.heads, device_of(device))
        if sharing:
            constants += [gate_first, shared.body, shared.stages]
            kernel = cooperative.rms_norm_cooperative
            dispatch = Dispatch(kernel, tuple(constants), shared.num_warps, shared.maxnreg, device, True)
            return Kernel(dispatch, 1, -(-form.cols // shared.body), sharing)

    launch = (pick_layer_norm if norm.centred else pick_rms_norm)(form.cols, itemsize)
    if not norm.centred:
        constants.append(gate_first)
    if launch.wide:
        kernel = layer_norm.layer_norm_wide if norm.centred else rms_norm.rms_norm_wide
        constants.append(launch.body)
    else:
        kernel = layer_norm.layer_norm_rows if norm.centred else rms_norm.rms_norm_rows
        constants += [launch.block_rows, launch.body, launch.tail, launch.lean]
    return Kernel(Dispatch(kernel, tuple(constants), launch.num_warps, launch.maxnreg, device), launch.block_rows)
