"""How far an experiment is: computed from the runs that speak for its cases."""

from datetime import date
from pathlib import Path

from made import CASE, FUSED
from speaking import (
    EAGER,
    NATIVE,
    OTHER,
    kept,
)

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.boundary import covered
from norm_fusion.evidence.experiments import experiment, needed
from norm_fusion.evidence.selection import Selected, select
from norm_fusion.runs import suites
from norm_fusion.runs.suites import Option, Suite
from norm_fusion.spec import Case

TODAY = date(2026, 11, 29)


SMALL, WIDE = Case.parse("rmsnorm-8x64-float16"), Case.parse("rmsnorm-8x128-float16")


def suite(*cases: Case, **options: Case) -> Suite:
    return Suite(
        **dict.fromkeys(("name", "title", "question", "why", "project", "focus"), "x"),
        cases=cases or (CASE, SMALL),
        profiles=("torch-baseline", NATIVE, FUSED, "triton-fused-layernorm"),
        options={name: Option("", (case,)) for name, case in options.items()},
    )


def readiness(parent: Path, of: Suite) -> tuple[str, str]:
    found = experiment(of, Archive([parent])).readiness
    return found.state, found.sentence


def test_who_has_to_be_there_of_a_suite() -> None:
    assert needed(suite(), CASE) == [EAGER, NATIVE, FUSED]
    assert needed(suite(), Case.parse("layernorm-1x1-float32")) == [NATIVE, "triton-fused-layernorm"]


def test_readiness_is_computed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    assert readiness(runs, suite()) == ("planned", "no run has measured any of its cases")
    kept(runs, "cut", day=20, state="interrupted")
    kept(runs, "two", day=19, processes=2)
    assert readiness(runs, suite()) == ("blocked", "no run may speak: cut is interrupted")
    kept(runs, "one", day=21)
    assert readiness(runs, suite()) == ("partial", "1 of 2 cases have a run that passes its gates")
    kept(runs, "lacking", {EAGER: 0.2, FUSED: 0.1}, cases=[SMALL], day=21)
    assert readiness(runs, suite())[0] == "partial"
    kept(runs, "all", cases=[SMALL], of=OTHER, day=22)
    assert readiness(runs, suite()) == ("ready", "all 2 cases have a run that passes its gates")
    wide = suite(CASE, SMALL, wide=WIDE, again=CASE)
    assert readiness(runs, wide) == ("ready", "all 2 cases have a run that passes its gates; 1 optional case has none")
    kept(runs, "wide", cases=[WIDE], day=18)
    assert readiness(runs, wide)[1] == "all 2 cases have a run that passes its gates"
    found = experiment(wide, Archive([runs]))
    assert [run.name for run in found.runs] == ["all", "one", "wide"]
    assert found.latest == "2026-11-22T10:00:00+00:00"
    assert experiment(suite(), Archive([])).latest is None


def test_an_experiments_boundary_is_of_its_runs(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run")
    selected: list[Selected] = select(Archive([tmp_path / "runs"]).runs, CASE.name)
    bounds = covered(selected, [EAGER, NATIVE], Archive([tmp_path / "runs"]), TODAY)
    found = {bound.about: bound.sentence for bound in reversed(bounds)}
    assert found["baselines"] == "Not compared with torch-compile, torch-compile-max."
    assert {"shapes", "dtypes", "passes", "GPUs", "software", "age", "harness"} <= found.keys()


def test_every_suite_has_a_readiness_by_the_committed_evidence() -> None:
    archive = Archive([Path(__file__).parents[2] / "evidence"])
    for name in suites.names():
        found = experiment(suites.load(name), archive)
        assert found.readiness.state in ("planned", "blocked", "partial", "ready")
        assert all(one.run.manifest.state == "finished" for one in found.selected)
    assert archive.unreadable == archive.damaged == []
