"""The status of a decision: every standing of a row, every status that follows, and what became another since."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made import CASE, DEVICE, FUSED, WALL, series
from speaking import (
    CLEAN,
    COMPILE,
    EAGER,
    HOT,
    NATIVE,
    OTHER,
    SUITE,
    USUAL,
    Times,
    judged,
    kept,
    refusal,
    row,
    rows,
    toml,
)

from norm_fusion.evidence.deciding import status_of
from norm_fusion.evidence.decisions import load
from norm_fusion.evidence.standing import _beyond, _by_interval
from norm_fusion.records import (
    DecidedClaim,
    DecidedRow,
    DecisionStatus,
    Standing,
    Status,
)
from norm_fusion.spec import CONTROL, ROOF, Case

HOLDS, SHOWN, OPEN, FAILS = Standing.HOLDS, Standing.SHOWN, Standing.OPEN, Standing.FAILS


# The rule, on standings alone


def claim(name: str, *standings: Standing, boundary: bool = False) -> DecidedClaim:
    rows = [
        DecidedRow(case=f"c{i}", gpu="g", run="r", profile="p", standing=one, reason="")
        for i, one in enumerate(standings)
    ]
    return DecidedClaim(
        name=name, says=name, boundary=boundary, metric="speedup", series="kernel", threshold=1.02, rows=rows
    )


@pytest.mark.parametrize(
    ("resting", "outside", "status", "why"),
    [
        ([[HOLDS]], [], "Supported", "every claim holds in every row, 1 of what it rests on"),
        ([[HOLDS, HOLDS], [HOLDS]], [[HOLDS]], "Supported", "every claim holds in every row, 3 of what it rests on"),
        ([[HOLDS]], [[OPEN]], "Caveated", "holds in 0 of 1 row, is undecided in 1: “b0” (boundary)"),
        ([[HOLDS]], [[FAILS, HOLDS]], "Caveated", "holds in 1 of 2 rows, does not hold in 1: “b0” (boundary)"),
        ([[HOLDS]], [[FAILS, FAILS]], "Caveated", "holds in 0 of 2 rows, does not hold in 2: “b0” (boundary)"),
        ([[HOLDS]], [[SHOWN]], "Caveated", "holds in 0 of 1 row, is shown in 1: “b0” (boundary)"),
        ([[HOLDS, OPEN]], [], "Caveated", "holds in 1 of 2 rows, is undecided in 1: “a0”"),
        ([[HOLDS, OPEN, OPEN, OPEN]], [], "Caveated", "holds in 1 of 4 rows, is undecided in 3: “a0”"),
        ([[HOLDS, HOLDS, FAILS]], [], "Caveated", "holds in 2 of 3 rows, does not hold in 1: “a0”"),
        ([[HOLDS], [OPEN, OPEN]], [], "Caveated", "holds in 0 of 2 rows, is undecided in 2: “a1”"),
        ([[HOLDS], [SHOWN]], [], "Caveated", "holds in 0 of 1 row, is shown in 1: “a1”"),
        (
            [[HOLDS, HOLDS], [HOLDS, OPEN]],
            [[OPEN]],
            "Caveated",
            "1 of 2 rows, is undecided in 1: “a1”; holds in 0 of 1 row, is undecided in 1: “b0” (boundary)",
        ),
        ([[SHOWN, SHOWN, FAILS]], [], "Caveated", "holds in 0 of 3 rows, is shown in 2, does not hold in 1: “a0”"),
        ([[SHOWN]], [], "Measured", "figures show it in 1 of 1 row, and no call says so"),
        (
            [[SHOWN, SHOWN], [SHOWN]],
            [[FAILS], [HOLDS], [OPEN]],
            "Measured",
            "figures show it in 3 of 3 rows, and no call says so; holds in 0 of 1 row, does not hold in 1: “b0” "
            "(boundary)",
        ),
        ([[OPEN]], [[HOLDS]], "Measured", "1 of 1 row undecided"),
        ([[OPEN, SHOWN]], [], "Measured", "figures show it in 1 of 2 rows, and no call says so; 1 of 2 rows undecided"),
        ([[FAILS]], [], "Rejected", "does not hold in 1 of 1 row: “a0”"),
        ([[FAILS, HOLDS]], [], "Rejected", "does not hold in 1 of 2 rows: “a0”"),
        ([[FAILS, SHOWN]], [], "Rejected", "does not hold in 1 of 2 rows: “a0”"),
        ([[FAILS, OPEN, OPEN]], [], "Rejected", "does not hold in 1 of 3 rows: “a0”"),
        ([[HOLDS, HOLDS, HOLDS], [FAILS]], [[HOLDS]], "Rejected", "does not hold in 1 of 1 row: “a1”"),
        ([[FAILS, FAILS, HOLDS]], [], "Rejected", "does not hold in 2 of 3 rows: “a0”"),
    ],
)
def test_the_status_that_follows_from_standings(
    resting: Sequence[Sequence[Standing]], outside: Sequence[Sequence[Standing]], status: str, why: str
) -> None:
    claims = [claim(f"a{i}", *each) for i, each in enumerate(resting)]
    claims += [claim(f"b{i}", *each, boundary=True) for i, each in enumerate(outside)]
    for order in (claims, claims[::-1]):
        found, said = status_of(order)
        assert found is DecisionStatus(status)
        assert said.endswith(why) or order is not claims


@pytest.mark.parametrize(
    ("threshold", "low", "high", "at_least", "at_most"),
    [
        (1.5, 1.5, 1.6, HOLDS, OPEN),
        (1.5, 1.4999, 1.6, OPEN, OPEN),
        (1.5, 1.4, 1.4999, FAILS, HOLDS),
        (1.5, 1.4, 1.5, OPEN, HOLDS),
        (1.5, 1.5001, 1.6, HOLDS, FAILS),
        (1.5, 1.5, 1.5, HOLDS, HOLDS),
    ],
)
def test_an_interval_beyond_a_threshold(
    tmp_path: Path, threshold: float, low: float, high: float, at_least: Standing, at_most: Standing
) -> None:
    for key, wanted in (("at_least", at_least), ("at_most", at_most)):
        path = tmp_path / "a.toml"
        path.write_text(toml(a={key: threshold}))
        (one,) = load(path, [SUITE]).claims
        standing, reason = _beyond(one, low, high, "interval")
        assert standing is wanted
        assert "1.5" in reason and "interval" in reason


# Rows, from runs


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a kernel that is 2x, 1.5x and as fast, and waits the longer for it in eager calls."""
    parent = tmp_path_factory.mktemp("usual") / "runs"
    counters = {FUSED: {"dram_pct": 60.0, "tensor_pct": 0.0, "reason": "the rest was not collected"}}
    kept(parent, "run", series=(("graph", "cold"),), counters=counters)
    return parent


