"""The backward kernels' arithmetic, in Triton's interpreter: every way to hold a row, against the oracle's autograd."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, NORMS, Operands, composition, draw, forget, normal, strided_gate, variants
from gradients import check, draw_gradients, errors, expected, gradients
from hypothesis import Phase
from hypothesis import strategies as st
from torch import Tensor

from norm_fusion.kernels.launch import Device
from norm_fusion.kernels.launch_backward import Given, pick_backward
from norm_fusion.ops import backward
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
# Several rows a block, one, lean, chunks; odd ones, one short, one over.
COLS = (1, 2, 3, 17, 64, 127, 128, 129, 256, 500, 512, 513, 1024, 2047, 4096, 5121, 8192, 12288, 16384, 16385, 20001)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", COLS)
def test_every_way_to_hold_a_row_matches_the_oracle(op: Op, dtype: torch.dtype, cols: int) -> None:
    check(draw(op, 3, cols, dtype, seed=cols))


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [100, 700])
def test_every_variant_matches_the_oracle(op: Op, dtype: torch.dtype, cols: int) -> None:
    for given in variants(op, 3, cols, dtype).values():
        check(given)


@EACH_OP
def test_every_variant_of_rows_in_chunks_matches_the_oracle(op: Op) -> None:
    for given in variants(op, 2, 16_385, torch.float16).values():
        check(given)


@EACH_OP
@pytest.mark.parametrize("cols", [16, 100, 512, 1000])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_last_block_of_several_rows_stops_at_the_last_row(op: Op, cols: int, beside: int) -> None:
    given = Given(vectors=1, means=True, added=False, gated=False)
    block = pick_backward(cols, 2, 2, 1, given, Device(4, 227 * 1024, cooperative=False)).block_rows
    assert block > 1
    check(draw(op, 2 * block + beside, cols, torch.float16))


@EACH_OP
@pytest.mark.parametrize("rows", [1, 4, 9, 40, 100])
def test_any_number_of_rows_for_four_processors(op: Op, rows: int) -> None:
    """Fewer rows than programs, as many, more; one partial sum, which is dw itself, and several."""
    check(draw(op, rows, 600, torch.float32))


@EACH_OP
def test_more_partial_sums_than_are_added_at_a_time(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a large GPU."""
    monkeypatch.setattr(backward, "device_of", lambda _: Device(150, 227 * 1024, cooperative=False))
    forget()
    try:
        check(draw(op, 1220, 300, torch.float32))
    finally:
        forget()


@EACH_OP
@hypothesis.given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40) | st.sampled_from([250, 512, 640, 777]),
    dtype=st.sampled_from(DTYPES),
    variant=st.sampled_from(["plain", *variants(Op.RMSNORM, 1, 1, torch.float32)]),
    size=st.sampled_from([1e-2, 1.0, 30.0]),
    data=st.data(),
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
def test_any_operands(
    op: Op, rows: int, cols: int, dtype: torch.dtype, variant: str, size: float, data: st.DataObject
) -> None:
    given = variants(op, rows, cols, dtype).get(variant) or draw(op, rows, cols, dtype)
    given = replace(given, x=given.x * size, eps=1e-3)
    wanted = data.draw(st.lists(st.sampled_from(sorted(given.tensors)), min_size=1, unique=True))
    check(given, wanted)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize(("rows", "cols"), [(2000, 64), (300, 60)])
