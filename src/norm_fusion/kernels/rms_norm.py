"""RMSNorm forward: y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps).

Traffic, the least there is: reads x and w once, writes y once; w (one row) stays in L2. No statistic is stored.
Arithmetic is fp32 whatever the input; the only rounding to the input's dtype is the store of y.

Three ways to hold a row, chosen by `launch.pick_rms_norm` from its width alone:

- a tile of whole rows in registers (`rms_norm_rows`): x is read once. The row is a power-of-two body and a power-of-two
  tail (5120 = 4096 + 1024), so that a width between two powers leaves few lanes idle. The weight is loaded before the
  reduction: its latency hides behind that of x.
- the same, LEAN: a 16-bit row stays in its 16 bits between its two uses and the weight is loaded after the reduction,
  which halves the registers: rows of up to 65,536 columns are read once.
- walked twice (`rms_norm_wide`): a row that no register file holds, and some narrower ones where that is faster; the
  second walk runs backwards, because the end of the row is what the caches still hold.

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

from norm_fusion.kernels.registers import anew, widen, zero_after


@triton.jit(do_not_specialize=["rows", "x_stride", "y_stride"])
def rms_norm_rows(
    x_ptr,
    w_ptr,
    y_ptr,
    rows,
    x_stride,
    y_stride,
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BODY: tl.constexpr,
    TAIL: tl.constexpr,
    LEAN: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    live = row < rows if BLOCK_ROWS > 1 else tl.full((1, 1), True, tl.int1)
    x_row = x_ptr + row * x_stride * VEC
    y_row = y_ptr + row * y_stride * VEC
    col = tl.arange(0, BODY)[None, :]
    in_row = col < COLS
    mask = live & in_row
    tail_col = BODY + tl.arange(0, TAIL if TAIL else 1)[None, :]
    in_tail = tail_col < COLS
    tail_mask = live & in_tail
    if PDL:
        tl.extra.cuda.gdc_wait()

    x = tl.load(x_row + col, mask=mask, other=0.0)
    if TAIL:
        tail = tl.load(x_row + tail_col, mask=tail_mask, other=0.0)
    if HAS_WEIGHT and not LEAN:
        w = tl.load(w_ptr + col, mask=in_row, other=0.0, eviction_policy="evict_last")
        if TAIL:
            tail_w = tl.load(w_ptr + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")

    square_sum = tl.sum(widen(x) * widen(x), axis=1, keep_dims=True)
    if TAIL:
        square_sum += tl.sum(widen(tail) * widen(tail), axis=1, keep_dims=True)
    rstd = tl.rsqrt(square_sum / COLS + eps)

    if LEAN:
        x = anew(x)
        if TAIL:
            tail = anew(tail)
        if HAS_WEIGHT:
            w_row = w_ptr + zero_after(rstd)
            w = tl.load(w_row + col, mask=in_row, other=0.0, eviction_policy="evict_last")
            if TAIL:
                tail_w = tl.load(w_row + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")

    y = widen(x) * rstd
    if HAS_WEIGHT:
        y *= widen(w)
    tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask)
    if TAIL:
        y = widen(tail) * rstd
        if HAS_WEIGHT:
            y *= widen(tail_w)
        tl.store(y_row + tail_col, y.to(y_ptr.dtype.element_ty), mask=tail_mask)


@triton.jit(do_not_specialize=["rows", "x_stride", "y_stride"])
def rms_norm_wide(
    x_ptr,
    w_ptr,
    y_ptr,
    rows,
    x_stride,
    y_stride,
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BODY: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride * VEC
    y_row = y_ptr + row * y_stride * VEC
    # Counted in blocks, and in 64 bits where the last block ends past 2^31: a 32-bit column would wrap around.
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)

    if PDL:
        tl.extra.cuda.gdc_wait()

    square_sum = tl.zeros((BODY,), tl.float32)
    for block in range(BLOCKS):
        col = block * BODY + lane
        x = widen(tl.load(x_row + col, mask=col < COLS, other=0.0))
        square_sum += x * x
    rstd = tl.rsqrt(tl.sum(square_sum, axis=0) / COLS + eps)

    for back in range(BLOCKS):
        col = (BLOCKS - 1 - back) * BODY + lane
        mask = col < COLS
        y = widen(tl.load(x_row + col, mask=mask, other=0.0)) * rstd
        if HAS_WEIGHT:
            y *= widen(tl.load(w_ptr + col, mask=mask, other=0.0))
        tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask)
