"""What a norm may have besides input, weight and bias: residual, gate, offset, heads, other dtypes, other roundings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, NORMS, Operands, call, draw, errors, normal, run, strided_gate, ulps, variants
from torch import Tensor

import norm_fusion
from norm_fusion import ops
from norm_fusion.ops import Norm
from norm_fusion.ops.forward import forward
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
HALVES = pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float16", "bfloat16"])


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [33, 128, 700, 5121, 16_384, 70_001])
def test_every_variant_matches_the_oracle(op: Op, dtype: torch.dtype, cols: int) -> None:
    for name, given in variants(op, 3, cols, dtype).items():
        found = errors(run(given), given)
        assert found.ok, (name, found)


@EACH_OP
@HALVES
@pytest.mark.parametrize("cols", [128, 700, 20_001])
def test_saving_for_a_backward_changes_no_bit(op: Op, dtype: torch.dtype, cols: int) -> None:
    for given in variants(op, 3, cols, dtype).values():
        x = given.x.clone().requires_grad_()
        y, h = call(replace(given, x=x))
        assert y.requires_grad and (h is None or h.requires_grad)
        assert torch.equal(y, run(given))


@EACH_OP
@HALVES
def test_pytorchs_own_operators_are_the_same_function(
    op: Op, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit in 16 bits, but where sums in another order move a rounding."""
    for name, given in variants(op, 20, 700, dtype).items():
        expected = run(given)
        with monkeypatch.context() as patch:
            patch.setenv("NORM_FUSION_FORCE_TRITON", "0")
            y, h = call(given)
        assert (y.dtype, y.is_contiguous()) == (expected.dtype, True), name
        torch.testing.assert_close(y, expected)
        assert y.dtype is torch.float32 or (y != expected).float().mean() < 0.01, name
        if given.residual is not None:
            assert h.dtype is given.normalized.dtype and torch.equal(h, given.normalized), name


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("cols", [72, 70_001])
def test_rows_of_a_gate_lie_as_they_like(cols: int, gate_first: bool) -> None:
    given = strided_gate(cols, torch.float16, gate_first)
    found = errors(run(given), given)
    assert found.ok, found


def steps(given: Operands, rstd: Tensor) -> Tensor:
    """Hugging Face's sequence of roundings (Llama's, Qwen3-Next's and Mamba2's), given 1/rms of each row."""
    h, dtype = given.normalized.float(), given.x.dtype
    if given.gate_first:
        h = h * F.silu(given.gate.float())
    y = given.weight * (h * rstd).to(dtype)
    if given.gate is not None and not given.gate_first:
        y = y * F.silu(given.gate.float())
    return y.to(torch.promote_types(dtype, given.weight.dtype))


def saved_rstd(given: Operands) -> Tensor:
    """1/rms of each row, as the kernel has it: a last bit of it moves one rounding in five hundred."""
    norm = Norm(False, 1, given.eps, 0.0, given.cast_first, given.gate_first)
    _, _, rstd = forward(norm, ops.Operands(given.x, given.residual, given.gate, given.weight, None), save=True)
    assert rstd is not None
    h = given.normalized.double()
    if given.gate_first:
        h = h * F.silu(given.gate.double())
    torch.testing.assert_close(rstd, torch.rsqrt(h.square().mean(-1) + given.eps).float(), rtol=1e-6, atol=0)
    return rstd[:, None]


@HALVES
@pytest.mark.parametrize("cols", [96, 700, 5121, 20_001])
@pytest.mark.parametrize("kind", ["plain", "gate", "gate first", "fp32 residual"])
def test_cast_first_rounds_where_hugging_face_does(dtype: torch.dtype, cols: int, kind: str) -> None:
    """At most one unit in the last place apart, and all but one element in a thousand the same to the bit.

    x * silu(gate) may be an fp32 bit apart; where that moves the first rounding, the weight can make two units of it.
    """
    given = draw(Op.RMSNORM, 20, cols, dtype)
    given = replace(given, cast_first=True, gate_first=kind == "gate first")
    if kind.startswith("gate"):
        given = replace(given, gate=normal(20, cols, dtype=dtype))
    if kind == "fp32 residual":
        given = replace(given, residual=normal(20, cols))
    y = run(given)
    expected = steps(given, saved_rstd(given))
    off = ulps(y, expected)
    assert off.max() <= (2 if kind == "gate first" else 1) and (off > 0).float().mean() <= 1e-3
    other = run(replace(given, cast_first=False))
    assert (ulps(other, expected) > 0).float().mean() > 0.05, "the other order of roundings passes too"


