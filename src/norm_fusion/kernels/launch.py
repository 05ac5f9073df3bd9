"""How a kernel is launched: a pure function of the row's width and element size, so it needs no GPU to be tested.

It never looks at the number of rows: the shape of the reduction, and so every bit of a row's result, depends on the
width, the dtype and how rows are aligned only. Figures are times on an H200, cold, from the search that chose them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple


@dataclass(frozen=True)
class Launch:
    """One program takes `block_rows` rows of `body` + `tail` lanes.

    `wide`: the row is walked in blocks of `body`. `lean`: weight and bias are loaded after the reduction, and
    until then a 16-bit row stays in its 16 bits. `maxnreg`: the register cap that buys occupancy, None for the
    compiler's own choice.
    """

    block_rows: int
    body: int
    tail: int
    num_warps: int
    lean: bool = False
    wide: bool = False
    maxnreg: int | None = None


class Device(NamedTuple):
    """Multiprocessors, bytes of shared memory that a program may have, and whether there is cooperative launch."""

    processors: int
    shared: int
    cooperative: bool


@dataclass(frozen=True)
class CooperativeLaunch:
    """Programs of `body` columns share a row; `per_sm` of them run on a multiprocessor, all at the same time.

    `stages`: how many rows are on their way at a time.
    """

    body: int
    num_warps: int
    per_sm: int
    stages: int

    @property
    def maxnreg(self) -> int:
        """Registers a thread, so that so many programs do run."""
        return min(255, 65536 // (32 * self.num_warps * self.per_sm) // 8 * 8)

    def sharing(self, cols: int, heads: int, device: Device) -> int:
        """How many programs share the rows of one chunk of a head; 0: not all chunks run at the same time."""
        return self.per_sm * device.processors // (-(-cols // self.body) * heads)


@cache
def pick_cooperative(cols: int, itemsize: int) -> CooperativeLaunch | None:
    """The launch of RMSNorm's rows that several programs should share, where they can; None for all others."""
    if itemsize == 4:
        return CooperativeLaunch(2048, 4, 4, 3) if cols > 32768 else None  # 1024x65536: 152 us, walked 187
    if cols <= 65536:
        return None  # 4096x32768: walked 134 us, shared 152; 2048x65536, in one tile 153, shared 150
    # 1024x131072: 152.4 us, 4,096 columns a program 154.3, walked 194; 2047x65537: 291, 236, walked 336.
    return CooperativeLaunch(4096, 8, 4, 3) if cols % 8192 else CooperativeLaunch(8192, 8, 2, 3)