@pytest.mark.parametrize(
    ("changes", "standing", "label", "baseline"),
    [
        ({}, HOLDS, "supported", EAGER),
        ({"baseline": EAGER}, HOLDS, "supported", EAGER),
        ({"baseline": NATIVE}, HOLDS, "supported", NATIVE),
        ({"profile": FUSED, "baseline": NATIVE}, HOLDS, "supported", NATIVE),
        ({"baseline": COMPILE}, FAILS, "no difference", COMPILE),
        ({"baseline": "fastest"}, FAILS, "no difference", COMPILE),
        ({"baseline": "fastest", "at_least": 0.98}, HOLDS, "no difference", COMPILE),
        ({"baseline": "fastest", "at_most": 1.02}, HOLDS, "no difference", COMPILE),
        ({"at_least": 2.5}, FAILS, "supported", EAGER),
        ({"at_least": 2.0}, OPEN, "supported", EAGER),
        ({"at_most": 2.5}, HOLDS, "supported", EAGER),
        ({"at_most": 1.5}, FAILS, "supported", EAGER),
        ({"series": "eager"}, OPEN, None, EAGER),
        ({"profile": COMPILE}, HOLDS, "supported", EAGER),
        ({"profile": EAGER, "baseline": NATIVE}, OPEN, None, NATIVE),  # nobody calls that
    ],
)
def test_a_row_by_its_call(
    usual: Path, changes: dict[str, object], standing: Standing, label: str | None, baseline: str
) -> None:
    one = row(usual, **changes)
    assert (one.standing, one.label, one.baseline) == (standing, label, baseline)
    assert (one.case, one.gpu, one.run) == (CASE.name, "a GPU", "run")
    if label is not None:
        assert one.processes == 5
        assert one.low is not None and one.value is not None and one.high is not None
        assert one.low < one.value < one.high


