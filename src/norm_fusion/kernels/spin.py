"""A kernel that takes as long as it is told, by the device's own clock: no operator, but a known answer."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["ns"])
def spin(x_ptr, ns):
    start = tl.extra.cuda.globaltimer()
    now = start
    while now - start < ns:
        now = tl.extra.cuda.globaltimer()
    # Never: the clock has no negative time. Without a use of it the loop could go.
    if now < 0:
        tl.store(x_ptr, now.to(x_ptr.dtype.element_ty))
