"""The check must reject what is wrong, and only that."""

import pytest
import torch

from norm_fusion.backends.builtin import prepare
from norm_fusion.measure import correctness
from norm_fusion.measure.correctness import check, kind_of, spread_rows
from norm_fusion.measure.inputs import draw_input, draw_operands
from norm_fusion.records import Code
from norm_fusion.reference import reference
from norm_fusion.spec import ITEMSIZE, Case, Op

CPU = torch.device("cpu")


def case(op: Op = Op.RMSNORM, dtype: str = "float16", rows: int = 33, cols: int = 130) -> Case:
    return Case(op, rows, cols, dtype)


def exact(c: Case) -> tuple[torch.Tensor, torch.Tensor]:
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    return x, reference(c.op, x, p.weight, p.bias, p.eps).to(x.dtype)


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("profile", ["torch-eager", "torch-native"])
def test_pytorchs_own_operators_hold(op: Op, dtype: str, profile: str) -> None:
    c = case(op, dtype)
    x, p = draw_input(c, CPU, 1), draw_operands(c, CPU, 2)
    found = check(prepare(profile, p, CPU).launch(x), x, p, c)
    assert found.wrong is None
    assert found.rows == c.rows
    assert found.max_rel_error is not None
    assert 0 < found.max_rel_error <= c.tolerance


@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("op", list(Op))
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


@pytest.mark.parametrize("op", list(Op))
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
        (lambda y: y.float(), "dtype torch.float32, expected torch.float16"),
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
    assert kind_of(y) == {"type": "Tensor", "shape": [3, 4], "dtype": "bfloat16", "device": "cpu"}
    assert kind_of([y]) == {"type": "list", "shape": [], "dtype": "", "device": ""}
