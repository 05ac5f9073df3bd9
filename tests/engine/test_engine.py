"""The engine with workers that die, lie and hang: what is kept, who pays, how many processes there are."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from workers import (
    CASES,
    ENVIRONMENT,
    FIRST,
    SECOND,
    THIRD,
    Verdicts,
    Watching,
    asked_alone,
    plan,
    rows,
    run,
    told_by,
    worker,
)

from norm_fusion.engine import host, processes
from norm_fusion.records import Code, Conditions, Environment, Record, Samples, Status
from norm_fusion.runs import verify
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import CONTROL, ROOF, SpecError

TWO = ("torch-eager", "torch-native")
VERIFIER = processes.Verifier


@pytest.fixture(autouse=True)
def verifier(monkeypatch: pytest.MonkeyPatch) -> Verdicts:
    made = Verdicts()
    monkeypatch.setattr(processes, "Verifier", lambda: made)
    return made


def test_records_and_manifest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: Verdicts) -> None:
    worker(monkeypatch, last="print('goodbye', file=sys.stderr)")
    listener = Watching()
    outcome, store = run(tmp_path, plan(*TWO), listener)
    assert outcome.exit_code == 0 and outcome.kept and outcome.problem is None
    assert {key[0] for key in rows(store)} == {case.name for case in CASES}
    assert {record.status for record in store.records()} == {Status.OK}
    manifest = store.manifest()
    assert outcome.manifest == manifest
    assert (manifest.state, manifest.environment, manifest.processes) == ("finished", ENVIRONMENT, 1)
    assert (manifest.before, manifest.after) == (Conditions(at="now"), Conditions(at="later"))
    assert outcome.conclusions == store.conclusions()
    assert (store.path / "worker.log").read_text() == "goodbye\n"
    assert verifier.closed
    assert listener.told[0] == ("started", "x")
    assert listener.of("process") == [(1, (1, 1), 3, 0, 3)]
    assert listener.of("measured") == [(case.name, 2) for case in CASES]
    assert listener.of("ended") == [(0, None)]


def test_conditions_are_read_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, before="time.sleep(0.1)", told="time.sleep(0.25)")
    _, store = run(tmp_path, plan(fewest=2, most=2))
    readings = list(store.conditions())
    assert 4 <= len(readings) <= 12
    moments = [reading.monotonic_s or 0 for reading in readings]
    assert moments == sorted(moments) and moments[-1] - moments[0] > 1, "of both processes"
    assert all(reading.load_1m is not None for reading in readings)
    json.loads((store.path / "conditions.jsonl").read_text().splitlines()[0])


# --- who dies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misdeed", "code", "reason"),
    [
        ("os.kill(os.getpid(), 11)", Code.CRASHED, "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 9)", Code.CRASHED, "was killed by SIGKILL (out of memory?)"),
        ("sys.exit(3)", Code.CRASHED, "ended with exit code 3"),
        ("import os; os._exit(0)", Code.CRASHED, "ended with exit code 0"),
        ("print('rubbish', flush=True)", Code.CRASHED, "sent a message that is not of its protocol"),
        ("print('3', flush=True)", Code.CRASHED, "not of its protocol"),
        ("print('[' * 100000, flush=True)", Code.CRASHED, "not of its protocol"),
        ("print('9' * 10000, flush=True)", Code.CRASHED, "not of its protocol"),
        ("os.write(1, b'\\xff\\xfe\\n')", Code.CRASHED, "not of its protocol"),
        ("send('case', case=case, measurements=[{'a': 1}], environment=environment)", Code.CRASHED, "not of its"),
        ("send('case', case=5, measurements=[], environment=environment)", Code.CRASHED, "not of its protocol"),
        ("send('dance')", Code.CRASHED, "not of its protocol"),
        ("send('bracket-end', calls=3, told_ms=1.0)", Code.CRASHED, "not of its protocol"),
        ("send('rows', x='', y='')", Code.CRASHED, "not of its protocol"),
        ("send('done', conditions=dict(at='x'))", Code.CRASHED, "said that it was done, and was not"),
        ("tell(case, [row(case, profile, code='interrupted')])", Code.CRASHED, "was sent a signal that is not ours"),
        (
            "bracket(case, profile, 0, calls=0)",
            Code.CRASHED,
            "not of its protocol",
        ),
        (
            "send('broken', case=case, profile=profile, reason='illegal address')",
            Code.CRASHED,
            "left the device unusable: illegal address",
        ),
    ],
    ids=lambda value: value[:32] if isinstance(value, str) else "",
)
def test_a_worker_that_dies_costs_the_contestant_it_was_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misdeed: str, code: Code, reason: str
) -> None:
    worker(monkeypatch, f"if (case, profile) == (SECOND, 'torch-native'):\n    {misdeed}")
    outcome, store = run(tmp_path, plan(*TWO))
    found = rows(store)
    lost = found.pop((SECOND, "torch-native", 0))
    assert (lost.status, lost.code) == (Status.FAILED, code)
    assert reason in str(lost.reason) and "on this case; see worker.log" in str(lost.reason)
    assert len(found) == 5 and {record.status for record in found.values()} == {Status.OK}
    assert outcome.exit_code == 1
    assert store.manifest().state == "finished"


def test_a_message_without_an_end_is_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_LINE", 2**20)
    endless = "while True: os.write(1, b'x' * 2**16)"
    worker(monkeypatch, f"if (case, profile) == (SECOND, 'torch-native'):\n    {endless}")
    _, store = run(tmp_path, plan(*TWO))
    assert "not of its protocol" in str(rows(store)[SECOND, "torch-native", 0].reason)
    assert rows(store)[SECOND, "torch-eager", 0].status is Status.OK


def test_a_long_message_that_is_right_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = "rows = [row(case, p, notes=['x' * 2**22]) for p in shard['profiles']]"
    worker(monkeypatch, told=many)
    _, store = run(tmp_path, plan(cases=CASES[:1]))
    assert len(rows(store)[FIRST, "torch-eager", 0].notes[0]) == 2**22


def test_a_crash_without_a_breadcrumb_costs_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "if case == SECOND:\n    at('', '')\n    os.kill(os.getpid(), 11)")
    outcome, store = run(tmp_path, plan(*TWO))
    assert {key for key, record in rows(store).items() if record.status is Status.FAILED} == {
        (SECOND, name, 0) for name in TWO
    }
    assert len(rows(store)) == 6 and outcome.exit_code == 1


def test_a_breadcrumb_of_another_case_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = (
        "if case == SECOND and not shard['skip']:\n    at('rmsnorm-1x8-float32', profile)\n    os.kill(os.getpid(), 11)"
    )
    worker(monkeypatch, crash)
    _, store = run(tmp_path, plan(*TWO))
    assert {rows(store)[SECOND, name, 0].status for name in TWO} == {Status.FAILED}
    assert {rows(store)[FIRST, name, 0].status for name in TWO} == {Status.OK}


def test_a_breadcrumb_that_names_no_contestant_costs_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "if case == SECOND:\n    at(case, 'copy')\n    os.kill(os.getpid(), 11)")
    _, store = run(tmp_path, plan(*TWO))
    assert {rows(store)[SECOND, name, 0].status for name in TWO} == {Status.FAILED}


def test_a_crash_of_the_control_costs_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = (
        f"if case == SECOND and [case, '{CONTROL}'] not in shard['skip']:\n    at(case, '{CONTROL}')\n    sys.exit(3)"
    )
    worker(monkeypatch, crash)
    _, store = run(tmp_path, plan(*TWO))
    found = rows(store)
    lost = found.pop((SECOND, CONTROL, 0))
    assert (lost.status, lost.control_of) == (Status.FAILED, "torch-native")
    assert {record.status for record in found.values()} == {Status.OK}


def test_everyone_who_crashes_is_left_out_until_nobody_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "if case == SECOND:\n    os.kill(os.getpid(), 11)")
    _, store = run(tmp_path, plan(*TWO))
    found = rows(store)
    assert {found[SECOND, name, 0].status for name in TWO} == {Status.FAILED}
    assert {found[case, name, 0].status for case in (FIRST, THIRD) for name in TWO} == {Status.OK}
    assert len(found) == 6


def test_a_worker_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "if (case, profile) == (SECOND, 'torch-native'):\n    time.sleep(1000)")
    began = time.monotonic()
    _, store = run(tmp_path, plan(*TWO, timeout_s=1.0))
    assert time.monotonic() - began < 20
    found = rows(store)
    lost = found.pop((SECOND, "torch-native", 0))
    assert (lost.status, lost.code) == (Status.FAILED, Code.HUNG)
    assert "gave no sign of life for 1 s" in str(lost.reason)
    assert {record.status for record in found.values()} == {Status.OK}


def test_who_beats_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "for _ in range(6):\n    time.sleep(0.25)\n    send('beat')")
    outcome, _ = run(tmp_path, plan(cases=CASES[:1], timeout_s=1.0))
    assert outcome.exit_code == 0


def test_a_worker_that_has_not_begun_gets_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, before="time.sleep(1.5)")
    assert run(tmp_path, plan(cases=CASES[:1], timeout_s=0.5))[0].exit_code == 0
    monkeypatch.setattr(host, "START_S", 0.3)
    with pytest.raises(SpecError, match="gave no sign of life"):
        run(tmp_path / "again", plan(cases=CASES[:1], timeout_s=0.5))


def test_who_crashed_once_is_left_out_of_the_processes_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, "if (case, profile, NUMBER) == (SECOND, 'torch-native', 1):\n    sys.exit(3)")
    _, store = run(tmp_path, plan(*TWO, fewest=3, most=3))
    found = rows(store)
    assert found[SECOND, "torch-native", 0].status is Status.OK
    assert found[SECOND, "torch-native", 1].status is Status.FAILED
    assert (SECOND, "torch-native", 2) not in found
    assert sum(key[0] == SECOND for key in found) == 5
    assert {found[THIRD, "torch-native", number].status for number in range(3)} == {Status.OK}


def test_a_worker_that_crashes_after_its_last_case_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, last="os.kill(os.getpid(), 11)")
    outcome, store = run(tmp_path, plan())
    assert outcome.exit_code == 0
    assert len(rows(store)) == 3
    assert store.manifest().state == "finished"


def test_a_worker_that_dies_between_two_cases_costs_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is to blame; but it has to end."""
    worker(monkeypatch, "if case == SECOND:\n    sys.exit(3)", before="if len(shard['cases']) == 1:\n    sys.exit(4)")
    _, store = run(tmp_path, plan())
    assert "ended with exit code 3 on this case" in str(rows(store)[SECOND, "torch-eager", 0].reason)
    assert "ended with exit code 4 before this case" in str(rows(store)[THIRD, "torch-eager", 0].reason)


