"""Rows that several programs share, in Triton's interpreter: narrow ones, cut into chunks of 128 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from accuracy import DTYPES, NORMS, Operands, call, draw, errors, forget, normal, run, strided_gate, variants
from gradients import check, draw_gradients, gradients
from torch import Tensor

from norm_fusion.kernels.launch import CooperativeLaunch, Device, pick_cooperative
from norm_fusion.kernels.launch_backward import BackwardLaunch, Given, pick_backward
from norm_fusion.ops import backward, forward
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
GPU = Device(2, 227 * 1024, cooperative=True)


def small_backward(cols: int, itemsize: int, weight: int, heads: int, given: Given, device: Device) -> BackwardLaunch:
    if not given.means:
        return pick_backward(cols, itemsize, weight, heads, given, device)
    return BackwardLaunch(1, 128, 4, 4, 3, cooperative=True, maxnreg=128)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Eight programs at a time, of 128 columns; yields how many words each board had."""
    boards: list[int] = []
    real = Tensor.new_zeros

    def new_zeros(self: Tensor, size: tuple[int, ...], **kwargs: torch.dtype) -> Tensor:
        board = real(self, size, **kwargs)
        boards.append(board.numel())
        return board

    forget()
    monkeypatch.setattr(forward, "device_of", lambda _: GPU)
    monkeypatch.setattr(backward, "device_of", lambda _: GPU)
    monkeypatch.setattr(forward, "pick_cooperative", lambda *_: CooperativeLaunch(128, 4, 4, 3))
    monkeypatch.setattr(backward, "pick_backward", small_backward)
    monkeypatch.setattr(Tensor, "new_zeros", new_zeros)
    yield boards
    forget()


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [129, 300, 512])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_output_and_gradients_match_the_oracle(
    op: Op, dtype: torch.dtype, cols: int, rows: int, small_chunks: list[int]
) -> None:
    """Fewer rows than programs of a chunk, as many, more; a last chunk of one column."""
    given = draw(op, rows, cols, dtype, seed=cols)
    found = errors(run(given), given)
    assert found.ok, found
    check(given)
    assert small_chunks[0] == rows * -(-cols // 128) * (2 if op is Op.LAYERNORM else 1)


@EACH_OP
def test_every_variant_matches_the_oracle(op: Op) -> None:
    for name, given in variants(op, 3, 300, torch.float16).items():
        found = errors(run(given), given)
        assert found.ok, (name, found)
        if name != "cast first":
            check(given)


@EACH_OP
def test_bits_depend_on_neither_saving_nor_the_batch_nor_the_time(op: Op) -> None:
    for name in ("offset", "fp32 residual"):
        given = variants(op, 5, 300, torch.float16)[name]
        y, _ = call(given)
        saved, _ = call(replace(given, x=given.x.clone().requires_grad_()))
        assert torch.equal(y, saved), name
        rows = {n: t[3:5].clone() for n, t in given.tensors.items() if n in ("x", "residual", "gate")}
        assert torch.equal(call(replace(given, **rows))[0], y[3:5]), name
        dy, dh = draw_gradients(given)
        once, again = gradients(given, dy, dh), gradients(given, dy, dh)
        assert all(torch.equal(once[n], again[n]) for n in once), name


@EACH_OP
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_and_inf_stay_in_their_row(op: Op) -> None:
    given = draw(op, 5, 300, torch.float16)
    x = given.x.clone()
    x[1, 150], x[3, 299] = torch.nan, torch.inf
    spoilt = replace(given, x=x)
    found, clean = run(spoilt), run(given)
    assert torch.equal(found[::2], clean[::2]) and found[1].isnan().all()
    dy, _ = draw_gradients(given)
    found, clean = gradients(spoilt, dy, None)["x"], gradients(given, dy, None)["x"]
    assert torch.equal(found[::2], clean[::2]) and found[1].isnan().all()


@EACH_OP
def test_heads_and_strides(op: Op) -> None:
    weight, bias = normal(3, 200), normal(3, 200, seed=4)
    q = normal(2, 2, 3, 3, 200)[:, :, 1]
    asked = [Operands(op, q, weight, bias), Operands(op, normal(1, 3, 4, 200).transpose(1, 2), weight)]
    if op is Op.RMSNORM:
        asked += [strided_gate(200, torch.float16, gate_first) for gate_first in (False, True)]
    for given in asked:
        found = errors(run(given), given)
        assert found.ok, found
        check(given)


@EACH_OP
@pytest.mark.parametrize("wanted", [["x"], ["weight"], ["x", "weight"]])
def test_a_frozen_input_needs_no_board(op: Op, wanted: list[str], small_chunks: list[int]) -> None:
    given = draw(op, 5, 300, torch.float32)
    gradients(given, draw_gradients(given)[0], None, wanted)
    assert len(small_chunks) == (op is not Op.LAYERNORM) + ("x" in wanted)  # RMSNorm's forward has one
    check(given, wanted)


@pytest.mark.parametrize("processors", [1, 20, 80, 132])
def test_what_waits_for_each_other_fits_or_is_not_picked(processors: int) -> None:
    device = Device(processors, 99 * 1024, cooperative=True)
    for cols in (40_000, 200_000, 3_000_000):
        for itemsize in (2, 4):
            shared = pick_cooperative(2 * cols, itemsize)
            assert shared is not None
            assert -(-2 * cols // shared.body) * shared.sharing(2 * cols, 1, device) <= shared.per_sm * processors
            launch = pick_backward(cols, itemsize, itemsize, 1, Given(1, True, False, False), device)
            assert launch.cooperative == (-(-cols // (4096 // itemsize)) <= 4 * processors)
