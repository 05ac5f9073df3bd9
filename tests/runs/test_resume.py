"""Going on with a run: what is done stays, what a sudden end left is mended, and another question is another run."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from manifests import CARD, manifest

from norm_fusion.records import SCHEMA, Code, Conclusions, Counters, Manifest, Record, Samples, Status
from norm_fusion.runs import aside, resume, verify
from norm_fusion.runs.files import StoreError
from norm_fusion.runs.store import SUMS, RunStore
from norm_fusion.spec import Case

CASES = tuple(Case.parse(f"rmsnorm-{rows}x8-float32") for rows in (1, 2, 3))
FIRST, SECOND, THIRD = (case.name for case in CASES)


def asked(**changes: object) -> Manifest:
    told = {"cases": [case.name for case in CASES], "source": "s1", "commit": "c" * 40} | changes
    return manifest("a", **told)


def record(case: str, replicate: int = 0, **more: object) -> Record:
    made = Record(
        run_id="a",
        case=case,
        op="rmsnorm",
        rows=1,
        cols=8,
        dtype="float32",
        profile="torch-eager",
        status=Status.OK,
        timer="wall",
        cache="cold",
        p50_ms=2.0,
        replicate=replicate,
        fingerprint="0" * 16,
    )
    return made.model_copy(update=more)


def kept(store: RunStore, case: str, replicate: int = 0, **more: object) -> None:
    made = record(case, replicate, **more)
    samples = Samples(key=made.key, blocks=[[2.0]], positions=[0])
    store.keep(case, made.attempt, replicate, [(made, samples if made.p50_ms is not None else None)])


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A run of three cases, of which the first is done, and the second was measured by one process."""
    made = RunStore.create(tmp_path, "a")
    made.write_manifest(asked(done=[FIRST], seed=7, processes=2))
    for case, replicate in ((FIRST, 0), (FIRST, 1), (SECOND, 0)):
        kept(made, case, replicate)
    return made


def left(
    store: RunStore, now: Manifest | None = None, *, mixed: bool = False, retry_failed: bool = False
) -> resume.Left:
    return resume.left(store, now or asked(seed=99), CASES, mixed=mixed, retry_failed=retry_failed)


def files(store: RunStore) -> set[str]:
    return {path.stem for path in store.record_files()}


def test_what_is_done_is_not_asked_again_and_what_was_begun_goes_on(store: RunStore) -> None:
    found = left(store)
    assert [case.name for case in found.cases] == [SECOND, THIRD]
    assert [(r.case, r.replicate, s is not None) for r, s in found.earlier] == [(SECOND, 0, True)]
    assert (found.manifest.seed, found.manifest.processes, found.manifest.done) == (7, 2, [FIRST])


def test_nothing_is_left_of_a_run_that_is_done(store: RunStore) -> None:
    kept(store, THIRD)
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD]))
    found = left(store)
    assert (found.cases, found.profiled, found.earlier) == ((), (), [])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": "other"}, "its suite was None, is now other"),
        ({"cases": [FIRST, SECOND]}, f"its cases have {THIRD} too"),
        ({"profiles": ["torch-eager", "torch-native"]}, "its profiles lack torch-native"),
        ({"question": "How?"}, "its question was q, is now How?"),
        ({"quick": True}, "its --quick was False, is now True"),
        ({"fewest": 7, "most": 7}, "its --processes was 1, is now 7"),
        ({"precision": 0.5}, "its --precision was 0.01, is now 0.5"),
        ({"model": "A10G"}, "its --gpu-model was None, is now A10G"),
    ],
)
def test_another_question_is_another_run(store: RunStore, changes: dict[str, object], says: str) -> None:
    with pytest.raises(StoreError) as caught:
        left(store, asked(**changes))
    assert says in str(caught.value)
    assert "choose another --run-id" in str(caught.value)
    assert "--allow-mixed" not in str(caught.value)
    with pytest.raises(StoreError):
        left(store, asked(**changes), mixed=True)


def test_another_commit_is_named_and_may_be_allowed(store: RunStore) -> None:
    other = asked(source="s2", commit="d" * 40, dirty=True)
    with pytest.raises(StoreError) as caught:
        left(store, other)
    assert "its commit was cccccccccc, this is dddddddddd with changes" in str(caught.value)
    assert "--allow-mixed goes on with other code" in str(caught.value)
    assert [case.name for case in left(store, other, mixed=True).cases] == [SECOND, THIRD]


def test_the_same_code_under_another_commit_is_the_same(store: RunStore) -> None:
    assert left(store, asked(commit="d" * 40)).cases


