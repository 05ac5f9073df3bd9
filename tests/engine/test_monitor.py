"""Which readings of the machine's conditions are events of a series."""

import time

import pytest

from norm_fusion.engine import monitor
from norm_fusion.engine.monitor import EVERY_S, Monitor, events
from norm_fusion.records import Conditions, Environment, Series

CPU = Environment(
    device="cpu", device_name="x", memory_bytes=1, cache_bytes=1, python="3", platform="p", torch="2", norm_fusion="0"
)


def series(began: float | None = 10.0, ended: float | None = 20.0) -> Series:
    return Series(timer="wall", cache="cold", blocks=[[1.0]], positions=[0], began_s=began, ended_s=ended)


def at(moment: float | None, **read: object) -> Conditions:
    return Conditions.model_validate({"at": "now", "monotonic_s": moment} | read)


QUIET = {
    "sm_clock_mhz": 1980,
    "memory_clock_mhz": 2619,
    "temperature_c": 40,
    "power_w": 300.0,
    "throttle_reasons": "0x0",
    "other_processes": 0,
    "load_1m": 9.0,
    "steal": 0.01,
}


def found(*readings: Conditions, of: Series | None = None) -> list[tuple[str, str]]:
    return [(event.kind, event.detail) for event in events(of or series(), readings)]


def test_a_quiet_machine_has_none() -> None:
    assert found(*(at(moment, **QUIET) for moment in (11, 12, 13))) == []
    assert found() == []
    assert found(at(11)) == [], "nothing is known, nothing is said"


def test_company_on_the_card() -> None:
    assert found(at(11, other_processes=1), at(12, other_processes=2), at(13, other_processes=0)) == [
        ("company", "2 other compute process(es) were on the card")
    ]


@pytest.mark.parametrize(
    ("bits", "kinds"),
    [
        ("0x0", []),
        ("0x1", []),  # idle
        ("0x2", []),  # clocks as set
        ("0x10", []),  # sync boost
        ("0x4", ["power"]),  # software power cap
        ("0x80", ["power"]),  # power brake
        ("0x8", ["thermal"]),  # hardware slowdown
        ("0x20", ["thermal"]),  # software thermal slowdown
        ("0x40", ["thermal"]),  # hardware thermal slowdown
        ("0x24", ["thermal", "power"]),
        ("not a number", []),
        (None, []),
    ],
)
def test_why_clocks_were_held_down(bits: str | None, kinds: list[str]) -> None:
    held = at(11, throttle_reasons=bits, temperature_c=81, sm_clock_mhz=1500)
    read = found(held, at(12, throttle_reasons="0x0", temperature_c=90, sm_clock_mhz=1980))
    assert [kind for kind, _ in read] == kinds
    assert all(detail == "throttled in 1 of 2 readings, at up to 81 C" for _, detail in read)


@pytest.mark.parametrize(("clock", "kinds"), [(1980, []), (1965, []), (1900, ["power"]), (None, ["power"])])
def test_a_cap_that_slows_nothing_down_is_none(clock: int | None, kinds: list[str]) -> None:
    held = at(11, throttle_reasons="0x4", sm_clock_mhz=clock)
    assert [kind for kind, _ in found(held, at(12, sm_clock_mhz=1980))] == kinds


def test_a_memory_clock_that_changed() -> None:
    (event,) = found(at(11, memory_clock_mhz=2619), at(12, memory_clock_mhz=1593), at(13))
    assert event == ("clock", "the memory clock changed between 1593 and 2619 MHz")


def test_time_given_to_other_guests_on_the_average() -> None:
    assert found(at(11, steal=0.5), at(12, steal=0.1), at(13)) == [
        ("steal", "30% of processor time went to other guests")
    ]
    assert found(at(11, steal=0.15), *(at(moment, steal=0.0) for moment in (12, 13))) == [], "a moment is none"


def test_readings_outside_its_span_do_not_count() -> None:
    company = {"other_processes": 1}
    for moment in (10 - 2 * EVERY_S, 20 + 2 * EVERY_S, None):
        assert found(at(moment, **company)) == []
    for moment in (10 - EVERY_S / 2, 15, 20 + EVERY_S / 2):
        assert len(found(at(moment, **company))) == 1
    assert found(at(15, **company), of=series(None, None)) == []
    assert found(at(9, memory_clock_mhz=1), at(15, memory_clock_mhz=2)) == [], "it changed before"


def test_a_cpu_is_read_several_times_a_second_by_a_thread_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "EVERY_S", 0.02)
    with Monitor(CPU, set) as watching:
        time.sleep(0.2)
    assert not watching.thread.is_alive()
    count = len(watching.readings)
    assert 3 <= count <= 12
    assert all(reading.load_1m is not None and reading.monotonic_s is not None for reading in watching.readings)


def test_a_card_is_read_with_the_processes_that_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Card:
        def __init__(self, uuid: str) -> None:
            asked.append(uuid)

        def conditions(self, ours: set[int]) -> Conditions:
            asked.append(ours)
            return at(1.0)

    monkeypatch.setattr(monitor, "Card", Card)
    gpu = CPU.model_copy(update={"device": "cuda", "device_uuid": "GPU-1"})
    pids = [{1, 2}]
    watching = Monitor(gpu, lambda: pids[0])
    watching.read()
    pids[0] = {1, 3}
    watching.read()
    assert asked == ["GPU-1", {1, 2}, {1, 3}]
