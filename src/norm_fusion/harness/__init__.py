"""Tries the harness on what is known beforehand: is the lab itself to be trusted, on this machine, today?

trials.py    what is run: cases, contestants, processes
running.py   one of them, through the engine
findings.py  what has to come out, and did it
page.py      the page of results
nvbench.py   a second opinion, where cuda-bench is installed

Everything goes the way of any other run: the same engine, the same workers, the same judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from norm_fusion import engine
from norm_fusion.evidence.verdicts import RULE
from norm_fusion.harness import findings, nvbench
from norm_fusion.harness.running import run
from norm_fusion.harness.trials import trials
from norm_fusion.records import Environment, HarnessCheck, HarnessReport
from norm_fusion.runs.store import now
from norm_fusion.spec import SpecError

GROUPS = ("aa", "planted", "known", "disturbed", "sabotage", "breakage", "second")


def try_all(
    run_id: str,
    folder: Path,
    device: str,
    reduced: bool,
    only: Sequence[str],
    seed: int,
    command: list[str],
    listener: engine.Listener,
) -> HarnessReport:
    """Run the trials, each a run of its own below `folder`, and say what was found.

    Raises:
        SpecError: there is no such device, or a run was interrupted.
    """
    began = now()
    checks: list[HarnessCheck] = []
    environment: Environment | None = None
    for trial in trials(device, reduced):
        if trial.group not in only:
            continue
        outcome = run(trial, run_id, folder, device, seed, command, listener)
        assert outcome.manifest is not None
        if outcome.interrupted is not None:
            raise SpecError("interrupted: what was run is kept, and nothing is concluded from it")
        environment = environment or outcome.manifest.environment
        assert outcome.conclusions is not None
        checks += findings.of(trial, outcome.records, outcome.conclusions)
    if "second" in only and device.startswith("cuda"):
        check, where = nvbench.second_opinion(run_id, folder, device, seed, command, listener)
        checks.append(check)
        environment = environment or where
    if environment is None:
        raise SpecError(f"nothing of {', '.join(only)} can be tried on {device}: choose from {', '.join(GROUPS)}")
    return HarnessReport(
        run_id=run_id,
        command=command,
        reduced=reduced,
        rule=RULE,
        started_at=began,
        finished_at=now(),
        environment=environment,
        checks=findings.joined(checks),
    )


__all__ = ["GROUPS", "try_all"]
