"""The check must reject what is wrong, and only that."""

import math
from dataclasses import replace

import pytest
import torch
from oracle import right

from norm_fusion.backends.builtin import prepare
from norm_fusion.measure import correctness
from norm_fusion.measure.correctness import check, kind_of, outputs_of, spread_rows
from norm_fusion.measure.inputs import draw_input, draw_operands
from norm_fusion.records import Code
from norm_fusion.reference import reference
from norm_fusion.spec import ITEMSIZE, Case, Op, Pass

CPU = torch.device("cpu")
ALONE = (Op.RMSNORM, Op.LAYERNORM)


def case(op: Op = Op.RMSNORM, dtype: str = "float16", rows: int = 33, cols: int = 130) -> Case:
    return Case(op, rows, cols, dtype)


def exact(c: Case) -> tuple[torch.Tensor, torch.Tensor]:
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    return x, reference(c.op, x, p.weight, p.bias, p.eps).to(x.dtype)


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("profile", ["torch-eager", "torch-native"])
@pytest.mark.parametrize("pass_", list(Pass))
def test_pytorchs_own_operators_hold(op: Op, dtype: str, profile: str, pass_: Pass) -> None:
    c = replace(case(op, dtype), pass_=pass_)
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    found = check(prepare(profile, p, CPU).launch(x), x, p, c)
    assert found.wrong is None
    assert found.rows == c.rows
    assert found.max_rel_error is not None
    assert 0 < found.max_rel_error <= c.tolerance


ANY = [Case(op, 33, 130, dtype, pass_) for op in Op for dtype in ITEMSIZE for pass_ in Pass]


@pytest.mark.parametrize("c", ANY, ids=lambda c: c.name)
def test_autograd_through_the_reference_holds_and_each_output_is_looked_at(c: Case) -> None:
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    found = check(right(c, x, p), x, p, c)
    assert found.wrong is None and found.max_rel_error is not None
    assert found.max_rel_error < c.tolerance / 4
    for i, name in enumerate(c.output_names):
        for spoil in (lambda y: y.mul_(1.04), lambda y: y.copy_(y.roll(1, -1)), lambda y: y[..., 7].fill_(math.nan)):
            outputs = outputs_of(right(c, x, p), c)
            spoil(outputs[i])
            spoiled = check(outputs if len(outputs) > 1 else outputs[0], x, p, c)
            assert spoiled.code is Code.WRONG_OUTPUT, name


@pytest.mark.parametrize("op", list(Op))
def test_a_gradient_that_misses_one_row_is_found_in_some_columns(op: Op) -> None:
    """Where only a sample of rows is compared, parameters' gradients are of all of them still."""
    c = replace(case(op, "float32"), pass_=Pass.BACKWARD)
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    outputs, rows = right(c, x, p), torch.tensor([0, 20, 32])
    assert check(outputs, x, p, c, rows).wrong is None
    without = draw_input(c, CPU, 1)
    without[c.rows * (len(c.parts) - 1 - op.added) + 7] = 0
    short = right(c, without, p)
    assert check((*outputs[: -op.parameters], *short[-op.parameters :]), x, p, c, rows).code is Code.WRONG_OUTPUT


def test_an_output_too_few_or_too_many_is_rejected() -> None:
    c = replace(case(), pass_=Pass.BACKWARD)
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    dx, dw = right(c, x, p)
    for wrong in ((dx,), (dx, dw, dw), dx):
        found = check(wrong, x, p, c)
        assert found.code is Code.WRONG_KIND and "outputs, expected 2" in str(found.wrong)
    assert "output dw has shape [33, 130], expected [130]" in str(check((dx, dx), x, p, c).wrong)


@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("op", ALONE)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda y, x: y[-1].zero_(), id="last-row-skipped"),
        pytest.param(lambda y, x: y[:, -1].zero_(), id="last-column-skipped"),
        pytest.param(lambda y, x: y[5, 7].fill_(float("nan")), id="one-nan"),
        pytest.param(lambda y, x: y[5, 7].fill_(float("inf")), id="one-inf"),
        pytest.param(lambda y, x: y.copy_(y.roll(1, 0)), id="rows-shifted"),
        pytest.param(lambda y, x: y.copy_(y.roll(1, 1)), id="columns-shifted"),
        pytest.param(lambda y, x: y.mul_(1.04), id="four-percent-off"),
        pytest.param(lambda y, x: y.copy_(x), id="a-copy-of-x"),
    ],
)
def test_a_wrong_output_is_rejected(op: Op, dtype: str, spoil: object) -> None:
    c = case(op, dtype)
    x, y = exact(c)
    spoil(y, x)  # type: ignore[operator]
    assert check(y, x, draw_operands(c, CPU, 2), c).wrong is not None