def test_dw_of_many_rows_is_as_good_as_fp32_sums(op: Op, dtype: torch.dtype, rows: int, cols: int) -> None:
    """In bfloat16 a sum of ones ends at 256."""
    given = draw(op, rows, cols, dtype)
    given = replace(given, weight=given.weight.float())
    dy = (1 + 0.1 * torch.rand(rows, cols, generator=torch.Generator().manual_seed(5))).to(dtype)
    found = gradients(given, dy, None, ["weight"])
    truth = expected(given, dy, None, lambda g: composition(replace(g, x=g.x.double())))["weight"]
    error = errors(found, given, dy, None)["weight"]
    assert error.worst <= error.floor and truth.isfinite().all()


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [64, 700, 20_001])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_and_inf_stay_in_their_row(op: Op, dtype: torch.dtype, cols: int) -> None:
    """Of dx. dw is a sum over rows: there they belong."""
    given = draw(op, 5, cols, dtype)
    x = given.x.clone()
    x[1, cols // 2], x[3, cols - 1] = torch.nan, torch.inf
    spoilt = replace(given, x=x)
    dy, _ = draw_gradients(given)
    found, clean = gradients(spoilt, dy, None), gradients(given, dy, None)
    assert torch.equal(found["x"][::2], clean["x"][::2])
    assert found["x"][1].isnan().all() and found["weight"].isnan().all()


@EACH_OP
@pytest.mark.parametrize("cols", [64, 700, 20_001])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_of_zeros_without_eps_is_what_torch_makes_of_it(op: Op, cols: int) -> None:
    given = draw(op, 3, cols, torch.float32, eps=0.0)
    given.x[1] = 0
    dy, _ = draw_gradients(given)
    found = gradients(given, dy, None)
    x = given.x.clone().requires_grad_()
    vectors = (given.weight,) if op is Op.RMSNORM else (given.weight, given.bias)
    norm = F.rms_norm if op is Op.RMSNORM else F.layer_norm
    norm(x, (cols,), *vectors, eps=0.0).backward(dy)
    assert torch.equal(found["x"].isnan(), x.grad.isnan())


@EACH_OP
@pytest.mark.parametrize("cols", [64, 300, 700, 5121, 20_001])
def test_a_row_of_dx_is_bitwise_the_same_in_any_batch(op: Op, cols: int) -> None:
    given = draw(op, 7, cols, torch.float32)
    dy, _ = draw_gradients(given)
    dx = gradients(given, dy, None)["x"]
    alone = gradients(replace(given, x=given.x[2:3].clone()), dy[2:3].clone(), None)["x"]
    assert torch.equal(alone[0], dx[2])


@EACH_OP
def test_gradients_are_bitwise_the_same_again(op: Op) -> None:
    for given in (draw(op, 60, 600, torch.float16), *variants(op, 3, 700, torch.float16).values()):
        dy, dh = draw_gradients(given)
        once, again = gradients(given, dy, dh), gradients(given, dy, dh)
        assert all(torch.equal(once[name], again[name]) for name in once)


@EACH_OP
@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (2, 0, 64)])
def test_no_rows_no_sum(op: Op, shape: tuple[int, ...]) -> None:
    """dw of nothing is zeros, not what the memory held."""
    x = torch.empty(shape)
    vectors = [torch.empty(shape[-1]) for _ in range(1 if op is Op.RMSNORM else 2)]
    given = Operands(op, x, *vectors)
    found = gradients(given, torch.empty(shape), None)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found.values())
    assert set(found) == set(given.tensors)


LAYOUTS = {
    "contiguous": lambda: normal(6, 4, 72),
    "a slice": lambda: normal(6, 4, 100)[..., :72],
    "of heads before tokens": lambda: normal(4, 6, 72).transpose(0, 1),
    "one row for all": lambda: normal(1, 1, 72).expand(6, 4, 72),
    "one number for all": lambda: torch.tensor(0.5).expand(6, 4, 72),
    "one number a row": lambda: normal(6, 4, 1).expand(6, 4, 72),
    "transposed": lambda: normal(6, 72, 4).transpose(1, 2),
    "from an odd element": lambda: normal(6 * 4 * 72 + 1)[1:].view(6, 4, 72),
}


@EACH_OP
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_inputs_of_any_stride(op: Op, layout: str) -> None:
    tensor = LAYOUTS[layout]()
    plain = replace(draw(op, 1, 72, torch.float32), x=normal(6, 4, 72, seed=9))
    contiguous = gradients(plain, tensor.contiguous(), None)
    found = gradients(plain, tensor, None)
    assert all(torch.equal(found[name], contiguous[name]) for name in found)
    given = replace(plain, x=tensor, residual=LAYOUTS["a slice"]())
    dy, dh = normal(6, 4, 72, seed=4), LAYOUTS["of heads before tokens"]()
    dense = replace(given, x=tensor.contiguous(), residual=given.residual.contiguous())
    found, contiguous = gradients(given, dy, dh), gradients(dense, dy, dh.contiguous())
    assert all(torch.equal(found[name], contiguous[name]) for name in found)


