"""Hardware counters at the end of a run: kept as they come, apart from all timing; what lacks is asked for again."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from workers import CASES, FIRST, SECOND, Verdicts, Watching, plan, run, worker

from norm_fusion import engine, profiling
from norm_fusion.engine import processes
from norm_fusion.engine.cards import Here
from norm_fusion.records import Counters, Status
from norm_fusion.runs import resume
from norm_fusion.runs.store import RunStore

CELLS = ((FIRST, "torch-eager"), (SECOND, "torch-eager"))


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "Verifier", Verdicts)
    worker(monkeypatch)


def counted(
    monkeypatch: pytest.MonkeyPatch, misdeed: Callable[[str], None] = lambda case: None
) -> list[Sequence[object]]:
    """From now on cells are counted by this; returns whose are asked for, each time."""
    asked: list[Sequence[object]] = []

    def profile(cells: Sequence[tuple[str, str]], **more: object) -> Iterator[Counters]:
        asked.append(cells)
        for case, name in cells:
            misdeed(case)
            more["progress"](case, f"count {name}")  # type: ignore[operator]
        for case, name in cells:
            yield Counters(
                run_id=str(more["run_id"]),
                case=case,
                profile=name,
                status=Status.OK,
                dram_pct=40.0,
                compulsory_bytes=1,
                fingerprint=str(more["fingerprint"]),
            )

    monkeypatch.setattr(profiling, "profile", profile)
    return asked


def events(store: RunStore) -> list[str]:
    return [event["event"] for event in store.events()]


def test_counters_are_kept_after_all_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, listener = counted(monkeypatch), Watching()
    outcome, store = run(tmp_path, plan(profiled=CELLS), listener)
    assert asked == [CELLS] and outcome.exit_code == 0
    kept = list(store.counters())
    assert [(one.case, one.profile, one.run_id) for one in kept] == [(*cell, "a") for cell in CELLS]
    assert outcome.counters == kept
    assert {one.fingerprint for one in kept} == {record.fingerprint for record in store.records()}
    assert events(store) == ["began", *["measured"] * len(CASES), "done", "counted", "counted", "finished"]
    assert listener.of("step")[-2:] == [(FIRST, "count torch-eager"), (SECOND, "count torch-eager")]


def test_a_run_that_lacks_counters_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch)
    told = profiling.profile
    monkeypatch.setattr(profiling, "profile", lambda cells, **more: list(told(cells, **more))[:1])
    outcome, store = run(tmp_path, plan(profiled=CELLS))
    assert (outcome.exit_code, store.manifest().state) == (3, "partial")
    left = resume.left(store, store.manifest(), CASES, mixed=False, retry_failed=False)
    assert (left.cases, left.profiled) == ((), CELLS[1:])


def test_an_interruption_costs_the_counters_alone_and_these_are_collected_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch, lambda case: os.kill(os.getpid(), signal.SIGINT))
    outcome, store = run(tmp_path, plan(profiled=CELLS))
    assert outcome.exit_code == 128 + signal.SIGINT
    assert (store.manifest().state, len(store.manifest().done)) == ("interrupted", len(CASES))
    before = {path.name: path.stat().st_mtime_ns for path in store.record_files()}
    asked = counted(monkeypatch)
    left = resume.left(store, store.manifest(), CASES, mixed=False, retry_failed=False)
    assert (left.cases, left.profiled) == ((), CELLS)
    again = engine.Run(plan(profiled=CELLS).of((), left.profiled), left.manifest, lambda: store, Watching())
    (outcome,) = engine.carry_out([again], Here())
    assert outcome.exit_code == 0 and asked == [CELLS]
    assert store.manifest().state == "finished"
    assert {path.name: path.stat().st_mtime_ns for path in store.record_files()} == before
    assert [(one.case, one.profile) for one in store.counters()] == list(CELLS)
    assert resume.left(store, store.manifest(), CASES, mixed=False, retry_failed=False).profiled == ()
