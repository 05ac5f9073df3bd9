"""Candidates for the roof: ways to copy a case's input to its output, the same bytes and no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from norm_fusion.backends.builtin import Launch
from norm_fusion.kernels.dispatch import launches_early

CopyInto = Callable[[Tensor, Tensor], Tensor]

# Elements a program of 4 warps: each the fastest on an H200, or within 1% of it, at some size; tiles of 512, and of
# 4,096 and more, were slower everywhere. None has a cache hint: see `Bench._scrub`.
TILES = (1024, 2048)


def candidates(inputs: list[Tensor]) -> Mapping[str, Launch]:
    """The copies to choose from.

    On a GPU into ready outputs, taken in turn: PyTorch's copy and a Triton kernel in several tilings, launched early
    too (PDL), as the fused kernels are, where the GPU can. On a CPU one that allocates its output, as every contestant
    does: there the pages of a fresh output are a cost of the call.
    """
    if not inputs[0].is_cuda:
        return {"Tensor.clone": Tensor.clone}
    out = [torch.empty_like(x) for x in inputs]
    found: dict[str, Launch] = {"Tensor.copy_": _in_turn(out, lambda x, y: y.copy_(x))}
    for tile in TILES:
        for pdl in (False, True) if launches_early(inputs[0].device) else (False,):
            found[f"triton copy, tiles of {tile}{', launched early' if pdl else ''}"] = _in_turn(out, _tiled(tile, pdl))
    return found


def _tiled(block: int, pdl: bool) -> CopyInto:
    from norm_fusion.kernels.copy import copy_elements

    def copy(x: Tensor, y: Tensor) -> Tensor:
        n = x.numel()
        copy_elements[(-(-n // block),)](x, y, n, block, pdl, num_warps=4, launch_pdl=pdl)
        return y

    return copy


def _in_turn(out: list[Tensor], copy: CopyInto) -> Launch:
    turn = 0

    def launch(x: Tensor) -> Tensor:
        nonlocal turn
        turn += 1
        return copy(x, out[turn % len(out)])

    return launch