# --- who lies -------------------------------------------------------------------------------------------------------


def test_an_output_that_the_verifier_finds_wrong_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: Verdicts
) -> None:
    verifier.wrong = ("torch-native",)
    worker(monkeypatch)
    outcome, store = run(tmp_path, plan(*TWO, cases=CASES[:1]))
    found = rows(store)[FIRST, "torch-native", 0]
    assert (found.status, found.code) == (Status.WRONG, Code.WRONG_OUTPUT)
    assert found.reason == "error 1 is above the tolerance (a timed call)"
    assert found.p50_ms == 1.0, "its samples are kept"
    assert rows(store)[FIRST, "torch-eager", 0].status is Status.OK
    assert outcome.exit_code == 1
    assert verifier.asked[0] == {
        "case": FIRST,
        "profile": "torch-eager",
        "when": "a timed call",
        "seed": verifier.asked[0]["operands"] + 1,
        "change": verifier.asked[0]["change"],
        "rows": [0],
        "operands": verifier.asked[0]["operands"],
        "x": "",
        "y": ["torch-eager"],
    }


def test_who_shows_no_output_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "if profile == 'torch-native':\n    rows.append(row(case, profile))\n    continue")
    _, store = run(tmp_path, plan(*TWO, cases=CASES[:1]))
    found = rows(store)[FIRST, "torch-native", 0]
    assert (found.status, found.code) == (Status.WRONG, Code.WRONG_OUTPUT)
    assert "no output of it was shown" in str(found.reason)
    assert rows(store)[FIRST, "torch-eager", 0].status is Status.OK


