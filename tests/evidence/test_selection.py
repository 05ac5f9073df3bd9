"""Which run speaks for a case: the newest that passes its gates, on each model of GPU, whatever it found."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from made import CASE, CPU, FUSED, WALL
from speaking import CLEAN, COMPILE, EAGER, NATIVE, OTHER, USUAL, kept, summed

from norm_fusion.evidence.archive import LONGEST, Archive, Kept, moment
from norm_fusion.evidence.selection import OLDER, Selected, older, refusals, select, unheard
from norm_fusion.evidence.verdicts import RULE
from norm_fusion.records import SCHEMA, HarnessReport, Status
from norm_fusion.runs.files import as_json
from norm_fusion.runs.store import SUMMED, SUMS, RunStore
from norm_fusion.spec import FEWEST, Case

SMALL = Case.parse("rmsnorm-8x64-float16")
FAST, SLOW = USUAL | {FUSED: 0.05}, USUAL | {FUSED: 0.4}


def chosen(*parents: Path, case: str = CASE.name, **asked: object) -> dict[str, str]:
    """By model of GPU the run that speaks."""
    return {one.gpu: one.run.name for one in _select(*parents, case=case, **asked)}


def _select(*parents: Path, case: str = CASE.name, **asked: object) -> list[Selected]:
    return select(Archive(parents).runs, case, **asked)  # type: ignore[arg-type]


def passed_over(parent: Path, **asked: object) -> dict[str, str]:
    (one,) = _select(parent, **asked)
    return {run.name: why for run, why in one.passed_over}


@pytest.mark.parametrize("newest", [SLOW, FAST, {name: ms for name, ms in USUAL.items() if name != NATIVE}])
def test_the_newest_speaks_whatever_it_found(tmp_path: Path, newest: dict[str, float]) -> None:
    for day, (name, times) in enumerate({"z": FAST, "y": SLOW, "a": newest, "b": FAST}.items(), start=1):
        kept(tmp_path, name, times, day=day if name != "b" else 2)
    assert chosen(tmp_path) == {"a GPU": "a"}
    assert passed_over(tmp_path) == {"y": "older than a", "b": "older than a", "z": "older than a"}


def test_a_newest_run_of_a_kernel_that_is_wrong_still_speaks(tmp_path: Path) -> None:
    kept(tmp_path, "old", FAST, day=1)
    kept(tmp_path, "new", day=2, odd={FUSED: {"status": Status.WRONG, "reason": "r", "max_rel_error": 0.5}})
    assert chosen(tmp_path, profiles=[FUSED, NATIVE]) == {"a GPU": "new"}


def test_newest_is_by_the_moment_not_by_its_spelling(tmp_path: Path) -> None:
    kept(tmp_path, "a", started_at="2026-11-20T10:00:00+02:00")  # 08:00
    kept(tmp_path, "b", started_at="2026-11-20T09:00:00+00:00")
    kept(tmp_path, "c", started_at="2026-11-20T08:30:00")
    assert [run.name for run in Archive([tmp_path]).runs] == ["b", "c", "a"]
    assert moment("2026-11-20T10:00:00+02:00") == datetime(2026, 11, 20, 8, tzinfo=UTC)
    assert moment("now") is moment("") is moment("\ud800") is None


def test_a_tie_is_decided_by_name_and_told_as_one(tmp_path: Path) -> None:
    kept(tmp_path, "a", FAST)
    kept(tmp_path, "b", SLOW)
    assert chosen(tmp_path) == {"a GPU": "b"}
    assert passed_over(tmp_path) == {"a": "as old as b"}


DIRTY = CLEAN.model_copy(update={"dirty": True})
GATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "running": (lambda p: kept(p, "new", day=2, state="running"), "is running"),
    "interrupted": (lambda p: kept(p, "new", day=2, state="interrupted"), "is interrupted"),
    "partial": (lambda p: kept(p, "new", day=2, state="partial"), "is partial"),
    "blocked": (lambda p: kept(p, "new", day=2, state="blocked"), "is blocked"),
    "quick": (lambda p: kept(p, "new", day=2, quick=True), "is a quick run, without intervals"),
    "dirty": (lambda p: kept(p, "new", day=2, of=DIRTY), "was measured with uncommitted changes, or"),
    "unknown": (lambda p: kept(p, "new", day=2, of=CLEAN.model_copy(update={"dirty": None})), "or by code of no known"),
    "no commit": (lambda p: kept(p, "new", day=2, of=CLEAN.model_copy(update={"commit": None})), "or by code of no"),
    "second card": (
        lambda p: kept(p, "new", day=2, further=[DIRTY.model_copy(update={"device_uuid": "b"})]),
        "was measured with uncommitted changes",
    ),
    "few": (lambda p: kept(p, "new", day=2, processes=4), "measured it in 4 processes, 5 are needed"),
    "one": (lambda p: kept(p, "new", day=2, processes=1), "measured it in 1 process, 5 are needed"),
    "lacking": (lambda p: kept(p, "new", {EAGER: 0.2, FUSED: 0.1}, day=2), f"did not measure {NATIVE}"),
    "unavailable": (
        lambda p: kept(p, "new", USUAL | {NATIVE: 0.1}, day=2, odd={NATIVE: MISSING}),
        f"did not measure {NATIVE}",
    ),
    "texts": (
        lambda p: kept(p, "new", day=2, of=CLEAN.model_copy(update={"platform": "x" * (LONGEST + 1)})),
        "is damaged: its environment has a text of 301 characters",
    ),
    "no hashes": (lambda p: _without_hashes(p), "has no hashes of its files"),
    "older than hashes": (lambda p: _of_schema_2(p), "has no hashes of its files"),
}


def _without_hashes(parent: Path) -> None:
    store = kept(parent, "new", day=2)
    (store.path / SUMS).unlink()


def _of_schema_2(parent: Path) -> None:
    store = kept(parent, "new", day=2)
    store.write_manifest(store.manifest().model_copy(update={"schema_version": SUMMED - 1}))


MISSING = {"status": Status.UNAVAILABLE, "reason": "r", "series": [], "max_rel_error": None}


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_lets_the_next_one_speak_and_says_why(tmp_path: Path, gate: str) -> None:
    make, says = GATES[gate]
    kept(tmp_path, "old", day=1)
    make(tmp_path)
    assert chosen(tmp_path, profiles=[FUSED, NATIVE]) == {"a GPU": "old"}
    assert says in passed_over(tmp_path, profiles=[FUSED, NATIVE])["new"]
    (why,) = refusals(Archive([tmp_path]).runs, CASE.name, [FUSED, NATIVE])
    assert why.startswith("new ") and says in why


def test_older_runs_are_asked_that_pass_the_same_gates_and_not_more_than_eight(tmp_path: Path) -> None:
    kept(tmp_path, "quick", day=27, quick=True)
    kept(tmp_path, "new", day=26)
    kept(tmp_path, "few", day=25, processes=4)
    kept(tmp_path, "lacking", {EAGER: 0.2, FUSED: 0.1}, day=24)
    for day in range(1, OLDER + 3):
        kept(tmp_path, f"old-{day:02}", FAST if day % 2 else SLOW, day=day)
    (one,) = _select(tmp_path, profiles=[FUSED, NATIVE])
    found = older(one, [FUSED, NATIVE])
    assert one.run.name == "new"
    assert [other.run.name for other in found] == [f"old-{day:02}" for day in range(OLDER + 2, 2, -1)]
    assert {(other.case, other.gpu) for other in found} == {(CASE.name, "a GPU")}


def test_a_run_of_the_future_does_not_speak(tmp_path: Path) -> None:
    kept(tmp_path, "old", day=1)
    kept(tmp_path, "new", day=2, started_at="2999-01-01T00:00:00+00:00")
    assert chosen(tmp_path) == {"a GPU": "old"}
    assert passed_over(tmp_path) == {"new": "says that it began in the future"}


def test_what_is_not_asked_for_need_not_be_there(tmp_path: Path) -> None:
    kept(tmp_path, "old", day=1)
    kept(tmp_path, "new", {EAGER: 0.2, FUSED: 0.1}, day=2)
    assert chosen(tmp_path, profiles=[FUSED, EAGER]) == chosen(tmp_path) == {"a GPU": "new"}
    assert chosen(tmp_path, profiles=[COMPILE]) == {"a GPU": "old"}


def test_an_undated_run_speaks_for_nothing_however_it_is_spelled(tmp_path: Path) -> None:
    kept(tmp_path, "old", day=1)
    kept(tmp_path, "new", started_at="zzz")
    assert chosen(tmp_path) == {"a GPU": "old"}
    assert passed_over(tmp_path) == {"new": "does not say when it was measured"}


def test_as_many_processes_as_the_protocol_begins_with_are_enough(tmp_path: Path) -> None:
    kept(tmp_path, "a", processes=FEWEST)
    assert chosen(tmp_path) == {"a GPU": "a"}


def test_a_run_on_a_cpu_speaks_for_no_gpu(tmp_path: Path) -> None:
    cpu = CPU.model_copy(update={"commit": "c" * 40, "dirty": False})
    kept(tmp_path, "cpu", of=cpu, series=(WALL,))
    assert chosen(tmp_path) == {}
    assert list(refusals(Archive([tmp_path]).runs, CASE.name)) == ["cpu was not measured on a GPU"]
    assert unheard(Archive([tmp_path]).runs, CASE.name) == {}


def test_each_model_of_gpu_has_its_own(tmp_path: Path) -> None:
    kept(tmp_path, "a1", day=1)
    kept(tmp_path, "a2", day=2)
    kept(tmp_path, "b", SLOW, day=3, of=OTHER)
    assert chosen(tmp_path) == {"a GPU": "a2", "another GPU": "b"}
    one, other = _select(tmp_path)
    assert [run.name for run, _ in one.passed_over] == ["a1"] and other.passed_over == ()
    assert (one.environment.device_name, other.environment.device_name) == ("a GPU", "another GPU")
    assert {r.profile: r.p50_ms for r in other.rows}[FUSED] == pytest.approx(0.4, rel=0.01)


def test_each_case_is_of_the_card_that_measured_it(tmp_path: Path) -> None:
    kept(tmp_path, "both", cases=[CASE, SMALL], of={CASE.name: CLEAN, SMALL.name: OTHER})
    assert chosen(tmp_path) == {"a GPU": "both"}
    assert chosen(tmp_path, case=SMALL.name) == {"another GPU": "both"}
    (one,) = _select(tmp_path, case=SMALL.name)
    assert one.environment == OTHER


def test_counters_are_of_the_card_that_read_them(tmp_path: Path) -> None:
    counters = {FUSED: {"dram_pct": 60.0, "fingerprint": OTHER.fingerprint}}
    kept(tmp_path, "both", cases=[CASE, SMALL], of={CASE.name: CLEAN, SMALL.name: OTHER}, counters=counters)
    assert chosen(tmp_path, counted=True) == {"another GPU": "both"}
    assert _select(tmp_path, counted=True)[0].environment == OTHER


def test_counters_speak_for_themselves(tmp_path: Path) -> None:
    kept(tmp_path, "two", day=1, processes=2, counters={FUSED: {"dram_pct": 60.0}})
    kept(tmp_path, "timed", day=2)
    denied = {"status": Status.UNAVAILABLE, "reason": "not permitted"}
    kept(tmp_path, "denied", day=3, counters={FUSED: denied, NATIVE: {"dram_pct": 50.0}})
    assert chosen(tmp_path, counted=True, profiles=[FUSED]) == {"a GPU": "two"}
    assert passed_over(tmp_path, counted=True, profiles=[FUSED]) == {"denied": f"has no counters of {FUSED}"}
    assert chosen(tmp_path, counted=True) == {"a GPU": "denied"}
    assert chosen(tmp_path) == {"a GPU": "denied"}
    assert chosen(tmp_path, case="matmul-8x8x8-float16", counted=True) == {}


def test_a_case_that_no_run_may_speak_for_is_told_with_the_newest_reason(tmp_path: Path) -> None:
    kept(tmp_path, "old", day=1, of=OTHER, quick=True)
    kept(tmp_path, "new", day=2, of=OTHER, processes=2)
    kept(tmp_path, "good", day=1)
    ((gpu, (run, why)),) = unheard(Archive([tmp_path]).runs, CASE.name).items()
    assert (gpu, run.name, why) == ("another GPU", "new", "measured it in 2 processes, 5 are needed")


# Damage: what is left of a run is no smaller run.


def _truncated(store: RunStore) -> None:
    path = _record(store)
    path.write_bytes(path.read_bytes()[:200])


def _edited(store: RunStore) -> None:
    path = _record(store)
    path.write_text(path.read_text().replace('"p50_ms":0.1', '"p50_ms":0.05'))


def _edited_with_its_hash(store: RunStore) -> None:
    _edited(store)
    summed(store)
    (store.path / "calls.json").unlink()


def _newer(store: RunStore) -> None:
    path = _record(store)
    path.write_text(path.read_text().replace(f'"schema_version":{SCHEMA}', f'"schema_version":{SCHEMA + 1}'))
    summed(store)


def _gone(store: RunStore) -> None:
    _record(store).unlink()


def _cut_samples(store: RunStore) -> None:
    path = next((store.path / "samples").glob("*.r1.json.gz"))
    path.write_bytes(path.read_bytes()[:-10])


def _edited_calls(store: RunStore) -> None:
    path = store.path / "calls.json"
    path.write_text(path.read_text().replace('"supported"', '"no difference"'))


def _half_a_letter(store: RunStore) -> None:
    path = store.path / "calls.json"
    path.write_text(path.read_text().replace('"reason": "', '"reason": "\\ud800', 1))


def _another_size(store: RunStore) -> None:
    path = _record(store)
    path.write_text(path.read_text().replace('"rows":1024', '"rows":2048'))
    summed(store)


def _record(store: RunStore) -> Path:
    return next((store.path / "records").glob("*.r1.json"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncated, "r1.json is not a readable record"),
        (_edited, "r1.json was changed after it was written"),
        (_edited_with_its_hash, "was edited"),
        (_newer, f"r1.json has schema {SCHEMA + 1}, this version reads up to {SCHEMA}: update"),
        (_gone, "r1.json is missing: bring it back"),
        (_cut_samples, "was changed after it was written"),
        (_edited_calls, "calls.json is not of this manifest and these records"),
        (_half_a_letter, "calls.json is not a readable conclusions: it holds half of a character"),
        (_another_size, "was edited: a record of"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(tmp_path: Path, damage: Callable[[RunStore], None], says: str) -> None:
    kept(tmp_path, "old", SLOW, day=1)
    damage(kept(tmp_path, "new", day=2))
    archive = Archive([tmp_path])
    assert archive.damaged == [], "nobody has asked yet"
    (one,) = select(archive.runs, CASE.name)
    assert one.run.name == "old"
    ((run, why),) = one.passed_over
    assert run.name == "new" and why.startswith("is damaged: ") and says in why
    assert archive.damaged and all(said.startswith("new: ") for said in archive.damaged)
    assert says in archive.damaged[0]


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 9}', "\ud800"])
def test_damaged_counters_are_named_and_left_out(tmp_path: Path, damage: str) -> None:
    counters = {FUSED: {"dram_pct": 60.0}, NATIVE: {"dram_pct": 50.0}}
    kept(tmp_path, "old", day=1, counters=counters)
    store = kept(tmp_path, "new", day=2, counters=counters)
    path = next((store.path / "counters").glob(f"*{NATIVE}.json"))
    if damage == "\ud800":
        damage = json.dumps(json.loads(path.read_text()) | {"reason": "\ud800"})
    path.write_text(damage)
    summed(store)
    archive = Archive([tmp_path])
    (one,) = select(archive.runs, CASE.name, [FUSED], counted=True)
    assert one.run.name == "old" and one.passed_over[0][1].startswith("is damaged: ")
    assert len(archive.damaged) == 1 and "new" in archive.damaged[0]
    assert select(archive.runs, CASE.name)[0].run.name == "new", "its times are whole"


def test_figures_that_no_run_can_have_are_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def concluded(*_: object) -> None:
        raise ZeroDivisionError("float division by zero")

    store = kept(tmp_path, "a")
    monkeypatch.setattr("norm_fusion.evidence.archive.with_records", concluded)
    run = Kept(store, "a")
    assert run.conclusions is None
    assert run.left_out == [f"{store.path} cannot be judged: ZeroDivisionError: float division by zero"]


def test_calls_of_an_older_rule_are_made_again(tmp_path: Path) -> None:
    store = kept(tmp_path, "a")
    was = store.conclusions()
    assert was is not None
    store.write_conclusions(was.model_copy(update={"rule": RULE - 1, "calls": []}))
    (one,) = _select(tmp_path)
    assert one.run.conclusions is not None
    assert (one.run.conclusions.rule, one.run.conclusions.calls) == (RULE, was.calls)


# The archive


def test_runs_that_cannot_be_read_are_named_and_the_others_are_there(tmp_path: Path) -> None:
    kept(tmp_path, "a")
    newer = kept(tmp_path, "newer").path / "manifest.json"
    newer.write_text(newer.read_text().replace(f'"schema_version": {SCHEMA}', f'"schema_version": {SCHEMA + 1}'))
    cut = kept(tmp_path, "cut").path / "manifest.json"
    cut.write_bytes(cut.read_bytes()[:50])
    kept(tmp_path, "odd").path.rename(tmp_path / "o\x1b[31md")
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "harness.json").write_text("[")
    (tmp_path / "empty").mkdir()
    archive = Archive([tmp_path, tmp_path / "none", tmp_path / "empty"])
    assert [run.name for run in archive.runs] == ["a"]
    assert len(archive.unreadable) == 4
    for says in (
        "newer/manifest.json has schema",
        "cut/manifest.json is not a",
        "'o\\x1b[31md' is no",
        "check/harness.json",
    ):
        assert any(says in said for said in archive.unreadable), says


def test_a_folder_that_is_named_twice_is_read_once_and_a_name_is_taken_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        kept(tmp_path / name, "a")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    once = Archive([tmp_path / "one", tmp_path / "two" / ".." / "one", tmp_path / "link"])
    assert (len(once.runs), once.unreadable) == (1, [])
    both = Archive([tmp_path / "one", tmp_path / "two"])
    assert [run.store.path for run in both.runs] == [tmp_path / "one" / "a"]
    assert both.unreadable == [f"{tmp_path / 'two' / 'a'} has the name of {tmp_path / 'one' / 'a'}, which is taken"]


def test_runs_of_a_check_of_the_harness_speak_for_nothing(tmp_path: Path) -> None:
    kept(tmp_path / "check", "planted")
    report = HarnessReport(
        run_id="check",
        command=[],
        reduced=False,
        rule=RULE,
        started_at="2026-11-20T10:00:00+00:00",
        finished_at="2026-11-20T10:00:00+00:00",
        environment=CLEAN,
        checks=[],
    )
    assert chosen(tmp_path) == {"a GPU": "check/planted"}
    (tmp_path / "check" / "harness.json").write_bytes(as_json(report))
    assert chosen(tmp_path) == {}
    assert Archive([tmp_path]).harness == [report]
