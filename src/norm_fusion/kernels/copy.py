"""y = x, element by element, and x read alone: no operators, but the practical roof of all, and their ceiling."""

import triton
import triton.language as tl


@triton.jit
def copy_elements(x_ptr, y_ptr, n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_wait()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=mask), mask=mask)


@triton.jit
def read_elements(x_ptr, y_ptr, n, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Each program reads TILES tiles; with one tile each it would spend as long on reducing as on reading."""
    at = tl.program_id(0).to(tl.int64) * BLOCK * TILES + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for tile in tl.static_range(TILES):
        part = at + tile * BLOCK
        total += tl.load(x_ptr + part, mask=part < n, other=0.0).to(tl.float32)
    # Never, but no compiler knows: without a use the loads would go.
    if tl.sum(total) == 1.2345e38:
        tl.store(y_ptr + tl.arange(0, BLOCK), total.to(y_ptr.dtype.element_ty))