def test_the_roof_and_known_spins_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "rows = [row(case, p) for p in ('known-empty', 'copy')] + [row(case, 'control', control_of='known-empty')]"
    worker(monkeypatch, told=told)
    outcome, _ = run(tmp_path, plan("known-empty", cases=CASES[:1]))
    assert outcome.exit_code == 0


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ("shape=[1, 9]", "output has shape [1, 9], expected [1, 8] (a timed call)"),
        ("dtype='float16'", "output has dtype float16, expected float32 (a timed call)"),
        ("type='list'", "output is a list, expected a tensor (a timed call)"),
        ("device='meta'", "output has device meta, expected cpu (a timed call)"),
    ],
)
def test_an_output_of_another_kind_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, says: str, verifier: Verdicts
) -> None:
    worker(monkeypatch, f"show(case, profile, {odd})")
    _, store = run(tmp_path, plan(cases=CASES[:1]))
    found = rows(store)[FIRST, "torch-eager", 0]
    assert (found.status, found.code, found.reason) == (Status.WRONG, Code.WRONG_KIND, says)
    assert len(verifier.asked) == 1, "it was asked for no rows of what has none"


def test_inputs_are_changed_by_seeds_that_the_parent_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: Verdicts
) -> None:
    worker(monkeypatch, told="for each in rows: show(case, each['profile'])")
    assert run(tmp_path, plan(*TWO, cases=CASES[:1]))[0].exit_code == 0
    assert len({asked["change"] for asked in verifier.asked}) == len(verifier.asked) == 4


def test_an_output_of_an_input_that_was_not_changed_is_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = 'ask("output", case=case, profile=profile, when="after timing", input=0, kind=kind(case))'
    worker(monkeypatch, f"show(case, profile)\n{again}")
    _, store = run(tmp_path, plan(cases=CASES[:1]))
    found = rows(store)[FIRST, "torch-eager", 0]
    assert (found.status, found.code) == (Status.FAILED, Code.CRASHED)
    assert "not of its protocol" in str(found.reason)


def test_samples_that_the_parents_clock_contradicts_are_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the worker's clock agrees with it on those calls: something ran beside them, on a busy machine."""
    worker(monkeypatch, "bracket(case, profile, 5.0 if profile == 'torch-native' else 1.0, calls=20)")
    _, store = run(tmp_path, plan(*TWO, cases=CASES[:1]))
    found = rows(store)
    odd, steady = found[FIRST, "torch-native", 0], found[FIRST, "torch-eager", 0]
    assert odd.status is Status.OK
    assert [event.kind for event in odd.events] == ["outside"]
    assert "its samples say 1 ms a call, the parent's clock around many says" in odd.events[0].detail
    assert odd.outside_ms is not None and 4.9 < odd.outside_ms < 15
    assert not steady.events and steady.outside_ms is not None and 0.9 < steady.outside_ms < 2


