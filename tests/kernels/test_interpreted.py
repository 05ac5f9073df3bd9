"""The kernels' arithmetic, in Triton's interpreter: every way to hold a row, against an fp64 oracle.

That these checks reject a wrong kernel is shown in test_controls.
"""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, NORMS, Operands, composition, draw, error_in_roundoffs, errors, far_from_zero, run
from hypothesis import strategies as st

from norm_fusion.kernels.launch import pick_rms_norm
from norm_fusion.ops.forward import forward
from norm_fusion.ops.norm import Norm
from norm_fusion.ops.norm import Operands as Tensors
from norm_fusion.reference import reference
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# Several rows a program, a body, a body and a tail, LEAN, wide: the first and last of each, odd, one short, one over.
COLS = (
    1,
    2,
    3,
    16,
    17,
    127,
    128,
    129,
    255,
    512,
    513,
    1000,
    2049,
    4096,
    5120,
    5121,
    6145,
    8191,
    16384,
    16385,
    20001,
    24576,
    65536,
    65537,
)


def check(given: Operands) -> None:
    found = errors(run(given), given)
    assert found.ok, found


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", COLS)
def test_every_way_to_hold_a_row_matches_the_oracle(op: Op, dtype: torch.dtype, cols: int) -> None:
    check(draw(op, 3, cols, dtype, seed=cols))


@EACH_OP
@EACH_DTYPE
def test_a_row_one_column_past_its_last_full_block(op: Op, dtype: torch.dtype) -> None:
    check(draw(op, 2, 131_073, dtype))


@EACH_OP
@pytest.mark.parametrize("cols", [16, 100, 256, 512])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_last_program_of_several_rows_stops_at_the_last_row(op: Op, cols: int, beside: int) -> None:
    block = pick_rms_norm(cols, 2).block_rows
    assert block > 1
    check(draw(op, 2 * block + beside, cols, torch.float16))


@EACH_OP
@hypothesis.given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 40) | st.sampled_from([250, 500, 511, 512, 513, 640, 777]),
    dtype=st.sampled_from(DTYPES),
    weight=st.booleans(),
    bias=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 0.1]),
    size=st.sampled_from([1e-3, 1.0, 100.0]),
    seed=st.integers(0, 10**6),
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_any_operands(
    op: Op, rows: int, cols: int, dtype: torch.dtype, weight: bool, bias: bool, eps: float, size: float, seed: int
) -> None:
    given = draw(op, rows, cols, dtype, seed, eps)
    check(
        replace(
            given,
            x=given.x * size,
            weight=given.weight if weight else None,
            bias=given.bias if bias else None,
        )
    )


@pytest.mark.parametrize("cols", [10, 300, 1000, 5121, 20_001, 70_001])
def test_a_large_mean_neither_cancels_nor_leaks_from_idle_lanes(cols: int) -> None:
    """E[x^2] - mean^2 has no digit left at a mean of 1e4; an idle lane that gets centred adds 1e8 to the squares."""
    given = draw(Op.LAYERNORM, 2, cols, torch.float32)
    check(replace(given, x=given.x + 1e4))


@pytest.mark.parametrize("mean", [1, 2, 30, 100, 250, 2000])
@pytest.mark.parametrize("cols", [10, 300, 640, 700, 1000, 4000, 7000])
def test_16_bit_rows_far_from_zero_keep_their_digits(cols: int, mean: int) -> None:
    given = far_from_zero(cols, mean)
    assert error_in_roundoffs(run(given), given) < 4


@pytest.mark.parametrize("cols", [300, 700, 4000, 7000, 20_000, 70_000])
def test_a_finite_variance_is_found_where_the_sum_of_squares_is_past_fp32(cols: int) -> None:
    given = draw(Op.LAYERNORM, 2, cols, torch.bfloat16)
    check(replace(given, x=(1e18 * (1 + 0.05 * given.x.float().clamp(-8, 8))).bfloat16()))


