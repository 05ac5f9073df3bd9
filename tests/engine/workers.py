"""Workers that are a few lines of Python: what they do at which case, for which contestant, is told as text."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from norm_fusion import engine
from norm_fusion.engine import messages as m
from norm_fusion.engine import processes
from norm_fusion.records import Environment, Manifest, Record
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case, Shard

CASES = tuple(Case.parse(f"rmsnorm-{rows}x8-float32") for rows in (1, 2, 3))
FIRST, SECOND, THIRD = (case.name for case in CASES)
ENVIRONMENT = Environment(
    device="cpu", device_name="x", memory_bytes=1, cache_bytes=1, python="3", platform="p", torch="2", norm_fusion="0"
)

# Names for the texts: what stands in braces is filled in by `worker`.
WORKER = """
import json, os, signal, sys, time
{early}
shard = json.loads(sys.stdin.readline())
NUMBER, ATTEMPT, SECOND = shard["replicate"], shard["attempt"], "rmsnorm-2x8-float32"
environment = {environment}

def send(event, **data):
    sys.stdout.write(json.dumps(dict(event=event, **data)) + "\\n")
    sys.stdout.flush()

def ask(event, **data):
    send(event, **data)
    return json.loads(sys.stdin.readline())

def at(case, profile):
    with open(os.environ["NORM_FUSION_CRUMB"], "r+b") as file:
        file.write((case + "\\n" + profile).encode().ljust(512, b"\\0"))

def kind(case, **odd):
    rows, cols = case.split("-")[1].split("x")
    made = dict(type="Tensor", shape=[int(rows), int(cols)], dtype=case.split("-")[2], device=environment["device"])
    return [made | odd]

def show(case, profile, **odd):
    ask("change", case=case, profile=profile)
    if ask("output", case=case, profile=profile, when="a timed call", input=0, kind=kind(case, **odd))["rows"]:
        ask("rows", x="", y=[profile])

def bracket(case, profile, *ms, calls=40, timer="wall", clock=1.0):
    # Calls of so many ms, the last for ever: as often as they are asked for, which is returned. `clock`: the speed of
    # the worker's own.
    for number in range(99):
        ask("bracket", case=case, profile=profile, timer=timer, p50_ms=1.0)
        began = time.perf_counter()
        time.sleep(ms[min(number, len(ms) - 1)] * calls / 1e3)
        told = (time.perf_counter() - began) * 1e3 * clock
        if not ask("bracket-end", calls=calls, told_ms=told)["again"]:
            return number + 1

def row(case, profile, ms=1.0, **more):
    series = dict(timer="wall", cache="cold", blocks=[[ms] * 10] * 2, positions=[0, 1], rotation=2)
    return dict(case=case, profile=profile, status="ok", max_rel_error=1e-7, series=[series]) | more

def tell(case, rows):
    send("case", case=case, measurements=rows, environment=environment)

def ms(profile):
    return 1.0

{before}
send("environment", environment=environment, conditions=dict(at="now"), total=3)
for case in shard["cases"]:
    send("progress", case=case, what="time")
    rows = []
    for profile in [p for p in shard["profiles"] if [case, p] not in shard["skip"]]:
        at(case, profile)
{misdeed}
        show(case, profile)
        rows.append(row(case, profile, ms(profile)))
{told}
    tell(case, rows)
send("done", conditions=dict(at="later"), interrupted=False)
{last}
"""


def worker(
    monkeypatch: pytest.MonkeyPatch,
    misdeed: str = "",
    before: str = "",
    told: str = "",
    last: str = "",
    early: str = "",
    environment: Environment = ENVIRONMENT,
) -> None:
    """From now on workers do this: `early`, when they know nothing; `before` their environment; for each contestant,
    before a case is told, at last."""
    text = WORKER.format(
        environment=environment.model_dump(),
        early=textwrap.dedent(early),
        before=textwrap.dedent(before),
        misdeed=textwrap.indent(textwrap.dedent(misdeed), " " * 8),
        told=textwrap.indent(textwrap.dedent(told), " " * 4),
        last=textwrap.dedent(last),
    )
    monkeypatch.setattr(processes, "WORKER", [sys.executable, "-I", "-c", text])


class Verdicts:
    """A verifier that is no process: it finds wrong whose name it is told to."""

    def __init__(self, *wrong: str) -> None:
        self.wrong, self.asked, self.closed = wrong, [], False
        self.asked: list[dict[str, Any]] = []

    def start(self) -> None: ...

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        if request["profile"] in self.wrong:
            return {"wrong": "error 1 is above the tolerance", "code": "wrong-output"}
        return {"wrong": None, "code": None}

    def close(self) -> None:
        self.closed = True


class Watching:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __call__(self, where: str, message: m.Message) -> None:
        match message:
            case m.Began():
                self.told.append(("started", message.environment.device_name))
            case m.Process():
                of = message.number, message.of, message.cases, message.attempt, message.steps
                self.told.append(("process", *of))
            case m.Step():
                self.told.append(("step", message.case, message.what))
            case m.Measured():
                made = message.made
                self.told.append(("measured", made[0][0].case if made else None, len(made)))
            case m.Ended():
                self.told.append(("ended", message.number, message.widest))
            case m.Note():
                self.told.append(("note", message.text))

    @property
    def notes(self) -> list[str]:
        return [told[1] for told in self.told if told[0] == "note"]

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [told[1:] for told in self.told if told[0] == kind]


def plan(*profiles: str, cases: tuple[Case, ...] = CASES, quick: bool = True, **changes: Any) -> engine.Plan:
    shard = Shard("a", cases, profiles or ("torch-eager",), "cpu", quick=quick, yardsticks=False)
    return engine.Plan(shard, **({"fewest": 1, "most": 1, "reruns": 0, "timeout_s": 60.0} | changes))


def asked_alone(folder: Path, asked: engine.Plan, listener: Watching | None = None) -> engine.Outcome:
    """Run a plan, which may leave no folder."""
    manifest = Manifest(
        run_id="a",
        title="t",
        question="q",
        command=[],
        cases=[case.name for case in asked.shard.cases],
        profiles=list(asked.shard.profiles),
        profiled=list(asked.profiled),
        device="cpu",
        quick=asked.shard.quick,
        seed=0,
        fewest=asked.fewest,
        most=asked.most,
        started_at="now",
    )
    return engine.run(asked, manifest, lambda: RunStore.create(folder, "a"), listener or Watching())


def run(folder: Path, asked: engine.Plan, listener: Watching | None = None) -> tuple[engine.Outcome, RunStore]:
    """Run a plan; and what is in its folder afterwards."""
    return asked_alone(folder, asked, listener), RunStore.open("a", folder)


def rows(store: RunStore) -> dict[tuple[str, str, int], Record]:
    """The records by case, profile and process."""
    return {(record.case, record.profile, record.replicate or 0): record for record in store.records()}


def told_by(events: list[dict[str, Any]]) -> list[str]:
    """A command that says these lines and ends."""
    text = "\n".join(json.dumps(event) for event in events)
    return [sys.executable, "-I", "-c", f"print({text!r})"]
