"""Two runs: what may be compared, Welch's interval by hand, and what a row is called."""

import pytest
from made import CASE, COLD, CPU, FUSED, GPU, HOST, WALL, control, manifest, measured, reader, recorded

from norm_fusion import metrics
from norm_fusion.evidence.compare import MUST_MATCH, Comparison, Row, Side, Unlike, check_alike, compare, summary
from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Environment, Event, Label, Manifest, Measurement, Status
from norm_fusion.spec import CONTROL, ROOF, SpecError


def side(*processes: list[Measurement], of: Manifest | None = None, attempt: int = 0) -> Side:
    of = of or manifest()
    made = recorded(processes, attempt=attempt, of=of.environment or GPU)
    records = [record for record, _ in made]
    return Side(of, conclude(records, reader(made), of).pooled, records)


def rows(a: Side, b: Side, *allowed: str) -> dict[str, Row]:
    return {row.profile: row for row in compare(a, b, allowed).rows}


def test_the_ratio_is_of_means_of_log_medians_with_welchs_interval() -> None:
    before, after = [0.11, 0.12, 0.115], [0.10, 0.1001]
    row = rows(side(*([measured(FUSED, ms)] for ms in before)), side(*([measured(FUSED, ms)] for ms in after)))[FUSED]
    expected = metrics.welch(before, after)
    assert (row.speedup, row.low, row.high) == tuple(pytest.approx(value) for value in expected)
    assert row.a_ms / row.b_ms == pytest.approx(row.speedup)
    assert (row.a_processes, row.b_processes) == (3, 2)


@pytest.mark.parametrize(
    ("b_ms", "label"), [(0.09, "supported"), (0.1, "no difference"), (0.11, "regression"), (0.098, "inconclusive")]
)
def test_labels_are_from_the_point_of_view_of_the_second(b_ms: float, label: str) -> None:
    def run(ms: float) -> Side:
        return side(*([measured(FUSED, ms * e)] for e in (0.999, 1.0, 1.001)))

    assert rows(run(0.1), run(b_ms))[FUSED].label == label


def test_one_process_on_a_side_is_inconclusive_and_still_shown() -> None:
    row = rows(side([measured(FUSED, 0.2)]), side([measured(FUSED, 0.1)], [measured(FUSED, 0.1)]))[FUSED]
    assert (row.label, row.code, row.low, row.high) == (Label.INCONCLUSIVE, "processes", None, None)
    assert row.speedup == pytest.approx(2.0)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_wrong_failed_or_disturbed_in_either_run_is_no_speed(first: bool) -> None:
    good = side(*[[measured(FUSED, 0.2)]] * 3)
    event = Event(kind="power", detail="capped")
    for odd, label, code in (
        ({"status": Status.WRONG, "reason": "r"}, Label.INVALID, "wrong-output"),
        ({"status": Status.FAILED, "reason": "r"}, Label.INVALID, "raised"),
        ({"events": [event]}, Label.RERUN_NOISE, "power"),
    ):
        bad = side(*[[measured(FUSED, 0.1)]] * 2, [measured(FUSED, 0.1, **odd)])
        row = rows(bad, good)[FUSED] if first else rows(good, bad)[FUSED]
        assert (row.label, row.code) == (label, code)


def test_what_a_judge_doubts_in_a_run_is_doubted_between_runs() -> None:
    good = side(*[[measured(FUSED, 0.2), measured(ROOF, 0.1), control(0.2)]] * 3)
    fast = [measured(FUSED, 0.001), measured(ROOF, 0.1, read_gbps=100.0, write_gbps=100.0), control(0.001)]
    assert rows(good, side(*[fast] * 3))[FUSED].code == "above-ceiling"
    apart = [measured(FUSED, 0.1), measured(ROOF, 0.1), control(0.11)]
    assert rows(good, side(*[apart] * 3))[FUSED].code == "control"
    two = recorded([[measured(FUSED, 0.1)]] * 3, fingerprint=lambda k: "f" * 15 + str(k))
    changed = [record for record, _ in two]
    made = Side(manifest(), conclude(changed, reader(two), manifest()).pooled, changed)
    assert rows(side(*[[measured(FUSED, 0.2)]] * 3), made)[FUSED].code == "fingerprint"
    few = side(*[[measured(FUSED, 0.1)]] * 2)
    assert (rows(good, few)[FUSED].code, rows(good, few)[FUSED].low is None) == ("processes", False)


