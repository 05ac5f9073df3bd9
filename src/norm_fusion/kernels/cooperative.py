"""RMSNorm's forward for rows that several programs share, so that no row is read twice.

A row is cut into chunks of BODY columns. A program takes one of them, of its head's rows one after the other, and keeps
its part of weight and bias in registers: it reads a row, posts its sum of squares (`board`), and finishes the row
before that, whose sums are there by now. The maths and the traffic are those of `rms_norm`.

LayerNorm has none: its sums wait for each other, and it is faster walked twice. On an H200, bf16, 2048x65536 by such a
kernel took 231 us and walked 178, 512x262144 226 and 223.
"""

import triton
import triton.language as tl

from norm_fusion.kernels.board import collect, post
from norm_fusion.kernels.registers import narrow, widen
from norm_fusion.kernels.rms_norm import SIZES
from norm_fusion.kernels.rows import finished, starts, taken, vectors


@triton.jit(do_not_specialize=SIZES)
def rms_norm_cooperative(
    x_ptr,
    r_ptr,
    z_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    saved_ptr,
    board_ptr,
    rows,
    inner,
    middle,
    x_stride,
    x_middle,
    x_outer,
    r_stride,
    r_middle,
    r_outer,
    z_stride,
    z_middle,
    z_outer,
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HEADS: tl.constexpr,
    OFFSET: tl.constexpr,
    CAST: tl.constexpr,
    PRODUCT: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    BODY: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    CHUNKS: tl.constexpr = (COLS + BODY - 1) // BODY
    tl.static_assert(not PDL)  # launched cooperatively
    chunk = tl.program_id(0) % CHUNKS
    head = tl.program_id(0) // CHUNKS % HEADS
    first = tl.program_id(0) // (CHUNKS * HEADS)
    step = tl.num_programs(0) // (CHUNKS * HEADS)
    tokens = rows // HEADS

    col = chunk * BODY + tl.arange(0, BODY)[None, :]
    in_row = col < COLS
    w, b, _ = vectors(w_ptr, b_ptr, None, head * COLS, 0, col, in_row, in_row)
    last_z_ptr = None if GATE_FIRST else z_ptr
    if GATE_FIRST:
        held = tl.zeros((1, BODY), tl.float32)
    elif r_ptr is not None:
        held = tl.zeros((1, BODY), h_ptr.dtype.element_ty)
    else:
        held = tl.zeros((1, BODY), x_ptr.dtype.element_ty)

    for block in tl.range(first, tokens + step, step, num_stages=STAGES):
        live = block < tokens
        row = tl.cast(block, tl.int64) * HEADS + head
        x_at = starts(row, inner, middle, x_outer, x_middle, x_stride, VEC)
        r_at = starts(row, inner, middle, r_outer, r_middle, r_stride, VEC)
        z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC)
        x = taken(x_ptr, r_ptr, z_ptr, h_ptr, x_at, r_at, z_at, row * COLS, col, live & in_row, GATE_FIRST)
        post(board_ptr, row * CHUNKS + chunk, tl.sum(widen(x) * widen(x)), live)

        x, held = held, x
        live = block != first
        mask = live & in_row
        row -= tl.where(live, step * HEADS, 0)
        z = 0.0
        if last_z_ptr is not None:
            z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC)
            z = tl.load(z_ptr + z_at + col, mask=mask, other=0.0)
        rstd = tl.rsqrt(tl.sum(collect(board_ptr, row * CHUNKS, CHUNKS)) / COLS + eps)
        y = finished(widen(x) * rstd, w, b, z, w_ptr, b_ptr, last_z_ptr, OFFSET, CAST, PRODUCT)
        tl.store(y_ptr + row * COLS + col, narrow(y, y_ptr.dtype.element_ty), mask=mask)
        if saved_ptr is not None:
            tl.store(saved_ptr + row, rstd, mask=live & (chunk == 0))
