"""LayerNorm forward: y = (x - mean) * rstd * w + b, rstd = 1 / sqrt(var(x) + eps), var biased (divided by cols).

Traffic, the least there is: reads x, w and b once, writes y once; w and b (one row each) stay in L2.
Arithmetic is fp32 whatever the input; the only rounding to the input's dtype is the store of y.

Tiles, tails, LEAN, PDL, strides, masks and the cache are those of `rms_norm`, which explains them. The variance is
taken about the mean, and not as E[x^2] - mean^2, which cancels when the mean is large:

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

from norm_fusion.kernels.registers import INTERPRETED, anew, widen, zero_after


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


@triton.jit
def _square_sum(x, in_row):
    x = tl.where(in_row, x, 0.0)
    return tl.sum(x * x, axis=1, keep_dims=True)


@triton.jit(do_not_specialize=["rows", "x_stride", "y_stride"])
def layer_norm_rows(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    rows,
    x_stride,
    y_stride,
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
    if HAS_BIAS and not LEAN:
        b = tl.load(b_ptr + col, mask=in_row, other=0.0, eviction_policy="evict_last")
        if TAIL:
            tail_b = tl.load(b_ptr + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")

    y = widen(x)
    if TAIL:
        tail_y = widen(tail)
    ONE_REDUCTION: tl.constexpr = BLOCK_ROWS == 1 and x_ptr.dtype.element_ty.primitive_bitwidth == 16
    if ONE_REDUCTION:
        total, square_sum = _sums(y)
        if TAIL:
            tail_total, tail_square_sum = _sums(tail_y)
            total += tail_total
            square_sum += tail_square_sum
        mean = total / COLS
        var = square_sum / COLS - mean * mean
        shift = mean
        # Not where squares overflow either, and not of NaN: of neither is it known what is lost.
        if tl.max(tl.where((mean * mean <= var) & (var < float("inf")), 0, 1)) > 0:
            shift *= 0.0
            y -= mean
            square_sum = _square_sum(y, in_row)
            if TAIL:
                tail_y -= mean
                square_sum += _square_sum(tail_y, in_tail)
            var = square_sum / COLS
    else:
        total = tl.sum(y, axis=1, keep_dims=True)
        if TAIL:
            total += tl.sum(tail_y, axis=1, keep_dims=True)
        mean = total / COLS
        y -= mean
        square_sum = _square_sum(y, in_row)
        if TAIL:
            tail_y -= mean
            square_sum += _square_sum(tail_y, in_tail)
        var = square_sum / COLS
        shift = 0.0
    rstd = tl.rsqrt(var + eps)

    if LEAN:
        shift = 0.0
        y = widen(anew(x)) - mean
        if TAIL:
            tail_y = widen(anew(tail)) - mean
        start = zero_after(rstd)
        if HAS_WEIGHT:
            w = tl.load(w_ptr + start + col, mask=in_row, other=0.0, eviction_policy="evict_last")
            if TAIL:
                tail_w = tl.load(w_ptr + start + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")
        if HAS_BIAS:
            b = tl.load(b_ptr + start + col, mask=in_row, other=0.0, eviction_policy="evict_last")
            if TAIL:
                tail_b = tl.load(b_ptr + start + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")

    y = y * rstd - shift * rstd
    if HAS_WEIGHT:
        y *= widen(w)
    if HAS_BIAS:
        y += widen(b)
    tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask)
    if TAIL:
        y = tail_y * rstd - shift * rstd
        if HAS_WEIGHT:
            y *= widen(tail_w)
        if HAS_BIAS:
            y += widen(tail_b)
        tl.store(y_row + tail_col, y.to(y_ptr.dtype.element_ty), mask=tail_mask)


@triton.jit(do_not_specialize=["rows", "x_stride", "y_stride"])
def layer_norm_wide(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    rows,
    x_stride,
    y_stride,
    eps,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BODY: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride * VEC
    y_row = y_ptr + row * y_stride * VEC
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)

    if PDL:
        tl.extra.cuda.gdc_wait()

    mean = tl.zeros((BODY,), tl.float32)
    square_sum = tl.zeros((BODY,), tl.float32)
    FULL: tl.constexpr = COLS // BODY  # every lane has an element in each of these blocks
    for i in range(FULL):
        x = widen(tl.load(x_row + i * BODY + lane))
        delta = x - mean
        mean += delta / (i + 1)
        square_sum += delta * (x - mean)
    count = tl.zeros((BODY,), tl.float32) + FULL
    if COLS % BODY:
        col = FULL * BODY + lane
        mask = col < COLS
        delta = tl.where(mask, widen(tl.load(x_row + col, mask=mask, other=0.0)) - mean, 0.0)
        count += tl.where(mask, 1.0, 0.0)
        step = delta / (FULL + 1)
        mean += step
        square_sum += delta * (delta - step)
    row_mean = tl.sum(mean * count, axis=0) / COLS
    apart = mean - row_mean
    rstd = tl.rsqrt(tl.sum(square_sum + count * apart * apart, axis=0) / COLS + eps)

    for back in range(BLOCKS):
        col = (BLOCKS - 1 - back) * BODY + lane
        mask = col < COLS
        y = (widen(tl.load(x_row + col, mask=mask, other=0.0)) - row_mean) * rstd
        if HAS_WEIGHT:
            y *= widen(tl.load(w_ptr + col, mask=mask, other=0.0))
        if HAS_BIAS:
            y += widen(tl.load(b_ptr + col, mask=mask, other=0.0))
        tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask)
