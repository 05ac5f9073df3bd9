"""LayerNorm forward: y = (x - mean) * rstd * w + b, rstd = 1 / sqrt(var(x) + eps), var biased (divided by cols).

Traffic, the least there is: reads x, w and b once, writes y once; w and b (one row each) stay in L2; mean and rstd
(an fp32 each a row) are written where a backward will want them. Arithmetic is fp32 whatever the input; the only
rounding is the store of y. A residual, 1 added to the weight and a weight for each head are `rms_norm`'s.

Tiles, tails, LEAN, PDL, strides, masks and the cache are those of `rms_norm`, which explains them. The variance is
taken about the mean, and not as E[x^2] - mean^2, which cancels when the mean is large; and what the mean, one fp32
number, lost to rounding is the mean of x - mean, found beside the squares and taken off both (the corrected two-pass
algorithm of Chan, Golub and LeVeque 1983). Without it a row of 1000s is off by 0.3, as its rstd is 1/sqrt(eps).

- `layer_norm_rows`: the row is in registers: mean first, then the centred squares, one read of x. In 16 bits an SM has
  twice the elements to compute a byte, and instructions count: there one reduction gives sum and sum of squares, and
  E[x^2] - mean^2 is used where it loses at most one bit, |mean| <= std; any other row is centred and reduced again.
  4096x4096 fp16 in a CUDA graph: 17.9 us; where each row's |mean| > std 19.0.
- `layer_norm_wide`: the row is walked twice, backwards the second time, out of the L1 or L2 cache. The first walk
  gives each lane the mean and centred square sum of its own elements (Welford 1962) and merges the lanes at the end
  (Chan, Golub and LeVeque 1983).
"""

import triton
import triton.language as tl

from norm_fusion.kernels.registers import INTERPRETED, anew, narrow, widen, zero_after
from norm_fusion.kernels.rows import finished, starts, taken, vectors

SIZES = [
    *("rows", "inner", "middle"),
    *(f"{name}_{level}" for name in ("x", "r") for level in ("stride", "middle", "outer")),
]


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _sums(x):
    """Sum and sum of squares of each row, in one reduction; the interpreter takes one element at a time for that."""
    if INTERPRETED:
        total = tl.sum(x, axis=1, keep_dims=True)
        square_sum = tl.sum(x * x, axis=1, keep_dims=True)
    else:
        total, square_sum = tl.reduce((x, x * x), 1, _add_pairs, keep_dims=True)
    return total, square_sum


