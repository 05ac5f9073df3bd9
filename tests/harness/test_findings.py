"""What the harness concludes from calls and records that are made up: each check can fail."""

import pytest

from norm_fusion.backends import BOTH
from norm_fusion.harness import findings
from norm_fusion.harness.page import page, summary
from norm_fusion.harness.trials import CHEATS, Trial, trials
from norm_fusion.records import Call, Conclusions, HarnessCheck, HarnessReport, Label, Record, Status

CPU = {trial.name: trial for trial in trials("cpu", False)}


def call(label: Label, low: float = 0.99, high: float = 1.01, **more: object) -> Call:
    fields = {"case": "c", "profile": "known-norm-again", "baseline": "known-norm", "timer": "wall", "cache": "cold"}
    fields |= {"label": label, "code": "x", "reason": "r", "rule": 1, "speedup": 1.0, "low": low, "high": high}
    return Call.model_validate(fields | more)


def concluded(trial: str, calls: list[Call], records: list[Record] | None = None) -> dict[str, HarnessCheck]:
    made = findings.of(CPU[trial], records or [], Conclusions(rule=1, pooled=[], calls=calls))
    return {check.name: check for check in findings.joined(made)}


def record(profile: str, **more: object) -> Record:
    fields = {"run_id": "a", "case": "c", "op": "rmsnorm", "rows": 1, "cols": 1, "dtype": "float32", "profile": profile}
    return Record.model_validate(fields | {"status": "ok", "fingerprint": "f", "timer": "wall", "cache": "cold"} | more)


@pytest.mark.parametrize(("excluded", "passed"), [(7, True), (8, False)])
def test_at_most_seven_of_sixty_intervals_may_exclude_one(excluded: int, passed: bool) -> None:
    calls = [call(Label.NO_DIFFERENCE, 1.001, 1.01)] * excluded + [call(Label.NO_DIFFERENCE)] * (60 - excluded)
    assert concluded("aa", calls)["A/A: raw intervals, wall"].passed is passed


def test_one_false_label_is_one_too_many() -> None:
    assert concluded("aa", [call(Label.NO_DIFFERENCE)] * 60)["A/A: false labels, wall"].passed
    for label in (Label.SUPPORTED, Label.REGRESSION):
        found = concluded("aa", [call(Label.NO_DIFFERENCE)] * 59 + [call(label)])
        assert found["A/A: false labels, wall"].passed is False


def test_every_series_has_its_own_count() -> None:
    quiet = [call(Label.NO_DIFFERENCE, timer="graph")] * 60
    hot = [call(Label.NO_DIFFERENCE, 1.001, 1.01, timer="device", cache="hot")] * 8
    hot += [call(Label.SUPPORTED, timer="device", cache="hot")]
    found = concluded("aa", [*hot, *quiet], [record("known-norm", timer="graph")])
    assert {name for name, check in found.items() if not check.passed} == {
        "A/A: raw intervals, device hot",
        "A/A: false labels, device hot",
    }


def test_nothing_measured_is_not_passed() -> None:
    assert not any(check.passed for check in concluded("aa", []).values())
    assert concluded("disturbed", [])["disturbed workloads"].passed is False


@pytest.mark.parametrize(("same", "passed"), [(54, True), (53, False)])
def test_a_quiet_gpu_has_to_decide(same: int, passed: bool) -> None:
    calls = [call(Label.NO_DIFFERENCE, timer="graph")] * same + [call(Label.INCONCLUSIVE, timer="graph")] * (60 - same)
    assert concluded("aa", calls, [record("known-norm", timer="graph")])["A/A: decided"].passed is passed


@pytest.mark.parametrize(("found", "passed"), [(9, True), (8, False)])
def test_nine_of_ten_planted_quarters_are_found(found: int, passed: bool) -> None:
    calls = [call(Label.REGRESSION, profile="known-slower-25")] * found
    calls += [call(Label.INCONCLUSIVE, profile="known-slower-25")] * (10 - found)
    assert concluded("planted", calls)["planted 25%"].passed is passed