@pytest.mark.parametrize(
    ("times", "standing", "label"),
    [
        ({FUSED: 0.4}, FAILS, "regression"),
        ({FUSED: (0.198, 0.19, 0.202, 0.199, 0.193)}, OPEN, "inconclusive"),
        ({FUSED: 0.2}, FAILS, "no difference"),
    ],
)
def test_a_row_of_a_call_that_is_not_supported(
    tmp_path: Path, times: dict[str, Times], standing: Standing, label: str
) -> None:
    kept(tmp_path / "runs", "run", USUAL | times)
    one = row(tmp_path / "runs")
    assert (one.standing, one.label) == (standing, label)
    assert row(tmp_path / "runs").reason.startswith("95% interval")


def test_an_eager_call_is_judged_by_its_own_series(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", USUAL | {FUSED: 0.4}, series=(WALL,))
    assert row(tmp_path / "runs", series="eager").standing is FAILS
    assert row(tmp_path / "runs").reason == f"no call over {EAGER} in this series"
    assert row(tmp_path / "runs", baseline="fastest").reason == "no correct PyTorch was timed in this series"


def test_a_row_that_is_too_noisy_is_undecided_whatever_its_interval(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", odd={EAGER: {"events": [HOT]}})
    one = row(tmp_path / "runs")
    assert (one.standing, one.label) == (OPEN, "rerun noise")
    assert one.low is not None and one.low > 1.9
    kept(tmp_path / "differs" / "runs", "run", USUAL | {CONTROL: 0.11}, odd={CONTROL: {"control_of": FUSED}})
    one = row(tmp_path / "differs" / "runs")
    assert (one.standing, one.label) == (OPEN, "rerun noise")


def test_an_interval_of_too_few_processes_decides_nothing(usual: Path) -> None:
    one = judged(usual, a={})
    made = one.selected[0].run.conclusions
    assert made is not None
    call = next(call for call in made.calls if (call.baseline, call.timer) == (EAGER, "graph"))
    wanted = one.decision.claims[0]
    assert _by_interval(wanted, call)[0] is HOLDS
    few = call.model_copy(update={"label": "inconclusive", "code": "processes", "reason": "2 of at least 3 processes"})
    assert _by_interval(wanted, few) == (OPEN, "2 of at least 3 processes")
    assert _by_interval(wanted, call.model_copy(update={"low": None}))[0] is OPEN


WRONG = {"status": Status.WRONG, "reason": "it is off", "max_rel_error": 0.5}
FAILED = {"status": Status.FAILED, "reason": "it raised", "series": [], "max_rel_error": None}


@pytest.mark.parametrize(("fate", "says"), [(WRONG, "is wrong: it is off"), (FAILED, "failed: it raised")])
def test_what_is_wrong_or_failed_does_not_hold_and_over_it_nothing_is_decided(
    tmp_path: Path, fate: dict[str, Any], says: str
) -> None:
    kept(tmp_path / "runs", "run", odd={FUSED: fate})
    for asked in (
        {},
        {"at_most": 9},
        {"baseline": "fastest"},
        {"metric": "gbps", "at_least": 1e-6, "baseline": None},
    ):
        one = row(tmp_path / "runs", **asked)
        assert (one.standing, one.label, one.value, one.low) == (FAILS, "invalid", None, None)
        assert one.reason == f"{FUSED} {says}"
    assert judged(tmp_path / "runs", a={}).decided.status is DecisionStatus.REJECTED
    kept(tmp_path / "over" / "runs", "run", odd={EAGER: fate})
    one = row(tmp_path / "over" / "runs")
    assert (one.standing, one.label, one.value) == (OPEN, "invalid", None)
    assert says in one.reason


def test_a_pytorch_that_is_wrong_is_not_the_fastest(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", odd={COMPILE: WRONG})
    assert row(tmp_path / "runs", baseline="fastest").baseline == NATIVE
    assert row(tmp_path / "runs", baseline="fastest").standing is HOLDS


def test_who_is_the_fastest_is_told_by_runs_that_have_the_compiled_one(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "all", day=1)
    kept(tmp_path / "runs", "eager-alone", {EAGER: 0.2, FUSED: 0.1}, day=2)
    assert row(tmp_path / "runs").run == "eager-alone"
    one = row(tmp_path / "runs", baseline="fastest")
    assert (one.run, one.baseline, one.standing) == ("all", COMPILE, FAILS)


def test_the_baseline_of_the_experiment_is_each_operators_own(tmp_path: Path) -> None:
    layer = Case.parse("layernorm-64x64-float32")
    times = {EAGER: 0.4, NATIVE: 0.2, "triton-fused-layernorm": 0.1}
    kept(tmp_path / "runs", "run", times, cases=[layer])
    one = row(tmp_path / "runs", cases=["layernorm-*x*-*"])
    assert (one.profile, one.baseline, one.standing) == ("triton-fused-layernorm", NATIVE, HOLDS)


@pytest.mark.parametrize(
    ("changes", "standing", "value"),
    [
        ({"metric": "p50_ms", "at_most": 0.2}, SHOWN, 0.1),
        ({"metric": "p50_ms", "at_least": 0.2}, FAILS, 0.1),
        ({"metric": "max_rel_error", "at_most": 1e-3}, SHOWN, 1e-4),
        ({"metric": "gbps", "at_least": 40, "profile": EAGER}, FAILS, 20.98),
        ({"metric": "roof_share", "at_least": 0.5}, OPEN, None),  # no roof was measured
        ({"metric": "p50_ms", "at_most": 1, "series": "eager"}, OPEN, None),
        ({"metric": "dram_pct", "at_least": 60}, SHOWN, 60.0),
        ({"metric": "dram_pct", "at_most": 50}, FAILS, 60.0),
        ({"metric": "tensor_pct", "at_most": 1}, SHOWN, 0.0),
        ({"metric": "l2_hit_pct", "at_least": 1}, OPEN, None),
    ],
)
def test_a_figure_is_shown_and_never_holds(
    usual: Path, changes: dict[str, object], standing: Standing, value: float | None
) -> None:
    one = row(usual, **{"baseline": None} | changes)
    assert (one.standing, one.label, one.baseline, one.low) == (standing, None, None, None)
    assert one.value == (value if value is None else pytest.approx(value, rel=1e-3))
    if changes["metric"] == "l2_hit_pct":
        assert one.reason == "the rest was not collected"
    assert judged(usual, a={"baseline": None} | changes).decided.claims[0].series == (
        "" if str(changes["metric"]).endswith("_pct") else changes.get("series", "kernel")
    )


def test_a_figure_that_a_call_would_be_doubted_by_is_undecided(tmp_path: Path) -> None:
    def reason(name: str, times: Mapping[str, Times] = USUAL, **odd: Mapping[str, Any]) -> str:
        kept(tmp_path / name / "runs", "run", times, odd={key.replace("_", "-"): dict(one) for key, one in odd.items()})
        one = row(tmp_path / name / "runs", metric="gbps", at_least=1e-6, baseline=None)
        assert (one.standing, one.value) == (OPEN, None)
        return one.reason

    assert "while triton-fused-rmsnorm was sampled: throttled" in reason("hot", triton_fused_rmsnorm={"events": [HOT]})
    loud = series(0.1).model_copy(update={"blocks": [[0.1] * 10 + [0.2] * 8] * 2})
    assert "too noisy for a precise claim" in reason("loud", triton_fused_rmsnorm={"series": [loud]})
    slow = {"read_gbps": 10.0, "write_gbps": 10.0}  # the kernel moves 42 GB/s, so they say
    assert "it did not do all of its work" in reason("fast", USUAL | {ROOF: 0.4}, copy=slow)


def test_rows_are_of_every_case_and_gpu_in_the_order_of_a_sweep(tmp_path: Path) -> None:
    cases = [
        Case.parse(f"rmsnorm-{text}") for text in ("64x256-float16", "8x64-float16", "512x64-float16", "8x64-bfloat16")
    ]
    kept(tmp_path / "runs", "a", {EAGER: 0.2, FUSED: 0.1}, cases=cases)
    kept(tmp_path / "runs", "b", {EAGER: 0.2, FUSED: 0.4}, cases=cases[1:2], of=OTHER)
    found = rows(tmp_path / "runs")
    assert [(one.case, one.gpu, one.standing) for one in found] == [
        ("rmsnorm-8x64-bfloat16", "a GPU", HOLDS),
        ("rmsnorm-8x64-float16", "a GPU", HOLDS),
        ("rmsnorm-8x64-float16", "another GPU", FAILS),
        ("rmsnorm-512x64-float16", "a GPU", HOLDS),
        ("rmsnorm-64x256-float16", "a GPU", HOLDS),
    ]
    overlapping = rows(tmp_path / "runs", cases=["rmsnorm-8x64-*", "rmsnorm-*x64-float16"])
    assert [one.case for one in overlapping] == [one.case for one in found[:4]]


def test_a_missing_case_is_named_with_file_line_and_key(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run")
    said = refusal(tmp_path / "runs", cases=["rmsnorm-*x*-float16", "rmsnorm-8x8-float16"])
    where = f"{tmp_path / 'fused.toml'}, line 13: key 'claims.a.cases' names"
    assert said == f"{where} 'rmsnorm-8x8-float16', which no run has measured"
    said = refusal(tmp_path / "runs", metric="dram_pct", at_least=1, baseline=None)
    assert "key 'claims.a.cases' names 'rmsnorm-*x*-*', which no run has measured" in said


def test_a_case_that_no_run_may_speak_for_is_named_with_the_reasons(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "two", processes=2, day=3)
    kept(tmp_path / "runs", "dirty", of=CLEAN.model_copy(update={"dirty": True}), day=2)
    said = refusal(tmp_path / "runs")
    assert said.startswith(f"{tmp_path / 'fused.toml'}, line 13: key 'claims.a.cases' names 'rmsnorm-*x*-*', for which")
    assert "no run may speak: two measured it in 2 processes, 5 are needed; dirty was measured with" in said
    kept(tmp_path / "runs", "good", day=1)
    assert "good did not measure torch-nativ" in refusal(tmp_path / "runs", baseline="torch-nativ")
    kept(tmp_path / "runs", "more", processes=1, day=1)
    assert "; and 1 more" in refusal(tmp_path / "runs", profile="mine")


def test_measured_cases_that_no_run_may_speak_for_are_told_of_beside_those_that_have_one(tmp_path: Path) -> None:
    few = [Case.parse(f"rmsnorm-{text}-float16") for text in ("64x64", "8x8")]
    kept(tmp_path / "runs", "good", day=1)
    kept(tmp_path / "runs", "few", cases=few, processes=2, day=2)
    kept(tmp_path / "runs", "elsewhere", of=OTHER, quick=True, day=3)
    decided = judged(tmp_path / "runs", a={}, b={"baseline": NATIVE}).decided
    assert [one.case for one in decided.claims[0].rows] == [CASE.name]
    assert decided.unheard == [
        f"No run may speak for {CASE.name} on another GPU: elsewhere is a quick run, without intervals.",
        "No run may speak for rmsnorm-8x8-float16, rmsnorm-64x64-float16 on a GPU: few measured it in 2 processes, "
        "5 are needed.",
    ]


def test_a_series_that_is_not_the_claims_decides_nothing(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", series=(DEVICE,))
    assert row(tmp_path / "runs").standing is OPEN