def test_a_control_of_another_contestant_is_another_kernel() -> None:
    a, b = (
        side(*[[measured(FUSED, 0.1), measured("torch-eager", 0.2), control(0.1, of=of)]] * 3)
        for of in (FUSED, "torch-eager")
    )
    assert CONTROL not in rows(a, b)


def test_a_noisy_row_asks_for_a_rerun() -> None:
    good = side(*[[measured(FUSED, 0.2)]] * 3)
    noisy = [s.model_copy(update={"blocks": [[0.1] * 8 + [0.2] * 2]}) for s in measured(FUSED, 0.1).series]
    bad = side(*[[measured(FUSED, None, series=noisy)]] * 3)
    assert rows(good, bad)[FUSED].code == "noise"


def test_roof_and_control_are_compared_and_do_not_count() -> None:
    run = [[measured(FUSED, 0.1), measured(ROOF, 0.05), control()]] * 2
    found = rows(side(*run), side(*run))
    assert {name: row.counts for name, row in found.items()} == {FUSED: True, ROOF: False, CONTROL: False}


def test_only_judged_series_that_both_have_are_rows() -> None:
    a = side([measured(FUSED, {COLD: 0.1, HOST: 0.1}), measured("torch-eager", {COLD: 0.1})])
    b = side([measured(FUSED, {COLD: 0.1, HOST: 0.1}), measured("torch-native", {COLD: 0.1})])
    found = compare(a, b)
    assert [(row.profile, row.timer) for row in found.rows] == [(FUSED, "graph")]
    assert (found.only_a, found.only_b) == (1, 1)


def test_each_run_is_quoted_by_the_attempt_that_stands() -> None:
    noisy, quiet = side(*[[measured(FUSED, 0.9)]] * 3), side(*[[measured(FUSED, 0.2)]] * 3, attempt=1)
    both = Side(noisy.manifest, [*noisy.pooled, *quiet.pooled], [*noisy.records, *quiet.records])
    other = side(*[[measured(FUSED, 0.1)]] * 3)
    assert rows(both, other)[FUSED].speedup == pytest.approx(2.0)
    cut = side([measured(FUSED, 0.5)], attempt=2)
    three = Side(noisy.manifest, [*both.pooled, *cut.pooled], [*both.records, *cut.records])
    assert rows(three, other)[FUSED].speedup == pytest.approx(2.0)


def test_a_series_that_the_second_lost_is_told_with_its_reason() -> None:
    both = [measured(FUSED, {COLD: 0.1, WALL: 0.2}), measured("torch-eager", {COLD: 0.2})]
    profiles = manifest(profiles=[FUSED, "torch-eager"])
    a = side(both, of=profiles)
    uncaptured = measured(FUSED, {WALL: 0.2}, notes=["no graph: it synchronizes"])
    failed = measured("torch-eager", None, status=Status.FAILED, reason="it raised")
    assert sorted(compare(a, side([uncaptured, failed], of=profiles)).lost) == [
        f"torch-eager at {CASE.name} was not timed in B: it raised",
        f"{FUSED} at {CASE.name} was not timed in B in the series graph cold: no graph: it synchronizes",
    ]
    assert compare(a, side(both, of=profiles)).lost == []


@pytest.mark.parametrize(("probe_ms", "code"), [(1.0101, "clock"), (1.0099, "above-delta")])
def test_another_clock_on_the_same_card_is_noise(probe_ms: float, code: str) -> None:
    def run(ms: float, probe: float, of: Environment = GPU) -> Side:
        processes = []
        for _ in range(3):
            one = measured(FUSED, ms)
            series = [s.model_copy(update={"probes_ms": [probe]}) for s in one.series]
            processes.append([one.model_copy(update={"series": series})])
        return side(*processes, of=manifest(of))

    assert rows(run(0.2, 1.0), run(0.1, probe_ms))[FUSED].code == code
    assert rows(run(0.2, probe_ms), run(0.1, 1.0))[FUSED].code == code
    another = GPU.model_copy(update={"device_uuid": "another"})
    two_cards = rows(run(0.2, 1.0), run(0.1, probe_ms, another), "machine")
    assert two_cards[FUSED].code == "above-delta", "each has its own clock"


