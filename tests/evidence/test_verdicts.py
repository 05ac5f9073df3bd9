"""The rule, clause by clause: each test fails when its clause is removed, and the first clause that matches decides."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import CASE, COLD, CPU, DEVICE, FUSED, GPU, WALL, concluded, control, manifest, measured, ratio_run, recorded

from norm_fusion import metrics
from norm_fusion.evidence.verdicts import DELTA, RULE, conclude, judge, verdict
from norm_fusion.records import Call, Code, Environment, Event, Label, Manifest, Measurement, Record, Samples, Status
from norm_fusion.spec import BASELINE, CONTROL, ROOF, SpecError

HIGH, LOW = 1 + DELTA, 1 / (1 + DELTA)
STEADY = [1.2] * 5
Made = list[tuple[Record, Samples | None]]


def calls(made: Made, of: Manifest | None = None) -> dict[tuple[str, str, str, str], Call]:
    return {(c.profile, c.baseline, c.timer, c.cache): c for c in concluded(made, of).calls}


def only(made: Made, of: Manifest | None = None) -> Call:
    return calls(made, of)[FUSED, "torch-eager", *COLD]


def edited(made: Made, profile: str, change: Callable[[Record], dict[str, object]]) -> Made:
    """Records of one profile with fields changed."""
    return [(r.model_copy(update=change(r)) if r.profile == profile else r, samples) for r, samples in made]


def test_a_win_is_supported_and_carries_its_evidence() -> None:
    ratios = [1.20, 1.21, 1.19, 1.20, 1.22]
    made = recorded(ratio_run(ratios))
    call = only(made)
    assert (call.label, call.code, call.rule, call.attempt, call.processes) == ("supported", "above-delta", RULE, 0, 5)
    assert call.ratios == [pytest.approx(ratio) for ratio in ratios]
    assert call.speedup == pytest.approx(metrics.geometric_mean(ratios))
    assert (call.low, call.high) == (
        pytest.approx(metrics.interval(ratios)[0]),
        pytest.approx(metrics.interval(ratios)[1]),
    )
    pooled = {record.profile: record for record in concluded(made).pooled}
    assert pooled[FUSED].call == {"torch-eager": "supported", BASELINE: "supported"}
    assert pooled["torch-eager"].call == {}


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (HIGH + 1e-9, 2.0, "supported"),
        (HIGH, 2.0, "inconclusive"),
        (LOW, HIGH, "no difference"),
        (LOW, HIGH + 1e-9, "inconclusive"),
        (LOW - 1e-9, HIGH, "inconclusive"),
        (0.5, LOW - 1e-9, "regression"),
        (0.5, LOW, "inconclusive"),
        (1.0, 1.0, "no difference"),
        (0.5, 2.0, "inconclusive"),
    ],
)
def test_boundaries(low: float, high: float, label: str) -> None:
    assert verdict(low, high)[0] == label


def test_what_is_inconclusive_says_which_boundary_and_how_precise() -> None:
    assert verdict(1.0, 1.04)[1:] == (
        "straddles",
        "95% interval 1.000 to 1.040 straddles 1.020, at a precision of 2.0%",
    )
    assert "straddles 0.980 and 1.020" in verdict(0.9, 1.1)[2]


@given(st.floats(0.2, 5.0), st.floats(1.0, 3.0))
def test_turning_a_claim_over_turns_its_label_over(low: float, width: float) -> None:
    high = low * width
    turned = {Label.SUPPORTED: Label.REGRESSION, Label.REGRESSION: Label.SUPPORTED}
    if min(abs(math.log(end / edge)) for end in (low, high) for edge in (LOW, HIGH)) > 1e-12:
        label = verdict(low, high)[0]
        assert verdict(1 / high, 1 / low)[0] is turned.get(label, label)


@pytest.mark.parametrize(
    ("ratio", "label"), [(1.2, "supported"), (1.0, "no difference"), (0.8, "regression"), (1.02, "inconclusive")]
)
def test_labels_follow_the_interval(ratio: float, label: str) -> None:
    assert only(recorded(ratio_run([ratio * (1 + e) for e in (-0.001, 0.0, 0.001)]))).label == label


# invalid


@pytest.mark.parametrize("profile", [FUSED, "torch-eager"])
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (Status.WRONG, Code.MUTATED_INPUT, "mutated-input"),
        (Status.WRONG, None, "wrong-output"),
        (Status.FAILED, Code.HUNG, "hung"),
        (Status.FAILED, None, "raised"),
    ],
)
def test_wrong_or_failed_in_one_process_of_five_is_invalid(
    profile: str, status: Status, code: Code | None, said: str
) -> None:
    made = recorded(ratio_run(STEADY))
    call = only(
        edited(made, profile, lambda r: {"status": status, "code": code, "reason": "x"} if r.replicate == 2 else {})
    )
    assert (call.label, call.code) == (Label.INVALID, said)
    assert "x (in 1 of 5 processes)" in call.reason and profile in call.reason
    assert (call.speedup, call.low, call.ratios, call.processes) == (None, None, [], 0)


def test_a_kernel_that_died_before_it_was_timed_has_invalid_calls_in_the_series_of_the_other() -> None:
    died = measured(FUSED, None, status=Status.FAILED, code=Code.CRASHED, reason="killed")
    made = recorded([[measured("torch-eager", {COLD: 1.0, DEVICE: 1.0}), died]] * 3)
    found = calls(made)
    assert {key: call.code for key, call in found.items()} == {
        (FUSED, "torch-eager", *COLD): "crashed",
        (FUSED, "torch-eager", *DEVICE): "crashed",
    }


def test_a_fingerprint_that_changed_is_invalid() -> None:
    made = recorded(ratio_run(STEADY), fingerprint=lambda i: "ab"[i == 4] * 16)
    assert (only(made).label, only(made).code) == (Label.INVALID, "fingerprint")
    one_side = edited(recorded(ratio_run(STEADY)), "torch-eager", lambda r: {"fingerprint": str(r.replicate) * 16})
    assert only(one_side).code == "fingerprint"
    assert only(recorded(ratio_run(STEADY))).label == "supported"


# One call moves 4 MiB and a weight; at 0.1 ms that is 41.96 GB/s. The cache of the example holds 1 MiB.
MOVED = metrics.gbps(CASE.compulsory_bytes, 0.1)


def roof(read: float, write: float = 1.0, ms: float = 1.0, series: tuple[str, str] = COLD) -> Measurement:
    return measured(ROOF, {series: ms}, read_gbps=read, write_gbps=write)


@pytest.mark.parametrize(
    ("read", "code"), [(MOVED / 1.02 * 1.0001, "above-delta"), (MOVED / 1.02 * 0.9999, "above-ceiling")]
)
def test_above_the_read_ceiling_is_invalid_and_not_fast(read: float, code: str) -> None:
    call = only(recorded(ratio_run(STEADY, roof(read))))
    assert call.code == code
    assert (call.label is Label.INVALID) == (code == "above-ceiling")


def test_the_ceiling_binds_the_baseline_too() -> None:
    made = recorded([[measured("torch-eager", 0.08), measured(FUSED, 0.1), roof(MOVED * 1.1)]] * 3)
    assert only(made).code == "above-ceiling"
    assert "torch-eager would move" in only(made).reason


def test_a_ceiling_is_none_where_the_cache_may_have_helped() -> None:
    at_most = 4 * 2 * CASE.input_bytes  # four sets are in rotation
    for cache_bytes, code in ((at_most, "above-ceiling"), (at_most + 1, "above-delta")):
        large = GPU.model_copy(update={"cache_bytes": cache_bytes})
        made = recorded(ratio_run(STEADY, roof(MOVED / 2)), of=large)
        assert only(made, manifest(large)).code == code
    hot = recorded(ratio_run(STEADY, series=("device", "hot")))
    hot = edited(hot, FUSED, lambda _: {"read_gbps": MOVED / 2})
    assert calls(hot)[FUSED, "torch-eager", "device", "hot"].label == "supported"


def test_the_fastest_of_read_write_and_copy_is_the_ceiling() -> None:
    for read, write, copy_ms, label in (
        (MOVED / 2, 1.0, 1.0, Label.INVALID),
        (MOVED / 2, MOVED, 1.0, Label.SUPPORTED),
        (MOVED / 2, 1.0, 0.1, Label.SUPPORTED),
    ):
        made = recorded(ratio_run(STEADY, roof(read, write, copy_ms)))
        assert only(made).label is label


# rerun noise


def loud(profile: str, ms: float, *names: tuple[str, str], quiet: Sequence[tuple[str, str]] = ()) -> Measurement:
    """A contestant with one sample in five half as long again, in the series named."""
    found = measured(profile, dict.fromkeys((*names, *quiet), ms)).series
    blocks = [[ms] * 8 + [ms * 1.5] * 2] * 2
    series = [s.model_copy(update={"blocks": blocks}) if (s.timer, s.cache) in names else s for s in found]
    return measured(profile, None, series=series)


@pytest.mark.parametrize("noisy", [FUSED, "torch-eager"])
def test_noise_on_either_side_asks_for_a_rerun(noisy: str) -> None:
    quiet = ({FUSED, "torch-eager"} - {noisy}).pop()
    made = recorded([[loud(noisy, 0.1, COLD), measured(quiet, 0.1)]] * 5)
    assert (only(made).label, only(made).code) == (Label.RERUN_NOISE, "noise")
    assert noisy in only(made).reason
    assert only(made).low is not None


def test_one_disturbed_process_of_five_is_the_intervals_to_tell() -> None:
    steady = [measured(FUSED, {COLD: 0.1}), measured("torch-eager", {COLD: 0.2})]
    disturbed = [loud(FUSED, 0.1, COLD), measured("torch-eager", {COLD: 0.2})]
    assert calls(recorded([steady] * 3 + [disturbed] * 2))[FUSED, "torch-eager", *COLD].label == "supported"
    assert calls(recorded([steady] * 2 + [disturbed] * 3))[FUSED, "torch-eager", *COLD].code == "noise"


def test_noise_in_another_series_is_no_matter_of_this_one() -> None:
    made = recorded([[loud(FUSED, 0.1, DEVICE, quiet=[COLD]), measured("torch-eager", {COLD: 0.2, DEVICE: 0.2})]] * 5)
    assert calls(made)[FUSED, "torch-eager", *COLD].label == "supported"
    assert calls(made)[FUSED, "torch-eager", *DEVICE].code == "noise"


def test_calls_timed_from_a_cpu_have_its_gate_on_any_device() -> None:
    for environment in (CPU, GPU):
        made = recorded([[loud(FUSED, 0.1, WALL), measured("torch-eager", {WALL: 0.2})]] * 5, of=environment)
        assert calls(made, manifest(environment))[FUSED, "torch-eager", *WALL].label == "supported"


@pytest.mark.parametrize(("apart", "fails"), [(1.0199, False), (1.0201, True), (0.9805, False), (0.9803, True)])
def test_a_contestant_that_differs_from_itself_spoils_its_series(apart: float, fails: bool) -> None:
    made = recorded(ratio_run(STEADY, control(0.1 / apart)))
    found = calls(made)
    for key in ((FUSED, "torch-eager", *COLD), (CONTROL, FUSED, *COLD)):
        assert (found[key].code == "control") is fails
        assert (found[key].label is Label.RERUN_NOISE) is fails


def test_the_controls_own_call_is_by_its_interval() -> None:
    ratios = [0.96, 1.0, 1.04, 1.05, 0.95]
    made = recorded([[measured("torch-eager", 0.2), measured(FUSED, 0.1), control(0.1 / ratio)] for ratio in ratios])
    found = calls(made)
    assert found[CONTROL, FUSED, *COLD].label is Label.INCONCLUSIVE
    assert found[FUSED, "torch-eager", *COLD].label == "supported"
    assert [key for key in found if key[0] == CONTROL] == [(CONTROL, FUSED, *COLD)]


def test_the_control_of_one_series_says_nothing_of_another() -> None:
    both = {COLD: 0.1, DEVICE: 0.1}
    made = recorded([[measured("torch-eager", both), measured(FUSED, both), control({COLD: 0.2, DEVICE: 0.1})]] * 3)
    assert calls(made)[FUSED, "torch-eager", *COLD].code == "control"
    assert calls(made)[FUSED, "torch-eager", *DEVICE].label == "no difference"


@pytest.mark.parametrize("profile", [FUSED, "torch-eager"])
@pytest.mark.parametrize("kind", ["company", "thermal", "power", "clock", "steal"])
def test_an_event_on_either_side_in_one_process_asks_for_a_rerun(profile: str, kind: str) -> None:
    event = Event.model_validate({"kind": kind, "detail": "it happened"})
    made = edited(recorded(ratio_run(STEADY)), profile, lambda r: {"events": [event] if r.replicate == 1 else []})
    assert (only(made).label, only(made).code) == (Label.RERUN_NOISE, kind)
    assert f"while {profile} was sampled: it happened" in only(made).reason


@pytest.mark.parametrize(
    ("environment", "apart", "fails"),
    [(GPU, 1.0099, False), (GPU, 1.0101, True), (CPU, 1.0499, False), (CPU, 1.0501, True)],
    ids=["gpu-within", "gpu-apart", "cpu-within", "cpu-apart"],
)
def test_clocks_that_differ_ask_for_a_rerun(environment: Environment, apart: float, fails: bool) -> None:
    made = recorded(ratio_run(STEADY), of=environment)
    for slower, other in ((FUSED, "torch-eager"), ("torch-eager", FUSED)):
        probed = edited(edited(made, slower, lambda _: {"probe": apart}), other, lambda _: {"probe": 1.0})
        call = only(probed, manifest(environment))
        assert (call.code == "clock") is fails
        assert (call.label is Label.RERUN_NOISE) is fails


# what comes first, what has no call at all


def test_the_first_clause_that_matches_decides() -> None:
    event = Event(kind="thermal", detail="hot")
    made = edited(
        recorded([[loud(FUSED, 0.1, COLD), measured("torch-eager", 0.1)]] * 5), FUSED, lambda _: {"events": [event]}
    )
    assert only(made).code == "noise"
    spoilt = edited(made, "torch-eager", lambda r: {"status": Status.FAILED, "code": Code.HUNG})
    assert only(spoilt).code == "hung"
    wrong = edited(spoilt, FUSED, lambda r: {"status": Status.WRONG, "code": Code.WRONG_KIND})
    assert only(wrong).code == "wrong-kind"


@pytest.mark.parametrize(("processes", "expected"), [(3, "supported"), (2, "inconclusive")])
def test_fewer_than_three_processes_prove_nothing(processes: int, expected: str) -> None:
    call = only(recorded(ratio_run(STEADY[:processes])))
    assert call.label == expected
    assert (call.code == "processes") is (processes == 2)


def test_two_noisy_processes_are_noise_first() -> None:
    made = recorded([[loud(FUSED, 0.1, COLD), measured("torch-eager", 0.1)]] * 2)
    assert only(made).code == "noise"


def test_one_process_and_a_quick_run_have_no_calls() -> None:
    assert calls(recorded(ratio_run([1.2]))) == {}
    assert calls(recorded(ratio_run(STEADY)), manifest(quick=True)) == {}


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.CHECKED])
def test_what_was_not_timed_has_no_call(status: Status) -> None:
    row = measured(FUSED, None, status=status, reason="r")
    made = recorded([[measured("torch-eager", 0.1), measured("torch-native", 0.2), row]] * 3)
    assert {key[:2] for key in calls(made)} == {("torch-native", "torch-eager")}


def test_an_interrupted_run_is_judged_and_says_so() -> None:
    call = only(recorded(ratio_run(STEADY[:4])), manifest(state="interrupted", fewest=5))
    assert call.label == "supported"
    assert call.reason.endswith("the run was interrupted, and this is of 4 processes")
    whole = only(recorded(ratio_run(STEADY[:4])), manifest(state="interrupted", fewest=4))
    assert "interrupted" not in whole.reason


def test_a_process_that_was_interrupted_costs_the_others_nothing() -> None:
    cut = [
        measured(name, None, status=Status.UNAVAILABLE, code=Code.INTERRUPTED, reason="cut")
        for name in ("torch-eager", FUSED)
    ]
    assert only(recorded([*ratio_run(STEADY[:3]), cut])).label == "supported"
    assert calls(recorded([*ratio_run(STEADY[:1]), cut])) == {}


# attempts


def test_a_claim_is_judged_by_its_newest_attempt_and_keeps_the_others() -> None:
    noisy = recorded([[loud(FUSED, 0.1, COLD), measured("torch-eager", 0.12)]] * 5)
    quiet = recorded(ratio_run(STEADY), attempt=1)
    for made in (noisy + quiet, quiet + noisy):
        call = only(made)
        assert (call.label, call.attempt) == (Label.SUPPORTED, 1)
        assert [(e.label, e.attempt, e.earlier) for e in call.earlier] == [(Label.RERUN_NOISE, 0, [])]
    labels = {(r.attempt, r.call.get("torch-eager")) for r in concluded(noisy + quiet).pooled if r.profile == FUSED}
    assert labels == {(0, "rerun noise"), (1, "supported")}


def test_an_attempt_that_was_cut_below_three_processes_does_not_replace_a_whole_one() -> None:
    call = only(recorded(ratio_run(STEADY)) + recorded(ratio_run([0.5, 0.5]), attempt=1))
    assert (call.label, call.attempt, [e.attempt for e in call.earlier]) == (Label.SUPPORTED, 0, [1])


def test_a_claim_that_a_rerun_left_out_keeps_its_call() -> None:
    crashed = measured("torch-native", None, status=Status.FAILED, code=Code.CRASHED, reason="killed")
    made = recorded(ratio_run(STEADY, crashed)) + recorded(ratio_run(STEADY), attempt=1)
    found = calls(made)
    assert (found[FUSED, "torch-native", *COLD].code, found[FUSED, "torch-native", *COLD].attempt) == ("crashed", 0)
    assert found[FUSED, "torch-eager", *COLD].attempt == 1


def test_a_claim_that_no_standing_attempt_makes_is_judged_by_the_newest_that_does() -> None:
    native = measured("torch-native", 0.3)
    first, second = recorded(ratio_run(STEADY, native)), recorded(ratio_run(STEADY, native), attempt=1)
    for made in (first + second, second + first):
        call = calls(made + recorded(ratio_run(STEADY), attempt=2))[FUSED, "torch-native", *COLD]
        assert (call.attempt, [e.attempt for e in call.earlier]) == (1, [0])


def test_software_that_changed_between_attempts_spoils_that_which_is_not_of_the_run() -> None:
    before = recorded(ratio_run(STEADY))
    after = recorded(ratio_run(STEADY), fingerprint=lambda _: "b" * 16, attempt=1)
    found = only(before + after)
    assert [(e.label, e.code) for e in (found, *found.earlier)] == [
        ("invalid", "fingerprint"),
        ("supported", "above-delta"),
    ]


def test_a_run_of_another_machine_than_it_says_is_invalid() -> None:
    made = recorded(ratio_run(STEADY), fingerprint=lambda _: "b" * 16)
    assert only(made).code == "fingerprint"
    changed = recorded(ratio_run(STEADY), fingerprint=lambda _: f"{GPU.fingerprint}, then {'b' * 16}")
    assert only(changed).code == "fingerprint", "the same change in every process is one"


# the whole


def test_the_label_of_the_control_has_no_alias() -> None:
    made = recorded([[measured("torch-eager", 0.2), measured(FUSED, 0.1), control(0.2, of="torch-eager")]] * 3)
    pooled = {record.profile: record.call for record in concluded(made).pooled}
    assert pooled[CONTROL] == {"torch-eager": "no difference"}
    assert pooled[FUSED] == {"torch-eager": "supported", BASELINE: "supported"}


def test_judging_is_pure_and_does_not_depend_on_the_order_of_records() -> None:
    made = recorded(ratio_run([1.2, 1.3, 1.25], control(0.1), roof(1000.0)))
    whole = concluded(made)
    shuffled = list(made)
    random.Random(1).shuffle(shuffled)
    again = {call.claim: call for call in concluded(shuffled).calls}
    assert {claim: (c.label, c.code) for claim, c in again.items()} == {c.claim: (c.label, c.code) for c in whole.calls}
    assert judge(whole.pooled, [r for r, _ in made], manifest()) == whole.calls


def test_a_run_that_does_not_say_where_it_took_place_is_refused() -> None:
    made = recorded(ratio_run(STEADY))
    with pytest.raises(SpecError, match="run 'a' does not say where it took place"):
        concluded(made, manifest(None))
    assert conclude([], lambda record: None, manifest(None)).calls == []  # type: ignore[arg-type, return-value]