def test_a_clock_that_runs_slower_than_the_parents_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that agree with their own clock are no better than it."""
    worker(monkeypatch, "bracket(case, profile, 1.0, calls=20, clock=0.8 if profile == 'torch-native' else 1.0)")
    _, store = run(tmp_path, plan(*TWO, cases=CASES[:1]))
    found = rows(store)
    assert (found[FIRST, "torch-native", 0].status, found[FIRST, "torch-native", 0].code) == (Status.WRONG, Code.TIMER)
    assert "of the speed of the parent's" in str(found[FIRST, "torch-native", 0].reason)
    assert found[FIRST, "torch-eager", 0].status is Status.OK


def test_a_bracket_that_is_asked_for_again_takes_none_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what ours found around samples that are too fast, nor a clock that runs too slow."""
    forged = "bracket(case, profile, 0.0, calls=10**6)"
    lies = {"torch-native": "bracket(case, profile, 5.0)", "torch-compile": "bracket(case, profile, 1.0, clock=0.5)"}
    deeds = "\n".join(f"if profile == {name!r}:\n    {lie}\n    {forged}" for name, lie in lies.items())
    worker(monkeypatch, deeds)
    _, store = run(tmp_path, plan(*TWO, "torch-compile", cases=CASES[:1]))
    found = {profile: record for (_, profile, _), record in rows(store).items()}
    assert [event.kind for event in found["torch-native"].events] == ["outside"]
    assert (found["torch-compile"].status, found["torch-compile"].code) == (Status.WRONG, Code.TIMER)
    assert found["torch-eager"].status is Status.OK


def test_what_looks_like_a_lie_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else may run for a moment: the fastest bracket counts, and eight are enough."""
    brackets = """
took = {"torch-eager": [1.0], "torch-native": [5.0, 5.0, 1.0], "torch-compile": [5.0]}[profile]
counts = globals().setdefault("counts", {})
counts[profile] = bracket(case, profile, *took)
"""
    worker(monkeypatch, brackets, told="for each in rows: each['notes'] = [str(counts[each['profile']])]")
    _, store = run(tmp_path, plan(*TWO, "torch-compile", cases=CASES[:1]))
    found = {profile: record for (_, profile, _), record in rows(store).items()}
    assert {name: record.notes for name, record in found.items()} == {
        "torch-eager": ["1"],
        "torch-native": ["3"],
        "torch-compile": [str(host.BRACKETS)],
    }
    assert [bool(found[name].events) for name in (*TWO, "torch-compile")] == [False, False, True]


def test_a_clock_that_is_slower_than_the_parents_is_no_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "bracket(case, profile, 0.1, calls=20)")
    assert run(tmp_path, plan(cases=CASES[:1]))[0].exit_code == 0


LIES = """
liar = "mine:fast"
if [case, liar] not in shard["skip"]:
    bracket(case, profile, 1.0, calls=10, clock=0.5)
else:
    bracket(case, profile, 1.0, calls=10)