@pytest.mark.parametrize("op", ALONE)
def test_a_missing_weight_or_bias_is_rejected(op: Op) -> None:
    c = case(op, "bfloat16")
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    assert check(reference(op, x, None, p.bias, p.eps).to(x.dtype), x, p, c).wrong
    if p.bias is not None:
        assert check(reference(op, x, p.weight, None, p.eps).to(x.dtype), x, p, c).wrong


def test_outliers_do_not_excuse_their_neighbours() -> None:
    c = case(cols=1024)
    x, y = exact(c)
    quiet = int(x[0].abs().argmin())
    y[0, quiet] += 0.05  # far below the outlier channels' 20, far above a rounding of an element near 1
    assert check(y, x, draw_operands(c, CPU, 2), c).wrong


def test_a_mean_far_above_the_spread_is_not_the_kernels_fault() -> None:
    c = Case(Op.LAYERNORM, 64, 257, "float32")
    x = torch.randn(c.rows, c.cols, generator=torch.Generator().manual_seed(0)) + 1e4
    p = draw_operands(c, CPU, 2)
    y = torch.nn.functional.layer_norm(x, (c.cols,), p.weight, p.bias, p.eps)
    assert check(y, x, p, c).wrong is None
    cancelled = (x - x.mean(-1, keepdim=True)) / (
        x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2
    ).sqrt()
    assert check(cancelled * p.weight + p.bias, x, p, c).wrong


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda y: None, "output is a NoneType"),
        (lambda y: y.float(), "dtype float32, expected float16"),
        (lambda y: y[:-1], "shape"),
        (lambda y: y.to("meta"), "device meta, expected cpu"),
    ],
)
def test_what_is_not_the_promised_tensor_is_rejected(output: object, says: str) -> None:
    c = case()
    x, y = exact(c)
    assert says in str(check(output(y), x, draw_operands(c, CPU, 2), c).wrong)  # type: ignore[operator]


def test_sampled_rows_include_first_and_last() -> None:
    c = case(rows=10_000)
    rows = spread_rows(c, 64, CPU)
    assert (int(rows[0]), int(rows[-1]), len(rows)) == (0, 9999, 64)
    assert len(spread_rows(case(rows=3), 64, CPU)) == 3


def test_rows_that_are_not_asked_for_do_not_decide() -> None:
    c = case()
    x, y = exact(c)
    y[5] = 0
    p = draw_operands(c, CPU, 2)
    found = check(y, x, p, c, torch.tensor([0, 4, 6, 32]))
    assert (found.wrong, found.rows) == (None, 4)
    assert check(y, x, p, c, torch.tensor([0, 5])).code is Code.WRONG_OUTPUT


def test_a_row_that_is_not_finite_is_named() -> None:
    c = case()
    x, y = exact(c)
    y[7, 3] = float("nan")
    found = check(y, x, draw_operands(c, CPU, 2), c)
    assert (found.wrong, found.code) == ("output is not finite in row 7, and the reference is", Code.WRONG_OUTPUT)
    assert (found.max_abs_error, found.max_rel_error) == (None, None)


@pytest.mark.parametrize("elements", [1, 130, 1000])
def test_how_many_rows_are_compared_at_a_time_changes_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case()
    x, y = exact(c)
    p = draw_operands(c, CPU, 2)
    whole = check(y, x, p, c)
    monkeypatch.setattr(correctness, "CHUNK_ELEMENTS", elements)
    assert check(y, x, p, c) == whole
    y[-1, -1] = 99
    assert check(y, x, p, c).wrong


def test_what_is_of_the_wrong_kind_has_that_code_and_no_error() -> None:
    c = case()
    x, y = exact(c)
    found = check(y.float(), x, draw_operands(c, CPU, 2), c)
    assert (found.code, found.max_rel_error, found.rows) == (Code.WRONG_KIND, None, 0)


def test_a_kind_is_told_as_json() -> None:
    y = torch.zeros(3, 4, dtype=torch.bfloat16)
    tensor = {"type": "Tensor", "shape": [3, 4], "dtype": "bfloat16", "device": "cpu"}
    assert kind_of(y, case()) == [tensor]
    assert kind_of([y], case()) == [{"type": "list", "shape": [], "dtype": "", "device": ""}]
    assert kind_of([y, y], case(Op.ADD_RMSNORM)) == [tensor] * 2
