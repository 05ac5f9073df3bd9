"""RMSNorm forward: y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps).

Traffic, the least there is: reads x and w once, writes y once; w (one row) stays in L2. No statistic is stored.
Arithmetic is fp32 whatever the input; the only rounding to the input's dtype is the store of y.

Three ways to hold a row, chosen by `launch.pick_rms_norm` from its width alone:

- a tile of whole rows in fp32 registers (`rms_norm_rows`): x is read once. The row is a power-of-two body and a
  power-of-two tail (5120 = 4096 + 1024), so that a width between two powers leaves few lanes idle. The weight is
  loaded before the reduction: its latency hides behind that of x (18.1 against 18.6 us at 4096x4096 fp16, H200).
- the same, LEAN: a 16-bit row stays in its 16 bits between its two uses and the weight is loaded after the
  reduction, which halves the registers: rows of up to 65,536 columns are read once (274 against 320 us at 4096x65536
  bf16, H200).
- a row that no register file holds is walked twice (`rms_norm_wide`); the second walk runs backwards, because the
  end of the row is what the caches still hold.

x is read once and y is not read here, so both are marked to leave the caches first and w to stay: 2.22 against 2.39 us
at 512x1024 fp16, 17.8 against 18.0 at 4096x4096, by graph replays. In a chain it depends on who wrote x. Residual add,
norm and matmul in turn gain: 232 us against 236 at 4096x4096 bf16, 155 against 160 at 8192x4096 into 1,024. Norm and
matmul alone, x coming from memory, lose: 222 against 217 at 4096x8192 into 2,048, 128 against 125 at 8192x4096 into
1,024. At 64 to 2,048 rows both are the same within 0.7%.

Row offsets are 64-bit: a tensor may hold more than 2^31 elements. Strides come in units of VEC elements, so that the
compiler knows how far rows are aligned and uses accesses of up to 16 bytes. NaN and inf stay in their row, as no
value crosses rows.
"""

import triton
import triton.language as tl

from norm_fusion.kernels.lean import anew


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

    # The hint costs two registers, which a lean row does not have.
    ONCE: tl.constexpr = "" if LEAN else "evict_first"
    x = tl.load(x_row + col, mask=mask, other=0.0, eviction_policy=ONCE)
    if TAIL:
        tail = tl.load(x_row + tail_col, mask=tail_mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if HAS_WEIGHT and not LEAN:
        w = tl.load(w_ptr + col, mask=in_row, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if TAIL:
            tail_w = tl.load(w_ptr + tail_col, mask=in_tail, other=0.0, eviction_policy="evict_last").to(tl.float32)

    square_sum = tl.sum(x.to(tl.float32) * x.to(tl.float32), axis=1, keep_dims=True)
    if TAIL:
        square_sum += tl.sum(tail * tail, axis=1, keep_dims=True)
    rstd = tl.rsqrt(square_sum / COLS + eps)

    if LEAN:
        x = anew(x)
    y = x.to(tl.float32) * rstd
    if HAS_WEIGHT:
        if LEAN:
            w = tl.load(w_ptr + col, mask=in_row, other=0.0, volatile=True).to(tl.float32)
        y *= w
    tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask, cache_modifier=".cs")
    if TAIL:
        y = tail * rstd
        if HAS_WEIGHT:
            y *= tail_w
        tl.store(y_row + tail_col, y.to(y_ptr.dtype.element_ty), mask=tail_mask, cache_modifier=".cs")


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
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride * VEC
    y_row = y_ptr + row * y_stride * VEC
    # Counted in blocks, and in 64 bits where the last block ends past 2^31: a 32-bit column would wrap around.
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)

    square_sum = tl.zeros((BODY,), tl.float32)
    for block in range(BLOCKS):
        col = block * BODY + lane
        x = tl.load(x_row + col, mask=col < COLS, other=0.0).to(tl.float32)
        square_sum += x * x
    rstd = tl.rsqrt(tl.sum(square_sum, axis=0) / COLS + eps)

    for back in range(BLOCKS):
        col = (BLOCKS - 1 - back) * BODY + lane
        mask = col < COLS
        y = tl.load(x_row + col, mask=mask, other=0.0).to(tl.float32) * rstd
        if HAS_WEIGHT:
            y *= tl.load(w_ptr + col, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_row + col, y.to(y_ptr.dtype.element_ty), mask=mask, cache_modifier=".cs")
