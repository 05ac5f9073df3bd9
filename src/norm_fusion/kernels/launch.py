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
def pick(cols: int, itemsize: int) -> Launch:
    """The launch for rows of `cols` elements of `itemsize` bytes (2 or 4)."""
    if cols <= 512:
        return _several_rows(cols)
    row_bytes = cols * itemsize
    if row_bytes > 2 * 65536:
        return Launch(1, 8192 if itemsize == 2 else 4096, 0, 32, wide=True)
    body, tail = split(cols)
    if itemsize == 2 and body + tail > 8192:
        return _lean(cols)
    # 1 KiB of the row a warp: two 16-byte loads in flight a thread. 4096x4096 fp16: 4 warps 18.3 us, 8 warps 18.1,
    # 16 warps 19.9; 16384x8192 fp32: 16 warps 260 us, 32 warps 257.
    num_warps = min(32, max(1, body * itemsize // 1024))
    # 512 threads of 39 registers leave three programs on an SM, of 32 four: 112.5 against 119.1 us at 16384x7168.
    return Launch(1, body, tail, num_warps, maxnreg=32 if num_warps == 16 and itemsize == 2 else None)


def split(cols: int) -> tuple[int, int]:
    """`cols` as a power-of-two body and tail that cover it: 4096 -> (4096, 0), 5120 -> (4096, 1024), 7168 -> (8192, 0)."""
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


def _lean(cols: int) -> Launch:
    """16-bit rows of 8,193 to 65,536 columns: one tile, few enough registers for two programs an SM up to 32,768."""
    body = next_power_of_2(cols)
    if body == 16384:
        return Launch(1, body, 0, 16)
    if body == 32768:
        return Launch(1, body, 0, 16, lean=True, maxnreg=64)
    return Launch(1, body, 0, 32, lean=True)
