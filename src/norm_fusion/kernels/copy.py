"""y = x, element by element: no operator, but the practical roof of every operator that reads and writes once."""

import triton
import triton.language as tl


@triton.jit
def copy_elements(x_ptr, y_ptr, n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_wait()
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=mask), mask=mask)
