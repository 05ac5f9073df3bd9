"""The engine with workers that die, lie and hang, and with the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from norm_fusion import engine
from norm_fusion.records import Conditions, Environment, Manifest, Measurement, Record, Samples, Series, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case, Shard, SpecError

CASES = tuple(Case.parse(f"rmsnorm-{rows}x8-float32") for rows in (1, 2, 3))
ENVIRONMENT = Environment(
    device="cpu", device_name="x", memory_bytes=1, cache_bytes=1, python="3", platform="p", torch="2", norm_fusion="0"
)

# A worker that measures its cases in order and then misbehaves as told at the second.
FAKE = """
import json, os, sys, time
shard = json.load(sys.stdin)
def send(**event): print(json.dumps(event), flush=True)
environment = {environment}
{elsewhere}
send(event="environment", environment=environment, conditions={{"at": "now"}}, total=3)
for case in shard["cases"]:
    send(event="progress", case=case, what="time")
    if case == "rmsnorm-2x8-float32":
        {misdeed}
    send(event="case", case=case, measurements=[{measurement} | {{"case": case}}])
send(event="done", conditions={{"at": "now"}}, interrupted=False)
{last}
"""


class Silent:
    def started(self, environment: Environment, steps: int) -> None: ...
    def step(self, case: str, what: str) -> None: ...
    def measured(self, records: list[Record]) -> None: ...


def fake(monkeypatch: pytest.MonkeyPatch, misdeed: str = "pass", elsewhere: str = "", last: str = "") -> None:
    series = Series(timer="wall", cache="cold", blocks=[[1.0]], positions=[0])
    measurement = Measurement(case="", profile="torch-eager", status=Status.OK, series=[series])
    text = FAKE.format(
        environment=ENVIRONMENT.model_dump(),
        measurement=measurement.model_dump(mode="json"),
        misdeed=misdeed,
        elsewhere=elsewhere,
        last=last,
    )
    monkeypatch.setattr(engine, "WORKER", [sys.executable, "-c", text])


def run(folder: Path) -> tuple[engine.Outcome, RunStore]:
    shard = Shard("a", CASES, ("torch-eager",), "cpu", quick=True)
    manifest = Manifest(
        run_id="a",
        title="t",
        question="q",
        command=[],
        cases=[case.name for case in CASES],
        profiles=["torch-eager"],
        device="cpu",
        quick=True,
        seed=0,
        started_at="now",
    )
    outcome = engine.run(shard, manifest, lambda: RunStore.create(folder, "a"), Silent())
    return outcome, RunStore.open("a", folder)


def test_records_and_manifest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    outcome, store = run(tmp_path)
    assert outcome.exit_code == 0
    assert {record.case for record in store.records()} == {case.name for case in CASES}
    manifest = store.manifest()
    assert manifest.state == "finished"
    assert manifest.environment == ENVIRONMENT
    assert (manifest.before, manifest.after) == (Conditions(at="now"), Conditions(at="now"))


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL (out of memory?)"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("print('rubbish', flush=True)", "sent a message that is not of its protocol"),
        ("send(event='case', case='rmsnorm-2x8-float32', measurements=[{'a': 1}])", "not of its protocol"),
        ("print('3', flush=True)", "not of its protocol"),
        ("send(event='case', case=5, measurements=[])", "not of its protocol"),
    ],
    ids=["segfault", "killed", "exit", "rubbish", "wrong-fields", "no-object", "wrong-type"],
)
def test_a_worker_that_dies_costs_the_case_it_was_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misdeed: str, reason: str
) -> None:
    fake(monkeypatch, misdeed)
    outcome, store = run(tmp_path)
    by_case = {record.case: record for record in store.records()}
    assert [by_case[case.name].status for case in CASES] == [Status.OK, Status.FAILED, Status.OK]
    assert reason in str(by_case[CASES[1].name].reason)
    assert outcome.exit_code == 1
    assert store.manifest().state == "finished"


def test_a_worker_that_crashes_after_its_last_case_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, last="os.kill(os.getpid(), 11)")
    outcome, store = run(tmp_path)
    assert outcome.exit_code == 0
    assert len(list(store.records())) == 3
    assert store.manifest().state == "finished"


@pytest.mark.parametrize(
    ("elsewhere", "reason"),
    [
        ("environment['device_name'] = 'other card'", "another device or other software"),
        ("send(event='refused', message='the card is gone'); sys.exit(2)", "refused to go on (the card is gone)"),
    ],
    ids=["elsewhere", "refused"],
)
def test_a_successor_that_is_not_where_the_run_began_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str, reason: str
) -> None:
    fake(monkeypatch, misdeed="sys.exit(3)", elsewhere=f"if len(shard['cases']) < 3:\n    {elsewhere}")
    outcome, store = run(tmp_path)
    by_case = {record.case: record for record in store.records()}
    assert [by_case[case.name].status for case in CASES] == [Status.OK, Status.FAILED, Status.FAILED]
    assert reason in str(by_case[CASES[2].name].reason)
    assert store.manifest().state == "finished"
    assert outcome.exit_code == 1


def test_a_full_disk_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    write = RunStore.write

    def full(store: RunStore, record: Record, samples: Samples | None) -> Record:
        if record.case == CASES[2].name:
            raise OSError(28, "No space left on device")
        return write(store, record, samples)

    monkeypatch.setattr(RunStore, "write", full)
    outcome, _ = run(tmp_path)
    assert outcome.problem == "the run could not be kept to its end: No space left on device"
    assert [record.case for record in outcome.records] == [case.name for case in CASES[:2]]
    assert outcome.exit_code == 1


def test_a_worker_that_cannot_start_is_one_error_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WORKER", [sys.executable, "-c", "raise SystemExit('no torch here')"])
    with pytest.raises(SpecError, match="no torch here"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_refusal_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = json.dumps({"event": "refused", "message": "no GPU: use --device cpu"})
    monkeypatch.setattr(engine, "WORKER", [sys.executable, "-c", f"print({refusal!r}); raise SystemExit(2)"])
    with pytest.raises(SpecError, match="no GPU: use --device cpu"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_and_shows_what_was_measured(tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, "-c", "from norm_fusion.cli import benchmark_norms as b; b()", "--device", "cpu"]
    command += ["--backend", "torch-eager", "--backend", "torch-native", "--op", "rmsnorm", "--dtype", "float32"]
    command += ["--shape", "8x16", "--shape", "1024x4096", "--run-id", "cut", "--output", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "cut" / "manifest.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline, "no run in time"
            time.sleep(0.05)
        time.sleep(1)  # into the first case: the seed decides which
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, err
    assert "torch-native" in out
    assert "Interrupted" in out
    assert RunStore.open("cut", tmp_path).manifest().state == "interrupted"
