"""The backward kernels, launched: what is asked for is allocated, and nothing else is computed.

As in `forward`, what depends on shapes and dtypes alone is found once and kept.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch, device_of
from norm_fusion.kernels.launch_backward import BackwardLaunch, Given, pick_backward
from norm_fusion.ops.norm import Norm
from norm_fusion.ops.rows import PLANS, Dtypes, Rows, evenly, lay_out


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    residual: bool
    gate: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """The gradients, None where not asked for."""

    x: Tensor | None
    residual: Tensor | None
    gate: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def backward(
    norm: Norm,
    dy: Tensor,
    dh: Tensor | None,
    h: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
    wanted: Wanted,
) -> Gradients:
    """The gradients of dy, of shape of y, and of dh, that of the new residual, None where it was not used.

    `h` is what was normalized: the input, or the new residual; `saved` what `forward` saved; `dtypes` those of input
    and residual. The gradients of input and residual are one tensor where their dtypes are the same.
    """
    even = (
        h.is_contiguous()
        and dy.is_contiguous()
        and (gate is None or gate.is_contiguous())
        and (dh is None or dh.is_contiguous())
    )
    dx = dr = dz = dw = db = None
    if wanted.x:
        plain = even and h.dtype is dtypes[0]
        dx = torch.empty_like(h) if plain else torch.empty(h.shape, dtype=dtypes[0], device=h.device)
    if wanted.residual:
        same = dx is not None and dtypes[0] is dtypes[1]
        dr = dx if same else torch.empty(h.shape, dtype=dtypes[1], device=h.device)
    if gate is not None and wanted.gate:
        dz = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if weight is not None and wanted.weight:
        dw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    if bias is not None and wanted.bias:
        db = torch.empty_like(bias, memory_format=torch.contiguous_format)
    gradients = Gradients(dx, dr, dz, dw, db)
    if not h.numel():
        for vector in (dw, db):
            if vector is not None:
                vector.zero_()
        return gradients
    if dx is None and dr is None and dz is None and dw is None and db is None:
        return gradients

    vector = bias if weight is None else weight
    width = 0 if vector is None else vector.numel()
    weight = None if weight is None else weight.contiguous()
    written = (dx, None if dr is dx else dr, dz, dw, db)
    there = tuple([None if t is None else t.dtype for t in (h, dy, gate, dh, weight, *written)])
    if even:
        plan = _evenly(norm, h.shape[h.dim() - norm.trailing :], width, there, h.device)
    else:
        (h, dy, gate, dh), rows = lay_out((h, dy, gate, dh), norm.trailing)  # type: ignore[assignment]
        plan = _plan(norm, rows, width, there, h.device)
    _launch(plan, (h, dy, gate, dh, weight, saved), written)
    return gradients


class Plan(NamedTuple):
    """Kernels and their integers for rows that lie in one way, their number apart.

    `heads`: how many weights there are; `chunks`: how many programs share a row; `sharing`: how many at most share the
    rows, None for one block each; `means`: how many means of each row those that share one need to know.
    """

    cols: int
    heads: int
    chunks: int
    sharing: int | None
    means: int
    kernels: Kernels
    sizes: tuple[int | None, ...]


def _launch(plan: Plan, read: tuple[Tensor | None, ...], written: tuple[Tensor | None, ...]) -> None:
    """`read`: h, dy, gate, dh, weight and saved; `written`: dx, dr, dz, dw and db."""
    h, dy, gate, _, weight, saved = read
    assert h is not None
    dw, db = written[3:]
    kernels, n = plan.kernels, plan.heads * plan.cols
    count = h.numel() // plan.cols
    sizes = (count, *plan.sizes)

    means = None
    if plan.means and kernels.launch.cooperative:
        means = h.new_zeros((plan.means, count, plan.chunks), dtype=torch.int64)
    elif plan.means:
        means = h.new_empty((plan.means, count), dtype=torch.float32)
        kernels.row_means(count, (h, dy, gate, weight, saved, means), sizes[:-3])
    sharing = -(-(count // plan.heads) // kernels.launch.block_rows)
    if plan.sharing is not None:
        sharing = min(sharing, plan.sharing)
    dw_partial = None if dw is None else h.new_empty((sharing, n), dtype=torch.float32)
    db_partial = None if db is None else h.new_empty((sharing, n), dtype=torch.float32)
    pointers = (*read, means, *written[:3], dw_partial, db_partial)
    kernels.norm_backward(sharing * plan.heads * plan.chunks, pointers, sizes)
    if dw is not None or db is not None:
        kernels.column_sums(-(-n // kernels.launch.sum_cols), (dw_partial, db_partial, dw, db), (sharing, n))


@lru_cache(PLANS)
def _evenly(norm: Norm, row: tuple[int, ...], width: int, there: Dtypes, device: torch.device) -> Plan:
    """For tensors that are contiguous; `width`: elements of weight or bias, 0 where there is neither."""
    return _plan(norm, evenly(math.prod(row), there[:4]), width, there, device)


def _plan(norm: Norm, rows: Rows, width: int, there: Dtypes, device: torch.device) -> Plan:
    """`there`: dtypes of h, dy, gate, dh and weight, then of dx, dr, dz, dw and db; None for what is not there."""
    cols, heads = rows.cols, max(1, width // rows.cols)
    gate, dx, dr, dz, dw, db = there[2], *there[5:]
    gate_first = gate is not None and norm.gate_first
    means = 1 + norm.centred if dx is not None or dr is not None or (gate_first and dz is not None) else 0
    form = Form(norm.centred, norm.offset, gate_first, cols, rows.vec, heads, rows.inner is None, means > 0, there)
    kernels = _kernels(form, device)
    launch, chunks = kernels.launch, -(-cols // kernels.launch.body)
    sharing = None
    if launch.cooperative or dw is not None or db is not None:
        sharing = max(1, launch.per_sm * device_of(device).processors // (chunks * heads))
    sizes = (rows.inner, rows.middle, *(stride for strides in rows.strides for stride in strides))
    return Plan(cols, heads, chunks, sharing, means if chunks > 1 else 0, kernels, sizes)


class Kernels(NamedTuple):
    launch: BackwardLaunch
    norm_backward: Dispatch
    row_means: Dispatch
    column_sums: Dispatch


class Form(NamedTuple):
    """What the kernels are compiled for.

    `even`: rows are evenly spaced, else kernels take more integers. `means`: the means of each row are needed. `there`
    as `_plan` has it.
    """

    centred: bool
    offset: float
    gate_first: bool
    cols: int
    vec: int
    heads: int
    even: bool
    means: bool
    there: Dtypes


@cache
def _kernels(form: Form, device: torch.device) -> Kernels:
    from norm_fusion.kernels import backward as kernels

    h, dy, gate, dh, weight, *_, dw, db = form.there
    itemsize = max(dtype.itemsize for dtype in (h, dy, gate, dh) if dtype is not None)
    of_weight = 0 if weight is None else weight.itemsize
    given = Given((dw is not None) + (db is not None), form.means, dh is not None, gate is not None)
    launch = pick_backward(form.cols, itemsize, of_weight, form.heads, given, device_of(device))
    constants = (form.cols, form.vec, form.heads, form.centred, form.offset, form.gate_first)
    tile = (launch.block_rows, launch.body, launch.lean, launch.stages, launch.cooperative)
    return Kernels(
        launch,
        Dispatch(
            kernels.norm_backward, (*constants, *tile), launch.num_warps, launch.maxnreg, device, launch.cooperative
        ),
        Dispatch(kernels.row_means, (*constants, launch.body), launch.num_warps, None, device),
        Dispatch(kernels.column_sums, (launch.sum_rows, launch.sum_cols), 4, None, device),
    )