@triton.jit(do_not_specialize=SIZES)
def layer_norm_rows(
    x_ptr,
    r_ptr,
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
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HEADS: tl.constexpr,
    OFFSET: tl.constexpr,
    CAST: tl.constexpr,
    PRODUCT: tl.constexpr,
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
    y_at = row * COLS
    w_at = row % HEADS * COLS if HEADS > 1 else 0
    col = tl.arange(0, BODY)[None, :]
    in_row = col < COLS
    mask = live & in_row
    tail_col = BODY + tl.arange(0, TAIL if TAIL else 1)[None, :]
    in_tail = tail_col < COLS
    tail_mask = live & in_tail

    if PDL:
        tl.extra.cuda.gdc_wait()

    x = taken(x_ptr, r_ptr, None, h_ptr, x_at, r_at, 0, y_at, col, mask, False)
    if TAIL:
        tail = taken(x_ptr, r_ptr, None, h_ptr, x_at, r_at, 0, y_at, tail_col, tail_mask, False)
    if not LEAN:
        w, b, _ = vectors(w_ptr, b_ptr, None, w_at, 0, col, in_row, mask)
        if TAIL:
            tail_w, tail_b, _ = vectors(w_ptr, b_ptr, None, w_at, 0, tail_col, in_tail, tail_mask)

    y = widen(x)
    if TAIL:
        tail_y = widen(tail)
    ONE_REDUCTION: tl.constexpr = BLOCK_ROWS == 1 and x.dtype.primitive_bitwidth == 16
    if ONE_REDUCTION:
        total, square_sum = _sums(y)
        if TAIL:
            tail_total, tail_square_sum = _sums(tail_y)
            total += tail_total
            square_sum += tail_square_sum
        mean = total / COLS
        var = square_sum / COLS - mean * mean
        lost = mean * 0.0
        shift = mean
        # Not where squares overflow either, and not of NaN: of neither is it known what is lost.
        if tl.max(tl.where((mean * mean <= var) & (var < float("inf")), 0, 1)) > 0:
            y = tl.where(in_row, y - mean, 0.0)
            lost, square_sum = _sums(y)
            if TAIL:
                tail_y = tl.where(in_tail, tail_y - mean, 0.0)
                tail_lost, tail_square_sum = _sums(tail_y)
                lost += tail_lost
                square_sum += tail_square_sum
            lost /= COLS
            shift = lost
            var = square_sum / COLS - lost * lost
    else:
        total = tl.sum(y, axis=1, keep_dims=True)
        if TAIL:
            total += tl.sum(tail_y, axis=1, keep_dims=True)
        mean = total / COLS
        y = tl.where(in_row, y - mean, 0.0)
        lost, square_sum = _sums(y)
        if TAIL:
            tail_y = tl.where(in_tail, tail_y - mean, 0.0)
            tail_lost, tail_square_sum = _sums(tail_y)
            lost += tail_lost
            square_sum += tail_square_sum
        lost /= COLS
        shift = lost
        var = square_sum / COLS - lost * lost
    rstd = tl.rsqrt(tl.where(var < 0.0, 0.0, var) + eps)
    if saved_ptr is not None:
        tl.store(saved_ptr + row, mean + lost, mask=live)
        tl.store(saved_ptr + rows + row, rstd, mask=live)

    if LEAN:
        shift = lost
        y = widen(anew(x)) - mean
        w_at += zero_after(rstd)
        w, b, _ = vectors(w_ptr, b_ptr, None, w_at, 0, col, in_row, mask)
        if TAIL:
            tail_y = widen(anew(tail)) - mean
            tail_w, tail_b, _ = vectors(w_ptr, b_ptr, None, w_at, 0, tail_col, in_tail, tail_mask)

    y = finished(y * rstd - shift * rstd, w, b, 0.0, w_ptr, b_ptr, None, OFFSET, CAST, PRODUCT)
    tl.store(y_ptr + y_at + col, narrow(y, y_ptr.dtype.element_ty), mask=mask)
    if TAIL:
        y = tail_y * rstd - shift * rstd
        y = finished(y, tail_w, tail_b, 0.0, w_ptr, b_ptr, None, OFFSET, CAST, PRODUCT)
        tl.store(y_ptr + y_at + tail_col, narrow(y, y_ptr.dtype.element_ty), mask=tail_mask)


@triton.jit(do_not_specialize=SIZES)
def layer_norm_wide(
    x_ptr,
    r_ptr,
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
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HEADS: tl.constexpr,
    OFFSET: tl.constexpr,
    CAST: tl.constexpr,
    PRODUCT: tl.constexpr,
    BODY: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_at = starts(row, inner, middle, x_outer, x_middle, x_stride, VEC)
    r_at = starts(row, inner, middle, r_outer, r_middle, r_stride, VEC)
    y_at = row * COLS
    w_at = row % HEADS * COLS if HEADS > 1 else 0
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)

    if PDL:
        tl.extra.cuda.gdc_wait()

    mean = tl.zeros((BODY,), tl.float32)
    square_sum = tl.zeros((BODY,), tl.float32)
    FULL: tl.constexpr = COLS // BODY  # every lane has an element in each of these blocks
    whole = tl.full((BODY,), True, tl.int1)
    for i in range(FULL):
        x = widen(taken(x_ptr, r_ptr, None, h_ptr, x_at, r_at, 0, y_at, i * BODY + lane, whole, False))
        delta = x - mean
        mean += delta / (i + 1)
        square_sum += delta * (x - mean)
    count = tl.zeros((BODY,), tl.float32) + FULL
    if COLS % BODY:
        col = FULL * BODY + lane
        mask = col < COLS
        x = widen(taken(x_ptr, r_ptr, None, h_ptr, x_at, r_at, 0, y_at, col, mask, False))
        delta = tl.where(mask, x - mean, 0.0)
        count += tl.where(mask, 1.0, 0.0)
        step = delta / (FULL + 1)
        mean += step
        square_sum += delta * (delta - step)
    row_mean = tl.sum(mean * count, axis=0) / COLS
    apart = mean - row_mean
    lost = tl.sum(apart * count, axis=0) / COLS
    var = tl.sum(square_sum + count * apart * apart, axis=0) / COLS - lost * lost
    rstd = tl.rsqrt(tl.where(var < 0.0, 0.0, var) + eps)
    if saved_ptr is not None:
        tl.store(saved_ptr + row, row_mean + lost)
        tl.store(saved_ptr + rows + row, rstd)
    if r_ptr is not None:
        tl.debug_barrier()  # h, just written, is read again

    for back in range(BLOCKS):
        col = (BLOCKS - 1 - back) * BODY + lane
        mask = col < COLS
        if r_ptr is not None:
            x = widen(tl.load(h_ptr + y_at + col, mask=mask, other=0.0))
        else:
            x = widen(tl.load(x_ptr + x_at + col, mask=mask, other=0.0))
        w, b, _ = vectors(w_ptr, b_ptr, None, w_at, 0, col, mask, mask)
        y = finished((x - row_mean - lost) * rstd, w, b, 0.0, w_ptr, b_ptr, None, OFFSET, CAST, PRODUCT)
        tl.store(y_ptr + y_at + col, narrow(y, y_ptr.dtype.element_ty), mask=mask)
