"""Inline assembly where the compiler, left alone, takes more registers or instructions than a kernel can spare."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def widen(x):
    """x in fp32. Two bfloat16 take two instructions; the compiler's own conversion takes three."""
    if not INTERPRETED and x.dtype == tl.bfloat16 and x.numel % 2 == 0:
        y = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=r,=r,r",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        y = x.to(tl.float32)
    return y


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """fp32 x rounded to the nearest of a dtype, ties to even: as a GPU does, and the interpreter not for bfloat16."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def anew(x):
    """x as values that the compiler takes for new ones: a 16-bit row stays in its 16 bits between two uses.

    A value converted to fp32 before a reduction and again after it is otherwise converted once and kept in fp32
    across the reduction, at twice the registers. The interpreter has no registers to save, and no inline assembly.
    """
    if not INTERPRETED and x.dtype.primitive_bitwidth == 16:
        tl.debug_barrier()
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return x


@triton.jit
def zero_after(value):
    """An int32 zero that the compiler does not know before `value`, and knows to be a multiple of 16.

    Added to an address it keeps a load below a reduction, and its accesses wide. (A volatile load stays there too,
    and goes past the L1 cache every time.)
    """
    if INTERPRETED:
        zero = tl.zeros(value.shape, tl.int32)
    else:
        zero = tl.inline_asm_elementwise("mov.b32 $0, 0; // $1", "=r,r", [value], dtype=tl.int32, is_pure=True, pack=1)
    return 16 * zero
