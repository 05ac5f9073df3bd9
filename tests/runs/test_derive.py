"""From samples to records: the figures of a small run worked out by hand."""

import pytest

from norm_fusion.records import Code, Event, Measurement, Record, Samples, Series, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.spec import BASELINE, CONTROL, ROOF, Case

CASE = Case.parse("rmsnorm-1000x1000-float16")


def series(ms: float, timer: str = "graph", cache: str = "cold", probes_ms: tuple[float, ...] = ()) -> Series:
    return Series.model_validate(
        {"timer": timer, "cache": cache, "blocks": [[ms, ms], [ms, ms]], "positions": [0, 1], "probes_ms": probes_ms}
    )


def measured(profile: str, ms: float, status: Status = Status.OK, timer: str = "graph", **more: object) -> Measurement:
    fields = {"case": CASE.name, "profile": profile, "status": status, "max_rel_error": 1e-4}
    return Measurement.model_validate(fields | {"series": [series(ms, timer)]} | more)


def made_of(*measurements: Measurement, case: Case = CASE) -> list[tuple[Record, Samples | None]]:
    return records_of(case, measurements, run_id="a", fingerprint="f" * 16, replicate=3, attempt=1)


def derived(*measurements: Measurement, case: Case = CASE) -> dict[str, Record]:
    return {record.profile: record for record, _ in made_of(*measurements, case=case)}


def test_figures() -> None:
    fused = derived(measured("triton-fused-rmsnorm", 0.5), measured("torch-eager", 5.0), measured(ROOF, 0.4))[
        "triton-fused-rmsnorm"
    ]
    assert fused.gbps == pytest.approx(4_002_000 / 0.5 / 1e6)
    assert fused.roof_gbps == pytest.approx(4_000_000 / 0.4 / 1e6)
    assert fused.roof_share == pytest.approx((4_002_000 / 0.5) / (4_000_000 / 0.4))
    assert fused.tflops == pytest.approx(5e6 / 0.5 / 1e9)
    assert fused.speedup == {"torch-eager": pytest.approx(10.0), BASELINE: pytest.approx(10.0)}
    assert fused.n_samples == 4


def test_a_wrong_result_gets_no_speedup_and_gives_none() -> None:
    records = derived(
        measured("triton-fused-rmsnorm", 0.5, Status.WRONG),
        measured("torch-native", 1.0),
        measured("torch-eager", 5.0, Status.WRONG),
    )
    assert records["triton-fused-rmsnorm"].speedup == {}
    assert records["triton-fused-rmsnorm"].correct is False
    assert records["torch-native"].speedup == {}


def test_series_are_never_mixed_in_a_ratio() -> None:
    records = derived(measured("triton-fused-rmsnorm", 0.5, timer="graph"), measured("torch-eager", 5.0, timer="wall"))
    assert records["triton-fused-rmsnorm"].speedup == {}


def test_the_baseline_is_an_alias_that_depends_on_the_operator() -> None:
    layer = Case.parse("layernorm-10x10-float32")
    made = derived(
        measured("triton-fused-layernorm", 1.0),
        measured("torch-native", 3.0),
        measured("torch-eager", 9.0),
        case=layer,
    )
    assert made["triton-fused-layernorm"].speedup[BASELINE] == pytest.approx(3.0)


def test_enqueueing_has_no_bandwidth() -> None:
    assert derived(measured("torch-eager", 1.0, timer="host"))["torch-eager"].gbps is None


def test_what_was_not_timed_has_a_record_with_its_reason_and_nulls() -> None:
    missing = Measurement(
        case=CASE.name, profile="torch-compile", status=Status.UNAVAILABLE, reason="no compiler", remedy="get one"
    )
    record = derived(missing)["torch-compile"]
    assert (record.status, record.reason, record.remedy) == (Status.UNAVAILABLE, "no compiler", "get one")
    assert record.p50_ms is None
    assert record.correct is None
    assert record.n_samples == 0


