"""LayerNorm forward: y = (x - mean) * rstd * w + b, rstd = 1 / sqrt(var(x) + eps), var biased (divided by cols).

Traffic, the least there is: reads x, w and b once, writes y once; w and b (one row each) stay in L2.
Arithmetic is fp32 whatever the input; the only rounding to the input's dtype is the store of y.

Tiles, tails, strides, masks and cache hints are those of `rms_norm`, which explains them. The variance is taken about
the mean, never as E[x^2] - mean^2, which cancels when the mean is large:

- `layer_norm_rows`: the row is in registers: mean first, then the centred squares, one read of x.
- `layer_norm_wide`: the row is walked twice, backwards the second time, out of the L1 or L2 cache. The first walk
  gives each lane the mean and centred square sum of its own elements (Welford 1962) and merges the lanes at the end
  (Chan, Golub and LeVeque 1983).
"""

import triton
import triton.language as tl


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

    x = tl.load(x_row + col, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if TAIL:
        tail = tl.load(x_row + tail_col, mask=tail_mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if HAS_WEIGHT:
        w = tl.load(w_ptr + col, mask=in_row, other=0.0, eviction_policy="evict_last")
        if TAIL:
            tail_w = tl.load(w_ptr + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")
    if HAS_BIAS:
        b = tl.load(b_ptr + col, mask=in_row, other=0.0, eviction_policy="evict_last")
        if TAIL:
            tail_b = tl.load(b_ptr + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last")

    total = tl.sum(x, axis=1, keep_dims=True)
    if TAIL:
        total += tl.sum(tail, axis=1, keep_dims=True)
    mean = total / COLS
    x = tl.where(in_row, x - mean, 0.0)
    square_sum = tl.sum(x * x, axis=1, keep_dims=True)
    if TAIL:
        tail = tl.where(in_tail, tail - mean, 0.0)
        square_sum += tl.sum(tail * tail, axis=1, keep_dims=True)
    rstd = tl.rsqrt(square_sum / COLS + eps)

    y = x * rstd
    if HAS_WEIGHT:
        y *= w.to(tl.float32)
    if HAS_BIAS:
        y += b.to(tl.float32)
    tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask, cache_modifier=".cs")
    if TAIL:
        y = tail * rstd
        if HAS_WEIGHT:
            y *= tail_w.to(tl.float32)
        if HAS_BIAS:
            y += tail_b.to(tl.float32)
        tl.store(y_row + tail_col, y.to(y_ptr.dtype.element_ty), mask=tail_mask, cache_modifier=".cs")


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
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride * VEC
    y_row = y_ptr + row * y_stride * VEC
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)

    mean = tl.zeros((BODY,), tl.float32)
    square_sum = tl.zeros((BODY,), tl.float32)
    FULL: tl.constexpr = COLS // BODY  # every lane has an element in each of these blocks
    for i in range(FULL):
        x = tl.load(x_row + i * BODY + lane).to(tl.float32)
        delta = x - mean
        mean += delta / (i + 1)
        square_sum += delta * (x - mean)
    count = tl.zeros((BODY,), tl.float32) + FULL
    if COLS % BODY:
        col = FULL * BODY + lane
        mask = col < COLS
        delta = tl.where(mask, tl.load(x_row + col, mask=mask, other=0.0).to(tl.float32) - mean, 0.0)
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
        y = (tl.load(x_row + col, mask=mask, other=0.0).to(tl.float32) - row_mean) * rstd
        if HAS_WEIGHT:
            y *= tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(b_ptr + col, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask, cache_modifier=".cs")
