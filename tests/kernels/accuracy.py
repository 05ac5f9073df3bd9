"""How wrong an output is, in numbers, and how the kernels are run for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion import functional
from norm_fusion.ops import backward as backward_
from norm_fusion.ops import forward as forward_
from norm_fusion.ops import route
from norm_fusion.reference import layer_norm, rms_norm
from norm_fusion.spec import UNIT_ROUNDOFF, Case, Op

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
NORMS = (Op.RMSNORM, Op.LAYERNORM)
EPS = 1e-5

# What an output may be off by where the composition happens to be off by nothing, in unit roundoffs: one rounding in
# 16 bits, and Triton's interpreter truncates to bfloat16 where a GPU rounds, which is one more. In fp32 the sums round.
FLOOR = {"float16": 1, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Operands:
    """A call: the norm, its tensors, and what `functional` calls options."""

    op: Op
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    eps: float = EPS
    residual: Tensor | None = None
    gate: Tensor | None = None
    offset: float = 0.0
    cast_first: bool = False
    gate_first: bool = False
    out_dtype: torch.dtype | None = None
    residual_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> str:
        """The output's."""
        return str(self.out_dtype or self.x.dtype).removeprefix("torch.")

    @property
    def tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in ("x", "residual", "gate", "weight", "bias")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def normalized(self) -> Tensor:
        """What the norm is of: x, or the new residual."""
        if self.residual is None:
            return self.x
        return (self.x.float() + self.residual.float()).to(self.residual_dtype or self.residual.dtype)


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


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def variants(op: Op, rows: int, cols: int, dtype: torch.dtype) -> dict[str, Operands]:
    """Every option and operand that a plain norm has not."""
    plain = draw(op, rows, cols, dtype, seed=cols)
    made = {
        "bare": replace(plain, weight=None, bias=None),
        "offset": replace(plain, offset=1.0),
        "bias": replace(plain, bias=normal(cols, dtype=dtype)),
        "bias alone": replace(plain, weight=None, bias=normal(cols, dtype=dtype)),
        "fp32 weight": replace(plain, weight=normal(cols)),
        "out fp32": replace(plain, out_dtype=torch.float32),
        "cast first": replace(plain, cast_first=True),
        "residual": replace(plain, residual=normal(rows, cols, dtype=dtype)),
        "fp32 residual": replace(plain, residual=normal(rows, cols)),
        "to fp32 residual": replace(plain, residual=normal(rows, cols, dtype=dtype), residual_dtype=torch.float32),
    }
    made["cast first, fp32 residual"] = replace(made["fp32 residual"], cast_first=True)
    if op is Op.RMSNORM:
        gate = normal(rows, cols, dtype=dtype)
        made |= {"gate": replace(plain, gate=gate), "gate first": replace(plain, gate=gate, gate_first=True)}
        made["gate and offset"] = replace(plain, gate=gate, offset=1.0)
    return made


def strided_gate(cols: int, dtype: torch.dtype, gate_first: bool) -> Operands:
    """Eight rows, those of input and gate at other distances in each of three dimensions."""
    x = normal(2, 2, 3, 2, cols, dtype=dtype)[:, :, 1]
    gate = normal(2, 2, 2, cols, dtype=dtype, seed=4).transpose(1, 2)
    return Operands(Op.RMSNORM, x, normal(cols, dtype=dtype), gate=gate, gate_first=gate_first)


def forget() -> None:
    """What was found for calls that look alike, so that kernels are chosen anew."""
    route.CALLS.clear()
    for kept in (forward_.prepared, forward_._kernel, backward_.prepared, backward_._kernels):
        kept.cache_clear()


def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each forward chooses its kernel anew, as it is now, and none is kept for later tests."""

    class Forgetful(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    monkeypatch.setattr(route, "CALLS", Forgetful())
    monkeypatch.setattr(route, "prepared", forward_.prepared.__wrapped__)
    for kept in ("prepared", "_kernel"):
        monkeypatch.setattr(forward_, kept, getattr(forward_, kept).__wrapped__)


def far_from_zero(cols: int, mean: int = 2000) -> Operands:
    """LayerNorm of fp16 rows of integers about `mean`, spread 1: at 2,000 E[x^2] - mean^2 has two digits in fp32."""
    given = draw(Op.LAYERNORM, 3, cols, torch.float16)
    x = torch.randn(3, cols, generator=torch.Generator().manual_seed(1)).round().clamp(-8, 8)
    return replace(given, x=(mean + x).half())


def oracle(given: Operands) -> Tensor:
    """The output in fp64, of the inputs as they are, rounded; of the new residual as it is rounded."""
    x = given.normalized
    if given.op is Op.LAYERNORM:
        return layer_norm(x, given.weight, given.bias, given.eps, given.offset)
    return rms_norm(x, given.weight, given.eps, given.bias, given.offset, given.gate, given.gate_first)


def error_in_roundoffs(y: Tensor, given: Operands) -> float:
    """Largest error of an element in unit roundoffs of |reference| + 1: not scaled by the row's distance from zero."""
    expected = oracle(given)
    return float(((y.double() - expected).abs() / (expected.abs() + 1)).max() / UNIT_ROUNDOFF[given.dtype])


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """How many numbers of their 16-bit dtype lie between a and b."""

    def ordered(t: Tensor) -> Tensor:
        bits = t.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


