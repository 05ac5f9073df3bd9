"""How a kernel is launched: a pure function of the row's width and element size, so it needs no GPU to be tested.

It never looks at the number of rows: the shape of the reduction, and so every bit of a row's result, depends on the
width and the dtype only. Figures are device time on an H200, cold, from the search that chose them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Launch:
    """One program takes `block_rows` rows of `body` + `tail` lanes.

    `wide`: the row is walked in blocks of `body`. `lean`: it is kept in its 16 bits between its uses. `maxnreg`: the
    register cap that buys occupancy, None for the compiler's own choice.
    """

    block_rows: int
    body: int
    tail: int
    num_warps: int
    lean: bool = False
    wide: bool = False
    maxnreg: int | None = None


@cache
def pick_rms_norm(cols: int, itemsize: int) -> Launch:
    """RMSNorm's launch for rows of `cols` elements of `itemsize` bytes (2 or 4)."""
    if cols <= 512:
        return _several_rows(cols)
    if cols * itemsize > 2 * 65536:
        return _walked(8192 if itemsize == 2 else 4096, 32)
    body, tail = split(cols)
    if body + tail > 8192:
        return _one_tile(cols, itemsize)
    # 1 KiB of the row a warp: two 16-byte loads in flight a thread. 4096x4096 fp16: 4 warps 18.3 us, 8 warps 18.1,
    # 16 warps 19.9; 16384x8192 fp32: 16 warps 260 us, 32 warps 257.
    num_warps = min(32, max(1, body * itemsize // 1024))
    # 512 threads of 39 registers leave three programs on an SM, of 32 four: 112.5 against 119.1 us at 16384x7168.
    return Launch(1, body, tail, num_warps, maxnreg=32 if num_warps == 16 and itemsize == 2 else None)


@cache
def pick_layer_norm(cols: int, itemsize: int) -> Launch:
    """LayerNorm's launch for rows of `cols` elements of `itemsize` bytes (2 or 4).

    Two reductions, a bias and the centred values ask for more registers than RMSNorm has: wider rows are walked, their
    second reading comes from the L1 cache. 16384x5120 bf16: walked 85.0 us, in registers 91.7.
    """
    if cols <= 512:
        return _several_rows(cols)
    if itemsize == 2 and cols > 4096:
        block, num_warps = (2048, 4) if cols < 8192 else (4096, 8) if cols == 8192 else (4096, 16)
        return _walked(block, num_warps) if cols <= 16384 else _walked(8192, 32)
    if cols > 16384:
        return _walked(16384, 32)  # 4096x32768 fp32: 297 us, 343 in blocks of 8,192
    body, tail = split(cols)
    # 2 KiB of the row a warp, half of RMSNorm's warps: each of its two reductions waits for the slowest warp.
    # 16384x2560 bf16: 2 warps 43.2 us, 4 warps 48.4.
    return Launch(1, body, tail, min(32, max(1, body * itemsize // 2048)))


def split(cols: int) -> tuple[int, int]:
    """A power-of-two body and tail that cover `cols`: 4096 -> (4096, 0), 5120 -> (4096, 1024), 7168 -> (8192, 0)."""
    body = 1 << (cols.bit_length() - 1)
    if body == cols:
        return body, 0
    tail = next_power_of_2(cols - body)
    return (2 * body, 0) if tail == body else (body, tail)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def _several_rows(cols: int) -> Launch:
    """Narrow rows: 2,048 elements a program; 1,024 at 256 columns (10.1 against 10.5 us at 32768x256 bf16)."""
    body = max(16, next_power_of_2(cols))
    tile = 1024 if body == 256 else 2048
    return Launch(tile // body, body, 0, 4)


def _walked(block: int, num_warps: int) -> Launch:
    return Launch(1, block, 0, num_warps, wide=True)


def _one_tile(cols: int, itemsize: int) -> Launch:
    """RMSNorm's rows of 8,193 to 65,536 columns: one tile, few enough registers for two programs an SM up to 32,768."""
    body = next_power_of_2(cols)
    if itemsize == 4:
        # 4096x32768 fp32: 16 warps 274 us, 32 warps 289; 4096x16384: 133.0 and 131.3.
        return Launch(1, body, 0, 32 if body == 16384 else 16)
    if cols < 16384:
        # 98.3 us against 102.9 of 16 warps at 8192x12288 bf16.
        return Launch(1, body, 0, 8, lean=True, maxnreg=80)
    if cols == 16384:
        return Launch(1, body, 0, 16)
    if body == 32768:
        return Launch(1, body, 0, 16, lean=True, maxnreg=64)
    return Launch(1, body, 0, 32, lean=True)
