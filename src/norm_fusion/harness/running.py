"""Runs a trial as any other run is: a manifest, a shard, the engine."""

from __future__ import annotations

from pathlib import Path

from norm_fusion import engine
from norm_fusion.harness.trials import Trial
from norm_fusion.records import Manifest
from norm_fusion.runs.store import RunStore, now
from norm_fusion.spec import Shard


def run(
    trial: Trial, run_id: str, folder: Path, device: str, seed: int, command: list[str], listener: engine.Listener
) -> engine.Outcome:
    """A run of its own below `folder`, under the trial's name."""
    shard = Shard(
        run_id=f"{run_id}-{trial.name}",
        cases=trial.cases,
        profiles=trial.profiles,
        device=device,
        seed=seed,
        quick=trial.processes == 1,
        yardsticks=False,
        series=trial.series,
        effort=trial.effort,
    )
    plan = engine.Plan(shard, trial.processes, trial.processes, timeout_s=trial.timeout_s, reruns=trial.reruns)
    manifest = Manifest(
        run_id=shard.run_id,
        title=f"check-harness: {trial.name}",
        question=trial.question,
        command=command,
        cases=[case.name for case in trial.cases],
        profiles=list(trial.profiles),
        device=device,
        quick=shard.quick,
        seed=seed,
        fewest=trial.processes,
        most=trial.processes,
        started_at=now(),
    )
    return engine.run(plan, manifest, lambda: RunStore.create(folder, trial.name), listener)
