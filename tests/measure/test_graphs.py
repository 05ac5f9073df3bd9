"""What is read out of a trace of kernels: probes, timed replays, calls. The tracing itself needs a GPU."""

from dataclasses import dataclass

import pytest
import torch
from torch.autograd import DeviceType

from norm_fusion.measure import graphs
from norm_fusion.measure.graphs import call_intervals

MARK = "void at::cuda::(anonymous namespace)::spin_kernel(long)"


NOW = 1_795_402_936_812_349_576  # as CUPTI tells it: ns since 1970


@dataclass
class Traced:
    """A kernel as the profiler tells it."""

    called: str
    began: int
    took: int = 2000
    where: DeviceType = DeviceType.CUDA
    annotated: bool = False

    def name(self) -> str:
        return self.called

    def start_ns(self) -> int:
        return self.began

    def duration_ns(self) -> int:
        return self.took

    def device_type(self) -> DeviceType:
        return self.where

    def is_user_annotation(self) -> bool:
        return self.annotated


def kernels(*names: str) -> list[Traced]:
    """A trace: one kernel after another, 2 us each, 1 us between."""
    return [Traced(name, NOW + 3000 * i) for i, name in enumerate(names)]


def test_it_is_what_the_profiler_has() -> None:
    event = torch._C._autograd._KinetoEvent
    assert {"name", "start_ns", "duration_ns", "device_type", "is_user_annotation"} <= set(dir(event))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(3)
    assert graphs._replays(profile.profiler.kineto_results.events()) == ([], [])  # type: ignore[union-attr]


def test_what_scrubs_the_cache_and_the_untimed_replay_are_not_taken_for_calls() -> None:
    turn = (MARK, "reduce_kernel", "norm", "norm", MARK, "norm", "norm")
    probes, replays = graphs._replays(kernels("before", *turn, *turn)[::-1])
    assert [[name for name, _, _ in replay] for replay in replays] == [["norm", "norm"]] * 2
    assert probes == pytest.approx([0.002, 0.002])
    assert call_intervals(replays[0], 2) == pytest.approx([0.002, 0.002])


def test_a_probe_is_the_first_mark_of_its_turn() -> None:
    trace = kernels(MARK, "norm", MARK, "norm", MARK, "norm", MARK, "norm")
    trace[0].took = 2500
    trace[2].took = 500  # the second mark of the first turn: of one cycle, and of no interest
    probes, replays = graphs._replays(trace)
    assert probes == pytest.approx([0.0025, 0.002])
    assert len(replays) == 2


def test_what_ran_on_the_host_or_was_annotated_is_no_kernel() -> None:
    trace = kernels(MARK, MARK, "norm", "cudaGraphLaunch", "my range", "norm")
    trace[3].where, trace[4].annotated = DeviceType.CPU, True
    _, (replay,) = graphs._replays(trace)
    assert [name for name, _, _ in replay] == ["norm", "norm"]


def test_nothing_traced_is_no_replay() -> None:
    assert graphs._replays([]) == ([], [])
    assert graphs._replays(kernels("norm", "norm")) == ([], [])


def test_a_replay_without_kernels_keeps_its_place() -> None:
    """Or the replays behind it would be taken for its contestant's."""
    _, replays = graphs._replays(kernels(MARK, MARK, MARK, "norm", MARK, "norm"))
    assert [len(replay) for replay in replays] == [0, 1]


def test_a_nanosecond_is_told_from_another() -> None:
    trace = kernels(MARK, MARK, "norm", "norm")
    trace[0].took, trace[2].took, trace[3].took = 10_101, 1_927, 1_928
    (probe,), (replay,) = graphs._replays(trace)
    assert probe == 0.010101
    assert call_intervals(replay, 2) == [0.001927, 0.001928]


def test_a_call_lasts_from_its_first_kernel_to_its_last() -> None:
    _, (replay,) = graphs._replays(kernels(MARK, MARK, "mean", "scale", "mean", "scale"))
    assert call_intervals(replay, 2) == pytest.approx([0.005, 0.005])


def test_kernels_that_do_not_repeat_from_call_to_call_have_no_intervals() -> None:
    _, (replay,) = graphs._replays(kernels(MARK, MARK, "mean", "scale", "mean", "scale"))
    assert call_intervals(replay, 3) is None, "four kernels are no three calls"
    assert call_intervals(replay, 4) is None, "mean is not scale"
    assert call_intervals([], 2) is None
    assert call_intervals(replay[1:], 3) is None


def test_the_producers_kernels_lead_and_are_not_timed() -> None:
    _, (replay,) = graphs._replays(kernels(MARK, MARK, "mul", "mean", "scale", "mul", "mean", "scale"))
    assert call_intervals(replay, 2, lead=1) == pytest.approx([0.005, 0.005])
    assert call_intervals(replay, 2, lead=0) == pytest.approx([0.008, 0.008])
    assert call_intervals(replay, 2, lead=2) == pytest.approx([0.002, 0.002])
    assert call_intervals(replay, 2, lead=3) is None, "nothing would be left"


def test_kernels_of_a_call_that_overlap_end_with_the_last_to_end() -> None:
    calls = [("long", 0, 9000), ("short", 1000, 2000), ("long", 10_000, 14_000), ("short", 11_000, 12_000)]
    assert call_intervals(calls, 2) == pytest.approx([0.009, 0.004])
