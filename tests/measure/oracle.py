"""What a case's outputs should be, by autograd through the fp64 reference: a way of its own beside the formulas."""

from typing import Any

import torch
from torch import Tensor

from norm_fusion.backends.builtin import Operands
from norm_fusion.reference import reference
from norm_fusion.spec import Case, Pass


def right(case: Case, x: Tensor, p: Operands) -> Any:
    """The output of input `x`, or the outputs, rounded once from fp64."""
    with torch.inference_mode(False), torch.enable_grad():
        parts = x.clone().view(len(case.parts), case.rows, case.cols)
        h = (parts[0].double() + parts[1].double()).to(x.dtype) if case.op.added else parts[0]
        leaves = [h.double().requires_grad_(), p.weight.double().requires_grad_()]
        if p.bias is not None:
            leaves.append(p.bias.double().requires_grad_())
        y = reference(case.op, leaves[0], leaves[1], leaves[2] if p.bias is not None else None, p.eps)
        if case.pass_ is Pass.FORWARD:
            return (y.detach().to(x.dtype), h) if case.op.added else y.detach().to(x.dtype)
        dx, *vectors = torch.autograd.grad(y, leaves, parts[-2 if case.op.added else -1].double())
        if case.op.added:
            dx = dx + parts[-1].double()
        of_rows = [dx.to(x.dtype)] * (2 if case.op.added else 1)
        return *(one.clone() for one in of_rows), *(one.to(x.dtype) for one in vectors)