def test_nothing_in_common_says_what_each_has() -> None:
    asked = manifest(run_id="b", profiles=["torch-eager"])
    a, b = side([measured(FUSED, 0.1)]), side([measured("torch-eager", 0.1)], of=asked)
    with pytest.raises(SpecError, match=f"no row in common: a has {FUSED} at {CASE.name}; b has torch-eager at"):
        compare(a, b)
    empty = side([measured(FUSED, None, status=Status.CHECKED, reason="r")])
    with pytest.raises(SpecError, match="a has no timed row"):
        compare(empty, b)


ODD: dict[str, dict[str, object]] = {
    "device": {"device_name": "another", "cache_bytes": 1},
    "machine": {"device_uuid": "x"},
    "clocks": {"power_limit_w": 100.0},
    "driver": {"driver": "2"},
    "torch": {"torch": "3"},
    "triton": {"triton": "4"},
    "inductor": {"inductor": {"multi_kernel": 1}},
    "peers": {"peers": {"liger": "1"}},
    "python": {"python": "4"},
    "commit": {"commit": "c"},
}


@pytest.mark.parametrize("name", [*ODD, "quick"])
def test_unlike_runs_are_refused_by_name_unless_allowed(name: str) -> None:
    other = manifest(GPU.model_copy(update=ODD.get(name, {})), run_id="b", quick=name == "quick")
    with pytest.raises(Unlike, match=f"a and b are unlike: .* add --allow {name}$"):
        check_alike(manifest(), other)
    for allowed in ([name], ["all"], [*MUST_MATCH]):
        check_alike(manifest(), other, allowed)
    with pytest.raises(Unlike):
        check_alike(manifest(), other, [each for each in MUST_MATCH if each != name])


def test_every_difference_is_named_with_both_values_and_its_remedy() -> None:
    other = manifest(GPU.model_copy(update=ODD["torch"] | ODD["driver"] | ODD["device"]), run_id="b")
    with pytest.raises(Unlike) as caught:
        check_alike(manifest(), other)
    assert str(caught.value) == (
        "a and b are unlike: device_name a GPU / another; cache_bytes 1048576 / 1; driver 1 / 2; torch 2 / 3. "
        "To compare them all the same add --allow device --allow driver --allow torch (or --allow all)"
    )


def test_every_fact_of_an_environment_must_match() -> None:
    """A fact that is added to the environment and to no name would be let through unseen."""
    named = {fact for facts in MUST_MATCH.values() for fact in facts}
    assert named - {"quick"} == set(Environment.model_fields) - {"device_index"}


def test_a_case_that_the_second_card_of_a_run_measured_is_judged_by_that_card() -> None:
    """Once by the first: all of them were invalid, as if the software had changed meanwhile."""
    first, second = (GPU.model_copy(update={"device_uuid": uuid}) for uuid in ("one", "two"))
    both = manifest(first, further=[second])
    made = recorded([[measured(FUSED, 0.1)]] * 3, of=second)
    records = [record for record, _ in made]
    two = Side(both, conclude(records, reader(made), both).pooled, records)
    one = side(*[[measured(FUSED, 0.1)]] * 3, of=manifest(first))
    assert rows(one, two, "machine")[FUSED].label is Label.NO_DIFFERENCE
    assert rows(two, one, "machine")[FUSED].label is Label.NO_DIFFERENCE


def test_an_unknown_permission_and_a_run_from_nowhere_are_errors() -> None:
    with pytest.raises(SpecError, match="--allow 'cuda' is unknown: choose from device, machine"):
        check_alike(manifest(), manifest(), ["cuda"])
    with pytest.raises(SpecError, match="does not say where it took place"):
        check_alike(manifest(), manifest(None))
    with pytest.raises(Unlike, match="device cuda / cpu"):
        check_alike(manifest(), manifest(CPU))


def test_the_summary_is_one_sentence() -> None:
    def run(fused: float, roof: float) -> Side:
        return side(*[[measured(FUSED, fused), measured("torch-eager", 0.3), measured(ROOF, roof)]] * 3)

    assert summary(compare(run(0.2, 0.1), run(0.1, 0.1)), "a", "b") == (
        "b against a, 2 rows: 1 faster, 1 no difference."
    )
    moved = compare(run(0.1, 0.1), run(0.2, 0.2))
    assert summary(Comparison(moved.rows, 1, 2), "a", "b") == (
        "b against a, 2 rows: 1 slower, 1 no difference; the roof itself changed in 1 of 1 series, so the machine did "
        "too; 1 row is in a alone; 2 rows are in b alone."
    )
