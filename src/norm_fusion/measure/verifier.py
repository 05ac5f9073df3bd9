"""The process that judges rows of outputs, out of reach of the contestants that made them.

Reads JSON lines, answers each with one: rows of an input and of the output that a contestant made of it. The input is
drawn anew from its seed and compared bit by bit, the output with the fp64 reference. On the CPU, whatever made them.
"""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from norm_fusion.measure.correctness import check_rows
from norm_fusion.measure.inputs import draw_input, draw_operands, rows_of_parts
from norm_fusion.records import Code
from norm_fusion.spec import Case

CPU = torch.device("cpu")


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with some rows, as JSON: `wrong` and `code`, both null where nothing is."""
    whole = Case.parse(request["case"])
    rows = torch.tensor(request["rows"])
    case = replace(whole, rows=len(rows))
    x = _decoded(request["x"], case, len(case.parts) * case.rows)
    expected = draw_input(whole, CPU, request["seed"], rows_of_parts(whole, rows), request["change"])
    if x is None or not torch.equal(x.view(torch.uint8), expected.view(torch.uint8)):
        return {"wrong": "the input is not the one that was drawn", "code": Code.MUTATED_INPUT}
    y = [decoded for text in request["y"] if (decoded := _decoded(text, case, case.rows)) is not None]
    if len(y) != (2 if case.op.added else 1):
        return {"wrong": "the output's rows have not the size of the input's", "code": Code.WRONG_KIND}
    found = check_rows(y, x, draw_operands(case, CPU, request["operands"]), case)
    return {"wrong": found.wrong and f"{found.wrong}, by a process apart", "code": found.code}


def _decoded(text: str, case: Case, rows: int) -> Tensor | None:
    """Rows as they were sent; None if they are not as many bytes as there should be."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    try:
        data = bytearray(base64.b64decode(text))
    except ValueError:
        return None
    if len(data) != rows * case.cols * dtype.itemsize:
        return None
    return torch.frombuffer(data, dtype=dtype).view(rows, case.cols)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(judge(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
