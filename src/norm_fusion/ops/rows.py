"""How the rows of some tensors of one shape lie in memory, so that one kernel finds each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Dtypes = tuple[torch.dtype | None, ...]  # of some tensors, None for what is not there
Strides = tuple[int | None, int | None, int | None]
ABSENT: Strides = (None, None, None)
LEVELS = 3
PLANS = 4096  # layouts whose kernels and integers are kept, before the least recent is forgotten


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


def evenly(cols: int, dtypes: Dtypes) -> Rows:
    """The rows of contiguous tensors of these dtypes."""
    strides = [ABSENT if dtype is None else (cols, None, None) for dtype in dtypes]
    return _rows(cols, [dtype.itemsize for dtype in dtypes if dtype is not None], strides)


def lay_out(tensors: Sequence[Tensor | None], trailing: int) -> tuple[list[Tensor | None], Rows]:
    """The tensors, a copy only where a layout forces one, and their rows; there are some, and columns in them."""
    x = tensors[0]
    assert x is not None
    leading = x.dim() - trailing
    cols = math.prod(x.shape[leading:])
    ready = [
        t if t is None or _spacing(t.shape[leading:], t.stride()[leading:]) == 1 else t.contiguous() for t in tensors
    ]
    levels = _levels(x.shape[:leading], [t.stride()[:leading] for t in ready if t is not None])
    if len(levels) > LEVELS:
        ready = [
            t if t is None or _spacing(t.shape[:leading], t.stride()[:leading]) is not None else t.contiguous()
            for t in ready
        ]
        levels = _levels(x.shape[:leading], [t.stride()[:leading] for t in ready if t is not None])
    itemsizes = [t.itemsize for t in ready if t is not None]
    if len(levels) <= 1:
        even = iter(levels[0][1] if levels else [cols] * len(ready))
        spread = [ABSENT if t is None else (next(even), None, None) for t in ready]
        return ready, _rows(cols, itemsizes, spread)
    levels = [(1, [0] * len(levels[0][1]))] * (LEVELS - len(levels)) + levels
    outer, middle, inner = (iter(strides) for _, strides in levels)
    spread = [ABSENT if t is None else (next(inner), next(middle), next(outer)) for t in ready]
    return ready, _rows(cols, itemsizes, spread, inner=levels[2][0], middle=levels[1][0])


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