def test_cases_that_failed_are_measured_anew_where_asked(store: RunStore) -> None:
    kept(store, THIRD, status=Status.FAILED, code=Code.CRASHED, p50_ms=None, timer="none", cache="none")
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD]))
    assert left(store).cases == ()
    found = left(store, retry_failed=True)
    assert [case.name for case in found.cases] == [THIRD] and found.earlier == []
    assert files(store) == {f"{FIRST}.r0", f"{FIRST}.r1", f"{SECOND}.r0"}
    assert (store.path / "aside" / "1" / "records" / f"{THIRD}.r0.json").exists(), "set aside, not deleted"
    assert_sums(store)


def test_what_an_interruption_cut_short_is_measured_again(store: RunStore) -> None:
    kept(store, SECOND, 1)
    kept(store, THIRD, 0, code=Code.INTERRUPTED, status=Status.FAILED)
    store.write_manifest(asked(done=[FIRST], cut=[f"{SECOND}.r1"]))
    found = left(store)
    assert {(r.case, r.replicate) for r, _ in found.earlier} == {(SECOND, 0)}
    assert files(store) == {f"{FIRST}.r0", f"{FIRST}.r1", f"{SECOND}.r0"}
    assert found.manifest.cut == []
    assert_sums(store)


def test_counters_that_are_there_are_not_collected_again(store: RunStore) -> None:
    cells = [(FIRST, "torch-eager"), (SECOND, "torch-eager")]
    kept(store, THIRD)
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], profiled=cells))
    store.keep_counters(
        Counters(
            run_id="a", case=FIRST, profile="torch-eager", status=Status.OK, compulsory_bytes=1, fingerprint="0" * 16
        )
    )
    found = left(store, asked(profiled=cells))
    assert (found.cases, found.profiled) == ((), ((SECOND, "torch-eager"),))


def test_counters_may_be_asked_for_later_and_not_be_given_up(store: RunStore) -> None:
    cells = [(FIRST, "torch-eager")]
    kept(store, THIRD)
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], state="finished"))
    found = left(store, asked(profiled=cells))
    assert (found.cases, found.profiled, found.manifest.profiled) == ((), tuple(cells), cells)
    with pytest.raises(StoreError, match="was asked something else: it is --with-profiling"):
        left(store, asked())


def test_counters_that_were_not_to_be_had_are_asked_for_again(store: RunStore) -> None:
    cells = [(FIRST, "torch-eager"), (SECOND, "torch-eager")]
    kept(store, THIRD)
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], profiled=cells, state="finished"))
    for (case, profile), status in zip(cells, (Status.OK, Status.UNAVAILABLE), strict=True):
        told = {"run_id": "a", "case": case, "profile": profile, "compulsory_bytes": 1, "fingerprint": "0" * 16}
        store.keep_counters(Counters(**told, status=status))
    assert left(store, asked(profiled=cells)).profiled == ()
    assert left(store, asked(profiled=cells), retry_failed=True).profiled == (cells[1],)
    assert len(list(store.counters())) == 1


# --- a sudden end ---------------------------------------------------------------------------------------------------


def assert_sums(store: RunStore) -> None:
    """What SHA256SUMS names is there and as it says, by somebody else's program."""
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=store.path, check=True)
    told = {line.partition("  ")[2] for line in store.sum_lines()}
    there = {f"records/{path.name}" for path in store.record_files()}
    there |= {f"samples/{path.name}" for path in (store.path / "samples").iterdir()}
    assert told == there


def without_line(store: RunStore, file: str) -> None:
    store.write_sum_lines(line for line in store.sum_lines() if not line.endswith(file))


@pytest.mark.parametrize(
    "end",
    [
        lambda store: (store.path / "records" / f".{SECOND}.r1.json.77").write_bytes(b"[{"),
        lambda store: (store.path / "samples" / f".{SECOND}.r1.json.gz.77").write_bytes(b"\x1f"),
        lambda store: without_line(store, f"samples/{SECOND}.r1.json.gz"),
        lambda store: without_line(store, f"records/{SECOND}.r1.json"),
        lambda store: (store.path / "records" / f"{SECOND}.r1.json").unlink(),
        lambda store: (store.path / SUMS).write_text((store.path / SUMS).read_text()[:-30]),
    ],
    ids=["records-half", "samples-half", "samples-untold", "records-untold", "records-missing", "line-half"],
)
def test_an_end_at_any_moment_is_mended(store: RunStore, end: object) -> None:
    kept(store, SECOND, 1)
    end(store)  # type: ignore[operator]
    found = left(store)
    whole = {(r.case, r.replicate) for r, _ in found.earlier}
    assert (SECOND, 0) in whole
    assert ((SECOND, 1) in whole) == (f"{SECOND}.r1" in files(store)), "either whole, or not there"
    assert_sums(store)
    assert not list(store.path.glob("*/.*"))
    assert not aside.mend(store), "once mended, there is nothing more to mend"


