"""How tensors look, and how the rows of some of one shape lie in memory, so that one kernel finds each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

Look = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
Dtypes = tuple[torch.dtype | None, ...]  # of some tensors, None for what is not there
Strides = tuple[int | None, int | None, int | None]
ABSENT: Strides = (None, None, None)
LEVELS = 3
KEPT = 4096  # calls that look alike, for which what is found once is kept, before the least recent is forgotten


class Rows(NamedTuple):
    """Rows of `cols` elements; row number (o * middle + m) * inner + i, or evenly spaced where inner is None.

    `strides`: of each tensor the distance between rows at levels i, m and o, in units of `vec` elements. `vec` elements
    divide a row and all distances, up to 16 bytes: how wide an access may be.
    """

    cols: int
    vec: int
    inner: int | None
    middle: int | None
    strides: list[Strides]


def look(tensor: Tensor | None) -> Look | None:
    """What of a tensor a launch depends on, but for its address; hashable."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of this shape, which has elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def is_dense(seen: Look | None) -> bool:
    """Is it contiguous, with the strides of a new tensor, or absent?"""
    return seen is None or seen[1] == dense(seen[0])


def lay_out(looks: Sequence[Look | None], trailing: int) -> tuple[tuple[bool, ...], Rows]:
    """Which of the tensors must be copied, as their layout forces it, and the rows of what there is then.

    They are of one shape, and have elements.
    """
    first = looks[0]
    assert first is not None
    shape = first[0]
    leading = len(shape) - trailing
    cols = math.prod(shape[leading:])
    given = [None if seen is None else seen[1] for seen in looks]
    itemsizes = [seen[2].itemsize for seen in looks if seen is not None]
    if all(strides is None or strides == dense(shape) for strides in given):  # the same, sooner
        return (False,) * len(given), _rows(
            cols, itemsizes, [ABSENT if s is None else (cols, None, None) for s in given]
        )
    ready = [s if s is None or _spacing(shape[leading:], s[leading:]) == 1 else dense(shape) for s in given]
    levels = _levels(shape[:leading], [s[:leading] for s in ready if s is not None])
    if len(levels) > LEVELS:
        spaced = [s is None or _spacing(shape[:leading], s[:leading]) is not None for s in ready]
        ready = [s if even else dense(shape) for s, even in zip(ready, spaced, strict=True)]
        levels = _levels(shape[:leading], [s[:leading] for s in ready if s is not None])
    copied = tuple(now is not before for now, before in zip(ready, given, strict=True))
    if len(levels) <= 1:
        even = iter(levels[0][1] if levels else [cols] * len(ready))
        spread = [ABSENT if s is None else (next(even), None, None) for s in ready]
        return copied, _rows(cols, itemsizes, spread)
    levels = [(1, [0] * len(levels[0][1]))] * (LEVELS - len(levels)) + levels
    outer, middle, inner = (iter(strides) for _, strides in levels)
    spread = [ABSENT if s is None else (next(inner), next(middle), next(outer)) for s in ready]
    return copied, _rows(cols, itemsizes, spread, inner=levels[2][0], middle=levels[1][0])


def copies(tensors: Sequence[Tensor | None], copied: Sequence[bool]) -> list[Any]:
    """The tensors, contiguous copies of those that are to be copied."""
    return [t.contiguous() if copy and t is not None else t for t, copy in zip(tensors, copied, strict=True)]


def _rows(
    cols: int, itemsizes: Sequence[int], spread: list[Strides], inner: int | None = None, middle: int | None = None
) -> Rows:
    vec = math.gcd(16 // min(itemsizes), cols, *(s for strides in spread for s in strides if s is not None))
    units: list[Strides] = [tuple(None if s is None else s // vec for s in strides) for strides in spread]  # type: ignore[misc]
    return Rows(cols, vec, inner, middle, units)


def _spacing(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The one stride at which these dimensions, flattened, are spaced; None if there is none."""
    dims = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    if not dims:
        return 1
    for (_, stride), (inner_size, inner_stride) in pairwise(dims):
        if stride != inner_size * inner_stride:
            return None
    return dims[-1][1]


def _levels(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """The fewest dimensions, with each tensor's strides, that these leading ones flatten to in all tensors at once."""
    levels: list[tuple[int, list[int]]] = []
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        here = [stride[dim] for stride in strides]
        if levels and all(outer == size * inner for outer, inner in zip(levels[-1][1], here, strict=True)):
            levels[-1] = (levels[-1][0] * size, here)
        else:
            levels.append((size, here))
    return levels
