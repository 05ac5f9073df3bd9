"""Ways to copy a case's input to its output, the same bytes and no arithmetic: the fastest is the roof. And to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from norm_fusion.backends.passes import Launch
from norm_fusion.kernels.dispatch import launches_early

# Elements a program of 4 warps: each the fastest on an H200, or within 1% of it, at some size; tiles of 512, and of
# 4,096 and more, were slower everywhere. None has a cache hint: see `Ring.scrub`.
TILES = (1024, 2048)
# Elements a tile and tiles a program of the reads, each the fastest on an H200 or within 0.1% of it: 4,430 GB/s.
READS = ((1024, 4), (2048, 2), (1024, 8))


def copies(inputs: list[Tensor], elements: int) -> Mapping[str, Launch]:
    """The copies of so many elements of an input to choose from.

    On a GPU into ready outputs, taken in turn: PyTorch's copy and a Triton kernel in several tilings, launched early
    too (PDL), as the fused kernels are, where the GPU can. On a CPU one that allocates its output, as every contestant
    does: there the pages of a fresh output are a cost of the call.
    """
    if not inputs[0].is_cuda:
        return {"Tensor.clone": lambda x: x.view(-1)[:elements].clone()}
    out = [x.new_empty(elements) for x in inputs]
    found: dict[str, Launch] = {"Tensor.copy_": _in_turn(out, lambda x, y: y.copy_(x.view(-1)[:elements]))}
    for tile in TILES:
        for pdl in (False, True) if launches_early(inputs[0].device) else (False,):
            name = f"triton copy, tiles of {tile}{', launched early' if pdl else ''}"
            found[name] = _in_turn(out, _copied(tile, pdl))
    return found


def reads(buffer: Tensor) -> list[Callable[[], object]]:
    """Ways to read a GPU's buffer once."""
    from norm_fusion.kernels.copy import read_elements

    n, spare = buffer.numel(), torch.empty(8192, device=buffer.device)

    def read(block: int, tiles: int) -> Callable[[], object]:
        return lambda: read_elements[(-(-n // (block * tiles)),)](buffer, spare, n, block, tiles, num_warps=4)

    return [read(block, tiles) for block, tiles in READS]


def _copied(block: int, pdl: bool) -> Callable[[Tensor, Tensor], Tensor]:
    from norm_fusion.kernels.copy import copy_elements

    def copy(x: Tensor, y: Tensor) -> Tensor:
        n = y.numel()
        copy_elements[(-(-n // block),)](x, y, n, block, pdl, num_warps=4, launch_pdl=pdl)
        return y

    return copy


def _in_turn(out: list[Tensor], move: Callable[[Tensor, Tensor], Tensor]) -> Launch:
    turn = 0

    def launch(x: Tensor) -> Tensor:
        nonlocal turn
        turn += 1
        return move(x, out[turn % len(out)])

    return launch