def test_a_cold_series_and_a_hot_one_of_one_timer_are_never_mixed() -> None:
    both = {"series": [series(1.0), series(0.5, cache="hot")]}
    made = made_of(
        measured("torch-eager", 0.0, series=[series(4.0), series(3.0, cache="hot")]),
        measured("torch-native", 0.0, **both),
        measured("torch-compile", 2.0),
        measured(ROOF, 0.5),
    )
    native = {record.cache: record for record, _ in made if record.profile == "torch-native"}
    assert native["cold"].speedup == {"torch-eager": 4.0, "torch-compile": 2.0, BASELINE: 4.0}
    assert native["hot"].speedup == {"torch-eager": 6.0, BASELINE: 6.0}
    assert native["cold"].roof_gbps == pytest.approx(4_000_000 / 0.5 / 1e6)
    assert native["hot"].roof_gbps is None


def test_speedups_are_over_every_correct_contestant_but_neither_over_the_roof_nor_the_control() -> None:
    made = derived(
        measured("triton-fused-rmsnorm", 1.0),
        measured("mine.py:norm", 2.0),
        measured("torch-native", 3.0, Status.WRONG),
        measured(ROOF, 0.5),
        measured(CONTROL, 1.1, control_of="triton-fused-rmsnorm"),
    )
    assert made["triton-fused-rmsnorm"].speedup == {"mine.py:norm": 2.0}
    assert made["mine.py:norm"].speedup == {"triton-fused-rmsnorm": 0.5}
    assert made[ROOF].speedup == {}


def test_the_control_is_compared_with_its_original_alone() -> None:
    made = derived(
        measured("torch-eager", 2.0), measured("torch-native", 1.0), measured(CONTROL, 2.0, control_of="torch-eager")
    )
    assert made[CONTROL].speedup == {"torch-eager": 1.0}
    assert made[CONTROL].control_of == "torch-eager"


def test_the_ceilings_belong_to_every_cold_timed_record_of_the_case() -> None:
    told = {"read_gbps": 4500.0, "write_gbps": 4100.0}
    seen = [series(0.5), series(0.4, cache="hot"), series(0.1, timer="host"), series(0.6, timer="wall")]
    made = made_of(measured("torch-eager", 0.0, series=seen, **told), measured(ROOF, 0.4, **told))
    ceilings = {(r.profile, r.timer, r.cache): (r.read_gbps, r.write_gbps) for r, _ in made}
    assert ceilings == {
        ("torch-eager", "graph", "cold"): (4500.0, 4100.0),
        ("torch-eager", "wall", "cold"): (4500.0, 4100.0),
        ("torch-eager", "graph", "hot"): (None, None),
        ("torch-eager", "host", "cold"): (None, None),
        (ROOF, "graph", "cold"): (4500.0, 4100.0),
    }


def test_the_probe_is_relative_to_that_beside_everyone() -> None:
    made = derived(
        measured("torch-eager", 0.0, series=[series(1.0, probes_ms=(10.0, 10.2, 10.4))]),
        measured("torch-native", 0.0, series=[series(1.0, probes_ms=(10.0, 10.0, 10.0))]),
        measured("torch-compile", 1.0),
        measured(ROOF, 0.0, series=[series(1.0, timer="wall", probes_ms=(99.0,))]),
    )
    assert made["torch-eager"].probe == pytest.approx(10.2 / 10.0)
    assert made["torch-native"].probe == 1.0
    assert made["torch-compile"].probe is None


def test_what_the_worker_says_of_a_contestant_reaches_its_records() -> None:
    event = Event(kind="thermal", detail="hot")
    row, samples = made_of(
        measured(
            "torch-eager",
            0.0,
            Status.FAILED,
            code=Code.HUNG,
            outside_ms={"graph": 1.5, "wall": 9.0},
            series=[series(1.0, probes_ms=(2.0,)).model_copy(update={"events": [event]})],
        )
    )[0]
    assert (row.code, row.events, row.outside_ms) == (Code.HUNG, [event], 1.5)
    assert (row.replicate, row.attempt) == (3, 1)
    assert samples is not None and samples.probes_ms == [2.0] and samples.key == row.key


@pytest.mark.parametrize(("timer", "noise"), [("graph", "rerun"), ("wall", "warn")])
def test_a_spread_is_judged_by_the_clock_that_it_was_seen_by(timer: str, noise: str) -> None:
    tail = Series(timer=timer, cache="cold", blocks=[[1.0] * 15 + [1.6] * 5], positions=[0])  # type: ignore[arg-type]
    assert made_of(measured("torch-eager", 0.0, series=[tail]))[0][0].noise == noise
