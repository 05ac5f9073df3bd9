"""Inputs are the same bits wherever and however they are drawn; and they look like activations."""

from hashlib import sha256

import pytest
import torch
from contest import CPU, bits

from norm_fusion.measure import inputs
from norm_fusion.measure.inputs import (
    EPS,
    MEAN,
    OUTLIER_EVERY,
    OUTLIER_TIMES,
    activation_rows,
    draw_input,
    draw_operands,
    rows_of_parts,
)
from norm_fusion.spec import ITEMSIZE, Case, Op, Pass


def case(rows: int = 64, cols: int = 256, dtype: str = "float32", op: Op = Op.RMSNORM) -> Case:
    return Case(op, rows, cols, dtype)


# Of 5x7, seed 12345, row 3; and of all of 37x130, seed 7. A change of the hash changes what a stored seed means.
ROW_3 = {
    "float32": "-0x1.34d024p+0 0x1.ed018p-1 -0x1.803c82p+3 0x1.d221fp-1 0x1.c69da2p-2 0x1.02a08ep+0 0x1.07cec8p-1",
    "float16": "-0x1.34cp+0 0x1.edp-1 -0x1.804p+3 0x1.d24p-1 0x1.c68p-2 0x1.02cp+0 0x1.07cp-1",
    "bfloat16": "-0x1.34p+0 0x1.eep-1 -0x1.8p+3 0x1.d2p-1 0x1.c6p-2 0x1.02p+0 0x1.08p-1",
}
HASHES = {"float32": "f6fcead4b58c9e34", "float16": "5b404e3c9622c274", "bfloat16": "972ba92e93cdb305"}


@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_a_seed_means_the_same_for_ever(dtype: str) -> None:
    row = draw_input(case(5, 7, dtype), CPU, 12345)[3]
    assert row.tolist() == [float.fromhex(word) for word in ROW_3[dtype].split()]
    x = draw_input(case(37, 130, dtype), CPU, 7)
    assert sha256(bits(x).numpy().tobytes()).hexdigest()[:16] == HASHES[dtype]


@pytest.mark.parametrize("cols", [1, 7, 256, 100_000])
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_single_rows_have_the_bits_that_they_have_among_all(cols: int, dtype: str) -> None:
    c = case(9, cols, dtype)
    x = draw_input(c, CPU, 3)
    assert (x.shape, x.dtype) == ((9, cols), getattr(torch, dtype))
    for chosen in ([0], [8], [7, 2, 2, 0], list(range(9))):
        assert torch.equal(bits(draw_input(c, CPU, 3, torch.tensor(chosen))), bits(x[chosen]))


@pytest.mark.parametrize("elements", [1, 255, 256, 257, 1000, 2**20])
def test_how_many_are_hashed_at_a_time_changes_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw_input(case(), CPU, 3)
    monkeypatch.setitem(inputs.CHUNK_ELEMENTS, "cpu", elements)
    assert torch.equal(draw_input(case(), CPU, 3), x)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(draw_input(case(1), CPU, 3), draw_input(case(64), CPU, 3)[:1])
    far = torch.tensor([2**31 - 2])
    assert torch.isfinite(draw_input(Case(Op.RMSNORM, 2**31 - 1, 8, "float16"), CPU, 3, far)).all()


def test_rows_and_seeds_differ() -> None:
    x = draw_input(case(), CPU, 3)
    assert len(torch.unique(x, dim=0)) == 64
    # Neighbouring seeds are what the inputs of one rotation have.
    for other in (2, 4, 3 + 2**31):
        y = draw_input(case(), CPU, other)
        assert (x == y).double().mean() < 0.01
        assert abs(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]) < 0.1


