"""The forward kernels, launched: outputs allocated, rows laid out, constants chosen.

Small inputs wait for this Python, not for the GPU: what depends on shapes and dtypes alone is found once and kept.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.kernels.launch import pick_layer_norm, pick_rms_norm
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
        return y, h, saved

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
    programs = -(-count // plan.block_rows)
    if norm.centred:
        plan.kernel(programs, (x, residual, weight, bias, y, h, saved), (count, *plan.sizes), (norm.eps,))
    else:
        plan.kernel(programs, (x, residual, gate, weight, bias, y, h, saved), (count, *plan.sizes), (norm.eps,))
    return y, h, saved


class Plan(NamedTuple):
    """A kernel and its integers for rows that lie in one way, their number apart."""

    cols: int
    kernel: Dispatch
    block_rows: int
    sizes: tuple[int | None, ...]


@lru_cache(PLANS)
def _evenly(norm: Norm, save: bool, row: tuple[int, ...], width: int, dtypes: Dtypes, device: torch.device) -> Plan:
    """For tensors that are contiguous; `width`: elements of weight or bias, 0 where there is neither."""
    return _plan(norm, save, evenly(math.prod(row), dtypes[:3]), width, dtypes, device)


def _plan(norm: Norm, save: bool, rows: Rows, width: int, dtypes: Dtypes, device: torch.device) -> Plan:
    kernel, block_rows = _kernel(
        Form(
            norm._replace(trailing=1, eps=0.0),
            save,
            rows.cols,
            rows.vec,
            rows.inner is None,
            width // rows.cols,
            dtypes,
        ),
        device,
    )
    strides = rows.strides[:2] if norm.centred else rows.strides
    return Plan(rows.cols, kernel, block_rows, (rows.inner, rows.middle, *(s for one in strides for s in one)))


class Form(NamedTuple):
    """What a forward kernel is compiled for; `dtypes` of the operands, None for what is not there."""

    norm: Norm
    save: bool
    cols: int
    vec: int
    even: bool
    heads: int
    dtypes: Dtypes


@cache
def _kernel(form: Form, device: torch.device) -> tuple[Dispatch, int]:
    """The kernel, and how many rows one of its programs takes."""
    from triton import language

    from norm_fusion.kernels import layer_norm, rms_norm

    norm, (x, residual, gate, weight, _) = form.norm, form.dtypes
    assert x is not None
    rounded = {torch.float16: language.float16, torch.bfloat16: language.bfloat16}  # fp32 values are not
    held = x if residual is None else norm.residual_dtype or residual
    gate_first = gate is not None and norm.gate_first
    pick = pick_layer_norm if norm.centred else pick_rms_norm
    launch = pick(form.cols, 4 if gate_first else held.itemsize)
    cast = x if norm.cast_first else None
    product = cast if weight in (None, cast) else torch.float32
    constants: list[object] = [form.cols, form.vec, max(form.heads, 1), norm.offset]
    constants += [None if dtype is None else rounded.get(dtype) for dtype in (cast, product)]
    if not norm.centred:
        constants.append(gate_first)
    if launch.wide:
        kernel = layer_norm.layer_norm_wide if norm.centred else rms_norm.rms_norm_wide
        constants.append(launch.body)
    else:
        kernel = layer_norm.layer_norm_rows if norm.centred else rms_norm.rms_norm_rows
        constants += [launch.block_rows, launch.body, launch.tail, launch.lean]
    return Dispatch(kernel, tuple(constants), launch.num_warps, launch.maxnreg, device), launch.block_rows
