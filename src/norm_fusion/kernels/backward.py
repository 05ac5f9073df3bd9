"""The backward of both norms: dx, and in the same reading of the inputs dw and db.

With xhat = (x - mean) * rstd, of RMSNorm without the mean, g = dy * (w + offset), and means over the row:

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat))        mean(g) is LayerNorm's alone
    dw = sum over rows of dy * xhat        db = sum over rows of dy

A gate s = silu(z) after the norm: dz = dy * y/s * silu'(z), and dy * s takes the place of dy. Before the norm, where
x * s is normalized: dz = d(x * s) * x * silu'(z) and dx = d(x * s) * s. A residual that was added to x gets the same
gradient as x, and the gradient of their sum, itself an output, is added to it.

Traffic, the least there is: reads x, dy and w once, writes dx once. Beyond it: each program keeps its share of dw and
db in fp32 registers over all of its rows and writes it once; `column_sums` adds up those partial sums, always in the
same order: dw and db are bitwise the same each time. What no one asked for is not computed: its pointer is None.

Rows that registers do not hold beside dw are cut into chunks of BODY columns, a program each. Where a GPU runs all of
them at once (COOPERATIVE), they tell each other their sums of a row (`board`): a program reads a row, posts its sums of
it, and finishes the row before that, whose sums are there by now. Elsewhere the means are found first, by `row_means`,
at the price of reading x and dy twice.
"""

import triton
import triton.language as tl

from norm_fusion.kernels.board import collect, post
from norm_fusion.kernels.registers import narrow, widen, zero_after
from norm_fusion.kernels.rows import silu, starts

SIZES = [
    *("rows", "inner", "middle"),
    *(f"{name}_{level}" for name in ("x", "dy", "z", "dh") for level in ("stride", "middle", "outer")),
]


@triton.jit
def _factors(x, dy, z, w, mean, rstd, OFFSET: tl.constexpr, WEIGHTED: tl.constexpr, GATE: tl.constexpr):
    """xhat, the gradient dy of the norm's output, and g = dy * (w + offset), in fp32. GATE: "first", "last" or None."""
    xhat = widen(x)
    dy = widen(dy)
    if GATE == "first":
        xhat *= silu(widen(z))
    if GATE == "last":
        dy *= silu(widen(z))
    xhat = (xhat - mean) * rstd
    g = dy
    if WEIGHTED:
        w = widen(w)
        if OFFSET != 0.0:
            w += OFFSET
        g = dy * w
    return xhat, dy, g


@triton.jit
def _slope(z):
    """The derivative of silu at z."""
    sigmoid = tl.sigmoid(z)
    return sigmoid * (1.0 + z * (1.0 - sigmoid))