@cache
def pick_rms_norm(cols: int, itemsize: int) -> Launch:
    """RMSNorm's launch for rows of `cols` elements of `itemsize` bytes (2 or 4)."""
    if cols <= 512:
        # 2,048 elements a program; 1,024 at 256 columns: 17.6 against 18.0 us at 65536x256 bf16.
        body = max(16, next_power_of_2(cols))
        return Launch((1024 if body == 256 else 2048) // body, body, 0, 4)
    if cols * itemsize > 2 * 65536:
        return _walked(8192 if itemsize == 2 else 4096, 32)
    body, tail = split(cols)
    if body + tail > 8192:
        return _rms_norm_tile(cols, itemsize)
    # 1 KiB of the row a warp: two 16-byte loads in flight a thread. 4096x4096 bf16: 4 warps 18.2 us, 8 warps 17.7.
    num_warps = min(32, max(1, body * itemsize // 1024))
    # What 16 warps leave room for on an SM: three programs of 40 registers, four of 32. 17.9 against 18.1 us at
    # 2340x7168 bf16; 18.0 against 19.0 at 1638x5120 fp32.
    maxnreg = {2: 32, 4: 40 if tail else None}[itemsize] if num_warps == 16 else None
    return Launch(1, body, tail, num_warps, maxnreg=maxnreg)


def _rms_norm_tile(cols: int, itemsize: int) -> Launch:
    """Rows of 8,193 to 65,536 columns in 16 bits, to 32,768 in fp32."""
    body = next_power_of_2(cols)
    if itemsize == 4:
        return Launch(1, body, 0, 32, lean=body > 16384)  # 2048x32768: lean 132.6 us, not lean 146.7
    if cols < 16384:
        return Launch(1, body, 0, 8, lean=True)
    if cols > 16384 and body == 32768:
        # Blocks that end with the row: 4096x32768 walked 133 us, in one tile 136 to 160; 585x28672 20.3 and 19.3.
        return Launch(1, body, 0, 16, lean=True) if cols % 8192 else _walked(8192, 32)
    return Launch(1, body, 0, 32, lean=True)  # 8192x16384: 129 us; 2048x65536: 140, walked 154


@cache
def pick_layer_norm(cols: int, itemsize: int) -> Launch:
    """LayerNorm's launch for rows of `cols` elements of `itemsize` bytes (2 or 4).

    Its mean, its bias and their instructions ask for more threads' worth of registers than RMSNorm has, and in 16 bits,
    twice the elements a byte, for half of the issue slots of an SM: what saves an instruction saves time.
    """
    if cols <= 512:
        body = max(16, next_power_of_2(cols))
        if itemsize == 4:
            return Launch((1024 if body == 256 else 2048) // body, body, 0, 4)
        # 32768x512 bf16: 1,024 elements a program of 2 warps 18.1 us, 2,048 of 4 warps 19.6.
        return Launch(1024 // body, body, 0, 2) if body >= 256 else Launch(4096 // body, body, 0, 8)
    if cols <= 2048 or (itemsize == 4 and cols <= 8192):
        body, tail = split(cols)
        # 2 KiB of the row a warp, half of RMSNorm's warps; 1 KiB where the row is 4 KiB: 17.9 against 18.3 us at
        # 8192x2048 bf16.
        num_warps = 4 if cols * itemsize == 4096 else max(1, body * itemsize // 2048)
        return Launch(1, body, tail, num_warps)
    return _layer_norm_tile(cols) if itemsize == 2 else _layer_norm_tile_fp32(cols)


def _layer_norm_tile(cols: int) -> Launch:
    """16-bit rows of 2,049 columns and more; whole tiles, as two of them would be reduced one after the other."""
    if cols <= 4096:
        return Launch(1, 4096, 0, 4)  # 4096x4096: 18.2 us, 8 warps 18.9, 8 warps of 40 registers 18.1 and they spill
    if cols <= 5120:
        return Launch(1, 8192, 0, 4)  # 3276x5120: 18.5 us, 8 warps 19.3
    if cols <= 6144:
        return Launch(1, 8192, 0, 8)  # 2730x6144: 18.6 us, lean 19.0
    if cols <= 8192:
        return Launch(1, 8192, 0, 8, lean=True, maxnreg=64)  # 2340x7168: 18.6 us, not lean 20.0
    if cols < 16384:
        return Launch(1, 16384, 0, 8, lean=True)  # 10922x12288: 131 us, walked 133
    if cols == 16384:
        return Launch(1, 16384, 0, 16, lean=True, maxnreg=64)  # 4096x16384: 67.7 us, walked 71.2
    if cols <= 20480:
        return Launch(1, 32768, 0, 8, lean=True)  # 3276x20480: 68.4 us, walked 73.4
    # Blocks that end with the row: 2730x24576 32 warps 70.5 us, 16 warps 75.0. Else 3276x20480 101.7 and 73.4.
    return _walked(8192, 16 if cols % 8192 else 32)


def _layer_norm_tile_fp32(cols: int) -> Launch:
    """fp32 rows of 8,193 columns and more."""
    if cols <= 16384:
        return Launch(1, 16384, 0, 16, lean=True, maxnreg=64)  # 2048x16384: 68.7 us, not lean 71.7
    if cols <= 32768:
        return Launch(1, 32768, 0, 32, lean=True)  # 1365x24576: 72.3 us, walked 78.4
    return _walked(16384, 32)


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


def _walked(block: int, num_warps: int) -> Launch:
    return Launch(1, block, 0, num_warps, wide=True)
