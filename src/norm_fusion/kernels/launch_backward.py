"""How the backward kernels are launched: a pure function, as in `launch`, of a row's width and what is asked for.

Here the number of rows matters to dw and db alone: to how many programs share them. What decides the time: a program
has the next rows on their way into shared memory (`stages`) while it works on one, so that few programs with many
registers each, which dw wants, keep the memory busy. Figures are times on an H200, 64 MiB of x, cold, both kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from norm_fusion.kernels.launch import Device, next_power_of_2


@dataclass(frozen=True)
class BackwardLaunch:
    """One program takes blocks of `block_rows` rows, `body` columns of them, `per_sm` programs a multiprocessor.

    `stages`: how many blocks are on their way at a time. `lean`: the weight is read again for each row. `cooperative`:
    programs that share a row run at the same time, `maxnreg` registers a thread so that they can. `sum_rows` x
    `sum_cols`: the tile in which partial sums of dw and db are added up.
    """

    block_rows: int
    body: int
    num_warps: int
    per_sm: int
    stages: int = 1
    lean: bool = False
    cooperative: bool = False
    maxnreg: int | None = None
    sum_rows: int = 256
    sum_cols: int = 16


class Given(NamedTuple):
    """What else a launch depends on.

    `vectors`: how many of dw and db are wanted. `means`: a gradient of what was normalized is, too. `added`: the new
    residual has a gradient. `gated`: there is a gate.
    """

    vectors: int
    means: bool
    added: bool
    gated: bool


@cache
def pick_backward(cols: int, itemsize: int, weight: int, heads: int, given: Given, device: Device) -> BackwardLaunch:
    """The launch for rows of `cols` elements of `itemsize` bytes, and of `weight` bytes in the weight, 0 for none."""
    both = given.vectors > 1
    if cols <= _one_program(itemsize, both, given):
        launch = (_pick_16_bit if itemsize == 2 else _pick_fp32)(cols, both)
    else:
        launch = _pick_cooperative(itemsize, given.gated)
        fits = -(-cols // launch.body) * heads <= launch.per_sm * device.processors
        if not (given.means and device.cooperative and fits):
            launch = _pick_chunks(itemsize, both)
    rows, stages = launch.block_rows, launch.stages
    if rows > 1 and cols * itemsize % 16:
        rows, stages = max(1, rows // 4), 1  # element by element, whose addresses and masks take registers too
    elif rows > 1 and given.gated:
        rows //= 2
    through_shared = rows * launch.body * ((2 + given.added + given.gated) * itemsize + launch.lean * weight)
    shared = device.shared // (launch.per_sm if launch.cooperative else 1)
    while stages > 1 and through_shared * (stages - 1) > shared - 4096:
        stages -= 1
    # All partial sums of some columns at once, where registers hold them; of wide rows there are enough columns.
    sum_rows = min(64 if cols > 8192 else 256, next_power_of_2(launch.per_sm * device.processors))
    sum_cols = (2048 if both or cols > 8192 else 4096) // sum_rows
    return replace(launch, block_rows=rows, stages=stages, sum_rows=sum_rows, sum_cols=sum_cols)


def _one_program(itemsize: int, both: bool, given: Given) -> int:
    """Columns of a row that one program takes: what registers hold beside dw, and are faster than several programs."""
    if itemsize == 4 or given.added or given.gated:
        return 8192
    return 12288 if both else 16384  # 2730x12288 with db: 70.1 us, in chunks 75.3; 2048x16384 without: 58.7, 59.6


def _pick_cooperative(itemsize: int, gated: bool) -> BackwardLaunch:
    # 1024x32768: 60.3 us, with db 79.2, gated 117; 512x32768 fp32: 58.7. Each row read twice: 89.8, 104, 151, 88.1.
    return BackwardLaunch(1, 1024 if gated or itemsize == 4 else 2048, 4, 4, 3, cooperative=True, maxnreg=128)


def _pick_chunks(itemsize: int, both: bool) -> BackwardLaunch:
    """Where programs cannot wait for each other, or need not."""
    return BackwardLaunch(1, 2048, 2 * itemsize, 4) if both or itemsize == 4 else BackwardLaunch(1, 4096, 16, 2)


def _pick_16_bit(cols: int, both: bool) -> BackwardLaunch:
    body = max(16, next_power_of_2(cols))
    if body <= 64:
        return BackwardLaunch(4096 // body, body, 4, 2, 3)  # 524288x64: 54.9 us
    if body == 128:
        return BackwardLaunch(64, body, 8, 1, 3)  # 262144x128: 55.8 us; 32 rows a block, two programs: 58
    if body == 256:
        return BackwardLaunch(16, body, 4, 3 if both else 4)  # 131072x256: 60.0 us, and no pipeline was faster
    if body == 512:
        return BackwardLaunch(8, body, 4, 2, 3)  # 65536x512: 54.6 us; four programs of 4 rows 57
    if body == 1024:
        return BackwardLaunch(2, body, 4, 3, 4)  # 32768x1024: 55.2 us
    if body == 2048:
        # 16384x2048: 53.4 us; with db two programs 55.1 us.
        return BackwardLaunch(2, body, 8, 2, 3) if both else BackwardLaunch(2, body, 8, 1, 5)
    if body == 4096:
        # 8192x4096: 54.2 us, two programs of 4 warps 55.1; with db 57.2.
        return BackwardLaunch(1, body, 8, 2, 3) if both else BackwardLaunch(1, body, 8, 1, 5)
    if body == 8192:
        if both and cols == body:
            return BackwardLaunch(1, body, 16, 1, 4, lean=True)  # 4096x8192: 58.9 us, 8 warps 59.4
        return BackwardLaunch(1, body, 8, 1, 3 if cols == body else 4)  # 4096x8192: 54.5 us; 6553x5120: 54.9
    # 2048x16384: 60.9 us, not lean 76; 2730x12288 with db 70.1.
    return BackwardLaunch(1, body, 16, 1, 1 if both else 3, lean=True)


def _pick_fp32(cols: int, both: bool) -> BackwardLaunch:
    body = max(16, next_power_of_2(cols))
    if body <= 128:
        return BackwardLaunch(4096 // body, body, 8, 1, 3)  # 131072x128: 55.1 us; with db 57.6
    if body == 256:
        # 65536x256: 53.9 us; with db 56.2.
        return BackwardLaunch(16, body, 8, 2) if both else BackwardLaunch(8, body, 4, 2, 3)
    if body <= 1024:
        return BackwardLaunch(2048 // body, body, 4, 2, 3)  # 16384x1024: 53.0 us; with db 54.2
    if body == 2048:
        # 8192x2048: 52.5 us; with db 52.9.
        return BackwardLaunch(1, body, 8, 1, 5) if both else BackwardLaunch(2, body, 8, 1, 3)
    return BackwardLaunch(1, body, 8, 1, 3)  # 4096x4096: 53.2 us; 2048x8192: 56.6; with db 54.4, 59.5
