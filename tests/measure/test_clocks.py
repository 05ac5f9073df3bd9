"""Clocks that were replaced are found and put back; the probe is a fixed amount of work."""

import time
from collections.abc import Iterator

import pytest
import torch

from norm_fusion.backends import saboteurs
from norm_fusion.measure import clocks
from norm_fusion.measure.clocks import CpuProbe, tampered


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    saboteurs._kept.clear()
    yield
    tampered()
    saboteurs._kept.clear()


def test_nothing_is_replaced_here() -> None:
    assert tampered() is None


@pytest.mark.parametrize(("owner", "name"), clocks._WATCHED, ids=lambda value: getattr(value, "__name__", value))
def test_each_clock_that_was_replaced_is_named_and_put_back(owner: object, name: str) -> None:
    original = getattr(owner, name)
    setattr(owner, name, lambda *_: 0)
    assert tampered() == f"{owner.__name__}.{name}"  # type: ignore[attr-defined]
    assert getattr(owner, name) is original
    assert tampered() is None


def test_the_labs_own_clock_is_not_the_one_that_was_replaced() -> None:
    before = clocks.perf_counter_ns
    x = torch.ones(2, 4)
    saboteurs.patched_clock(x, (4,), torch.ones(4), 1e-6)
    assert clocks.perf_counter_ns is before is not time.perf_counter_ns
    assert tampered() == "time.perf_counter_ns, Event.elapsed_time"
    assert time.perf_counter_ns is before


def test_a_probe_is_work_and_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = CpuProbe()
    probe.enqueue()
    assert 0.01 < probe.ms() < 100
    assert probe.ms() == probe.ms(), "reading it does no work"
    took = []
    for steps in (4_000, 400_000):
        monkeypatch.setattr(clocks, "CPU_PROBE_STEPS", steps)
        probe.enqueue()
        took.append(probe.ms())
    assert took[1] > 5 * took[0]
