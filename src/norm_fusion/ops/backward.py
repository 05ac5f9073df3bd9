"""The backward kernels, launched: what is asked for is allocated, and nothing else is computed.

As in `forward`, what depends on shapes and dtypes alone is found once and kept.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.kernels.launch_backward import BackwardLaunch, Device, pick_backward
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
    if all(gradient is None for gradient in gradients):
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

    `heads`: how many weights there are; `chunks`: how many programs share a row; `partials`: how many sums of dw and db
    there may be, 0 where neither is wanted; `means`: how many numbers of each row a pass before it makes.
    """

    cols: int
    heads: int
    chunks: int
    partials: int
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
    if plan.means:
        means = h.new_empty((plan.means, count), dtype=torch.float32)
        kernels.row_means(count, (h, dy, gate, weight, saved, means), sizes[:-3])
    partials = -(-(count // plan.heads) // kernels.launch.block_rows)
    dw_partial = db_partial = None
    if plan.partials:
        partials = min(partials, plan.partials)
        dw_partial = None if dw is None else h.new_empty((partials, n), dtype=torch.float32)
        db_partial = None if db is None else h.new_empty((partials, n), dtype=torch.float32)
    pointers = (*read, means, *written[:3], dw_partial, db_partial)
    kernels.norm_backward(partials * plan.heads * plan.chunks, pointers, sizes)
    if plan.partials:
        kernels.column_sums(-(-n // kernels.launch.sum_cols), (dw_partial, db_partial, dw, db), (partials, n))


@lru_cache(PLANS)
def _evenly(norm: Norm, row: tuple[int, ...], width: int, there: Dtypes, device: torch.device) -> Plan:
    """For tensors that are contiguous; `width`: elements of weight or bias, 0 where there is neither."""
    return _plan(norm, evenly(math.prod(row), there[:4]), width, there, device)


def _plan(norm: Norm, rows: Rows, width: int, there: Dtypes, device: torch.device) -> Plan:
    """`there`: dtypes of h, dy, gate, dh and weight, then of dx, dr, dz, dw and db; None for what is not there."""
    cols, heads = rows.cols, max(1, width // rows.cols)
    gate, dx, dr, dz, dw, db = there[2], *there[5:]
    gate_first = gate is not None and norm.gate_first
    kernels = _kernels(norm.centred, norm.offset, gate_first, cols, rows.vec, heads, rows.inner is None, there, device)
    chunks = -(-cols // kernels.launch.body)
    partials = means = 0
    if dw is not None or db is not None:
        partials = max(1, kernels.launch.per_sm * device_of(device).processors // (chunks * heads))
    if chunks > 1 and (dx is not None or dr is not None or (gate_first and dz is not None)):
        means = 2 if norm.centred else 1
    sizes = (rows.inner, rows.middle, *(stride for strides in rows.strides for stride in strides))
    return Plan(cols, heads, chunks, partials, means, kernels, sizes)


class Kernels(NamedTuple):
    launch: BackwardLaunch
    norm_backward: Dispatch
    row_means: Dispatch
    column_sums: Dispatch


@cache
def _kernels(
    centred: bool,
    offset: float,
    gate_first: bool,
    cols: int,
    vec: int,
    heads: int,
    even: bool,
    there: Dtypes,
    device: torch.device,
) -> Kernels:
    """`even`: are rows evenly spaced? Other kernels take more integers."""
    from norm_fusion.kernels import backward as kernels

    h, dy, gate, dh, weight, *_, dw, db = there
    itemsize = max(dtype.itemsize for dtype in (h, dy, gate, dh) if dtype is not None)
    of_weight = 0 if weight is None else weight.itemsize
    vectors = (dw is not None) + (db is not None)
    launch = pick_backward(cols, itemsize, of_weight, vectors, dh is not None, gate is not None, device_of(device))
    constants = (cols, vec, heads, centred, offset, gate_first)
    tile = (launch.block_rows, launch.body, launch.lean, launch.stages)
    return Kernels(
        launch,
        Dispatch(kernels.norm_backward, (*constants, *tile), launch.num_warps, None, device),
        Dispatch(kernels.row_means, (*constants, launch.body), launch.num_warps, None, device),
        Dispatch(kernels.column_sums, (launch.sum_rows, launch.sum_cols), 4, None, device),
    )


@cache
def device_of(which: torch.device) -> Device:
    """A CPU, where the interpreter runs one program after the other, counts as a small GPU."""
    if which.type != "cuda":
        return Device(4, 227 * 1024)
    from triton.runtime import driver

    properties = driver.active.utils.get_device_properties(which.index)
    return Device(properties["multiprocessor_count"], properties["max_shared_mem"])
