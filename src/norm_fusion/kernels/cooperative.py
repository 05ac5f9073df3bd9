"""Forward of both norms for rows that several programs share, so that no row is read twice.

A row is cut into chunks of BODY columns. A program takes one of them, of its head's rows one after the other, and keeps
its part of weight and bias in registers: it reads a row, posts its sums of it (`board`), and finishes the row before
that, whose sums are there by now. The maths and the traffic are those of `rms_norm` and `layer_norm`.

LayerNorm's sums of a chunk are its mean, what that lost to rounding, and the squares about it, merged as by Chan, Golub
and LeVeque (1983).
"""

import triton
import triton.language as tl

from norm_fusion.kernels.board import collect, post
from norm_fusion.kernels.registers import narrow, widen
from norm_fusion.kernels.rms_norm import SIZES
from norm_fusion.kernels.rows import finished, starts, taken, vectors


@triton.jit
def _post_sums(board_ptr, words, at, x, in_row, count, mask, CENTRED: tl.constexpr):
    """The sums of this chunk of `count` columns; `words` are how many the board has of each kind."""
    x = widen(x)
    if CENTRED:
        mean = tl.sum(x) / count
        x = tl.where(in_row, x - mean, 0.0)
        post(board_ptr, words + at, mean, mask)
        post(board_ptr, 2 * words + at, tl.sum(x) / count, mask)
    post(board_ptr, at, tl.sum(x * x), mask)


@triton.jit
def _statistics(board_ptr, words, at, eps, COLS: tl.constexpr, BODY: tl.constexpr, CENTRED: tl.constexpr):
    """mean, what it lost, and rstd of the row whose words begin at `at`."""
    CHUNKS: tl.constexpr = (COLS + BODY - 1) // BODY
    squares = collect(board_ptr, at, CHUNKS)
    mean, lost = 0.0, 0.0
    if CENTRED:
        means = collect(board_ptr, words + at, CHUNKS)
        losses = collect(board_ptr, 2 * words + at, CHUNKS)
        # Columns of each chunk; of lanes beyond the last there are none.
        chunks = tl.arange(0, triton.next_power_of_2(CHUNKS))
        count = tl.where(chunks < CHUNKS - 1, BODY, tl.where(chunks < CHUNKS, COLS - (CHUNKS - 1) * BODY, 0))
        count = count.to(tl.float32)
        mean = tl.sum(count * means) / COLS
        apart = means - mean + losses
        lost = tl.sum(count * apart) / COLS
        var = tl.sum(squares + count * (apart * apart - losses * losses)) / COLS - lost * lost
        var = tl.where(var < 0.0, 0.0, var)
    else:
        var = tl.sum(squares) / COLS
    return mean, lost, tl.rsqrt(var + eps)


@triton.jit(do_not_specialize=SIZES)
def norm_cooperative(
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
    CENTRED: tl.constexpr,
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
    words = rows.to(tl.int64) * CHUNKS

    col = chunk * BODY + tl.arange(0, BODY)[None, :]
    in_row = col < COLS
    count = tl.minimum(COLS - chunk * BODY, BODY).to(tl.float32)
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
        _post_sums(board_ptr, words, row * CHUNKS + chunk, x, in_row, count, live, CENTRED)

        x, held = held, x
        live = block != first
        mask = live & in_row
        row -= tl.where(live, step * HEADS, 0)
        z = 0.0
        if last_z_ptr is not None:
            z_at = starts(row, inner, middle, z_outer, z_middle, z_stride, VEC)
            z = tl.load(z_ptr + z_at + col, mask=mask, other=0.0)
        mean, lost, rstd = _statistics(board_ptr, words, row * CHUNKS, eps, COLS, BODY, CENTRED)
        y = widen(x) * rstd if not CENTRED else (widen(x) - mean - lost) * rstd
        y = finished(y, w, b, z, w_ptr, b_ptr, last_z_ptr, OFFSET, CAST, PRODUCT)
        tl.store(y_ptr + row * COLS + col, narrow(y, y_ptr.dtype.element_ty), mask=mask)
        if saved_ptr is not None:
            first_of_row = live & (chunk == 0)
            if CENTRED:
                tl.store(saved_ptr + row, mean + lost, mask=first_of_row)
            tl.store(saved_ptr + (rows + row if CENTRED else row), rstd, mask=first_of_row)
