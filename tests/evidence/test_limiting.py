"""What limits a call, by its counters: each kind, and both sides of each border."""

from __future__ import annotations

import pytest

from norm_fusion.evidence import limiting
from norm_fusion.evidence.limiting import LAUNCH_MS, Kind, limit, traffic
from norm_fusion.records import Counters, KernelCounters, Status

NEEDED = 100_000_000
# Nothing is saturated, and there are warps enough.
IDLE = {"dram_pct": 20.0, "occupancy_pct": 70.0, "sm_pct": 30.0, "tensor_pct": 0.0, "duration_ms": 0.1}


def made(kernels: int = 1, **changes: float | None) -> Counters:
    """The counters of a call."""
    return Counters(
        run_id="r",
        case="rmsnorm-4096x4096-float16",
        profile="p",
        status=Status.OK,
        compulsory_bytes=NEEDED,
        fingerprint="f",
        kernels=[KernelCounters(name="k")] * kernels,
        **{"dram_bytes": 70_000_000, **IDLE, **changes},
    )


COPY = made(dram_pct=50.0)


@pytest.mark.parametrize(
    ("kind", "changes", "inside", "outside"),
    [
        ("memory roof", {}, {"dram_pct": 40.0}, {"dram_pct": 39.9}),
        ("launch", {}, {"duration_ms": LAUNCH_MS}, {"duration_ms": LAUNCH_MS * 1.01}),
        ("tensor pipe", {}, {"tensor_pct": 60.0}, {"tensor_pct": 59.9}),
        ("instructions", {}, {"sm_pct": 60.0}, {"sm_pct": 59.9}),
        ("occupancy", {}, {"occupancy_pct": 39.9}, {"occupancy_pct": 40.0}),
        ("occupancy", {"occupancy_pct": 15.0}, {"tensor_pct": 4.9}, {"tensor_pct": 5.0}),
        ("memory roof", {"dram_pct": 49.0}, {"tensor_pct": 97.9}, {"tensor_pct": 98.1}),
        ("memory roof", {"dram_pct": 60.0}, {"tensor_pct": 99.9}, {"tensor_pct": 100.0}),
    ],
)
def test_each_kind_has_its_border(
    kind: Kind, changes: dict[str, float], inside: dict[str, float], outside: dict[str, float]
) -> None:
    found = limit(made(**{**changes, **inside}), COPY)
    assert found.kind == kind and found.sentence.startswith(f"{kind}: ")
    other = limit(made(**{**changes, **outside}), COPY)
    assert other.kind != kind


def test_nothing_saturated_is_latency_with_what_there_is() -> None:
    assert limit(made(), COPY).sentence == (
        "latency: nothing is saturated: DRAM at 20% of its peak is 0.40 of what a copy of the same bytes reaches "
        "(50%), multiprocessors at 30%, with 70% of the warps resident"
    )


def test_the_memory_roof_is_said_with_its_figures() -> None:
    assert limit(made(dram_pct=55.31, occupancy_pct=66.32), made(dram_pct=56.4)).sentence == (
        "memory roof: DRAM at 55% of its peak is 0.98 of what a copy of the same bytes reaches (56%), "
        "with 66% of the warps resident"
    )


def test_a_composition_at_the_roof_moves_too_much() -> None:
    found = limit(made(kernels=8, dram_pct=47.0, dram_bytes=848_000_000, duration_ms=0.25), COPY)
    assert found.kind == "memory roof"
    assert found.sentence.endswith("; its 8 kernels move 8.5 times the bytes needed")
    few = limit(made(dram_pct=47.0, dram_bytes=124_000_000), COPY)
    assert "times the bytes" not in few.sentence
    more = limit(made(dram_pct=47.0, dram_bytes=126_000_000), COPY)
    assert more.sentence.endswith("; it moves 1.3 times the bytes needed")


def test_without_a_copy_the_yardstick_is_another_gpus_and_says_so() -> None:
    border = limiting.NEAR_ROOF * limiting.COPY_PCT
    found = limit(made(dram_pct=border + 0.1))
    assert found.kind == "memory roof" and "none was profiled here" in found.sentence
    assert limit(made(dram_pct=border - 0.1)).kind == "latency"
    assert limit(made(dram_pct=border + 0.1), made(dram_pct=90.0)).kind == "latency"  # a copy says more
    lost = COPY.model_copy(update={"dram_pct": None})
    assert limit(made(dram_pct=border + 0.1), lost) == found


def test_short_kernels_are_launches_however_busy_memory_is() -> None:
    """A copy of a small case is short too: both reach little, and the one as much as the other."""
    small = made(duration_ms=0.0024, dram_pct=9.0)
    assert limit(small, small).kind == "launch"
    assert "its kernel takes 2.4 µs, about" in limit(small, small).sentence
    many = limit(made(kernels=8, duration_ms=8 * 0.0023), COPY)
    assert many.kind == "launch" and "its 8 kernels take 2.3 µs on average" in many.sentence
    assert limit(made(kernels=8, duration_ms=8 * 0.006), COPY).kind != "launch"


def test_beside_a_copy_that_is_mostly_a_launch_so_is_what_takes_little_longer() -> None:
    small = made(duration_ms=0.0041, dram_pct=22.0)
    found = limit(made(duration_ms=0.0060, dram_pct=14.0), small)
    assert (
        found.kind == "launch"
        and "takes 6.0 µs, and the copy's 4.1 µs, which is mostly its beginning" in found.sentence
    )
    few = limit(made(duration_ms=0.0076, dram_pct=12.0, occupancy_pct=6.0), small)
    assert few.kind == "occupancy" and "only 6% of the warps" in few.sentence


def test_few_warps_say_nothing_of_a_kernel_that_uses_the_tensor_pipes() -> None:
    found = limit(made(tensor_pct=45.0, occupancy_pct=15.0))
    assert found.kind == "latency" and "tensor pipes at 45%" in found.sentence


@pytest.mark.parametrize("lost", ["occupancy_pct", "sm_pct", "tensor_pct"])
def test_what_was_not_collected_is_not_said(lost: str) -> None:
    found = limit(made(**{lost: None}), COPY)
    assert found.kind == "latency" and "None" not in found.sentence


@pytest.mark.parametrize("lost", ["dram_pct", "duration_ms"])
def test_without_what_it_follows_from_there_is_no_limit(lost: str) -> None:
    found = limit(made(**{lost: None}), COPY)
    assert found.kind == "not collected" and found.sentence.startswith("not collected: ")


def test_what_failed_has_its_reason_for_a_limit() -> None:
    reason = "not collected: Nsight Compute (ncu) is not here"
    absent = COPY.model_copy(update={"status": Status.UNAVAILABLE, "reason": reason})
    assert limit(absent, COPY) == limiting.Limit("not collected", reason)
    assert limit(COPY.model_copy(update={"kernels": []}), COPY).kind == "not collected"


def test_traffic_is_over_what_has_to_move_with_its_caveat() -> None:
    found = traffic(made(dram_bytes=67_000_000))
    assert found is not None and found.ratio == pytest.approx(0.67)
    assert "DRAM moved 67.0 MB, 0.67 of the 100.0 MB" in found.sentence
    assert found.sentence.endswith("is not counted, so less than 1 saves nothing")
    more = traffic(made(dram_bytes=850_000_000))
    assert more is not None and more.ratio == pytest.approx(8.5) and more.sentence.endswith("is not counted")
    assert traffic(made(dram_bytes=None)) is None
    assert traffic(COPY.model_copy(update={"status": Status.FAILED})) is None