"""


def test_beside_a_clock_that_lies_nobody_is_believed_and_all_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, LIES)
    listener = Watching()
    _, store = run(tmp_path, plan("torch-eager", "mine:fast", cases=CASES[:2], fewest=2, most=2), listener)
    found = rows(store)
    for case in (FIRST, SECOND):
        liar = found[case, "mine:fast", 0]
        assert (liar.status, liar.code, liar.p50_ms) == (Status.WRONG, Code.TIMER, None)
        for number in (0, 1):
            honest = found[case, "torch-eager", number]
            assert honest.status is Status.OK
            assert honest.outside_ms is not None and honest.outside_ms < 2
        assert (case, "mine:fast", 1) not in found, "it is not asked again"
    assert [told[:1] for told in listener.of("process")] == [(1,), (1,), (2,)]


@pytest.mark.parametrize("culprit", ["torch-native", ROOF])
def test_a_death_beside_a_users_contestant_costs_that_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    """It may have closed files that are not its own, say; whose deed it was cannot be told."""
    beside = f"if [SECOND, 'mine:own'] not in shard['skip'] and case == SECOND and profile == {TWO[-1]!r}:\n"
    worker(monkeypatch, beside + f"    at(case, {culprit!r})\n    sys.exit(1)")
    _, store = run(tmp_path, plan("mine:own", *TWO))
    found = rows(store)
    lost = found.pop((SECOND, "mine:own", 0))
    assert (lost.status, lost.code) == (Status.FAILED, Code.CRASHED)
    assert f"ended with exit code 1 on the turn of {culprit}" in str(lost.reason)
    assert "which is measured again without it" in str(lost.reason)
    assert {record.status for record in found.values()} == {Status.OK} and len(found) == 8


def test_a_death_without_it_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "if (case, profile) == (SECOND, 'torch-native'):\n    sys.exit(1)")
    _, store = run(tmp_path, plan("mine:own", *TWO))
    found = rows(store)
    assert "on this case" in str(found.pop((SECOND, "torch-native", 0)).reason)
    assert "on the turn of torch-native" in str(found.pop((SECOND, "mine:own", 0)).reason)
    assert {record.status for record in found.values()} == {Status.OK} and len(found) == 7


def test_a_users_contestant_without_a_lie_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "bracket(case, profile, 1.0, calls=10)")
    listener = Watching()
    outcome, store = run(tmp_path, plan("torch-eager", "mine:fast", cases=CASES[:2]), listener)
    assert outcome.exit_code == 0 and len(rows(store)) == 4
    assert len(listener.of("process")) == 1


# --- processes ------------------------------------------------------------------------------------------------------

# Of torch-native, in process number 0, 1, ...: with spread, and without.
SPREAD = "def ms(profile): return 1.0 if profile == 'torch-eager' else 0.5 * (1 + {spread} * (-1) ** NUMBER)"


def test_each_process_has_a_seed_of_its_own_and_they_are_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(
        monkeypatch,
        told="rows = [row(case, p, notes=[str(shard['seed'])]) for p in shard['profiles']]\nshow(case, 'x')",
    )
    seeds = []
    for folder in ("a", "b"):
        _, store = run(tmp_path / folder, plan("known-empty", fewest=3, most=3, cases=CASES[:1]))
        seeds.append([record.notes[0] for record in store.records()])
    assert len(set(seeds[0])) == 3
    assert seeds[0] == seeds[1]


def test_processes_are_added_until_the_interval_is_narrow_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, before=SPREAD.format(spread=0.02))
    listener = Watching()
    asked = plan(*TWO, cases=CASES[:1], fewest=3, most=15, precision=0.02, quick=False)
    _, store = run(tmp_path, asked, listener)
    widths = [widest for _, widest in listener.of("ended")]
    assert widths[0] is None, "one process has no interval"
    number = len(widths)
    assert 3 < number < 15
    assert all(width > 0.02 for width in widths[2:-1]) and widths[-1] <= 0.02
    assert store.manifest().processes == number == len({r.replicate for r in store.records()})


def test_a_narrow_interval_ends_it_at_the_fewest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, before=SPREAD.format(spread=0.0))
    _, store = run(tmp_path, plan(*TWO, cases=CASES[:1], fewest=3, most=15, quick=False))
    assert store.manifest().processes == 3


def test_a_wide_interval_ends_it_at_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, before=SPREAD.format(spread=0.3))
    _, store = run(tmp_path, plan(*TWO, cases=CASES[:1], fewest=2, most=4, quick=False))
    assert store.manifest().processes == 4


def test_only_the_cases_that_are_too_wide_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = "rows = [row(case, p, ms(p) if case == SECOND else 1.0) for p in shard['profiles']]"
    worker(monkeypatch, before=SPREAD.format(spread=0.3), told=spread)
    listener = Watching()
    _, store = run(tmp_path, plan(*TWO, fewest=2, most=4, quick=False), listener)
    assert [told[2] for told in listener.of("process")] == [3, 3, 1, 1]
    assert {case: len({r.replicate for r in store.records() if r.case == case}) for case in (FIRST, SECOND, THIRD)} == {
        FIRST: 2,
        SECOND: 4,
        THIRD: 2,
    }


def test_no_process_is_begun_that_would_end_after_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "time.sleep(0.6)")
    began = time.monotonic()
    _, store = run(tmp_path, plan(cases=CASES[:1], fewest=10, most=15, budget_s=1.6))
    assert 1 <= store.manifest().processes <= 2
    assert time.monotonic() - began < 2.5
    assert store.manifest().state == "finished"


def test_a_budget_that_is_no_time_at_all_has_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    _, store = run(tmp_path, plan(cases=CASES[:1], fewest=5, most=15, budget_s=0.001))
    assert store.manifest().processes == 1


NOISY = """
for each in rows:
    if case == SECOND and ATTEMPT < {quiet_from} and each["profile"] == "torch-native":
        each["series"][0]["blocks"] = [[1.0] * 8 + [9.0] * 2] * 2
"""


@pytest.mark.parametrize(("quiet_from", "attempts"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_what_is_noisy_is_run_again_at_most_twice_and_every_attempt_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_from: int, attempts: int
) -> None:
    worker(monkeypatch, told=NOISY.format(quiet_from=quiet_from))
    listener = Watching()
    asked = plan(*TWO, cases=CASES[:2], fewest=3, most=3, reruns=2, quick=False)
    outcome, store = run(tmp_path, asked, listener)
    assert [(told[2], told[3]) for told in listener.of("process")] == [
        *[(2, 0)] * 3,
        *[(1, attempt) for attempt in range(1, attempts) for _ in range(3)],
    ]
    kept = {(r.case, r.attempt, r.replicate) for r in store.records()}
    assert kept == {(FIRST, 0, number) for number in range(3)} | {
        (SECOND, attempt, number) for attempt in range(attempts) for number in range(3)
    }
    assert store.manifest().processes == 3, "reruns are not counted"
    assert outcome.conclusions is not None
    (call,) = [c for c in outcome.conclusions.calls if c.case == SECOND]
    assert len(call.earlier) == attempts - 1
    assert (call.label == "rerun noise") == (quiet_from == 9)


def test_reruns_that_the_budget_has_no_room_for_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "time.sleep(1)", told=NOISY.format(quiet_from=9))
    asked = plan(*TWO, cases=CASES[1:2], fewest=3, most=3, reruns=2, quick=False, budget_s=5)
    _, store = run(tmp_path, asked)
    assert {record.attempt for record in store.records()} == {0}
    assert any("noisy case was not run again" in note for note in store.manifest().notes)


def test_reruns_are_not_counted_as_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide_at_first = SPREAD.replace("{spread}", "(0 if ATTEMPT else 0.3)")
    noisy_at_first = """