def test_a_kill_at_any_moment_of_writing_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """A writer is killed at twelve moments; each time what is left is whole, and of what it told nothing is lost."""
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_resume import SECOND, RunStore, kept
store, first = RunStore(Path(sys.argv[1])), int(sys.argv[3])
for replicate in range(first, 10**6):
    kept(store, SECOND, replicate)
    print(replicate, flush=True)
"""
    store = RunStore.create(tmp_path, "a")
    store.write_manifest(asked())
    here, told = str(Path(__file__).parent), -1
    for moment in range(12):
        line = [sys.executable, "-c", code, str(store.path), here, str(told + 1)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.003 * moment)
            writer.kill()
            rest = writer.stdout.read().split("\n")[:-1]
        told = max([told + 1, *map(int, rest)])
        there = {r.replicate for r, _ in left(store).earlier}
        assert there >= set(range(told + 1)), "what was told is kept"
        assert_sums(store)
        told = max(there, default=told)  # type: ignore[type-var,assignment]


def test_one_process_at_a_time(store: RunStore) -> None:
    code = f"""
import sys, time
from pathlib import Path
from norm_fusion.runs import resume
from norm_fusion.runs.store import RunStore
held = resume.lock(RunStore(Path({str(store.path)!r})))
print("held", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert resume.locked(store)
        with pytest.raises(StoreError, match="run 'a' is being measured by another process"):
            resume.lock(store)
        other.kill()  # not asked: what it held is free all the same
        other.wait()
    assert not resume.locked(store)
    resume.lock(store).release()


# --- what an attack found -------------------------------------------------------------------------------------------


def test_a_retry_that_ends_at_once_loses_no_case(store: RunStore) -> None:
    kept(store, THIRD, status=Status.FAILED, code=Code.CRASHED, p50_ms=None, timer="none", cache="none")
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], state="finished"))
    left(store, retry_failed=True)  # and then nothing: the machine died
    assert store.manifest().done == [FIRST, SECOND]
    assert [case.name for case in left(store).cases] == [THIRD]


def test_a_finished_run_is_left_as_it_is(store: RunStore) -> None:
    kept(store, THIRD)
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], state="finished"))
    before = (store.path / "manifest.json").read_bytes()
    found = left(store)
    assert (found.cases, found.manifest.state) == ((), "finished")
    assert (store.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda store: (store.path / "records" / f"{FIRST}.r0.json").unlink(), "is missing, of a case that is done"),
        (lambda store: (store.path / "samples" / f"{FIRST}.r0.json.gz").unlink(), "is missing, of a case that is done"),
        (lambda store: (store.path / SUMS).unlink(), "SHA256SUMS is missing"),
    ],
    ids=["records", "samples", "sums"],
)
def test_damage_is_told_and_not_mended(store: RunStore, damage: object, says: str) -> None:
    damage(store)  # type: ignore[operator]
    before = sorted(path.name for path in store.path.rglob("*"))
    with pytest.raises(StoreError, match=says):
        left(store)
    assert sorted(path.name for path in store.path.rglob("*")) == before


def test_a_case_without_records_is_not_done(store: RunStore) -> None:
    store.write_manifest(asked(done=[FIRST, THIRD]))
    assert [case.name for case in left(store).cases] == [SECOND, THIRD]


def test_counters_without_their_line_are_collected_again(store: RunStore) -> None:
    cells = [(FIRST, "torch-eager")]
    store.write_manifest(asked(done=[FIRST], profiled=cells))
    store.keep_counters(
        Counters(
            run_id="a", case=FIRST, profile="torch-eager", status=Status.OK, compulsory_bytes=1, fingerprint="0" * 16
        )
    )
    without_line(store, f"counters/{FIRST}.torch-eager.json")
    assert verify.damaged(store)[0] == [
        f"{store.path}/counters/{FIRST}.torch-eager.json is not in SHA256SUMS: it was not written by the run"
    ]
    assert left(store, asked(profiled=cells)).profiled == tuple(cells)
    assert (store.path / "aside" / "1" / "counters" / f"{FIRST}.torch-eager.json").exists()


def test_what_was_set_aside_is_verified_too(store: RunStore) -> None:
    aside.set_aside(store, lambda record: record.case == SECOND)
    assert verify.damaged(store) == ([], 6)
    (store.path / "aside" / "1" / "records" / f"{SECOND}.r0.json").write_text("[]")
    assert verify.damaged(store)[0] == [
        f"{store.path}/aside/1/records/{SECOND}.r0.json was changed after it was written: "
        "its hash is not the one in SHA256SUMS"
    ]


