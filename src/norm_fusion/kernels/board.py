"""How programs that share a row tell each other their sums: on a board in global memory, a word for each sum.

A word holds an fp32 value in its low half and, once that is there, 1 in its high half; the board starts as zeros. One
64-bit access writes or reads a word, so that no one sees the mark without the value. Whoever collects waits for the
words of others, which must be running: such kernels are launched cooperatively. In Triton's interpreter, which runs one
program after the other, no one waits, and the kernel is run twice (`dispatch`): the second time, all words are there.
"""

import triton
import triton.language as tl

from norm_fusion.kernels.registers import INTERPRETED

_WAIT = tl.constexpr("""{
.reg .b64 word;
.reg .b32 value, mark;
.reg .pred there;
again:
ld.volatile.global.b64 word, [$1];
mov.b64 {value, mark}, word;
setp.ne.b32 there, mark, 0;
@!there bra again;
mov.b32 $0, value;
}""")


@triton.jit
def post(board_ptr, at, value, mask):
    """Write `value`, fp32, as word number `at`."""
    word = value.to(tl.uint32, bitcast=True).to(tl.int64) | (1 << 32)
    tl.atomic_xchg(board_ptr + at, word, mask=mask, sem="relaxed", scope="gpu")


@triton.jit
def collect(board_ptr, at, COUNT: tl.constexpr):
    """The COUNT values from word number `at` on, once they are there; zeros up to the next power of two."""
    # In one dimension, so that each thread waits for one word: in two it would take its turn with eight and more. In
    # inline assembly, as Triton does not pipeline a loop with a loop inside.
    lanes = tl.arange(0, triton.next_power_of_2(COUNT))
    there = lanes < COUNT
    pointers = board_ptr + at + tl.where(there, lanes, 0)
    if INTERPRETED:
        values = (tl.load(pointers) & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    else:
        values = tl.inline_asm_elementwise(_WAIT, "=r,l", [pointers], dtype=tl.float32, is_pure=False, pack=1)
    return tl.where(there, values, 0.0)
