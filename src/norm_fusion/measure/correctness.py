"""Poisoned memory, and the verdict on an output against the fp64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from norm_fusion.backends.builtin import Operands
from norm_fusion.records import Code
from norm_fusion.reference import gradients, reference, standardized
from norm_fusion.spec import Case, Pass, odd_kind

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


def outputs_of(output: Any, case: Case) -> tuple[Any, ...]:
    """A call's outputs, one by one: where there should be several, those of a tuple or list."""
    several = len(case.outputs) > 1 and isinstance(output, (tuple, list))
    return tuple(output) if several else (output,)


def cloned(output: Any) -> Any:
    """The same outputs in memory of their own; what is no tensor as it is."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, (tuple, list)):
        return tuple(y.clone() if isinstance(y, Tensor) else y for y in output)
    return output


def poison(case: Case, x: Tensor, value: float) -> None:
    """Leave `value` in the memory that the next outputs of this case are likely to get from the allocator."""
    for shape in case.outputs:
        for block in [torch.full(shape, value, dtype=x.dtype, device=x.device) for _ in range(2)]:
            del block


def check(output: object, x: Tensor, operands: Operands, case: Case, rows: Tensor | None = None) -> Check:
    """Judge the output of input `x`, on all rows or on those whose indices are given.

    The error of an element is relative to |reference| + k rms(reference's row): an element near zero does not decide,
    and an outlier channel does not excuse its neighbours. k is the condition number of the row: 1 for RMSNorm,
    rms(x) / std(x) for LayerNorm, where a mean far above the spread magnifies every rounding of the input's size. For
    dx, what it is a difference of takes the place of |reference|.

    A parameter's gradient is compared in all columns, or where rows are given in as many: relative to |reference| and
    the root of the sum of squares of what its terms' errors are relative to, as these come each from a row of its own.
    """
    odd = wrong_kind(output, x, case)
    if odd is not None:
        return Check.failed(odd, Code.WRONG_KIND)
    found = outputs_of(output, case)
    of_rows = [y for y in found if y.dim() == 2]
    worst = _compared_rows(of_rows, x, operands, case, rows)
    if len(of_rows) < len(found):
        cols = torch.arange(case.cols, device=x.device)
        if rows is not None:
            cols = cols[:: -(-case.cols // len(rows))]
        sums = _parameters(operands, parts_in(x, case), cols)
        worst.take([y[cols] for y in found[len(of_rows) :]], sums, "column", cols)
    return worst.verdict(case)


def check_rows(of_rows: Sequence[Tensor], x: Tensor, operands: Operands, case: Case) -> Check:
    """The same of outputs of shape (rows, cols) alone, without the parameters' gradients."""
    return _compared_rows(of_rows, x, operands, case, None).verdict(case)


def kind_of(output: object, case: Case) -> list[dict[str, Any]]:
    """What a call's outputs are, as JSON: type, shape, dtype and device of each."""
    return [_kind(y) for y in outputs_of(output, case)]


def wrong_kind(output: object, x: Tensor, case: Case) -> str | None:
    """What is odd about the types, shapes, dtypes or devices of the outputs of input `x`; None if nothing is."""
    return odd_kind(kind_of(output, case), case, x.device.type)


def parts_in(x: Tensor, case: Case) -> list[Tensor]:
    """The parts of an input, shape (rows, cols) each."""
    return list(x.view(len(case.parts), -1, x.shape[-1]).unbind())


Expected = tuple[Tensor, Tensor]  # the reference, and what errors are relative to


@dataclass
class _Worst:
    """The largest errors so far, over so many rows."""

    rows: int
    absolute: float = 0.0
    relative: float = 0.0
    not_finite: str | None = None

    def take(self, found: Sequence[Tensor], expected: Sequence[Expected], what: str, index: Tensor) -> None:
        """Compare outputs, whose first dimension is of the rows or columns that `index` names."""
        for y, (reference_, scale) in zip(found, expected, strict=True):
            error = (y.double() - reference_).abs()
            finite = torch.isfinite(error)
            if not bool(finite.all()):
                self.not_finite = f"{what} {int(index[~finite.view(len(index), -1).all(-1)][0])}"
                continue
            self.absolute = max(self.absolute, float(error.max()))
            relative = error / scale.clamp_min(torch.finfo(torch.float64).tiny)
            self.relative = max(self.relative, float(relative.max()))

    def verdict(self, case: Case) -> Check:
        if self.not_finite is not None:
            wrong = f"output is not finite in {self.not_finite}, and the reference is"
            return Check(None, None, self.rows, wrong, Code.WRONG_OUTPUT)
        if self.relative > case.tolerance:
            wrong = f"error {self.relative:.2e} is above the tolerance {case.tolerance:.2e}"
            return Check(self.absolute, self.relative, self.rows, wrong, Code.WRONG_OUTPUT)
        return Check(self.absolute, self.relative, self.rows, None)


def _compared_rows(of_rows: Sequence[Tensor], x: Tensor, operands: Operands, case: Case, rows: Tensor | None) -> _Worst:
    parts = parts_in(x, case)
    index = torch.arange(case.rows, device=x.device) if rows is None else rows
    worst = _Worst(len(index))
    for part in torch.split(index, max(1, CHUNK_ELEMENTS // case.cols)):
        worst.take([y[part] for y in of_rows], _rows(operands, [one[part] for one in parts]), "row", part)
    return worst


def _rows(operands: Operands, parts: Sequence[Tensor]) -> list[Expected]:
    """Of the outputs of shape (rows, cols), for these rows."""
    p, h = operands, _normalized(operands, parts)
    condition = _condition(p, h)
    if p.pass_ is Pass.FORWARD:
        y = reference(p.op, h, p.weight, p.bias, p.eps)
        found = [(y, y.abs() + condition * _rms(y))]
        return [*found, (h.double(), h.double().abs() + _rms(h.double()))] if p.op.added else found
    dy, *dh = parts[-2:] if p.op.added else parts[-1:]
    made = gradients(p.op, h, p.weight, dy, p.eps)
    dx, scale = made.dx, condition * (made.terms + _rms(made.dx))
    for more in dh:
        dx, scale = dx + more.double(), scale + more.double().abs()
    return [(dx, scale)] * (2 if p.op.added else 1)


def _parameters(operands: Operands, parts: Sequence[Tensor], cols: Tensor) -> list[Expected]:
    """Of the parameters' gradients, in these columns."""
    dy = parts[-2] if operands.op.added else parts[-1]
    sums = torch.zeros(4, len(cols), dtype=torch.float64, device=cols.device)
    for chunk in torch.split(torch.arange(len(dy), device=cols.device), max(1, CHUNK_ELEMENTS // dy.shape[-1])):
        h = _normalized(operands, [one[chunk] for one in parts])
        n = standardized(operands.op, h, operands.eps)[0][:, cols]
        of_bias = dy[chunk][:, cols].double()
        size = of_bias * (n.abs() + _condition(operands, h))
        sums += torch.stack([(of_bias * n).sum(0), size.square().sum(0), of_bias.sum(0), of_bias.square().sum(0)])
    dw, dw_squares, db, db_squares = sums
    found = [(dw, dw.abs() + dw_squares.sqrt()), (db, db.abs() + db_squares.sqrt())]
    return found[: operands.op.parameters]


def _normalized(operands: Operands, parts: Sequence[Tensor]) -> Tensor:
    """What is normalized: the input, or its sum with the residual, rounded."""
    if not operands.op.added:
        return parts[0]
    return (parts[0].double() + parts[1].double()).to(parts[0].dtype)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()


def _kind(y: object) -> dict[str, Any]:
    if not isinstance(y, Tensor):
        return {"type": type(y).__name__, "shape": [], "dtype": "", "device": ""}
    dtype = str(y.dtype).removeprefix("torch.")
    return {"type": "Tensor", "shape": list(y.shape), "dtype": dtype, "device": y.device.type}


def _condition(operands: Operands, x: Tensor) -> Tensor:
    """Shape (rows, 1): how much the operator magnifies a relative perturbation of its input."""
    if not operands.op.centred:
        return torch.ones_like(x[:, :1], dtype=torch.float64)
    spread, mean = torch.var_mean(x.double(), -1, correction=0, keepdim=True)
    spread = spread + operands.eps
    return ((spread + mean.square()) / spread).sqrt()


def spread_rows(case: Case, count: int, device: torch.device) -> Tensor:
    """Indices of up to `count` rows, first and last among them, evenly spread."""
    spread = torch.linspace(0, case.rows - 1, min(count, case.rows), dtype=torch.float64, device=device)
    rows: Tensor = torch.unique_consecutive(spread.round().long())
    return rows
