"""The engine with a run that is there: what is missing is measured, and only that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workers import CASES, ENVIRONMENT, FIRST, SECOND, THIRD, Verdicts, Watching, plan, run, told_by, worker

from norm_fusion import engine
from norm_fusion.engine import processes
from norm_fusion.engine.cards import Here
from norm_fusion.runs import aside, resume
from norm_fusion.runs.plan import SPENT
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import SpecError

TWO = ("torch-eager", "torch-native")


@pytest.fixture(autouse=True)
def verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "Verifier", Verdicts)


def go_on(folder: Path, asked: engine.Plan, listener: Watching | None = None) -> engine.Outcome:
    """Go on with the run in `folder`, as its records are."""
    store = RunStore.open("a", folder)
    manifest = store.manifest()
    earlier = [
        (r, store.samples(r) if r.samples_file else None) for r in store.records() if r.case not in manifest.done
    ]
    cases = [case for case in asked.cases if case.name not in manifest.done]
    crew = Here()
    run_ = engine.Run(asked.of(cases), manifest, lambda: store, listener or Watching(), earlier)
    return engine.carry_out([run_], crew)[0]


def forgotten(store: RunStore, *files: str, done: tuple[str, ...] = ()) -> None:
    """As if the run had ended before it wrote these files of records, and that more cases than `done` are."""
    for name in files:
        (store.path / "records" / name).unlink()
        (store.path / "samples" / f"{name}.gz").unlink()
    lines = [line for line in store.sum_lines() if not any(name in line for name in files)]
    store.write_sum_lines(lines)
    changes = {"state": "running", "done": list(done), "finished_at": None}
    store.write_manifest(store.manifest().model_copy(update=changes))


def test_a_budget_that_ended_a_run_too_early_is_told_at_once_and_the_same_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, "time.sleep(0.3)")
    listener, asked = Watching(), plan(*TWO, quick=False, fewest=3, most=3, budget_s=0.5)
    _, store = run(tmp_path, asked, listener)
    manifest = store.manifest()
    assert (manifest.state, manifest.short, manifest.done) == ("finished", [FIRST, SECOND, THIRD], manifest.cases)
    assert manifest.processes < 3
    (told,) = [text for text in listener.notes if "goes on" in text]
    assert "3 processes need about" in told and told not in manifest.notes
    assert any(SPENT in note for note in manifest.notes)

    left = resume.left(store, manifest, CASES, mixed=False, retry_failed=False)
    assert {case.name for case in left.cases} == {FIRST, SECOND, THIRD}
    asked = replace(asked.of(left.cases), budget_s=None)
    outcome = engine.carry_out([engine.Run(asked, left.manifest, lambda: store, Watching(), left.earlier)], Here())[0]
    assert outcome.exit_code == 0
    manifest = store.manifest()
    assert (manifest.state, manifest.short, manifest.processes) == ("finished", [], 3)
    assert not any(SPENT in note for note in manifest.notes), "what is no longer so is not said"
    measured = [(record.case, record.replicate, record.profile) for record in store.records()]
    assert len(measured) == len(set(measured)) == 3 * 3 * len({name for _, _, name in measured})
    assert not resume.left(store, manifest, CASES, mixed=False, retry_failed=False).cases


def test_only_what_is_missing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    asked = plan(*TWO, quick=False, fewest=3, most=3)
    _, store = run(tmp_path, asked)
    whole = {record.key for record in store.records()}
    forgotten(store, f"{SECOND}.r2.json", f"{THIRD}.r1.json", f"{THIRD}.r2.json", done=(FIRST,))
    listener = Watching()
    outcome = go_on(tmp_path, asked, listener)
    assert outcome.exit_code == 0 and store.manifest().state == "finished"
    assert listener.of("measured") == [(THIRD, 2), (SECOND, 2), (THIRD, 2)]
    assert {record.key for record in store.records()} == whole
    assert set(store.manifest().done) == {FIRST, SECOND, THIRD}


def test_a_run_that_ended_before_it_said_so_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    _, store = run(tmp_path, plan(*TWO))
    forgotten(store)
    worker(monkeypatch, early="sys.exit(3)")  # nothing is left to be measured: none is started
    outcome = go_on(tmp_path, plan(*TWO))
    assert (outcome.exit_code, outcome.kept) == (0, True)
    assert (store.manifest().state, len(outcome.records)) == ("finished", 6)
    assert outcome.conclusions is not None


def test_another_machine_begins_anew_what_was_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    _, store = run(tmp_path, plan(*TWO, quick=False, fewest=2, most=2))
    forgotten(store, f"{SECOND}.r1.json", f"{THIRD}.r1.json", done=(FIRST,))
    other = ENVIRONMENT.model_copy(update={"torch": "3"})
    worker(monkeypatch, environment=other)
    outcome = go_on(tmp_path, plan(*TWO, quick=False, fewest=2, most=2))
    manifest = store.manifest()
    assert outcome.exit_code == 0 and manifest.environments == [ENVIRONMENT, other]
    by_case = {r.case: {one.fingerprint for one in store.records() if one.case == r.case} for r in store.records()}
    assert by_case == {FIRST: {ENVIRONMENT.fingerprint}, SECOND: {other.fingerprint}, THIRD: {other.fingerprint}}
    assert any("torch was 2, is 3" in note for note in manifest.notes)
    assert len(list((store.path / "aside" / "1" / "records").iterdir())) == 2


def test_only_what_was_measured_elsewhere_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a run of two cards, of which one is left."""
    worker(monkeypatch)
    asked = plan(*TWO, quick=False, fewest=2, most=2)
    _, store = run(tmp_path, asked)
    forgotten(store, f"{SECOND}.r1.json", f"{THIRD}.r1.json", done=(FIRST,))
    here = ENVIRONMENT.model_copy(update={"device_name": "the one that is left"})
    (second,) = (store.path / "records").glob(f"{SECOND}.*")
    moved = [r.model_copy(update={"fingerprint": here.fingerprint}) for r in store.records() if r.case == SECOND]
    samples = [store.samples(r) for r in moved]
    aside.set_aside(store, lambda record: record.case == SECOND)
    store.keep(SECOND, 0, 0, list(zip(moved, samples, strict=True)))
    store.write_manifest(store.manifest().model_copy(update={"further": [here]}))
    before = second.stat().st_mtime_ns
    worker(monkeypatch, environment=here)
    listener = Watching()
    assert go_on(tmp_path, asked, listener).exit_code == 0
    assert listener.of("measured") == [(THIRD, 2), (SECOND, 2), (THIRD, 2)], "the second case's first process stays"
    assert second.stat().st_mtime_ns == before
    by_case = {r.case: {one.fingerprint for one in store.records() if one.case == r.case} for r in store.records()}
    assert by_case[SECOND] == by_case[THIRD] == {here.fingerprint}