for each in rows:
    if ATTEMPT == 0:
        each["series"][0]["blocks"] = [[ms(each["profile"])] * 8 + [9.0] * 2] * 2
"""
    worker(monkeypatch, before=wide_at_first, told=noisy_at_first)
    _, store = run(tmp_path, plan(*TWO, cases=CASES[1:2], fewest=3, most=5, reruns=2, quick=False))
    assert {(r.attempt, r.replicate) for r in store.records()} == {
        *((0, number) for number in range(5)),
        *((1, number) for number in range(3)),
    }
    assert store.manifest().processes == 5


def test_a_rerun_draws_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = "for each in rows: each['notes'] = [str(shard['seed'])]"
    worker(monkeypatch, told=NOISY.format(quiet_from=9) + seeds)
    _, store = run(tmp_path, plan(*TWO, cases=CASES[1:2], fewest=3, most=3, reruns=2, quick=False))
    assert len({record.notes[0] for record in store.records()}) == 9


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_too_few_for_a_call_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    worker(monkeypatch, told=NOISY.format(quiet_from=9))
    _, store = run(tmp_path, plan(*TWO, fewest=processes, most=processes, reruns=2, quick=False))
    assert {record.attempt for record in store.records()} == {0}


# --- the machine ----------------------------------------------------------------------------------------------------


def test_another_environment_in_a_later_process_is_noted_and_has_its_own_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, before="if NUMBER == 1:\n    environment['device_name'] = 'y'")
    _, store = run(tmp_path, plan(cases=CASES[:1], fewest=3, most=3))
    found = rows(store)
    prints = [found[FIRST, "torch-eager", number].fingerprint for number in range(3)]
    assert prints[0] == prints[2] != prints[1]
    (note,) = store.manifest().notes
    assert note == "process 2 found another environment than the first: device_name was x, is y"
    assert store.manifest().environment == ENVIRONMENT


def test_a_fingerprint_that_changes_within_a_process_is_none_of_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, told="if case == SECOND:\n    environment = environment | {'driver': 'new'}")
    _, store = run(tmp_path, plan())
    found = rows(store)
    before = found[FIRST, "torch-eager", 0].fingerprint
    after = found[SECOND, "torch-eager", 0].fingerprint
    assert before == ENVIRONMENT.fingerprint
    assert after.startswith(f"{before}, then ") and after != before


def test_a_successor_that_is_refused_costs_the_cases_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "if len(shard['cases']) < 3:\n    send('refused', message='the card is gone')\n    sys.exit(2)"
    worker(monkeypatch, "if case == SECOND:\n    at('', '')\n    sys.exit(3)", before=refused)
    outcome, store = run(tmp_path, plan())
    found = rows(store)
    assert [found[case.name, "torch-eager", 0].status for case in CASES] == [Status.OK, Status.FAILED, Status.FAILED]
    assert "refused to go on (the card is gone)" in str(found[THIRD, "torch-eager", 0].reason)
    assert store.manifest().state == "finished" and outcome.exit_code == 1


def test_a_full_disk_shows_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: Verdicts
) -> None:
    worker(monkeypatch)
    keep = RunStore.keep

    def full(
        store: RunStore, case: str, attempt: int, replicate: int, made: list[tuple[Record, Samples | None]]
    ) -> list[Record]:
        if case == THIRD:
            raise OSError(28, "No space left on device")
        return keep(store, case, attempt, replicate, made)

    monkeypatch.setattr(RunStore, "keep", full)
    outcome, _ = run(tmp_path, plan())
    assert outcome.problem == "the run could not be kept to its end: No space left on device"
    assert [record.case for record in outcome.records] == [FIRST, SECOND]
    assert outcome.exit_code == 1
    assert verifier.closed and threading.active_count() < 10


def test_a_worker_that_cannot_start_is_one_error_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, before="raise SystemExit('no torch here')")
    with pytest.raises(SpecError, match="no torch here"):
        run(tmp_path, plan())
    assert not list(tmp_path.iterdir())


def test_a_refusal_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORKER", told_by([{"event": "refused", "message": "no GPU: use --device cpu"}]))
    with pytest.raises(SpecError, match="no GPU: use --device cpu"):
        run(tmp_path, plan())
    assert not list(tmp_path.iterdir())


def test_who_was_lost_is_still_told_when_the_case_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = "blocks = [[1.0, 1.0, 9.0]] * 2 if ATTEMPT == 0 else [[1.0] * 3] * 2\n"
    again = "for each in rows: each['series'][0]['blocks'] = blocks"
    worker(
        monkeypatch,
        "if profile == 'torch-compile' and NUMBER == 0:\n    os.kill(os.getpid(), signal.SIGKILL)",
        told=noisy + again,
    )
    asked = plan(*TWO, "torch-compile", cases=CASES[:1], quick=False, fewest=3, most=3, reruns=1)
    outcome, store = run(tmp_path, asked)
    assert {record.attempt for record in store.records()} == {0, 1}
    lost = [r for r in store.records() if r.profile == "torch-compile"]
    assert {r.attempt for r in lost if r.status is Status.FAILED} == {0, 1}
    assert outcome.conclusions is not None
    assert "torch-compile" in {r.profile for r in outcome.conclusions.pooled if r.attempt == 1}


def test_one_process_is_not_precise_enough_to_stop_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, before=SPREAD.format(spread=0.0))
    listener = Watching()
    run(tmp_path, plan(*TWO, cases=CASES[:1], quick=False, fewest=1, most=4), listener)
    assert len(listener.of("process")) == 2


@pytest.mark.parametrize("apart", ["", "os.setsid()"], ids=["in-its-group", "in-its-own-session"])
def test_a_child_that_outlives_its_worker_does_not_hold_the_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: str
) -> None:
    """It has both channels open: what is read from them never ends."""
    child = f"if os.fork() == 0:\n    {apart or 'pass'}\n    time.sleep(30)\n    os._exit(0)"
    worker(monkeypatch, before=child)
    began = time.monotonic()
    outcome, store = run(tmp_path, plan(*TWO, cases=CASES[:1]))
    assert time.monotonic() - began < 15
    assert outcome.exit_code == 0 and len(rows(store)) == 2


# --- the next process -----------------------------------------------------------------------------------------------

GPU = ENVIRONMENT.model_copy(update={"device": "cuda", "device_index": 0})
# Says when it was started and how; who waits for its turn takes a while to be ready.
STANDING_BY = """
def note(what):
    with open({path!r}, "a") as file:
        file.write(f"{{os.getpid()}} {{what}}\\n")