@triton.jit(do_not_specialize=SIZES)
def norm_backward(
    x_ptr,
    dy_ptr,
    z_ptr,
    dh_ptr,
    w_ptr,
    saved_ptr,
    means_ptr,
    dx_ptr,
    dr_ptr,
    dz_ptr,
    dw_ptr,
    db_ptr,
    rows,
    inner,
    middle,
    x_stride,
    x_middle,
    x_outer,
    dy_stride,
    dy_middle,
    dy_outer,
    z_stride,
    z_middle,
    z_outer,
    dh_stride,
    dh_middle,
    dh_outer,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HEADS: tl.constexpr,
    CENTRED: tl.constexpr,
    OFFSET: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BODY: tl.constexpr,
    LEAN: tl.constexpr,
    STAGES: tl.constexpr,
    COOPERATIVE: tl.constexpr,
    PDL: tl.constexpr,
):
    CHUNKS: tl.constexpr = (COLS + BODY - 1) // BODY
    WEIGHTED: tl.constexpr = w_ptr is not None
    GATE: tl.constexpr = None if z_ptr is None else ("first" if GATE_FIRST else "last")
    # A program takes one chunk of columns, of the rows of one head every so many blocks of rows.
    chunk = tl.program_id(0) % CHUNKS
    head = tl.program_id(0) // CHUNKS % HEADS
    first = tl.program_id(0) // (CHUNKS * HEADS)
    step = tl.num_programs(0) // (CHUNKS * HEADS)
    tokens = rows // HEADS

    col = chunk * BODY + tl.arange(0, BODY)[None, :]
    in_row = col < COLS
    if dw_ptr is not None:
        dw = tl.zeros((BLOCK_ROWS, BODY), tl.float32)
    if db_ptr is not None:
        db = tl.zeros((BLOCK_ROWS, BODY), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    kept = 0.0
    if WEIGHTED and not LEAN:
        kept = tl.load(w_ptr + head * COLS + col, mask=in_row, other=0.0, eviction_policy="evict_last")

    blocks = tl.cdiv(tokens, BLOCK_ROWS)
    if COOPERATIVE:
        tl.static_assert(BLOCK_ROWS == 1)
        blocks += step  # to finish the last row
        held_x = tl.zeros((1, BODY), x_ptr.dtype.element_ty)
        held_dy = tl.zeros((1, BODY), dy_ptr.dtype.element_ty)
        held_rstd = tl.zeros((1, 1), tl.float32)
        held_mean, held_z = 0.0, 0.0
        if CENTRED:
            held_mean = tl.zeros((1, 1), tl.float32)
        if GATE is not None:
            held_z = tl.zeros((1, BODY), z_ptr.dtype.element_ty)

    for block in tl.range(first, blocks, step, num_stages=STAGES):
        token = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None].to(tl.int64)
        live = token < tokens if BLOCK_ROWS > 1 or COOPERATIVE else tl.full((1, 1), True, tl.int1)
        mask = live & in_row
        row = token * HEADS + head
        x_at = starts(row, inner, middle, x_outer, x_middle, x_stride, VEC) + col
        dy_at = starts(row, inner, middle, dy_outer, dy_middle, dy_stride, VEC) + col
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0)
        dy = tl.load(dy_ptr + dy_at, mask=mask, other=0.0)
        mean, z = 0.0, 0.0
        if GATE is not None:
            z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC) + col
            z = tl.load(z_ptr + z_at, mask=mask, other=0.0)
        rstd = tl.load(saved_ptr + (rows + row if CENTRED else row), mask=live, other=0.0)
        if CENTRED:
            mean = tl.load(saved_ptr + row, mask=live, other=0.0)
        w = kept
        if LEAN and WEIGHTED:
            # From the L1 cache: a weight kept in fp32 over all rows takes the registers of a row.
            w = tl.load(w_ptr + head * COLS + zero_after(rstd) + col, mask=in_row, other=0.0)

        if COOPERATIVE:
            xhat, _, g = _factors(x, dy, z, w, mean, rstd, OFFSET, WEIGHTED, GATE)
            posted = tl.cast(block, tl.int64) * HEADS + head
            at = posted * CHUNKS + chunk
            post(means_ptr, at, tl.sum(g * xhat), block < tokens)
            if CENTRED:
                post(means_ptr, rows.to(tl.int64) * CHUNKS + at, tl.sum(g), block < tokens)
            x, held_x = held_x, x
            dy, held_dy = held_dy, dy
            z, held_z = held_z, z
            rstd, held_rstd = held_rstd, rstd
            mean, held_mean = held_mean, mean
            live = block != first
            mask = live & in_row
            row = posted - tl.where(live, step * HEADS, 0)
        if dh_ptr is not None:
            dh_at = starts(row, inner, middle, dh_outer, dh_middle, dh_stride, VEC) + col
            dh = tl.load(dh_ptr + dh_at, mask=mask, other=0.0)

        xhat, dyn, g = _factors(x, dy, z, w, mean, rstd, OFFSET, WEIGHTED, GATE)
        if dw_ptr is not None:
            dw += dyn * xhat
        if db_ptr is not None:
            db += dyn
        if COOPERATIVE:
            along = tl.sum(collect(means_ptr, row * CHUNKS, CHUNKS)) / COLS
            if CENTRED:
                g_mean = tl.sum(collect(means_ptr, (rows + row) * CHUNKS, CHUNKS)) / COLS
        elif means_ptr is not None:
            along = tl.load(means_ptr + row, mask=live, other=0.0)
            if CENTRED:
                g_mean = tl.load(means_ptr + rows + row, mask=live, other=0.0)
        else:
            along = tl.sum(g * xhat, axis=1, keep_dims=True) / COLS
            if CENTRED:
                g_mean = tl.sum(g, axis=1, keep_dims=True) / COLS
        dx = g - xhat * along
        if CENTRED:
            dx -= g_mean
        dx *= rstd
        if dz_ptr is not None:
            if GATE == "first":
                dz = dx * widen(x)
            else:
                # The norm's output, times dy: g without its gate.
                dz = widen(dy) * xhat
                if WEIGHTED:
                    dz *= widen(w) + OFFSET
            dz *= _slope(widen(z))
            tl.store(dz_ptr + row * COLS + col, narrow(dz, dz_ptr.dtype.element_ty), mask=mask)
        if GATE == "first":
            dx *= silu(widen(z))
        if dh_ptr is not None:
            dx += widen(dh)
        if dx_ptr is not None:
            tl.store(dx_ptr + row * COLS + col, narrow(dx, dx_ptr.dtype.element_ty), mask=mask)
        if dr_ptr is not None:
            tl.store(dr_ptr + row * COLS + col, narrow(dx, dr_ptr.dtype.element_ty), mask=mask)

    partial_at = (first * HEADS + head).to(tl.int64) * COLS + col
    if dw_ptr is not None:
        tl.store(dw_ptr + partial_at, tl.sum(dw, axis=0, keep_dims=True), mask=in_row)
    if db_ptr is not None:
        tl.store(db_ptr + partial_at, tl.sum(db, axis=0, keep_dims=True), mask=in_row)


