"""C = A B, tiled: a matrix product that the tensor pipes limit, profiled beside normalizations that memory limits.

A (m, k) and B (k, n) are read, C (m, n) is written, all in one dtype; sums are kept in fp32. One program makes one
tile of C, walking k in blocks. Programs take the tiles in groups of GROUP rows of tiles, down before across, so that
those that run at the same time share rows of A and columns of B in L2. One launch a dtype and no autotuning: what is
profiled is the same kernel every time. fp32 is multiplied as fp32, as PyTorch does by default: not by tensor pipes.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton's language, not Python: its compiler checks the kernel, ahead of time, in the tests.

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from norm_fusion.kernels.registers import INTERPRETED, narrow, widen


class Tiles(NamedTuple):
    """A program makes `m` x `n` elements of C, from `k` of A's columns at a time, `stages` of these on their way."""

    m: int
    n: int
    k: int
    num_warps: int
    stages: int


# At most 96 KiB of shared memory, which every GPU with tensor pipes for bfloat16 has; two programs fit an H200's SM.
SIXTEEN_BITS = Tiles(128, 128, 64, 8, 3)
TILES = {
    torch.float16: SIXTEEN_BITS,
    torch.bfloat16: SIXTEEN_BITS,
    # Without tensor pipes: 16 elements of C a thread.
    torch.float32: Tiles(64, 64, 32, 8, 3),
}
GROUP = 8  # rows of tiles


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A B, of shapes (m, k) and (k, n) to (m, n), in their dtype: float16, bfloat16 or float32, of any strides.

    Raises:
        ValueError: they are no two matrices that fit each other, or of two dtypes, or of one that has no launch.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} do not fit: they must be (m, k) and (k, n)")
    if a.dtype != b.dtype or a.dtype not in TILES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TILES)
        raise ValueError(f"dtypes {a.dtype} and {b.dtype}: both must be one of {allowed}")
    (m, k), n, tiles = a.shape, b.shape[1], TILES[a.dtype]
    c = a.new_empty(m, n)
    programs = triton.cdiv(m, tiles.m) * triton.cdiv(n, tiles.n)
    strides = (*a.stride(), *b.stride(), *c.stride())
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.stages}
    multiply[(programs,)](a, b, c, m, n, k, *strides, tiles.m, tiles.n, tiles.k, GROUP, **options)
    return c


@triton.jit
def multiply(
    a_ptr,
    b_ptr,
    c_ptr,
    m,
    n,
    k,
    a_row,
    a_col,
    b_row,
    b_col,
    c_row,
    c_col,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`*_row`, `*_col`: how far apart two rows lie, and two columns, in elements."""
    program = tl.program_id(0)
    down, across = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    first = program // (GROUP * across) * GROUP
    high = min(down - first, GROUP)
    # The last group may be lower than the others.
    tile_m = first + program % (GROUP * across) % high
    tile_n = program % (GROUP * across) // high

    # 64 bits: a matrix may have more than 2^31 elements.
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    cols = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inner, step = tl.arange(0, BLOCK_K).to(tl.int64), tl.full((), BLOCK_K, tl.int64)
    a_at = a_ptr + rows[:, None] * a_row + inner[None, :] * a_col
    b_at = b_ptr + inner[:, None] * b_row + cols[None, :] * b_col

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        left = inner < k - start
        a = tl.load(a_at, mask=(rows < m)[:, None] & left[None, :], other=0.0)
        b = tl.load(b_at, mask=left[:, None] & (cols < n)[None, :], other=0.0)
        if INTERPRETED:  # which multiplies the bits of bfloat16
            a, b = widen(a), widen(b)
        total = tl.dot(a, b, total, input_precision="ieee")
        a_at += step * a_col
        b_at += step * b_row

    c_at = c_ptr + rows[:, None] * c_row + cols[None, :] * c_col
    tl.store(c_at, narrow(total, c_ptr.dtype.element_ty), mask=(rows < m)[:, None] & (cols < n)[None, :])
