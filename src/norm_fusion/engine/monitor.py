"""Conditions beside the samples: read several times a second, by the process that judges, while another measures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from norm_fusion.machine import Card, Host
from norm_fusion.nvml import POWER, THERMAL
from norm_fusion.records import Conditions, Environment, Event, Series

EVERY_S = 0.2
# A clock that a power cap holds down counts from so much below the fastest reading: at 640 of its 700 W an H200 names
# the cap now and then and keeps its clock within 0.8%.
SLOWER = 0.01
# Share of processor time lost to other guests of the hypervisor above which a CPU's series is doubted.
STEAL = 0.10


class Monitor:
    """Reads conditions in a thread of its own while a worker measures, to be used as a context manager."""

    def __init__(self, environment: Environment, pids: Callable[[], set[int]]) -> None:
        self.readings: list[Conditions] = []
        if environment.device == "cuda" and environment.device_uuid is not None:
            card = Card(environment.device_uuid)
            self.read: Callable[[], Conditions] = lambda: card.conditions(pids())
        else:
            self.read = Host().conditions
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Monitor:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.thread.join(timeout=5)

    def _loop(self) -> None:
        while not self.ended.wait(EVERY_S):
            self.readings.append(self.read())


def events(series: Series, readings: Iterable[Conditions]) -> list[Event]:
    """What happened to the machine while a series was sampled, once each."""
    if series.began_s is None or series.ended_s is None:
        return []
    first, last = series.began_s - EVERY_S, series.ended_s + EVERY_S
    meanwhile = [r for r in readings if r.monotonic_s is not None and first <= r.monotonic_s <= last]
    found: list[Event] = []
    company = max((r.other_processes or 0 for r in meanwhile), default=0)
    if company:
        found.append(Event(kind="company", detail=f"{company} other compute process(es) were on the card"))
    slow = (1 - SLOWER) * max((r.sm_clock_mhz or 0 for r in meanwhile), default=0)
    for kind, bits in (("thermal", THERMAL), ("power", POWER)):
        throttled = [r for r in meanwhile if r.throttle_bits & bits]
        if kind == "power":
            throttled = [r for r in throttled if r.sm_clock_mhz is None or r.sm_clock_mhz < slow]
        if throttled:
            hottest = max(r.temperature_c or 0 for r in throttled)
            detail = f"throttled in {len(throttled)} of {len(meanwhile)} readings, at up to {hottest} C"
            found.append(Event.model_validate({"kind": kind, "detail": detail}))
    memory_clocks = {r.memory_clock_mhz for r in meanwhile if r.memory_clock_mhz is not None}
    if len(memory_clocks) > 1:
        detail = f"the memory clock changed between {min(memory_clocks)} and {max(memory_clocks)} MHz"
        found.append(Event(kind="clock", detail=detail))
    stolen = [r.steal for r in meanwhile if r.steal is not None]
    if stolen and sum(stolen) / len(stolen) > STEAL:
        share = sum(stolen) / len(stolen)
        found.append(Event(kind="steal", detail=f"{share:.0%} of processor time went to other guests"))
    return found