@pytest.mark.parametrize("cols", [10, 300, 1000, 4000, 7000, 16_384])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float16", "bfloat16"])
def test_a_constant_row_is_the_bias(cols: int, dtype: torch.dtype) -> None:
    given = draw(Op.LAYERNORM, 2, cols, dtype)
    given.x[1] = 1000.0
    torch.testing.assert_close(run(given)[1], given.bias, rtol=0, atol=0.05)


@pytest.mark.parametrize("cols", [300, 1000, 5121, 20_001, 70_001])
def test_what_the_mean_of_an_fp32_row_lost_is_given_back(cols: int) -> None:
    """A constant row's mean is that constant, and its outputs are the bias; half an ulp of 1000 would be 0.01."""
    given = draw(Op.LAYERNORM, 8, cols, torch.float32)
    given.x[:] = 1000.1 + 100.3 * torch.arange(8)[:, None]
    tensors = Tensors(given.x, None, None, given.weight, given.bias)
    y, _, saved = forward(Norm(True, 1, given.eps), tensors, save=True)
    assert saved is not None
    torch.testing.assert_close(saved[0], given.x[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(y, given.bias.expand(8, -1), rtol=0, atol=0.001)


@EACH_OP
@pytest.mark.parametrize("cols", [100, 1000, 20_000, 70_000])
def test_squares_past_the_range_of_fp16_do_not_overflow(op: Op, cols: int) -> None:
    given = draw(op, 2, cols, torch.float16)
    x = given.x.sign() * (30_000 + 1000 * given.x.abs().clamp(max=30))
    assert x.isfinite().all()
    check(replace(given, x=x))


@EACH_OP
@EACH_DTYPE
def test_rows_smaller_than_eps_keep_their_digits(op: Op, dtype: torch.dtype) -> None:
    given = draw(op, 3, 700, dtype)
    check(replace(given, x=given.x * 1e-4))


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [64, 700, 70_000])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_and_inf_stay_in_their_row(op: Op, dtype: torch.dtype, cols: int) -> None:
    given = draw(op, 5, cols, dtype)
    x = given.x.clone()
    x[1, cols // 2], x[3, cols - 1] = torch.nan, torch.inf
    spoilt = replace(given, x=x)
    y = run(spoilt)
    assert torch.equal(y[::2], run(given)[::2])
    assert torch.equal(y.isnan(), composition(spoilt).isnan())


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [60, 700, 70_000])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_of_zeros_without_eps_is_what_torch_makes_of_it(op: Op, dtype: torch.dtype, cols: int) -> None:
    given = draw(op, 3, cols, dtype, eps=0.0)
    given.x[1] = 0
    if op is Op.RMSNORM:
        expected = F.rms_norm(given.x, (cols,), given.weight, eps=0.0)
    else:
        expected = F.layer_norm(given.x, (cols,), given.weight, given.bias, eps=0.0)
    y = run(given)
    torch.testing.assert_close(y[1], expected[1], rtol=0, atol=0, equal_nan=True)
    assert y[::2].isfinite().all()


@EACH_OP
@pytest.mark.parametrize("cols", [64, 300, 700, 5121, 20_001, 70_001])
def test_a_row_is_bitwise_the_same_in_any_batch(op: Op, cols: int) -> None:
    given = draw(op, 7, cols, torch.float32)
    y = run(given)
    assert torch.equal(run(replace(given, x=given.x[2:3].clone()))[0], y[2])
    assert torch.equal(run(replace(given, x=given.x.flip(0))), y.flip(0))


@EACH_OP
def test_the_oracle_is_torchs_own_operator_in_fp64(op: Op) -> None:
    given = draw(op, 5, 300, torch.float32)
    x, weight = given.x.double(), given.weight.double()
    if op is Op.RMSNORM:
        expected = F.rms_norm(x, (300,), weight, given.eps)
    else:
        expected = F.layer_norm(x, (300,), weight, given.bias.double(), given.eps)
    oracle = reference(op, given.x, given.weight, given.bias, given.eps)
    torch.testing.assert_close(oracle, expected, rtol=1e-13, atol=1e-13)