def errors(y: Tensor, given: Operands) -> Errors:
    """How far y is from the fp64 oracle on the inputs as they are, rounded; rows are the last dimension's."""
    expected = oracle(given)
    case = Case(given.op, max(1, y.numel() // y.shape[-1]), y.shape[-1], given.dtype)
    per = scale(given, expected)
    floor = FLOOR[given.dtype] * UNIT_ROUNDOFF[given.dtype]
    tolerance = case.tolerance + 2 * floor * (len(given.tensors) > 3)
    return Errors(worst(y, expected, per), worst(composition(given), expected, per), tolerance, floor)


def scale(given: Operands, expected: Tensor) -> Tensor:
    """|reference| + rms(reference's row), so that an element near zero does not decide.

    LayerNorm's mean is one fp32 number: half a unit in its last place shifts y by |mean| / std such units, whatever
    the dtype. That much is nobody's fault.
    """
    per = expected.abs() + expected.square().mean(-1, keepdim=True).sqrt()
    if given.op is Op.LAYERNORM:
        x = given.normalized.double()
        shift = x.mean(-1, keepdim=True).abs() * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + given.eps)
        weight = 1.0 if given.weight is None else given.weight.double().abs()
        per = per + shift * weight * (UNIT_ROUNDOFF["float32"] / UNIT_ROUNDOFF[given.dtype])
    return per


def composition(given: Operands) -> Tensor:
    """The operator in PyTorch's own elementwise steps: statistics in fp32, each product rounded to the dtype."""
    h = given.normalized.float()
    gate = None if given.gate is None else F.silu(given.gate.float())
    if gate is not None and given.gate_first:
        h = h * gate
    if given.op is Op.LAYERNORM:
        h = h - h.mean(-1, keepdim=True)
    y = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + given.eps)).to(given.x.dtype)
    y = y if given.weight is None else (y * (given.weight + given.offset)).to(given.x.dtype)
    y = y if given.bias is None else (y + given.bias).to(given.x.dtype)
    y = y if gate is None or given.gate_first else (y * gate).to(given.x.dtype)
    return y.to(given.out_dtype or given.x.dtype)


def call(given: Operands, shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor | None]:
    """The public function that these operands are for: its output, and the new residual where there is one."""
    shape = tuple(given.x.shape[-1:]) if shape is None else tuple(shape)
    options = {"offset": given.offset, "cast_first": given.cast_first, "out_dtype": given.out_dtype, "eps": given.eps}
    name = "rms_norm" if given.op is Op.RMSNORM else "layer_norm"
    if given.gate is not None:
        options["norm_before_gate"] = not given.gate_first
        return functional.gated_rms_norm(given.x, given.gate, given.weight, **options), None
    options |= {"weight": given.weight, "bias": given.bias}
    if given.residual is None:
        return getattr(functional, name)(given.x, shape, **options), None
    options["residual_dtype"] = given.residual_dtype
    y, h = getattr(functional, f"add_{name}")(given.x, given.residual, shape, **options)
    return y, h


def run(given: Operands, shape: tuple[int, ...] | None = None) -> Tensor:
    """The kernel's output, from memory that held NaN; the storage of every input is as it was.

    A new residual is the sum, rounded, to the bit.
    """
    inputs = list(given.tensors.values())
    before = [_bytes(t).clone() for t in inputs]
    with poisoned():
        y, h = call(given, shape)
    assert all(torch.equal(_bytes(t), was) for t, was in zip(inputs, before, strict=True)), "an input was written to"
    assert (y.shape, y.dtype, y.is_contiguous()) == (given.x.shape, given.out_dtype or given.x.dtype, True)
    if h is not None:
        assert torch.equal(h.nan_to_num(7.0), given.normalized.nan_to_num(7.0)) and h.is_contiguous()
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


def worst(y: Tensor, expected: Tensor, per: Tensor) -> float:
    """The largest error, relative to `per`. Zero where equal, whatever the scale; infinite where y is NaN."""
    off = torch.where(y.double() == expected, 0.0, (y.double() - expected).abs() / per)
    return off.nan_to_num(nan=torch.inf).max().item() if off.numel() else 0.0


def _bytes(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