if "--standby" in sys.argv:
    time.sleep(0.5)
    note("ready")
    print(json.dumps(dict(event="ready")), flush=True)
"""


def stood_by(folder: Path, monkeypatch: pytest.MonkeyPatch, processes: int, cpus: int, where: Environment) -> list[str]:
    """What happened, in order, by the number of the process."""
    path = folder / "notes"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    worker(
        monkeypatch,
        early=STANDING_BY.format(path=str(path)),
        before="note('begins')",
        told="ask('quiet')\nnote('times')",
        environment=where,
    )
    outcome, _ = run(folder, plan(cases=CASES[:1], quick=False, fewest=processes, most=processes))
    assert outcome.exit_code == 0
    lines = [line.split() for line in path.read_text().splitlines()]
    order = list(dict.fromkeys(pid for pid, what in lines if what == "begins"))
    return [f"{what} {order.index(pid)}" for pid, what in lines]


def test_the_next_process_is_ready_before_the_hosts_clocks_of_this_one_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stood_by(tmp_path, monkeypatch, 3, 4, GPU) == [
        *("begins 0", "ready 1", "times 0"),
        *("begins 1", "ready 2", "times 1"),
        *("begins 2", "times 2"),
    ]


@pytest.mark.parametrize(("cpus", "where"), [(3, GPU), (64, ENVIRONMENT)], ids=["few-processors", "on-a-cpu"])
def test_where_it_would_disturb_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, where: Environment
) -> None:
    assert stood_by(tmp_path, monkeypatch, 2, cpus, where) == ["begins 0", "times 0", "begins 1", "times 1"]


def test_one_that_stands_by_and_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(
        monkeypatch,
        early="if '--standby' in sys.argv: sys.exit('out of luck')",
        told="ask('quiet')",
        environment=GPU,
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    outcome, store = run(tmp_path, plan(cases=CASES[:1], quick=False, fewest=2, most=2))
    assert outcome.exit_code == 0
    found = rows(store)
    assert {found[FIRST, "torch-eager", number].status for number in (0, 1)} == {Status.OK}


def test_one_that_stands_by_does_not_outlive_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    worker(
        monkeypatch,
        early=f"if '--standby' in sys.argv: open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(1000)",
        told="time.sleep(0.5)\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(0.5)",
        environment=GPU,
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    outcome = asked_alone(tmp_path, plan(cases=CASES[:1], quick=False, fewest=2, most=2))
    assert outcome.exit_code == 143
    status = Path(f"/proc/{path.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text(), "it is still there"


# --- signals --------------------------------------------------------------------------------------------------------

STOPS = """
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
"""
# The second case of the second process asks for the signal, by a file, and looks whether it came.
ASKS = """
if stopping:
    break
if case == SECOND and NUMBER == 1:
    open({file!r}, "w").close()
    deadline = time.monotonic() + 20
    while not stopping and time.monotonic() < deadline:
        time.sleep(0.01)
