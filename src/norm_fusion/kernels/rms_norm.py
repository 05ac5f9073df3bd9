"""RMSNorm forward: y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps).

Traffic, the least there is: reads x and w once, writes y once; w (one row) stays in L2; rstd (one fp32 a row) is
written where a backward will want it. Arithmetic is fp32 whatever the input; the only rounding is the store of y.
What else a row may have, each compiled in only where it is there (`rows`): a residual that is added first and whose
sum is an output too, a gate before or after the norm, a bias, 1 added to the weight, a weight for each head.

Three ways to hold a row, chosen by `launch.pick_rms_norm` from its width alone:

- a tile of whole rows in registers (`rms_norm_rows`): x is read once. The row is a power-of-two body and a power-of-two
  tail (5120 = 4096 + 1024), so that a width between two powers leaves few lanes idle. The weight is loaded before the
  reduction: its latency hides behind that of x.
- the same, LEAN: a 16-bit row stays in its 16 bits between its two uses and the weight is loaded after the reduction,
  which halves the registers: rows of up to 65,536 columns are read once.
- walked twice (`rms_norm_wide`): a row that no register file holds and that programs cannot share (`cooperative`), and
  some narrower ones where that is faster; the second walk runs backwards, because the end of the row is what the caches
  still hold.

What decides at widths that fit: how many bytes an SM has in flight. 40 to 56 KiB is best on an H200; more, by a smaller
register count, is worse again, and a copy of whole rows by such programs takes as long (4096x4096 fp16, a single
kernel's time: six programs an SM 17.5 us, eight 18.0, that copy 17.5). x and y carry no cache hint: evict_first and .cs
are 5% slower (18.5 us) once nothing is left in the cache to hit. The weight is marked to stay.

PDL: see `dispatch`. No memory is touched before `gdc_wait`: the predecessor may still be writing x or the weight.

Row offsets are 64-bit: a tensor may hold more than 2^31 elements. Strides come in units of VEC elements, so that the
compiler knows how far rows are aligned and uses accesses of up to 16 bytes. NaN and inf stay in their row, as no
value crosses rows.
"""

import triton
import triton.language as tl

from norm_fusion.kernels.registers import anew, narrow, widen, zero_after
from norm_fusion.kernels.rows import finished, starts, taken, vectors

SIZES = [
    *("rows", "inner", "middle"),
    *(f"{name}_{level}" for name in ("x", "r", "z") for level in ("stride", "middle", "outer")),
]


@triton.jit(do_not_specialize=SIZES)
def rms_norm_rows(
    x_ptr,
    r_ptr,
    z_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    saved_ptr,
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
    BLOCK_ROWS: tl.constexpr,
    BODY: tl.constexpr,
    TAIL: tl.constexpr,
    LEAN: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    live = row < rows if BLOCK_ROWS > 1 else tl.full((1, 1), True, tl.int1)
    x_at = starts(row, inner, middle, x_outer, x_middle, x_stride, VEC)
    r_at = starts(row, inner, middle, r_outer, r_middle, r_stride, VEC)
    z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC)
    y_at = row * COLS
    w_at = row % HEADS * COLS if HEADS > 1 else 0
    col = tl.arange(0, BODY)[None, :]
    in_row = col < COLS
    mask = live & in_row
    tail_col = BODY + tl.arange(0, TAIL if TAIL else 1)[None, :]
    in_tail = tail_col < COLS
    tail_mask = live & in_tail
    last_z_ptr = None if GATE_FIRST else z_ptr  # the gate after the norm
    if PDL:
        tl.extra.cuda.gdc_wait()

    x = taken(x_ptr, r_ptr, z_ptr, h_ptr, x_at, r_at, z_at, y_at, col, mask, GATE_FIRST)
    if TAIL:
        tail = taken(x_ptr, r_ptr, z_ptr, h_ptr, x_at, r_at, z_at, y_at, tail_col, tail_mask, GATE_FIRST)
    if not LEAN:
        w, b, z = vectors(w_ptr, b_ptr, last_z_ptr, w_at, z_at, col, in_row, mask)
        if TAIL:
            tail_w, tail_b, tail_z = vectors(w_ptr, b_ptr, last_z_ptr, w_at, z_at, tail_col, in_tail, tail_mask)

    square_sum = tl.sum(widen(x) * widen(x), axis=1, keep_dims=True)
    if TAIL:
        square_sum += tl.sum(widen(tail) * widen(tail), axis=1, keep_dims=True)
    rstd = tl.rsqrt(square_sum / COLS + eps)
    if saved_ptr is not None:
        tl.store(saved_ptr + row, rstd, mask=live)

    if LEAN:
        x = anew(x)
        w_at += zero_after(rstd)
        z_at += zero_after(rstd)
        w, b, z = vectors(w_ptr, b_ptr, last_z_ptr, w_at, z_at, col, in_row, mask)
        if TAIL:
            tail = anew(tail)
            tail_w, tail_b, tail_z = vectors(w_ptr, b_ptr, last_z_ptr, w_at, z_at, tail_col, in_tail, tail_mask)

    y = finished(widen(x) * rstd, w, b, z, w_ptr, b_ptr, last_z_ptr, OFFSET, CAST, PRODUCT)
    tl.store(y_ptr + y_at + col, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    if TAIL:
        y = finished(widen(tail) * rstd, tail_w, tail_b, tail_z, w_ptr, b_ptr, last_z_ptr, OFFSET, CAST, PRODUCT)
        tl.store(y_ptr + y_at + tail_col, narrow(y, y_ptr.dtype.element_ty), mask=tail_mask)


@triton.jit(do_not_specialize=SIZES)
def rms_norm_wide(
    x_ptr,
    r_ptr,
    z_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    saved_ptr,
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
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_at = starts(row, inner, middle, x_outer, x_middle, x_stride, VEC)
    r_at = starts(row, inner, middle, r_outer, r_middle, r_stride, VEC)
    z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC)
    y_at = row * COLS
    w_at = row % HEADS * COLS if HEADS > 1 else 0
    last_z_ptr = None if GATE_FIRST else z_ptr
    # Counted in blocks, and in 64 bits where the last block ends past 2^31: a 32-bit column would wrap around.
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)

    if PDL:
        tl.extra.cuda.gdc_wait()

    square_sum = tl.zeros((BODY,), tl.float32)
    for block in range(BLOCKS):
        col = block * BODY + lane
        x = widen(taken(x_ptr, r_ptr, z_ptr, h_ptr, x_at, r_at, z_at, y_at, col, col < COLS, GATE_FIRST))
        square_sum += x * x
    rstd = tl.rsqrt(tl.sum(square_sum, axis=0) / COLS + eps)
    if saved_ptr is not None:
        tl.store(saved_ptr + row, rstd)
    if r_ptr is not None:
        tl.debug_barrier()  # h, just written, is read again

    for back in range(BLOCKS):
        col = (BLOCKS - 1 - back) * BODY + lane
        mask = col < COLS
        if r_ptr is not None:
            x = widen(tl.load(h_ptr + y_at + col, mask=mask, other=0.0))
        else:
            x = widen(taken(x_ptr, None, z_ptr, None, x_at, 0, z_at, 0, col, mask, GATE_FIRST))
        w, b, z = vectors(w_ptr, b_ptr, last_z_ptr, w_at, z_at, col, mask, mask)
        y = finished(x * rstd, w, b, z, w_ptr, b_ptr, last_z_ptr, OFFSET, CAST, PRODUCT)
        tl.store(y_ptr + y_at + col, narrow(y, y_ptr.dtype.element_ty), mask=mask)
