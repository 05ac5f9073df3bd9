"""Holding a 16-bit row in 16 bits: what the compiler would undo unless told."""

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def anew(x):
    """x, 16-bit, as values that the compiler takes for new ones.

    A value converted to fp32 before a reduction and again after it is otherwise converted once and kept in fp32
    across the reduction, at twice the registers. The barrier keeps later loads from being hoisted above it for the
    same reason. The interpreter has no registers to save, and no inline assembly.
    """
    if _INTERPRETED:
        return x
    tl.debug_barrier()
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
