"""From samples to records: the figures of a small run worked out by hand."""

import pytest

from norm_fusion.records import Measurement, Record, Series, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.spec import BASELINE, ROOF, Case

CASE = Case.parse("rmsnorm-1000x1000-float16")


def measured(profile: str, ms: float, status: Status = Status.OK, timer: str = "graph") -> Measurement:
    series = Series(timer=timer, cache="cold", blocks=[[ms, ms], [ms, ms]], positions=[0, 1])  # type: ignore[arg-type]
    return Measurement(case=CASE.name, profile=profile, status=status, max_rel_error=1e-4, series=[series])


def derived(*measurements: Measurement) -> dict[str, Record]:
    made = records_of(CASE, measurements, "a", "f" * 16, replicate=0)
    return {record.profile: record for record, _ in made}


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
    made = records_of(
        layer,
        [measured("triton-fused-layernorm", 1.0), measured("torch-native", 3.0), measured("torch-eager", 9.0)],
        "a",
        "f",
        0,
    )
    assert made[0][0].speedup[BASELINE] == pytest.approx(3.0)


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