def test_a_line_that_is_no_sum_is_told_and_not_followed(store: RunStore) -> None:
    with (store.path / SUMS).open("a") as sums:
        sums.write(f"{'0' * 64}  ../elsewhere\ngarbage\n")
    odd = [f"line {number} of {store.path / SUMS} is no hash and file" for number in (7, 8)]
    assert verify.damaged(store) == (odd, 6)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda store: (store.path / "calls.json").unlink(), "calls.json is missing: `norm-fusion judge"),
        (lambda store: (store.path / "conditions.jsonl").write_text("junk\n"), "line 1 is not a reading"),
        (lambda store: (store.path / "events.jsonl").write_text("junk\n"), "is no log of events"),
        (lambda store: store.write_manifest(asked(state="finished", profiled=[(FIRST, "a")])), "counters of a at"),
        (lambda store: [(store.path / "counters").mkdir(), (store.path / "counters" / "a.json").touch()], "is not in"),
    ],
)
def test_a_run_that_ended_has_all_its_parts(store: RunStore, damage: object, says: str) -> None:
    store.write_manifest(asked(done=[FIRST], state="finished"))
    store.write_conclusions(Conclusions(rule=1, pooled=[], calls=[]))
    store.append_event("began")
    assert list(verify.incomplete(store)) == []
    damage(store)  # type: ignore[operator]
    (said,) = verify.incomplete(store)
    assert says in said


def test_another_kind_of_device_is_another_run(store: RunStore) -> None:
    there = CARD.model_copy(update={"device": "cpu"})
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], state="finished", environment=there))
    for device in ("auto", "cpu"):
        assert left(store, asked(device=device)).manifest.run_id == "a"
    with pytest.raises(StoreError, match="its --device was cpu, is now cuda:1"):
        left(store, asked(device="cuda:1"))


def test_a_process_that_ended_suddenly_leaves_no_damage_aside(store: RunStore) -> None:
    without_line(store, f"records/{SECOND}.r0.json")
    left(store)
    assert (store.path / "aside" / "1" / "records" / f"{SECOND}.r0.json").exists()
    assert verify.damaged(store)[0] == []


def test_a_sum_without_its_last_end_of_line_is_whole(store: RunStore) -> None:
    path = store.path / SUMS
    path.write_text(path.read_text().rstrip("\n"))
    left(store)
    kept(store, THIRD)
    assert_sums(store)
    assert verify.damaged(store) == ([], 8)


def test_what_was_set_aside_first_may_be_deleted(store: RunStore) -> None:
    aside.set_aside(store, lambda record: record.key.endswith("r1"))
    aside.set_aside(store, lambda record: record.case == SECOND)
    shutil.rmtree(store.path / "aside" / "1")
    aside.set_aside(store, lambda record: record.case == FIRST)
    assert sorted(path.name for path in (store.path / "aside").iterdir()) == ["2", "3"]


def test_an_event_that_was_cut_off_spoils_no_other(store: RunStore) -> None:
    store.append_event("began")
    path = store.path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "20')
    store.append_event("resumed")
    assert [event["event"] for event in store.events()] == ["began", "resumed"]


def test_a_run_of_an_older_schema_is_not_gone_on_with(store: RunStore) -> None:
    store.write_manifest(asked(schema_version=SCHEMA - 1))
    with pytest.raises(StoreError, match=f"begun by a version of schema {SCHEMA - 1}, this writes {SCHEMA}"):
        left(store)


def test_the_environment_tells_the_code_where_the_manifest_does_not(store: RunStore) -> None:
    where = CARD.model_copy(update={"device": "cpu", "source": "other"})
    store.write_manifest(asked(source=None, commit=None, environment=where))
    with pytest.raises(StoreError, match="its commit was"):
        left(store)


def test_processes_are_those_that_records_show(store: RunStore) -> None:
    store.write_manifest(asked(done=[FIRST], processes=9))
    assert left(store).manifest.processes == 2


def test_what_was_concluded_before_is_not_believed_after(store: RunStore) -> None:
    (store.path / "calls.json").write_text("{}")
    left(store)
    assert store.conclusions() is None


def test_a_folder_that_ended_before_its_manifest_is_begun_anew(tmp_path: Path) -> None:
    made = RunStore.create(tmp_path, "b")
    (made.path / "lock").touch()
    (made.path / ".manifest.json.77").touch()
    assert made.unborn
    RunStore.create(tmp_path, "b").write_manifest(asked())
    assert not made.unborn
    with pytest.raises(StoreError, match="exists"):
        RunStore.create(tmp_path, "b")
