"""Rows judged by a process apart, from their seed alone."""

import base64
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contest import CPU
from oracle import right

from norm_fusion.measure import verifier
from norm_fusion.measure.correctness import outputs_of
from norm_fusion.measure.inputs import draw_input, draw_operands, rows_of_parts
from norm_fusion.measure.verifier import judge
from norm_fusion.records import Code
from norm_fusion.spec import ITEMSIZE, Case, Op, Pass

ROWS = [0, 3, 11]


def encoded(rows: torch.Tensor) -> str:
    return base64.b64encode(rows.contiguous().view(torch.uint8).numpy().tobytes()).decode()


def request(
    op: Op = Op.RMSNORM,
    dtype: str = "float16",
    pass_: Pass = Pass.FORWARD,
    spoil: Callable[[torch.Tensor, torch.Tensor], object] = lambda x, y: None,
    **changes: Any,
) -> dict[str, Any]:
    """What a worker shows of an honest contestant's output: seed 7 its input's, 5 the parameters'."""
    case = Case(op, 12, 130, dtype, pass_)
    x, p = draw_input(case, CPU, 7, change=11), draw_operands(case, CPU, 5)
    of_rows = [y[ROWS] for y in outputs_of(right(case, x, p), case) if y.dim() == 2]
    x = x[rows_of_parts(case, torch.tensor(ROWS))]
    spoil(x, of_rows[-1])
    told = {"case": case.name, "rows": ROWS, "seed": 7, "change": 11, "operands": 5}
    told |= {"x": encoded(x), "y": [encoded(y) for y in of_rows]}
    return json.loads(json.dumps(told | changes))  # type: ignore[no-any-return]


RIGHT = {"wrong": None, "code": None}


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("pass_", list(Pass))
def test_right_rows_pass(op: Op, dtype: str, pass_: Pass) -> None:
    assert judge(request(op, dtype, pass_)) == RIGHT


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("pass_", list(Pass))
def test_one_wrong_element_is_found(op: Op, dtype: str, pass_: Pass) -> None:
    found = judge(request(op, dtype, pass_, lambda x, y: y[1, 77].add_(0.5)))
    assert found["code"] == Code.WRONG_OUTPUT
    assert "above the tolerance" in found["wrong"] and found["wrong"].endswith("by a process apart")
    json.dumps(found)


def one_bit(x: torch.Tensor, y: torch.Tensor) -> None:
    x.view(torch.uint8)[2, 5] ^= 1


@pytest.mark.parametrize(
    ("spoil", "changes"),
    [
        (one_bit, {}),
        (lambda x, y: None, {"seed": 8}),
        (lambda x, y: None, {"change": 12}),
        (lambda x, y: None, {"change": None}),
        (lambda x, y: x.neg_(), {}),
        (lambda x, y: None, {"rows": [0, 3, 10]}),
        (lambda x, y: None, {"rows": [3, 0, 11]}),
        (lambda x, y: None, {"x": encoded(torch.zeros(2, 130, dtype=torch.float16))}),
        (lambda x, y: None, {"x": ""}),
    ],
    ids=[
        "one-bit",
        "other-seed",
        "other-change",
        "no-change",
        "other-sign",
        "other-rows",
        "other-order",
        "too-few",
        "nothing",
    ],
)
def test_an_input_that_is_not_the_one_that_was_drawn_is_found(spoil: Any, changes: dict[str, Any]) -> None:
    assert judge(request(spoil=spoil, **changes))["code"] == Code.MUTATED_INPUT


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(2, 130, dtype=torch.float16),
        torch.zeros(3, 129, dtype=torch.float16),
        torch.zeros(3, 130, dtype=torch.float32),
        torch.zeros(3, 130, dtype=torch.float8_e4m3fn),
        torch.zeros(0),
    ],
    ids=["rows", "columns", "wider", "narrower", "nothing"],
)
def test_an_output_of_another_size_is_of_the_wrong_kind(y: torch.Tensor) -> None:
    assert judge(request(y=[encoded(y)]))["code"] == Code.WRONG_KIND


def test_parameters_are_drawn_from_their_own_seed() -> None:
    assert judge(request(operands=6))["code"] == Code.WRONG_OUTPUT


def test_each_line_is_answered_with_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    requests = [request(), request(dtype="float32", spoil=lambda x, y: y.zero_()), request(seed=8)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(each) + "\n" for each in requests)))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    verifier.main()
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["code"] for answer in answers] == [None, Code.WRONG_OUTPUT, Code.MUTATED_INPUT]
