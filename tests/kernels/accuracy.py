"""How wrong an output is, in numbers, and how the kernels are run for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor

from norm_fusion import ops
from norm_fusion.reference import reference
from norm_fusion.spec import UNIT_ROUNDOFF, Case, Op

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EPS = 1e-5

# What an output may be off by where the composition happens to be off by nothing, in unit roundoffs: one rounding in
# 16 bits, and Triton's interpreter truncates to bfloat16 where a GPU rounds, which is one more. In fp32 the sums round.
FLOOR = {"float16": 1, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Operands:
    op: Op
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    eps: float = EPS

    @property
    def dtype(self) -> str:
        return str(self.x.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Errors:
    """The largest error of an element, ours and that of torch's composition, relative to its scale (see `scale`)."""

    worst: float
    composition: float
    tolerance: float
    floor: float

    @property
    def ok(self) -> bool:
        return self.worst <= min(self.tolerance, 2 * self.composition + self.floor)


def draw(op: Op, rows: int, cols: int, dtype: torch.dtype, seed: int = 0, eps: float = EPS) -> Operands:
    """Rows with a few outlier channels, as a residual stream has; a weight and a bias that are never 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = normal(rows, cols)
    x[:, torch.randint(cols, (cols // 64,), generator=generator)] *= 30
    return Operands(
        op, x.to(dtype), normal(cols).to(dtype), normal(cols).to(dtype) if op is Op.LAYERNORM else None, eps
    )


def far_from_zero(cols: int, mean: int = 2000) -> Operands:
    """LayerNorm of fp16 rows of integers about `mean`, spread 1: at 2,000 E[x^2] - mean^2 has two digits in fp32."""
    given = draw(Op.LAYERNORM, 3, cols, torch.float16)
    x = torch.randn(3, cols, generator=torch.Generator().manual_seed(1)).round().clamp(-8, 8)
    return replace(given, x=(mean + x).half())


def error_in_roundoffs(y: Tensor, given: Operands) -> float:
    """Largest error of an element in unit roundoffs of |reference| + 1: not scaled by the row's distance from zero."""
    expected = reference(given.op, given.x, given.weight, given.bias, given.eps)
    return float(((y.double() - expected).abs() / (expected.abs() + 1)).max() / UNIT_ROUNDOFF[given.dtype])


def errors(y: Tensor, given: Operands) -> Errors:
    """How far y is from the fp64 oracle on the inputs as they are, rounded; rows are the last dimension's."""
    expected = reference(given.op, given.x, given.weight, given.bias, given.eps)
    case = Case(given.op, max(1, y.numel() // y.shape[-1]), y.shape[-1], given.dtype)
    per = scale(given, expected)
    floor = FLOOR[given.dtype] * UNIT_ROUNDOFF[given.dtype]
    return Errors(_worst(y, expected, per), _worst(composition(given), expected, per), case.tolerance, floor)


def scale(given: Operands, expected: Tensor) -> Tensor:
    """|reference| + rms(reference's row), so that an element near zero does not decide.

    LayerNorm's mean is one fp32 number: half a unit in its last place shifts y by |mean| / std such units, whatever
    the dtype. That much is nobody's fault.
    """
    per = expected.abs() + expected.square().mean(-1, keepdim=True).sqrt()
    if given.op is Op.LAYERNORM:
        x = given.x.double()
        shift = x.mean(-1, keepdim=True).abs() * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + given.eps)
        weight = 1.0 if given.weight is None else given.weight.double().abs()
        per = per + shift * weight * (UNIT_ROUNDOFF["float32"] / UNIT_ROUNDOFF[given.dtype])
    return per


def composition(given: Operands) -> Tensor:
    """The operator in PyTorch's own elementwise steps: statistics in fp32, each product rounded to the dtype."""
    h = given.x.float()
    if given.op is Op.LAYERNORM:
        h = h - h.mean(-1, keepdim=True)
    y = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + given.eps)).to(given.x.dtype)
    y = y if given.weight is None else y * given.weight
    return y if given.bias is None else y + given.bias


def run(given: Operands, shape: tuple[int, ...] | None = None) -> Tensor:
    """The kernel's output, from memory that held NaN; the storage of every input is as it was."""
    inputs = [t for t in (given.x, given.weight, given.bias) if t is not None]
    before = [_bytes(t).clone() for t in inputs]
    shape = given.x.shape[-1:] if shape is None else shape
    with poisoned():
        if given.op is Op.RMSNORM:
            y = ops.rms_norm(given.x, tuple(shape), given.weight, given.eps)
        else:
            y = ops.layer_norm(given.x, tuple(shape), given.weight, given.bias, given.eps)
    assert all(torch.equal(_bytes(t), was) for t, was in zip(inputs, before, strict=True)), "an input was written to"
    assert (y.shape, y.dtype, y.is_contiguous()) == (given.x.shape, given.x.dtype, True)
    return y


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN, so that an element left unwritten shows."""

    def filling(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: object, **kwargs: object) -> Tensor:
            y = empty(*args, **kwargs)
            return y.fill_(torch.nan) if y.is_floating_point() else y

        return filled

    with (
        mock.patch.object(torch, "empty", side_effect=filling(torch.empty)) as empty,
        mock.patch.object(torch, "empty_like", side_effect=filling(torch.empty_like)) as empty_like,
    ):
        yield
    assert empty.called or empty_like.called, "the output comes from elsewhere: poison what it comes from"


def _worst(y: Tensor, expected: Tensor, per: Tensor) -> float:
    """Zero where equal, whatever the scale; infinite where y is NaN."""
    off = torch.where(y.double() == expected, 0.0, (y.double() - expected).abs() / per)
    return off.nan_to_num(nan=torch.inf).max().item() if off.numel() else 0.0


def _bytes(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
