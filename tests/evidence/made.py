"""Runs of several processes, made as real ones are: measurements, derived records, pooled and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Conclusions, Environment, Manifest, Measurement, Record, Samples, Series, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.spec import CONTROL, ROOF, Case

CASE = Case.parse("rmsnorm-1024x1024-float16")  # 2 MiB in, 2 MiB out
FUSED = "triton-fused-rmsnorm"
COLD, DEVICE, WALL, HOST = ("graph", "cold"), ("device", "cold"), ("wall", "cold"), ("host", "cold")

GPU = Environment(
    device="cuda",
    device_name="a GPU",
    memory_bytes=2**36,
    cache_bytes=2**20,
    driver="1",
    python="3",
    platform="p",
    torch="2",
    norm_fusion="0",
)
CPU = GPU.model_copy(update={"device": "cpu", "device_name": "a CPU", "driver": None})


def manifest(environment: Environment | None = GPU, **changes: object) -> Manifest:
    made = Manifest(
        run_id="a",
        title="t",
        question="q",
        command=[],
        cases=[CASE.name],
        profiles=["torch-eager", "torch-native", FUSED],
        device="auto",
        quick=False,
        seed=0,
        started_at="now",
        environment=environment,
    )
    return made.model_copy(update=changes)


def series(ms: float, timer: str = "graph", cache: str = "cold", **more: object) -> Series:
    """Two rounds of ten samples about `ms`, a tenth of a percent apart: p50 is `ms`, p95/p50 is 1.001."""
    block = [ms * 0.999] * 2 + [ms] * 6 + [ms * 1.001] * 2
    fields = {"timer": timer, "cache": cache, "blocks": [block, block], "positions": [0, 1], "rotation": 4}
    return Series.model_validate(fields | {"settled": True} | more)


def measured(profile: str, ms: float | Mapping[tuple[str, str], float] | None, **more: object) -> Measurement:
    """A contestant: its milliseconds in the series graph cold, or in each series; None was not timed."""
    found = {} if ms is None else {COLD: ms} if isinstance(ms, float) else ms
    events = more.pop("events", [])
    fields = {
        "case": CASE.name,
        "profile": profile,
        "status": Status.OK,
        "max_rel_error": 1e-4,
        "series": [series(value, *name, events=events) for name, value in found.items()],
    }
    if profile == ROOF:
        del fields["max_rel_error"]
    return Measurement.model_validate(fields | more)


def recorded(
    processes: Iterable[Sequence[Measurement]],
    *,
    attempt: int = 0,
    case: Case = CASE,
    of: Environment = GPU,
    fingerprint: Callable[[int], str] | None = None,
) -> list[tuple[Record, Samples | None]]:
    """The records and samples of processes, counted from 0."""
    made: list[tuple[Record, Samples | None]] = []
    for replicate, measurements in enumerate(processes):
        # A worker tells the device's ceilings with every contestant; here they are written down once, with the roof's.
        told = next((m for m in measurements if m.profile == ROOF), None)
        ceilings = {} if told is None else {"read_gbps": told.read_gbps, "write_gbps": told.write_gbps}
        made += records_of(
            case,
            [m.model_copy(update=ceilings) for m in measurements],
            run_id="a",
            fingerprint=of.fingerprint if fingerprint is None else fingerprint(replicate),
            replicate=replicate,
            attempt=attempt,
        )
    return made


def ratio_run(ratios: Sequence[float], *more: Measurement, series: tuple[str, str] = COLD) -> list[list[Measurement]]:
    """Processes in which the fused kernel is as many times as fast as torch-eager, and no other baseline is there."""
    return [[measured("torch-eager", {series: 0.1 * ratio}), measured(FUSED, {series: 0.1}), *more] for ratio in ratios]


def reader(made: Iterable[tuple[Record, Samples | None]]) -> Callable[[Record], Samples]:
    by_key = {record.key: samples for record, samples in made if samples is not None}
    return lambda record: by_key[record.key]


def concluded(made: Sequence[tuple[Record, Samples | None]], of: Manifest | None = None) -> Conclusions:
    return conclude([record for record, _ in made], reader(made), of or manifest())


def control(ms: float | Mapping[tuple[str, str], float] = 0.1, of: str = FUSED) -> Measurement:
    return measured(CONTROL, ms, control_of=of)