@pytest.mark.parametrize(("slope", "passed"), [(1.0, True), (1.009, True), (1.02, False), (0.98, False)])
def test_the_slope_of_known_answers(slope: float, passed: bool) -> None:
    records = [
        record(f"known-spin-{us}-{ratio}", p50_ms=(0.9 + slope * us * float(ratio)) / 1e3)
        for us in (2, 20, 200, 2000)
        for ratio in ("1.00", "1.50")
    ]
    found = concluded("known-1", [], records)["known answer"]
    assert found.passed is passed
    assert f"slope {slope:.4f}, overhead 0.90 us" in found.found


def test_a_cheat_that_is_missed_and_an_honest_one_that_is_blamed_fail() -> None:
    trial = CPU["sabotage"]
    cheats = [name for name in trial.profiles if ":" in name]
    calls = [call(Label.INVALID, profile=name, code=CHEATS[name.rpartition(":")[2]].value) for name in cheats]
    assert concluded("sabotage", calls)["sabotage"].passed
    assert concluded("sabotage", calls)["sabotage"].found == f"{len(calls)} of {len(calls)}"
    other = calls[0].model_copy(update={"code": "above-ceiling"})
    lucky, missed = concluded("sabotage", [other, *calls[1:]])["sabotage"], concluded("sabotage", calls[1:])["sabotage"]
    assert lucky.passed is missed.passed is False
    assert lucky.details[0]["reason"] == f"invalid: {other.reason}", "what was said of it instead"
    assert missed.details[0]["reason"] == "nothing was called of it"
    honest = call(Label.INVALID, profile="torch-native", baseline="torch-eager")
    assert concluded("sabotage", [*calls, honest])["sabotage"].passed is False


def test_what_breaks_may_not_take_others_along() -> None:
    trial = CPU["breakage"]
    broken = [record(name, status=Status.FAILED, code="crashed", reason="r") for name in trial.profiles if ":" in name]
    assert concluded("breakage", [], [record("torch-native"), *broken])["breakage"].passed
    lost = record("torch-native", status=Status.FAILED)
    assert concluded("breakage", [], [lost, *broken])["breakage"].passed is False
    survivor = [record(broken[0].profile), *broken[1:]]
    assert concluded("breakage", [], [record("torch-native"), *survivor])["breakage"].passed is False


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sixty_cases_and_both_operators(device: str) -> None:
    aa: Trial = next(iter(trials(device, False)))
    assert len(set(aa.cases)) == 60
    assert {case.op for case in aa.cases} == set(BOTH)
    assert aa.processes == {"cuda": 5, "cpu": 10}[device]


def test_the_page_says_what_failed_and_shows_no_control_character(report: HarnessReport) -> None:
    text = page(report)
    assert summary(report) == "1 of 2 checks of the harness passed; failed: b"
    assert "| FAILED " in text and "not tried" in text
    assert "\x1b" not in text and "a \\| b" in text


@pytest.fixture
def report() -> HarnessReport:
    row: dict[str, str | int | float | None] = {"case": "a | b\x1b[31m", "x": 1.25}
    return HarnessReport(
        run_id="h",
        command=["norm-fusion"],
        reduced=True,
        rule=1,
        started_at="a",
        finished_at="b",
        environment={  # type: ignore[arg-type]
            "device": "cpu",
            "device_name": "x",
            "memory_bytes": 1,
            "cache_bytes": 1,
            "python": "3",
            "platform": "p",
            "torch": "2",
            "norm_fusion": "0",
        },
        checks=[
            HarnessCheck(name="a", passed=True, wanted="w", found="f", details=[row] * 20),
            HarnessCheck(name="b", passed=False, wanted="w", found="f"),
            HarnessCheck(name="c", passed=None, wanted="w", found="f"),
        ],
    )