"""


def when_there(file: Path, number: int) -> None:
    """A signal to this process once a file is there."""

    def wait() -> None:
        while not file.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    asked_for = tmp_path / "asked"
    worker(monkeypatch, before=STOPS, misdeed=ASKS.format(file=str(asked_for)))
    when_there(asked_for, number)
    before = signal.getsignal(signal.SIGINT)
    outcome, store = run(tmp_path, plan(*TWO, fewest=5, most=5))
    assert outcome.exit_code == code
    assert store.manifest().state == "interrupted"
    found = rows(store)
    assert {(case, process) for case, _, process in found} == {
        *((case.name, 0) for case in CASES),
        (FIRST, 1),
        (SECOND, 1),
    }
    assert outcome.conclusions is not None and store.conclusions() == outcome.conclusions
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_between_two_processes_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that had begun and told nothing is none that the run had."""
    asked_for = tmp_path / "asked"
    early = f"if NUMBER == 1:\n    open({str(asked_for)!r}, 'w').close()\n    time.sleep(1)\n    sys.exit(0)"
    worker(monkeypatch, before=STOPS + early)
    when_there(asked_for, signal.SIGINT)
    outcome, store = run(tmp_path, plan(*TWO, quick=False, fewest=5, most=5))
    assert outcome.exit_code == 130 and store.manifest().processes == 1
    assert {process for _, _, process in rows(store)} == {0}
    assert verify.gaps(list(store.records()), store.manifest()) == []


def test_a_second_signal_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for, heard = tmp_path / "asked", tmp_path / "heard"
    deaf = f"if NUMBER == 1:\n    open({str(asked_for)!r}, 'w').close()\n    time.sleep(1000)"
    hears = f"signal.signal(signal.SIGTERM, lambda *_: open({str(heard)!r}, 'w').close())"
    worker(monkeypatch, before=hears, misdeed=deaf)
    when_there(asked_for, signal.SIGINT)
    when_there(heard, signal.SIGINT)  # two that nobody has seen yet are one
    began = time.monotonic()
    outcome, store = run(tmp_path, plan(fewest=5, most=5))
    assert time.monotonic() - began < 15
    assert outcome.exit_code == 130
    assert {(key[0], key[2]) for key in rows(store)} == {(case.name, 0) for case in CASES}


def test_what_was_not_shown_because_of_a_signal_is_not_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = tmp_path / "asked"
    asks = ASKS.format(file=str(asked_for)).replace("NUMBER == 1", "NUMBER == 0")
    unshown = asks + "\nif stopping:\n    rows.append(row(case, profile))\n    continue\n"
    worker(monkeypatch, before=STOPS, misdeed=unshown)
    when_there(asked_for, signal.SIGTERM)
    _, store = run(tmp_path, plan())
    assert rows(store)[SECOND, "torch-eager", 0].status is Status.OK


def test_a_signal_while_a_worker_is_being_started_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no process yet that it could be sent to."""
    worker(monkeypatch, "time.sleep(60)")
    start = subprocess.Popen

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return start(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    began = time.monotonic()
    assert asked_alone(tmp_path, plan(cases=CASES[:1])).exit_code == 143
    assert time.monotonic() - began < 20


def test_a_signal_before_the_first_worker_has_begun_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch takes seconds to import: the likeliest moment to think again."""
    began = tmp_path / "began"
    worker(monkeypatch, before=f"open({str(began)!r}, 'w').close()\ntime.sleep(1000)")
    when_there(began, signal.SIGINT)
    outcome = asked_alone(tmp_path, plan())
    assert (outcome.exit_code, outcome.kept, outcome.records, outcome.problem) == (130, False, [], None)
    assert outcome.manifest is not None and outcome.manifest.state == "interrupted"


def test_a_loss_just_before_a_signal_does_not_replace_what_the_first_process_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    misdeed = f"""
if case == SECOND and NUMBER == 1 and profile == "torch-native":
    sys.exit(3)
if [SECOND, "torch-native"] in shard["skip"]:
    open({str(again)!r}, "w").close()
    while not stopping:
        time.sleep(0.01)
    os._exit(0)
"""
    worker(monkeypatch, before=STOPS, misdeed=misdeed)
    when_there(again, signal.SIGTERM)
    _, store = run(tmp_path, plan(*TWO, fewest=3, most=3))
    found = rows(store)
    assert [found[SECOND, name, 0].status for name in TWO] == [Status.OK, Status.OK]
    assert found[SECOND, "torch-native", 1].code is Code.CRASHED


@pytest.mark.parametrize("end", ["sys.exit(3)", "pass"], ids=["crash", "well"])
def test_a_process_that_a_worker_leaves_behind_does_not_hold_the_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """It holds the worker's stderr open, which the parent reads to its end."""
    left = "import subprocess\nchild = subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL)\n"
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
    worker(monkeypatch, before=left + note, last=end)
    began = time.monotonic()
    run(tmp_path, plan(cases=CASES[:1]))
    assert time.monotonic() - began < 10
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text(), "it is still there"


@pytest.mark.parametrize("dies", ["pass", "sys.stdin.readline()"], ids=["at-once", "while-it-judges"])
def test_a_verifier_that_dies_is_an_end_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    monkeypatch.setattr(processes, "Verifier", VERIFIER)
    monkeypatch.setattr(processes, "VERIFIER", [sys.executable, "-I", "-c", f"import sys; {dies}"])
    worker(monkeypatch, before="time.sleep(0.2)")
    began = time.monotonic()
    outcome = asked_alone(tmp_path, plan(*TWO))
    assert time.monotonic() - began < 20
    assert outcome.exit_code == 1
    assert not any(record.status is Status.OK for record in outcome.records), "nobody saw what it made"
