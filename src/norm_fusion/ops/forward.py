"""The forward kernels, launched: outputs allocated, rows laid out, constants chosen.

Small inputs wait for this Python, not for the GPU: what does not depend on values or addresses is found once for calls
that look alike, and kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from norm_fusion.kernels.dispatch import Dispatch, Integers, device_of
from norm_fusion.kernels.launch import pick_cooperative, pick_layer_norm, pick_rms_norm
from norm_fusion.ops.norm import Norm, Operands
from norm_fusion.ops.rows import KEPT, Dtypes, Look, copies, dense, is_dense, lay_out, look

Outputs = tuple[Tensor, Tensor | None, Tensor | None]


def forward(norm: Norm, given: Operands, save: bool) -> Outputs:
    """y; the new residual h, where a residual was given; and with `save` what a backward wants of each row.

    That is fp32 of shape (rows,): rstd, of LayerNorm (2, rows): mean and rstd.
    """
    return prepared(norm, save, *map(look, given))(given)


class Forward:
    """`forward` of operands that look like these."""

    def __init__(self, norm: Norm, save: bool, looks: tuple[Look | None, ...]) -> None:
        x, residual, gate, weight, bias = looks
        assert x is not None
        self.shape, _, dtype, self.device = x
        leading, cols = self.shape[: len(self.shape) - norm.trailing], math.prod(self.shape[-norm.trailing :])
        rows = math.prod(leading)
        self.dtype = norm.out_dtype or dtype
        self.held = None if residual is None else norm.residual_dtype or residual[2]
        self.saved = ((2, rows) if norm.centred else (rows,)) if save else None
        self.saved_strides = dense(self.saved or ())
        self.like_x = self.dtype is dtype and is_dense(x)
        self.programs = 0
        if not rows * cols:
            return
        self.copied, laid = lay_out((x, residual, gate), norm.trailing)
        self.copied += (not is_dense(weight), not is_dense(bias))
        self.copies_some = any(self.copied)
        width = max((math.prod(vector[0]) for vector in (weight, bias) if vector is not None), default=0)
        heads = max(1, width // cols)
        form = Form(
            norm._replace(trailing=1, eps=0.0),  # whatever these are, the kernel is the same
            save,
            cols,
            laid.vec,
            laid.inner is None,
            heads,
            tuple(None if seen is None else seen[2] for seen in looks),
        )
        kernel = _kernel(form, self.device)
        strides = laid.strides[:2] if norm.centred else laid.strides
        self.dispatch, self.takes_gate = kernel.dispatch, not norm.centred
        self.integers = Integers.of(rows, laid.inner, laid.middle, *(s for one in strides for s in one))
        self.floats = (norm.eps,)
        self.programs = -(-rows // kernel.block_rows)
        self.board = None
        if kernel.sharing:
            self.programs = min(rows // heads, kernel.sharing) * heads * kernel.chunks
            self.board = (rows, kernel.chunks)

    def __call__(self, given: Operands) -> Outputs:
        x, residual, gate, weight, bias = given
        y = torch.empty_like(x) if self.like_x else torch.empty(self.shape, dtype=self.dtype, device=self.device)
        h = None if self.held is None else torch.empty(self.shape, dtype=self.held, device=self.device)
        saved = None
        if self.saved is not None:  # 1.8 us; empty 2.9, new_empty 2.4
            saved = torch.empty_strided(self.saved, self.saved_strides, dtype=torch.float32, device=self.device)
        if not self.programs:
            return y, h, None if saved is None else saved.zero_()
        if self.copies_some:
            x, residual, gate, weight, bias = copies(given, self.copied)
        pointers: tuple[Tensor | None, ...]
        if self.takes_gate:
            pointers = (x, residual, gate, weight, bias, y, h, saved)
        else:
            pointers = (x, residual, weight, bias, y, h, saved)
        if self.board is not None:
            pointers = (*pointers, x.new_zeros(self.board, dtype=torch.int64))
        self.dispatch(self.programs, pointers, self.integers, self.floats)
        return y, h, saved


@lru_cache(KEPT)
def prepared(norm: Norm, save: bool, *looks: Look | None) -> Forward:
    return Forward(norm, save, looks)


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


@lru_cache(KEPT)
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