@EACH_OP
@pytest.mark.parametrize(
    "weight",
    [normal(2 * 72)[::2], torch.tensor(0.5).expand(72), normal(72, 4).t()],
    ids=["every other one", "one number for all", "heads transposed"],
)
def test_a_weight_of_any_stride(op: Op, weight: Tensor) -> None:
    given = Operands(op, normal(6, 4, 72, seed=9), weight)
    assert not weight.is_contiguous()
    found, dense = check(given), check(replace(given, weight=weight.contiguous()))
    assert all(torch.equal(found[name], dense[name]) for name in found)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("cols", [72, 16_385])
def test_rows_of_a_gate_lie_as_they_like(cols: int, gate_first: bool) -> None:
    check(strided_gate(cols, torch.float16, gate_first))


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("heads", [3, 40])
def test_a_weight_for_each_head_of_a_fused_qkv(op: Op, dtype: torch.dtype, heads: int) -> None:
    """More heads than programs of four processors would get, too."""
    weight, bias = normal(heads, 24, dtype=dtype), normal(heads, 24, dtype=dtype, seed=4)
    q = normal(2, 5, 3, heads, 24, dtype=dtype)[:, :, 1]
    check(Operands(op, q, weight, bias))
    check(Operands(op, normal(2, heads, 5, 24, dtype=dtype).transpose(1, 2), weight))


@EACH_OP
def test_a_weight_for_each_head_of_rows_in_chunks(op: Op) -> None:
    check(Operands(op, normal(3, 2, 20_001), normal(2, 20_001), normal(2, 20_001, seed=4)))


@EACH_OP
def test_a_weight_for_each_head_of_lean_rows(op: Op) -> None:
    given = Given(vectors=1, means=True, added=False, gated=False)
    cols = 16_384
    assert pick_backward(cols, 2, 2, 2, given, Device(4, 227 * 1024, cooperative=False)).lean
    check(Operands(op, normal(3, 2, cols, dtype=torch.float16), normal(2, cols, dtype=torch.float16)))


@pytest.mark.parametrize("cols", [300, 20_001])
def test_the_gradient_of_a_gate_that_comes_first_alone(cols: int) -> None:
    """It wants the means of a row, as the input's does."""
    check(strided_gate(cols, torch.float16, gate_first=True), ["gate"])


@EACH_OP
@pytest.mark.parametrize("unused", ["y", "h"])
def test_either_output_may_be_unused(op: Op, unused: str) -> None:
    given = replace(draw(op, 5, 300, torch.float16), residual=normal(5, 300))
    dy, dh = draw_gradients(given)
    dy, dh = (None, dh) if unused == "y" else (dy, None)
    found = gradients(given, dy, dh)
    if unused == "y":
        assert set(found) == {"x", "residual"}
        assert torch.equal(found["residual"], dh) and torch.equal(found["x"], dh.half())
    for name, error in errors(found, given, dy, dh).items():
        assert error.ok, (name, error)


@EACH_OP
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual", "x residual", "gate", "x gate"])
def test_what_is_not_wanted_is_neither_allocated_nor_computed(
    op: Op, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = wanted.split()
    given = draw(op, 5, 300, torch.float16)
    given = replace(given, bias=None if "gate" in wanted else normal(300, dtype=torch.float16))
    if "gate" in wanted:
        if op is Op.LAYERNORM:
            return
        given = replace(given, gate=normal(5, 300))
    if "residual" in wanted:
        given = replace(given, residual=normal(5, 300))
    seen: list[tuple[Tensor | None, ...]] = []
    real = backward.Dispatch.__call__

    def spy(self: object, programs: int, pointers: tuple[Tensor | None, ...], *rest: object) -> None:
        seen.append(pointers)
        real(self, programs, pointers, *rest)

    dy, dh = draw_gradients(given)
    monkeypatch.setattr(backward.Dispatch, "__call__", spy)
    found = gradients(given, dy, dh, names)
    assert set(found) == set(names)
    norm_backward = next(pointers for pointers in seen if len(pointers) == 12)
    dx, dr, dz, dw, db = (pointer is not None for pointer in norm_backward[7:])
    assert (dx, dz, dw, db) == tuple(name in names for name in ("x", "gate", "weight", "bias"))
    assert dr == ("residual" in names)