def test_cast_first_rounds_the_product_to_what_weight_and_input_promote_to() -> None:
    """A weight in fp32: Hugging Face's product is fp32, and so may the output be."""
    given = draw(Op.RMSNORM, 20, 700, torch.float16)
    given = replace(given, weight=normal(700), cast_first=True, out_dtype=torch.float32)
    assert torch.equal(run(given), steps(given, saved_rstd(given)))


@EACH_OP
def test_an_offset_is_added_in_fp32(op: Op) -> None:
    """1 + w in bfloat16 has 8 bits: a weight of 2^-9 would be lost."""
    given = draw(op, 5, 700, torch.bfloat16)
    given = replace(given, weight=torch.full((700,), 2.0**-9, dtype=torch.bfloat16), bias=None, out_dtype=torch.float32)
    assert not torch.equal(run(replace(given, offset=1.0)), run(replace(given, weight=None)))
    exact = run(replace(given, weight=None)) * (1 + 2.0**-9)
    torch.testing.assert_close(run(replace(given, offset=1.0)), exact, rtol=1e-6, atol=0)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("heads", [1, 3])
def test_a_weight_for_each_head(op: Op, dtype: torch.dtype, heads: int) -> None:
    """Of slices of a fused qkv: queries, keys, and both in front of the heads' own order."""
    qkv = normal(2, 5, 3, heads, 64, dtype=dtype)
    weight, bias = normal(heads, 64, dtype=dtype), normal(heads, 64, dtype=dtype, seed=4)
    for x in (qkv[:, :, 0], qkv[:, :, 1], qkv.transpose(0, 1)[:, :, 2], qkv.contiguous()[0, :, 0]):
        given = Operands(op, x, weight, bias if op is Op.LAYERNORM else None)
        found = errors(run(given), given)
        assert found.ok, found


@EACH_OP
def test_a_weight_for_each_head_of_wide_rows(op: Op) -> None:
    given = Operands(op, normal(3, 2, 40_960), normal(2, 40_960), normal(2, 40_960, seed=4))
    found = errors(run(given), given)
    assert found.ok, found


@pytest.mark.parametrize("before", [True, False], ids=["norm before gate", "gate before norm"])
@pytest.mark.parametrize("group_size", [8, 64, 96])
@EACH_DTYPE
def test_groups_are_normalized_each_by_itself(before: bool, group_size: int, dtype: torch.dtype) -> None:
    x, gate, weight = normal(2, 5, 192, dtype=dtype), normal(2, 5, 192, dtype=dtype, seed=4), normal(192, dtype=dtype)
    y = norm_fusion.gated_rms_norm(x, gate, weight, 1e-5, norm_before_gate=before, group_size=group_size)
    groups = (192 // group_size, group_size)
    parts = [t.unflatten(-1, groups) for t in (x, gate)]
    given = Operands(Op.RMSNORM, parts[0], weight.view(groups), gate=parts[1], gate_first=not before)
    assert errors(y.unflatten(-1, groups), given).ok


@pytest.mark.parametrize(("group_size", "cols"), [(5, 12), (0, 12), (-1, 12), (24, 12)])
def test_a_group_size_that_does_not_divide_is_refused(group_size: int, cols: int) -> None:
    x = normal(2, cols)
    with pytest.raises(ValueError, match=rf"group_size is {group_size}, input has {cols} columns: it must divide"):
        norm_fusion.gated_rms_norm(x, x, group_size=group_size)


@EACH_OP
@pytest.mark.parametrize("cols", [700, 70_001])
def test_a_residual_is_normalized_as_it_is_rounded(op: Op, cols: int) -> None:
    """Or else a backward, which has only what was stored, would be that of another function."""
    given = draw(op, 3, cols, torch.bfloat16)
    given = replace(given, residual=normal(3, cols, dtype=torch.bfloat16) * 100)
    _, h = call(given)
    assert torch.equal(run(given), run(replace(given, x=h, residual=None)))
