"""Poisoned memory, and the verdict on an output against the fp64 reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from norm_fusion.backends.builtin import Operands
from norm_fusion.records import Code
from norm_fusion.reference import reference
from norm_fusion.spec import Case, Op

# Elements of a reference computed at a time: bounds the fp64 working memory to about half a gigabyte.
CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Check:
    """An output against the reference. Errors are maxima over the rows checked; `wrong` says why, None if right."""

    max_abs_error: float | None
    max_rel_error: float | None
    rows: int
    wrong: str | None
    code: Code | None = None

    @classmethod
    def failed(cls, wrong: str, code: Code) -> Check:
        """No error to quote: what was found instead."""
        return cls(None, None, 0, wrong, code)


def poison(like: Tensor, value: float) -> None:
    """Leave `value` in the memory that the next output of this size is likely to get from the allocator."""
    for block in [torch.full_like(like, value) for _ in range(2)]:
        del block


def check(y: object, x: Tensor, operands: Operands, case: Case, rows: Tensor | None = None) -> Check:
    """Judge output `y` of input `x`, on all rows or on those whose indices are given.

    The error of an element is relative to |reference| + k rms(reference's row): an element near zero does not decide,
    and an outlier channel does not excuse its neighbours. k is the condition number of the row: 1 for RMSNorm,
    rms(x) / std(x) for LayerNorm, where a mean far above the spread magnifies every rounding of the input's size.
    """
    odd = wrong_kind(y, x)
    if odd is not None or not isinstance(y, Tensor):
        return Check.failed(odd or "", Code.WRONG_KIND)
    index = torch.arange(x.shape[0], device=x.device) if rows is None else rows
    max_abs = max_rel = 0.0
    for part in torch.split(index, max(1, CHUNK_ELEMENTS // case.cols)):
        expected = reference(operands.op, x[part], operands.weight, operands.bias, operands.eps)
        error = (y[part].double() - expected).abs()
        if not bool(torch.isfinite(error).all()):
            row = int(part[~torch.isfinite(error).all(-1)][0])
            wrong = f"output is not finite in row {row}, and the reference is"
            return Check(None, None, len(index), wrong, Code.WRONG_OUTPUT)
        scale = expected.abs() + _condition(operands, x[part]) * expected.square().mean(-1, keepdim=True).sqrt()
        max_abs = max(max_abs, float(error.max()))
        max_rel = max(max_rel, float((error / scale.clamp_min(torch.finfo(torch.float64).tiny)).max()))
    if max_rel > case.tolerance:
        wrong = f"error {max_rel:.2e} is above the tolerance {case.tolerance:.2e}"
        return Check(max_abs, max_rel, len(index), wrong, Code.WRONG_OUTPUT)
    return Check(max_abs, max_rel, len(index), None)


def kind_of(y: object) -> dict[str, Any]:
    """What an output is, as JSON: type, shape, dtype and device."""
    if not isinstance(y, Tensor):
        return {"type": type(y).__name__, "shape": [], "dtype": "", "device": ""}
    dtype = str(y.dtype).removeprefix("torch.")
    return {"type": "Tensor", "shape": list(y.shape), "dtype": dtype, "device": y.device.type}


def wrong_kind(y: object, x: Tensor) -> str | None:
    """What is odd about an output's type, shape, dtype or device; None if they are its input's."""
    if not isinstance(y, Tensor):
        return f"output is a {type(y).__name__}, expected a tensor"
    for what in ("shape", "dtype", "device"):
        if getattr(y, what) != getattr(x, what):
            return f"output has {what} {getattr(y, what)}, expected {getattr(x, what)}"
    return None


def _condition(operands: Operands, x: Tensor) -> Tensor:
    """Shape (rows, 1): how much the operator magnifies a relative perturbation of its input."""
    if operands.op is Op.RMSNORM:
        return torch.ones_like(x[:, :1], dtype=torch.float64)
    spread, mean = torch.var_mean(x.double(), -1, correction=0, keepdim=True)
    spread = spread + operands.eps
    return ((spread + mean.square()) / spread).sqrt()


def spread_rows(case: Case, count: int, device: torch.device) -> Tensor:
    """Indices of up to `count` rows, first and last among them, evenly spread."""
    spread = torch.linspace(0, case.rows - 1, min(count, case.rows), dtype=torch.float64, device=device)
    rows: Tensor = torch.unique_consecutive(spread.round().long())
    return rows