def test_a_cpu_does_not_go_on_with_what_a_gpu_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    asked = plan(*TWO, quick=False, fewest=2, most=2)
    _, store = run(tmp_path, asked)
    forgotten(store, f"{SECOND}.r1.json", f"{THIRD}.r1.json", done=(FIRST,))
    other = ENVIRONMENT.model_copy(update={"device": "cuda", "device_name": "NVIDIA H200"})
    store.write_manifest(store.manifest().model_copy(update={"environment": other}))
    with pytest.raises(SpecError, match="the run was begun on NVIDIA H200, and what there is here is"):
        go_on(tmp_path, asked)
    assert store.manifest().done == [FIRST] and len(store.record_files()) == 4


def test_a_refusal_ticks_no_case_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    asked = plan(*TWO, quick=False, fewest=2, most=2)
    _, store = run(tmp_path, asked)
    forgotten(store, f"{SECOND}.r1.json", done=(FIRST, THIRD))
    monkeypatch.setattr(processes, "WORKER", told_by([{"event": "refused", "message": "the card is taken"}]))
    with pytest.raises(SpecError, match="the card is taken"):
        go_on(tmp_path, asked)
    assert store.manifest().done == [FIRST, THIRD]


def test_who_ended_a_process_before_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = f"if (case, profile) == ({SECOND!r}, 'torch-native'): sys.exit(3)"
    worker(monkeypatch, dies)
    asked = plan(*TWO, quick=False, fewest=2, most=2)
    _, store = run(tmp_path, asked)
    forgotten(store, f"{SECOND}.r1.json", done=(FIRST, THIRD))
    listener = Watching()
    go_on(tmp_path, asked, listener)
    assert listener.of("measured") == [(SECOND, 1)], "without it, at once"
    assert len(listener.of("process")) == 1


def test_a_rerun_that_was_begun_is_ended_whatever_it_says_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what it found would decide how much of it there is."""
    asked = plan(*TWO, cases=CASES[:1], quick=False, fewest=5, most=5, reruns=1)
    noisy = "def ms(profile):\n    return 1.0 + 9 * (ATTEMPT == 0) * (NUMBER % 2)"
    worker(monkeypatch, before=noisy, misdeed="")
    monkeypatch.setattr(engine.session.verdicts, "needs_rerun", lambda calls: [FIRST] if calls else [])
    _, store = run(tmp_path, asked)
    assert len(list((store.path / "records").glob("*.a1.*"))) == 5
    forgotten(store, f"{FIRST}.a1.r3.json", f"{FIRST}.a1.r4.json")
    seen: list[int] = []

    def needs(calls: list[Any]) -> list[str]:
        seen.append(max((call.attempt for call in calls), default=0))
        return [FIRST]

    monkeypatch.setattr(engine.session.verdicts, "needs_rerun", needs)
    go_on(tmp_path, asked)
    assert seen == [0], "the attempt before decides"
    assert len(list((store.path / "records").glob("*.a1.*"))) == 5