def test_neighbours_are_not_correlated() -> None:
    quiet = _quiet(draw_input(case(2048, 256), CPU, 3))
    for one, other in ((quiet[1:], quiet[:-1]), (quiet[:, 1:], quiet[:, :-1])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.01


def test_one_channel_in_128_is_an_outlier_in_every_row() -> None:
    x = draw_input(case(2048, 1024), CPU, 3)
    spread = x.std(0)
    loud = spread > 5
    assert int(loud.sum()) == 1024 // OUTLIER_EVERY
    assert spread[loud].mean().item() == pytest.approx(OUTLIER_TIMES, rel=0.05)
    assert spread[~loud].mean().item() == pytest.approx(1, rel=0.01)
    other = draw_input(case(2048, 1024), CPU, 4).std(0) > 5
    assert not torch.equal(loud, other), "the outliers are in the same channels whatever the seed"


@pytest.mark.parametrize("cols", [1, 100, 128, 255, 256])
def test_there_is_always_an_outlier_and_never_one_too_many(cols: int) -> None:
    loud = draw_input(case(2048, cols), CPU, 3).std(0) > 5
    assert int(loud.sum()) == max(1, cols // OUTLIER_EVERY)


def _quiet(x: torch.Tensor) -> torch.Tensor:
    return x[:, x.std(0) < 5]


def test_the_others_are_normal_with_a_small_mean() -> None:
    quiet = _quiet(draw_input(case(2048, 1024), CPU, 3)).double().flatten()
    assert quiet.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert quiet.std().item() == pytest.approx(1, abs=0.005)
    at = torch.tensor([0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999], dtype=torch.float64)
    sample = quiet[: 2**22 // 3]
    measured = torch.quantile(sample, at)
    assert measured == pytest.approx((torch.special.ndtri(at) + MEAN).numpy(), abs=0.02)


@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_a_change_is_one_element_of_each_row_and_changes_the_whole_of_its_result(dtype: str) -> None:
    given = case(512, 512, dtype)
    was, x = draw_input(given, CPU, 3), draw_input(given, CPU, 3, change=9)
    assert ((x != was).sum(-1) == 1).all()
    assert (x != was).any(0).sum() > 200, "in another place in each"
    rows = torch.tensor([0, 7, 511])
    assert torch.equal(draw_input(given, CPU, 3, rows, change=9), x[rows])
    before, after = (t.double().square().mean(-1).sqrt() for t in (was, x))
    assert (after > 1.1 * before).all(), "far above any tolerance"


@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_everything_is_finite(dtype: str) -> None:
    x = draw_input(case(512, 512, dtype), CPU, 3)
    assert torch.isfinite(x).all()
    assert x.abs().max() < 20 * 6


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_parameters_are_random_and_never_ones(op: Op, dtype: str) -> None:
    p = draw_operands(case(1, 4096, dtype, op), CPU, 3)
    assert (p.op, p.eps, p.shape) == (op, EPS[op.centred], (4096,))
    assert p.weight.dtype is getattr(torch, dtype)
    assert (p.weight == 1).double().mean() < 0.01
    assert p.weight.double().mean().item() == pytest.approx(1, abs=0.1)
    assert p.weight.double().std().item() == pytest.approx(1, abs=0.1)
    if not op.centred:
        assert p.bias is None
    else:
        assert p.bias is not None
        assert p.bias.double().std().item() == pytest.approx(1, abs=0.1)
        assert abs(torch.corrcoef(torch.stack([p.weight.double(), p.bias.double()]))[0, 1]) < 0.1
    assert not torch.equal(p.weight, draw_operands(case(1, 4096, dtype, op), CPU, 4).weight)


def test_one_column_has_a_parameter_that_is_no_one() -> None:
    assert draw_operands(case(1, 1), CPU, 3).weight.item() != 1


def test_the_hash_is_a_bijection_of_32_bits() -> None:
    some = torch.arange(2**16)
    for first in (0, 2**31, 2**32 - 2**16):
        mixed = inputs._mix(some + first)
        assert len(torch.unique(mixed)) == len(some)
        assert 0 <= int(mixed.min()) <= int(mixed.max()) < 2**32
    # The finalizer's published form, in Python's own integers.
    for value in (0, 1, 12345, 2**31, 2**32 - 1):
        z = value
        for _ in range(2):
            z = ((z >> 16) ^ z) * 0x45D9F3B & 0xFFFFFFFF
        assert int(inputs._mix(torch.tensor(value))) == (z >> 16) ^ z


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
def test_what_comes_in_backward_is_small_and_alone_changes(op: Op, dtype: str) -> None:
    c = Case(op, 64, 256, dtype, Pass.BACKWARD)
    x, changed = draw_input(c, CPU, 3), draw_input(c, CPU, 3, change=5)
    activations = activation_rows(c)
    assert (len(x), activations) == ((256, 128) if op.added else (128, 64))
    assert torch.equal(x[:64], draw_input(Case(op, 64, 256, dtype), CPU, 3)[:64]), "activations are as ever"
    sizes = [float(part.double().square().mean().sqrt()) for part in (x[:activations], x[activations:])]
    assert sizes[0] / sizes[1] == pytest.approx(64, rel=0.2)
    assert torch.equal(x[:activations], changed[:activations])
    assert ((x != changed).sum(-1)[activations:] == 1).all()
    more = changed.double().square().mean(-1) - x.double().square().mean(-1)
    assert (more[activations:] >= 3.9 / 64**2).all()


def test_rows_of_parts_are_the_same_rows_of_each() -> None:
    c = Case(Op.ADD_RMSNORM, 64, 256, "float32", Pass.BACKWARD)
    x = draw_input(c, CPU, 3)
    rows = torch.tensor([5, 0])
    assert torch.equal(x[rows_of_parts(c, rows)].view(4, 2, 256), x.view(4, 64, 256)[:, rows])
    assert torch.equal(draw_input(c, CPU, 3, rows_of_parts(c, rows)), x[rows_of_parts(c, rows)])
