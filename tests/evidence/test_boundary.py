"""What evidence does not cover, when a decision ends, and how far an experiment is, sentence by sentence."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import pytest
from made import CASE, FUSED
from speaking import (
    CLEAN,
    COMPILE,
    EAGER,
    HOT,
    NATIVE,
    OF_EXAMPLE,
    OTHER,
    SUITE,
    USUAL,
    evidence,
    example,
    judged,
    kept,
    toml,
)

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.boundary import NAMED, Bound, day, named, of_decision
from norm_fusion.evidence.deciding import decide
from norm_fusion.evidence.decisions import load
from norm_fusion.evidence.expiry import expired, expires, last_day
from norm_fusion.evidence.verdicts import RULE
from norm_fusion.records import Conclusions, Environment, HarnessCheck, HarnessReport
from norm_fusion.runs.files import as_json
from norm_fusion.spec import CONTROL, ROOF, Case

TODAY = date(2026, 11, 29)


def boundary(parent: Path, as_of: date = TODAY, **claims: Mapping[str, object]) -> dict[str, list[str]]:
    """The sentences of a decision, by what they are about."""
    one = judged(parent, **claims)
    return by_subject(of_decision(one, Archive([parent]), as_of))


def by_subject(bounds: Sequence[Bound]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for bound in bounds:
        found.setdefault(bound.about, []).append(bound.sentence)
    return found


def test_every_line_of_a_usual_decision(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", day=25)
    assert boundary(tmp_path / "runs", a={}) == {
        "shapes": ["Its evidence of rmsnorm is in float16 at 1,024 rows of 1,024 columns: of no other shape."],
        "dtypes": ["None of it is of rmsnorm in bfloat16 or float32."],
        "passes": ["None of it is of the backward pass of rmsnorm."],
        "GPUs": ["All of it is of a GPU: nothing here says how another model of GPU would do."],
        "baselines": [
            "Not compared with torch-native, torch-compile, torch-compile-max.",
            "No other library's kernel was measured beside PyTorch's.",
        ],
        "software": [
            "Measured with PyTorch 2; Triton 3; driver 1; commit cccccccccc: another version may do otherwise."
        ],
        "age": ["Measured on 2026-11-25, 4 days before 2026-11-29."],
        "harness": ["The lab itself was not checked on a GPU: no whole check-harness is kept."],
    }


def test_rows_that_do_not_hold_or_are_undecided_are_named_with_their_label(tmp_path: Path) -> None:
    small = Case.parse("rmsnorm-8x64-float16")
    kept(tmp_path / "runs", "run", cases=[CASE, small])
    kept(tmp_path / "runs", "hot", cases=[small], day=21, odd={EAGER: {"events": [HOT]}})
    found = boundary(
        tmp_path / "runs",
        a={},
        some={"boundary": True, "cases": ["rmsnorm-*x*-*"], "baseline": EAGER, "at_most": 1.5},
        all={"boundary": True, "baseline": COMPILE},
        none={"boundary": True, "baseline": NATIVE, "series": "eager"},
        shown={"boundary": True, "metric": "p50_ms", "baseline": None, "at_most": 1},
    )
    assert found["undecided"] == [
        f"“a is so”: undecided in 1 of 2 rows (rerun noise): {small.name}.",
        f"“some is so”: does not hold in 1 of 2 rows (supported): {CASE.name}.",
        f"“some is so”: undecided in 1 of 2 rows (rerun noise): {small.name}.",
        f"“all is so”: holds nowhere (no difference): {small.name}, {CASE.name}.",
        f"“none is so”: undecided everywhere (no call over {NATIVE} in this series): {small.name}, {CASE.name}.",
    ]


def test_cases_that_no_run_may_speak_for_are_a_line(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run")
    kept(tmp_path / "runs", "few", cases=[Case.parse("rmsnorm-8x64-float16")], processes=4)
    (said,) = boundary(tmp_path / "runs", a={})["runs"]
    assert said == "No run may speak for rmsnorm-8x64-float16 on a GPU: few measured it in 4 processes, 5 are needed."


def test_what_an_older_run_decides_otherwise_is_a_line(tmp_path: Path) -> None:
    slow = USUAL | {FUSED: 0.4}
    for on, times in enumerate((slow, USUAL, slow, USUAL), start=20):
        kept(tmp_path / "runs", f"run-{on}", times, day=on)
    both = boundary(tmp_path / "runs", a={}, open={"boundary": True, "baseline": NATIVE, "series": "eager"})
    assert both["runs"] == [
        f"“a is so” at {CASE.name}: holds by run-23, the newest run; does not hold by the older run-22 (0.5), "
        "run-20 (0.5)."
    ]


def test_where_the_kernels_own_time_decides_otherwise_is_a_line(tmp_path: Path) -> None:
    series = [("graph", "cold"), ("device", "cold")]
    kept(tmp_path / "runs", "run", series=series)
    assert "series" not in boundary(tmp_path / "runs", a={})
    store = kept(tmp_path / "other", "run", series=series)
    stored = store.conclusions()
    assert stored is not None
    far = {"speedup": 1.0, "low": 0.999, "high": 1.001, "label": "no difference"}
    calls = [call.model_copy(update=far) if call.timer == "device" else call for call in stored.calls]
    store.write_conclusions(Conclusions.model_validate(stored.model_copy(update={"calls": calls}).model_dump()))
    assert boundary(tmp_path / "other", a={})["series"] == [
        f"“a is so” at {CASE.name}: holds in CUDA graphs, and does not hold by the kernels' own time "
        "(1x, no difference)."
    ]


def test_shapes_are_told_by_operator_pass_and_dtype(tmp_path: Path) -> None:
    texts = ["64x128-float16", "64x4096-float16", "8x128-float16", "64x128-float32", "backward-8x8-float16"]
    cases = [Case.parse(f"rmsnorm-{text}") for text in texts]
    kept(tmp_path / "runs", "run", {EAGER: 0.2, FUSED: 0.1}, cases=cases)
    found = boundary(tmp_path / "runs", a={}, b={"cases": ["rmsnorm-backward-*x*-*"]})
    assert found["shapes"] == [
        "Its evidence of rmsnorm is in float16 at 3 shapes, 8 to 64 rows of 128 to 4,096 columns; in float32 at 64 "
        "rows of 128 columns: of no shape between or beyond these.",
        "Its evidence of rmsnorm backward is in float16 at 8 rows of 8 columns: of no other shape.",
    ]
    assert found["dtypes"] == [
        "None of it is of rmsnorm in bfloat16.",
        "None of it is of rmsnorm backward in bfloat16 or float32.",
    ]
    assert "passes" not in found


def test_dtypes_of_the_same_shapes_are_told_at_once(tmp_path: Path) -> None:
    cases = [Case.parse(f"rmsnorm-64x{cols}-{dtype}") for cols in (64, 128) for dtype in ("float32", "bfloat16")]
    kept(tmp_path / "runs", "run", {EAGER: 0.2, FUSED: 0.1}, cases=cases)
    (said,) = boundary(tmp_path / "runs", a={})["shapes"]
    assert said.startswith(
        "Its evidence of rmsnorm is in bfloat16 and float32 at 2 shapes, 64 rows of 64 to 128 columns:"
    )


def test_a_case_that_one_of_two_gpus_lacks_is_named(tmp_path: Path) -> None:
    small = Case.parse("rmsnorm-8x64-float16")
    kept(tmp_path / "runs", "a", cases=[CASE, small])
    kept(tmp_path / "runs", "b", of=OTHER)
    assert boundary(tmp_path / "runs", a={})["GPUs"] == [
        "All of it is of a GPU and another GPU: nothing here says how another model of GPU would do.",
        f"Not measured on another GPU: {small.name}.",
    ]


def test_who_is_the_fastest_was_compared_with_all_that_were_measured(tmp_path: Path) -> None:
    small = Case.parse("rmsnorm-8x64-float16")
    kept(tmp_path / "runs", "run", USUAL | {"torch-compile-max": 0.12})
    kept(tmp_path / "runs", "small", {NATIVE: 0.15, COMPILE: 0.11, FUSED: 0.1}, cases=[small])
    assert boundary(tmp_path / "runs", a={"baseline": "fastest"})["baselines"] == [
        f"Not compared with {EAGER} at {small.name}.",
        f"Not compared with torch-compile-max at {small.name}.",
        "No other library's kernel was measured beside PyTorch's.",
    ]
    alone = boundary(tmp_path / "runs", a={"baseline": "fastest", "cases": [CASE.name]})
    assert alone["baselines"] == ["No other library's kernel was measured beside PyTorch's."]


@pytest.mark.parametrize(
    ("more", "none"),
    [({"liger-rmsnorm": 0.1}, False), ({"mine:norm": 0.1, CONTROL: 0.1, ROOF: 0.05}, True)],
)
def test_another_librarys_kernel_is_one_that_was_measured(tmp_path: Path, more: dict[str, float], none: bool) -> None:
    odd = {CONTROL: {"control_of": FUSED}} if CONTROL in more else {}
    kept(tmp_path / "runs", "run", USUAL | more, odd=odd)
    said = boundary(tmp_path / "runs", a={})["baselines"]
    assert ("No other library's kernel was measured beside PyTorch's." in said) is none


def test_figures_of_counters_have_no_baseline_and_a_matrix_product_no_shape_of_ours(tmp_path: Path) -> None:
    product = "matmul-8x16x32-float16"
    kept(tmp_path / "runs", "run", counters={"triton-matmul": {"tensor_pct": 70.0}}, counted=[product])
    claim = {"metric": "tensor_pct", "at_most": 90, "baseline": None, "profile": "triton-matmul"}
    found = boundary(tmp_path / "runs", a=claim | {"cases": [product]})
    assert found["shapes"] == ["Its evidence of matrix products is of matmul-8x16x32-float16: of no other."]
    assert {"dtypes", "passes", "baselines"} & found.keys() == set()


@pytest.mark.parametrize(
    ("as_of", "days", "says"),
    [
        (date(2026, 11, 25), (25,), "Measured on 2026-11-25, the same day as 2026-11-25."),
        (date(2026, 11, 26), (25,), "Measured on 2026-11-25, a day before 2026-11-26."),
        (date(2026, 11, 29), (20, 25), "Measured from 2026-11-20 to 2026-11-25, the first 9 days before 2026-11-29."),
        (date(2027, 5, 24), (25,), "Measured on 2026-11-25, 180 days before 2027-05-24."),
        (
            date(2027, 5, 25),
            (25,),
            "Measured on 2026-11-25, 181 days before 2027-05-25, and is old: more than 180 days.",
        ),
        (date(2026, 11, 24), (25,), "Measured on 2026-11-25, after 2026-11-24: as of that day it has no age."),
        (date(1, 1, 1), (25,), "Measured on 2026-11-25, after 0001-01-01: as of that day it has no age."),
        (
            date(2026, 11, 22),
            (20, 25),
            "Measured from 2026-11-20 to 2026-11-25, not wholly before 2026-11-22: as of that day it has no age.",
        ),
    ],
)
def test_age_is_told_as_of_a_day(tmp_path: Path, as_of: date, days: Sequence[int], says: str) -> None:
    for i, one in enumerate(days):
        kept(tmp_path / "runs", f"r{one}", day=one, cases=[Case.parse(f"rmsnorm-{i + 1}x64-float16")])
    assert boundary(tmp_path / "runs", as_of, a={})["age"] == [says]


def test_a_day_that_is_none_is_the_first_of_all() -> None:
    assert (day("2026-11-25T23:00:00+00:00"), day("soon")) == (date(2026, 11, 25), date.min)


def test_many_names_are_counted() -> None:
    assert named(["a", "b", "a"]) == "a, b"
    assert named([str(i) for i in range(NAMED + 2)]) == "0, 1, 2, 3, 4, 5 and 2 more"


def test_an_examples_boundary_says_what_it_has_not(tmp_path: Path) -> None:
    example(tmp_path / "runs", processes=3)
    found = boundary(tmp_path / "runs", a=OF_EXAMPLE, b=OF_EXAMPLE | {"series": "eager", "boundary": True})
    case = "llama block, hidden 64, 8 tokens, forward"
    assert found.pop("undecided")[0].startswith("“b is so”: holds nowhere (95% interval 1.000 to 1.000")
    assert found == {
        "shapes": [
            f"The example block is of {case}, in 3 processes, and of no other size; it has no control, and no "
            "correctness is judged."
        ],
        "GPUs": ["It was measured on a GPU alone: nothing here says how another model of GPU would do."],
        "age": ["Nothing tells when it was measured: its age is not judged."],
        "harness": ["The lab itself was not checked on a GPU: no whole check-harness is kept."],
    }
    kept(tmp_path / "runs", "run")
    both = boundary(tmp_path / "runs", a=OF_EXAMPLE, b={})
    assert (len(both["GPUs"]), len(both["age"]), len(both["harness"])) == (2, 2, 1)
    assert all(case not in said for said in both["baselines"])


# How the lab stood


def report(
    parent: Path, name: str, of: Environment = CLEAN, day: int = 20, reduced: bool = False, **checks: object
) -> None:
    """A check of the harness on a day of November; `checks`: by name, with _ for a space."""
    found = [
        HarnessCheck.model_validate({"name": key.replace("_", " "), "passed": one, "wanted": "", "found": ""})
        for key, each in checks.items()
        for one in (each if isinstance(each, tuple) else (each,))
    ]
    at = f"2026-11-{day:02}T10:00:00+00:00"
    told = {"run_id": name, "command": [], "reduced": reduced, "rule": RULE, "started_at": at, "finished_at": at}
    made = HarnessReport.model_validate(told | {"environment": of, "checks": found})
    (parent / name).mkdir(parents=True)
    (parent / name / "harness.json").write_bytes(as_json(made))


def test_of_each_check_of_the_lab_the_nearest_in_time_counts(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    kept(runs, "run", day=15)
    report(runs, "before", day=10, floor=False, sabotage=True, breakage=True)
    report(runs, "after", day=19, floor=True, known_answer=True)
    report(runs, "late", day=28, floor=False, sabotage=False)
    report(runs, "elsewhere", OTHER, day=15, floor=False)
    report(runs, "quick", day=15, reduced=True, floor=False)
    assert boundary(runs, a={})["harness"] == [
        "Checks of the lab on a GPU: breakage, sabotage passed on 2026-11-10; floor, known answer passed on 2026-11-19."
    ]


@pytest.mark.parametrize(
    ("passed", "says"),
    [
        ((True, True), "A/A passed on 2026-11-20"),
        ((True, False, True), "A/A FAILED on 2026-11-20"),
        ((None, False), "A/A FAILED on 2026-11-20"),
        ((False, None), "A/A FAILED on 2026-11-20"),
        ((True, None), "A/A could not be tried on 2026-11-20"),
    ],
)
def test_of_several_checks_of_one_name_the_worst_is_told(tmp_path: Path, passed: tuple[bool, ...], says: str) -> None:
    kept(tmp_path / "runs", "run")
    report(tmp_path / "runs", "check", **{f"A/A:_{i}": one for i, one in enumerate(passed)})
    assert boundary(tmp_path / "runs", a={})["harness"] == [f"Checks of the lab on a GPU: {says}."]


def test_a_check_that_could_not_be_tried_hides_none_that_was(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", day=20)
    report(tmp_path / "runs", "near", day=20, second=None, third=None)
    report(tmp_path / "runs", "far", day=1, second=False)
    assert boundary(tmp_path / "runs", a={})["harness"] == [
        "Checks of the lab on a GPU: second FAILED on 2026-11-01; third could not be tried on 2026-11-20."
    ]


def test_of_two_checks_on_one_day_the_newest_counts(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run", day=20)
    report(tmp_path / "runs", "old", day=19, floor=False)
    report(tmp_path / "runs", "new", day=21, floor=True)
    assert "floor passed on 2026-11-21" in boundary(tmp_path / "runs", a={})["harness"][0]


# Expiry


def test_what_ends_a_decision(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "old", day=20)
    kept(
        tmp_path / "runs",
        "new",
        day=25,
        cases=[Case.parse("rmsnorm-8x8-float16")],
        of=CLEAN.model_copy(update={"torch": "3"}),
    )
    one = judged(tmp_path / "runs", a={})
    assert last_day(one.decision, one.decided) == date(2027, 2, 28)
    assert expires(one.decision, one.decided) == (
        "Decide anew with another GPU than a GPU; another driver than 1; another PyTorch than 2 or 3; another Triton "
        "than 3; the day after 2027-02-28, 100 days after its oldest run."
    )

    def warned(as_of: date, **here: str) -> list[str]:
        return list(expired(one.decision, one.decided, as_of, here))

    assert warned(date(2027, 2, 28)) == warned(date.min) == []
    assert warned(date(2027, 3, 1)) == ["Fused is 1 days past its age: its evidence counted until 2027-02-28"]
    assert len(warned(date.max)) == 1
    assert warned(TODAY, gpu="a GPU", driver="1", torch="3", triton="3") == []
    assert warned(TODAY, gpu="b", driver="2", torch="4", triton="2") == [
        "Fused: GPU is b here, its evidence is of a GPU",
        "Fused: driver is 2 here, its evidence is of 1",
        "Fused: PyTorch is 4 here, its evidence is of 2 and 3",
        "Fused: Triton is 2 here, its evidence is of 3",
    ]


def test_a_decision_may_name_few_triggers_or_none(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run")
    path = tmp_path / "a.toml"
    whole = toml(a={})
    path.write_text(whole.replace('when = ["gpu", "driver", "torch", "triton"]\ndays = 100', 'when = ["torch"]'))
    one = decide(load(path, [SUITE]), evidence(tmp_path / "runs"))
    assert expires(one.decision, one.decided) == "Decide anew with another PyTorch than 2."
    assert len(list(expired(one.decision, one.decided, date.max, {"gpu": "b", "torch": "4"}))) == 1
    path.write_text(whole.replace('[expires]\nwhen = ["gpu", "driver", "torch", "triton"]\ndays = 100\n', ""))
    one = decide(load(path, [SUITE]), evidence(tmp_path / "runs"))
    assert expires(one.decision, one.decided) == "Nothing ends it: it names no expiry."


def test_days_that_cannot_be_counted_are_told(tmp_path: Path) -> None:
    example(tmp_path / "runs")
    one = judged(tmp_path / "runs", a=OF_EXAMPLE)
    assert last_day(one.decision, one.decided) is None
    assert expires(one.decision, one.decided).endswith(". Its 100 days cannot be counted: nothing tells its age.")
    late = one.decided.model_copy(update={"oldest": "9999-12-01T00:00:00"})
    assert last_day(one.decision, late) == date.max
