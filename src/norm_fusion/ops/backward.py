"""The backward kernels, launched: what is asked for is allocated, and nothing else is computed.

As in `forward`, what does not depend on values or addresses is found once for calls that look alike, and kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch, Integers, device_of
from norm_fusion.kernels.launch_backward import BackwardLaunch, Given, pick_backward
from norm_fusion.ops.norm import Norm
from norm_fusion.ops.rows import KEPT, Dtypes, Look, copies, is_dense, lay_out, look


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
    looks = look(dy), look(dh), look(h), look(gate), look(weight), look(bias), look(saved)
    run = prepared(norm, dtypes, wanted, *looks)
    return run(dy, dh, h, gate, weight, bias, saved)


class Backward:
    """`backward` of operands that look like these.

    `means`: how many means of each row the programs that share one need to know, and `board` the shape of where they
    tell each other, if they wait for each other; `partial`: the shape of the partial sums of dw, and of db.
    """

    def __init__(
        self, norm: Norm, dtypes: Sequence[torch.dtype], wanted: Wanted, looks: tuple[Look | None, ...]
    ) -> None:
        dy, dh, h, gate, weight, bias, saved = looks
        assert h is not None
        assert saved is not None
        if saved[2] is not torch.float32:
            raise TypeError(
                f"what the forward saved came back as {saved[2]}: a saved tensor's hook must keep its dtype"
            )
        self.shape, _, of_h, self.device = h
        cols = math.prod(self.shape[-norm.trailing :])
        elements = math.prod(self.shape)
        self.dx = dtypes[0] if wanted.x else None
        self.same = wanted.x and wanted.residual and dtypes[0] is dtypes[1]
        self.dr = dtypes[1] if wanted.residual and not self.same else None
        self.like_h = is_dense(h) and of_h is self.dx
        self.dz, self.dw, self.db = (
            None if seen is None or not want else (seen[0], seen[2], is_dense(seen))
            for seen, want in zip((gate, weight, bias), wanted[2:], strict=True)
        )
        self.count = 0
        if not elements or not any((self.dx, self.dr, self.dz, self.dw, self.db)):
            return
        self.copied, rows = lay_out((h, dy, gate, dh), norm.trailing)
        self.copied += (not is_dense(weight), not is_dense(saved))
        self.copies_some = any(self.copied)

        vector = bias if weight is None else weight
        heads = 1 if vector is None else max(1, math.prod(vector[0]) // cols)
        gate_first = gate is not None and norm.gate_first
        rstd_is_not_all = self.dx is not None or self.dr is not None or (gate_first and self.dz is not None)
        means = 1 + norm.centred if rstd_is_not_all else 0
        there = tuple(None if seen is None else seen[2] for seen in (h, dy, gate, dh, weight))
        written = (self.dx, self.dr, *(None if made is None else made[1] for made in (self.dz, self.dw, self.db)))
        even = rows.inner is None
        form = Form(norm.centred, norm.offset, gate_first, cols, rows.vec, heads, even, means > 0, there + written)
        self.kernels = _kernels(form, self.device)
        launch = self.kernels.launch

        self.count = elements // cols
        chunks = -(-cols // launch.body)
        self.means = means if chunks > 1 else 0
        self.board = (self.means, self.count, chunks) if launch.cooperative else None
        sharing = -(-(self.count // heads) // launch.block_rows)
        if launch.cooperative or self.dw is not None or self.db is not None:
            sharing = min(sharing, max(1, launch.per_sm * device_of(self.device).processors // (chunks * heads)))
        self.partial = (sharing, heads * cols)
        self.programs = sharing * heads * chunks
        self.integers = Integers.of(
            self.count, rows.inner, rows.middle, *(stride for strides in rows.strides for stride in strides)
        )
        # Of the gradient of a new residual and what is written row_means knows nothing.
        self.of_means = Integers.of(*self.integers.values[:-3])
        self.of_sums = Integers.of(*self.partial)
        self.sums = -(-heads * cols // launch.sum_cols)

    def __call__(
        self,
        dy: Tensor,
        dh: Tensor | None,
        h: Tensor,
        gate: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        saved: Tensor,
    ) -> Gradients:
        dx = dr = dz = dw = db = None
        if self.dx is not None:
            dx = torch.empty_like(h) if self.like_h else torch.empty(self.shape, dtype=self.dx, device=self.device)
        if self.dr is not None:
            dr = torch.empty(self.shape, dtype=self.dr, device=self.device)
        if self.dz is not None:
            dz = _dense_like(gate, *self.dz)
        if self.dw is not None:
            dw = _dense_like(weight, *self.dw)
        if self.db is not None:
            db = _dense_like(bias, *self.db)
        gradients = Gradients(dx, dx if self.same else dr, dz, dw, db)
        if not self.count:
            for vector in (dw, db):
                if vector is not None:
                    vector.zero_()
            return gradients

        if self.copies_some:
            h, dy, gate, dh, weight, saved = copies((h, dy, gate, dh, weight, saved), self.copied)
        means = None
        if self.means and self.board is not None:
            means = h.new_zeros(self.board, dtype=torch.int64)
        elif self.means:
            means = h.new_empty((self.means, self.count), dtype=torch.float32)
            self.kernels.row_means(self.count, (h, dy, gate, weight, saved, means), self.of_means)
        dw_partial = None if dw is None else self._new_partial()
        db_partial = None if db is None else self._new_partial()
        pointers = (h, dy, gate, dh, weight, saved, means, dx, dr, dz, dw_partial, db_partial)
        self.kernels.norm_backward(self.programs, pointers, self.integers)
        if dw is not None or db is not None:
            self.kernels.column_sums(self.sums, (dw_partial, db_partial, dw, db), self.of_sums)
        return gradients

    def _new_partial(self) -> Tensor:
        return torch.empty_strided(self.partial, (self.partial[1], 1), dtype=torch.float32, device=self.device)


def _dense_like(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, is_dense: bool) -> Tensor:
    """Contiguous, of this tensor's shape and dtype. empty_like takes 1.6 us, empty 2.9."""
    assert tensor is not None
    return torch.empty_like(tensor) if is_dense else torch.empty(shape, dtype=dtype, device=tensor.device)


@lru_cache(KEPT)
def prepared(norm: Norm, dtypes: tuple[torch.dtype, torch.dtype], wanted: Wanted, *looks: Look | None) -> Backward:
    return Backward(norm, dtypes, wanted, looks)


class Kernels(NamedTuple):
    launch: BackwardLaunch
    norm_backward: Dispatch
    row_means: Dispatch
    column_sums: Dispatch


class Form(NamedTuple):
    """What the kernels are compiled for.

    `even`: rows are evenly spaced, else kernels take more integers. `means`: the means of each row are needed. `there`:
    dtypes of h, dy, gate, dh and weight, then of dx, dr, dz, dw and db; None for what is not there.
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


@lru_cache(KEPT)
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