@triton.jit(do_not_specialize=SIZES[:12])
def row_means(
    x_ptr,
    dy_ptr,
    z_ptr,
    w_ptr,
    saved_ptr,
    means_ptr,
    rows,
    inner,
    middle,
    x_stride,
    x_middle,
    x_outer,
    dy_stride,
    dy_middle,
    dy_outer,
    z_stride,
    z_middle,
    z_outer,
    COLS: tl.constexpr,
    VEC: tl.constexpr,
    HEADS: tl.constexpr,
    CENTRED: tl.constexpr,
    OFFSET: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    BODY: tl.constexpr,
    PDL: tl.constexpr,
):
    """mean(g * xhat), and of LayerNorm mean(g), of each row."""
    WEIGHTED: tl.constexpr = w_ptr is not None
    GATE: tl.constexpr = None if z_ptr is None else ("first" if GATE_FIRST else "last")
    row = tl.program_id(0).to(tl.int64)
    x_at = starts(row, inner, middle, x_outer, x_middle, x_stride, VEC)
    dy_at = starts(row, inner, middle, dy_outer, dy_middle, dy_stride, VEC)
    z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC)
    w_at = row % HEADS * COLS
    BLOCKS: tl.constexpr = (COLS + BODY - 1) // BODY
    lane = tl.arange(0, BODY).to(tl.int64) if BLOCKS * BODY > 2147483647 else tl.arange(0, BODY)
    mean = 0.0
    if PDL:
        tl.extra.cuda.gdc_wait()
    rstd = tl.load(saved_ptr + (rows + row if CENTRED else row))
    if CENTRED:
        mean = tl.load(saved_ptr + row)

    along = tl.zeros((BODY,), tl.float32)
    g_sum = tl.zeros((BODY,), tl.float32)
    for block in range(BLOCKS):
        col = block * BODY + lane
        mask = col < COLS
        x = tl.load(x_ptr + x_at + col, mask=mask, other=0.0)
        dy = tl.load(dy_ptr + dy_at + col, mask=mask, other=0.0)
        w, z = 0.0, 0.0
        if WEIGHTED:
            w = tl.load(w_ptr + w_at + col, mask=mask, other=0.0)
        if GATE is not None:
            z = tl.load(z_ptr + z_at + col, mask=mask, other=0.0)
        xhat, dy, g = _factors(x, dy, z, w, mean, rstd, OFFSET, WEIGHTED, GATE)
        along += g * xhat
        g_sum += g
    tl.store(means_ptr + row, tl.sum(along, axis=0) / COLS)
    if CENTRED:
        tl.store(means_ptr + rows + row, tl.sum(g_sum, axis=0) / COLS)


@triton.jit(do_not_specialize=["partials", "n"])
def column_sums(
    dw_partial_ptr,
    db_partial_ptr,
    dw_ptr,
    db_ptr,
    partials,
    n,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """dw and db: the sums of `partials` rows of n partial sums each."""
    col = tl.program_id(0).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    if dw_ptr is not None:
        total = _column_sum(dw_partial_ptr, partials, n, col, BLOCK_ROWS, BLOCK_COLS)
        tl.store(dw_ptr + col, narrow(total, dw_ptr.dtype.element_ty), mask=col < n)
    if db_ptr is not None:
        total = _column_sum(db_partial_ptr, partials, n, col, BLOCK_ROWS, BLOCK_COLS)
        tl.store(db_ptr + col, narrow(total, db_ptr.dtype.element_ty), mask=col < n)


@triton.jit
def _column_sum(ptr, rows, n, col, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        total += tl.load(ptr + row * n.to(tl.int64) + col, mask=(row < rows) & (col < n), other=0.0)
    return tl.sum(total, axis=0, keep_dims=True)
