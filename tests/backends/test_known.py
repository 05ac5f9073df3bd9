"""Known answers do what they say, on a CPU: so often, so long, so noisily."""

import time
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from norm_fusion.backends import BOTH, known, prepare
from norm_fusion.backends.builtin import Operands
from norm_fusion.spec import Op

CPU = torch.device("cpu")
WEIGHT = torch.linspace(0.5, 2, 16)
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def operands(op: Op = Op.RMSNORM) -> Operands:
    return Operands(op, WEIGHT, WEIGHT - 1 if op is Op.LAYERNORM else None, 1e-6)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many norms ran: one entry each."""
    ran: list[int] = []
    real = F.rms_norm
    monkeypatch.setattr(known.F, "rms_norm", lambda *words: (ran.append(1), real(*words))[1])
    return ran


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize(
    "profile",
    ["known-norm", "known-norm-again", "known-base", "known-slower-25", "known-noisy", "known-drifting"],
)
def test_each_computes_the_norm(profile: str, op: Op) -> None:
    p = operands(op)
    expected = F.rms_norm(X, (16,), WEIGHT, 1e-6) if op is Op.RMSNORM else F.layer_norm(X, (16,), WEIGHT, p.bias, 1e-6)
    prepared = prepare(profile, p, CPU)
    assert prepared.judged and prepared.timed
    for _ in range(3):
        assert torch.equal(prepared.launch(X), expected)


@pytest.mark.parametrize(
    ("profile", "norms", "resolved"),
    [
        ("known-norm", 1, "norm"),
        ("known-norm-again", 1, "norm"),
        ("known-base", 1, "norm and spin, +0%"),
    ],
)
def test_known_norms_run_once_a_call(profile: str, norms: int, resolved: str, calls: list[int]) -> None:
    prepared = prepare(profile, operands(), CPU)
    assert prepared.resolved == resolved
    for _ in range(3):
        prepared.launch(X)
    assert len(calls) == 3 * norms


def test_a_planted_quarter_is_a_longer_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    spins: list[float] = []
    monkeypatch.setattr(known, "_cpu_spin", lambda us: lambda x: spins.append(us))
    monkeypatch.setattr(known, "_cpu_us", lambda launch, x: 40.0)
    launch = prepare("known-slower-25", operands(), CPU).launch
    launch(X)
    launch(X)
    assert spins == [known.BASE_SPIN_US + 10.0] * 2


def test_two_names_of_one_kernel_are_two_launches(calls: list[int]) -> None:
    one, other = (prepare(name, operands(), CPU) for name in ("known-norm", "known-norm-again"))
    assert one.launch is not other.launch
    assert one.resolved == other.resolved


def test_a_noisy_one_is_disturbed_in_a_third_of_its_calls(calls: list[int]) -> None:
    launch = prepare("known-noisy", operands(), CPU).launch
    seen: Counter[int] = Counter()
    for _ in range(600):
        calls.clear()
        launch(X)
        seen[len(calls)] += 1
    assert set(seen) == {1, 4}
    assert 150 < seen[4] < 250


def test_a_drifting_one_is_slower_every_forty_calls(calls: list[int]) -> None:
    launch = prepare("known-drifting", operands(), CPU).launch
    norms = []
    for _ in range(120):
        calls.clear()
        launch(X)
        norms.append(len(calls))
    assert norms == sorted(norms)
    assert Counter(norms) == {1: 39, 2: 40, 3: 40, 4: 1}


class Clock:
    """One that ticks once a reading, so that what a spin lasts does not depend on who else uses the machine."""

    TICK_NS = 500

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += self.TICK_NS
        return self.now_ns


@pytest.mark.parametrize(("profile", "us"), [("known-spin-2000-1.00", 2000), ("known-spin-2000-1.50", 3000)])
def test_a_spin_lasts_as_long_as_its_name_says(profile: str, us: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = prepare(profile, operands(), CPU)
    assert real.resolved == f"spin of {us} us" and not real.judged
    start = time.perf_counter_ns()
    assert real.launch(X) is X
    assert time.perf_counter_ns() - start >= us * 1e3

    clock = Clock()
    monkeypatch.setattr(known.time, "perf_counter_ns", clock)
    launch = prepare(profile, operands(), CPU).launch
    for _ in range(3):
        began = clock.now_ns
        launch(X)
        assert 0 <= clock.now_ns - began - us * 1000 <= 2 * clock.TICK_NS


def test_an_empty_one_does_nothing(calls: list[int]) -> None:
    prepared = prepare("known-empty", operands(), CPU)
    assert prepared.launch(X) is X and calls == []
    assert (prepared.resolved, prepared.judged) == ("spin of 0 us", False)
