"""y = x, element by element: no operator, but the practical roof of every operator that reads and writes once."""

import triton
import triton.language as tl


@triton.jit
def copy_elements(x_ptr, y_ptr, n, BLOCK: tl.constexpr, LOAD_EVICTION: tl.constexpr, STORE_CACHE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    x = tl.load(x_ptr + at, mask=mask, eviction_policy=LOAD_EVICTION)
    tl.store(y_ptr + at, x, mask=mask, cache_modifier=STORE_CACHE)
