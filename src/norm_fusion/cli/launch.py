"""A question becomes a run, new or gone on with; the engine measures it, the report shows it."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from norm_fusion.cli.options import CPU_BUDGET_S, GPU_BUDGET_S, as_typed, print_runs
from norm_fusion.spec import FEWEST, MOST, Case, SpecError, profiled

if TYPE_CHECKING:
    from rich.console import Console

    from norm_fusion import engine
    from norm_fusion.records import Manifest
    from norm_fusion.runs.plan import Plan
    from norm_fusion.runs.store import RunStore


@dataclass(frozen=True)
class Pace:
    """How many processes measure, how precisely and for how long."""

    fewest: int
    most: int
    precision: float
    budget_s: float | None  # 0: no limit; None: what is usual on such a device
    timeout_s: float
    quick: bool


def pace(processes: str | None, precision: str, budget: float | None, timeout: float, quick: bool) -> Pace:
    """The pace that is asked for, else SpecError."""
    if quick and processes is not None:
        raise SpecError("--quick means one process: leave out --processes, or --quick")
    asked = re.fullmatch(r"([0-9]{1,3})(?::([0-9]{1,3}))?", processes or f"{FEWEST}:{MOST}")
    if asked is None:
        raise SpecError(f"--processes {processes!r} is not K or K:MOST: write it like 5 or 5:15")
    fewest = int(asked[1])
    most = int(asked[2] or fewest)
    if not 1 <= fewest <= most:
        raise SpecError(f"--processes {processes}: it must be at least 1, and MOST at least as many")
    if fewest < most and fewest < FEWEST:
        raise SpecError(
            f"--processes {processes}: of fewer than {FEWEST} some agree by chance, and would end it too early; "
            f"choose {FEWEST}:{max(most, FEWEST)}, or {fewest} alone"
        )
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", precision.strip())
    width = 0.0 if number is None else float(number[1]) / (100 if number[2] else 1)
    if not 0 < width < 1:
        raise SpecError(f"--precision {precision!r} is no share between 0 and 1: write it like 1% or 0.01")
    if (budget or 0) < 0 or timeout <= 0:
        raise SpecError("--budget must be 0 or more, and --timeout more than 0: both in seconds")
    if quick:
        fewest = most = 1
    return Pace(fewest, most, width, budget, timeout, quick=most == 1)


@dataclass(frozen=True)
class Question:
    """What a run is asked. `profiled`: names that are profiled beside the cases."""

    title: str
    question: str
    suite: str | None
    cases: tuple[Case, ...]
    profiles: tuple[str, ...]
    device: str
    pace: Pace
    profiling: bool = False
    profiled: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Whose counters are read: each profile of each case, the copy beside them, and what is profiled only."""
        from norm_fusion import profiling

        named = [profiled(name) for name in self.profiled]
        return profiling.cells_of([*self.cases, *named], self.profiles) if self.profiling else ()


@dataclass(frozen=True)
class Kept:
    """Where a run is kept, and how one that is there is gone on with."""

    run_id: str | None
    output: Path
    retry_failed: bool = False
    allow_mixed: bool = False


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: its address, the models of GPU asked for, and how many shards a model's cases make."""

    address: str
    models: tuple[str, ...]
    shards: int | None


def asked_cluster(address: str | None, models: Sequence[str], shards: int | None, device: str) -> Cluster | None:
    """The cluster that is asked for; None: this machine's cards."""
    from norm_fusion.runs.store import RUN_ID

    if address is None:
        for option, given in (("--gpu-model", models), ("--shards", shards)):
            if given:
                raise SpecError(
                    f"{option} is for a cluster: give its --address too, or choose a card with --device cuda:N"
                )
        return None
    if device.startswith("cuda:"):
        raise SpecError(f"--device {device} is a card of this machine: the cluster at --address chooses its own")
    if device == "cpu" and models:
        raise SpecError("--gpu-model is of GPUs, and --device cpu of CPUs: leave one out")
    for model in models:
        if RUN_ID.fullmatch(model) is None:  # it becomes a folder's name
            raise SpecError(f"--gpu-model {model[:80]!r} is no name of a model: write it like A10G, as Ray names it")
    return Cluster(address, tuple(dict.fromkeys(models)), shards)


def answer(question: Question, kept: Kept, json: bool, cluster: Cluster | None = None) -> NoReturn:
    """Measure what is left to be measured, print the run, and exit with its code."""
    from rich.console import Console

    from norm_fusion import engine
    from norm_fusion.report.progress import Watch
    from norm_fusion.runs import store

    run_id = store.checked_run_id(store.new_run_id() if kept.run_id is None else kept.run_id)
    names = _names(run_id, cluster, kept.output)
    console = Console(stderr=True)
    with ExitStack() as held:
        with Watch(console) as watch:
            runs = [_run(question, kept, name, model, cluster, watch, held) for name, model in names.items()]
            # Of a finished run nothing is left: it is shown as it is.
            begun = [run for run in runs if run.manifest.state != "finished"]
            fresh = iter(engine.carry_out(begun, _crew(question, cluster)) if begun else [])
        outcomes = [_as_it_is(run) if run.manifest.state == "finished" else next(fresh) for run in runs]
    _print([outcome for outcome in outcomes if outcome.kept], json)
    for outcome in outcomes:
        _say_how_it_ended(console, outcome, kept.output)
    raise typer.Exit(max(outcome.exit_code for outcome in outcomes))


def _names(run_id: str, cluster: Cluster | None, output: Path) -> dict[str, str | None]:
    """The runs that are meant, and the model of GPU of each: a folder a model where there are, or were, several."""
    models = cluster.models if cluster is not None else ()
    folder = output / run_id
    if (folder / "manifest.json").exists() and len(models) > 1:
        raise SpecError(f"run {run_id!r} exists in {output} and is of one model: choose another --run-id")
    if len(models) > 1 or (models and any(folder.glob("*/manifest.json"))):
        return {f"{run_id}/{model}": model for model in models}
    return {run_id: next(iter(models), None)}


def _run(
    question: Question,
    kept: Kept,
    run_id: str,
    model: str | None,
    cluster: Cluster | None,
    listener: engine.Listener,
    held: ExitStack,
) -> engine.Run:
    """A new run, or what is left of the one that is there, which is held until `held` is closed."""
    from norm_fusion import engine
    from norm_fusion.runs import resume
    from norm_fusion.runs.files import StoreError
    from norm_fusion.runs.store import RunStore

    plan, asked = _asked(question, run_id, model, cluster)
    store = RunStore(kept.output / run_id)
    if not (store.path / "manifest.json").exists():

        def create() -> RunStore:
            if resume.locked(store):  # since a moment ago
                raise StoreError(resume.busy(store))
            made = RunStore.create(store.path.parent, store.path.name)
            held.callback(resume.lock(made).release)
            return made

        if store.path.exists() and not store.unborn:
            raise SpecError(f"{store.path} exists and is no run: choose another --run-id, or another --output")
        return engine.Run(plan, asked, create, listener)
    held.callback(resume.lock(store).release)
    left = resume.left(store, asked, question.cases, mixed=kept.allow_mixed, retry_failed=kept.retry_failed)
    plan = plan.of(left.cases, left.profiled)
    plan = replace(plan, shard=replace(plan.shard, seed=left.manifest.seed))
    if left.cases or left.profiled:
        store.append_event("resumed", cases=len(left.cases), records=len(left.earlier), profiled=len(left.profiled))
    return engine.Run(plan, left.manifest, lambda: store, listener, left.earlier)


def _asked(question: Question, run_id: str, model: str | None, cluster: Cluster | None) -> tuple[Plan, Manifest]:
    """The question as a plan and as a new run's manifest."""
    from norm_fusion import machine
    from norm_fusion.records import Manifest
    from norm_fusion.runs.plan import Plan
    from norm_fusion.runs.store import now
    from norm_fusion.spec import Shard

    at, seed = question.pace, random.SystemRandom().randrange(2**31)
    on_cpu = question.device == "cpu" or (question.device == "auto" and cluster is None and not machine.visible())
    usual = CPU_BUDGET_S if on_cpu else GPU_BUDGET_S
    budget_s = usual if at.budget_s is None else at.budget_s or None
    shard = Shard(run_id, question.cases, question.profiles, question.device, seed=seed, quick=at.quick)
    plan = Plan(shard, at.fewest, at.most, at.precision, budget_s, at.timeout_s, profiled=question.cells)
    manifest = Manifest(
        run_id=run_id,
        title=question.title,
        question=question.question,
        suite=question.suite,
        command=as_typed(),
        cases=[case.name for case in question.cases],
        profiles=list(question.profiles),
        profiled=list(question.cells),
        device=question.device,
        quick=at.quick,
        seed=seed,
        fewest=at.fewest,
        most=at.most,
        precision=at.precision,
        budget_s=budget_s,
        started_at=now(),
        model=model,
        **machine.code(),
    )
    return plan, manifest


def _crew(question: Question, cluster: Cluster | None) -> engine.Crew:
    """Who measures: a cluster's cards, all of this machine's, or the one that is named."""
    from norm_fusion import machine
    from norm_fusion.engine.cards import Cards, Here

    if cluster is not None:
        from norm_fusion.engine import cluster as ray

        return ray.Cluster(cluster.address, cluster.shards)
    there = machine.visible() if question.device in ("auto", "cuda") else []
    used = there[: len(question.cases)]
    return Cards(used) if len(used) > 1 else Here()


def _as_it_is(run: engine.Run) -> engine.Outcome:
    """The outcome of a run of which nothing is left to be done."""
    from norm_fusion import engine
    from norm_fusion.evidence.stored import with_records

    store = run.create()
    manifest = store.manifest()
    made, records, left_out = with_records(store, manifest)
    problem = left_out[0] if left_out else None
    if len(left_out) == 1 and "calls.json" in left_out[0]:
        problem = f"{left_out[0]}; `norm-fusion judge {store.path} --write` makes it again"
    return engine.Outcome(records, list(store.counters()), made, manifest, kept=True, problem=problem)


def _print(outcomes: Sequence[engine.Outcome], json: bool) -> None:
    """Every run's tables, or one array of all their records."""
    from norm_fusion.records import Conclusions

    shown = []
    for outcome in outcomes:
        assert outcome.manifest is not None
        # Without conclusions (the disk was full, say) what was measured is shown as it is.
        made = outcome.conclusions or Conclusions(rule=0, pooled=outcome.records, calls=[])
        shown.append((outcome.manifest, made, outcome.counters))
    print_runs(shown, json)


def _say_how_it_ended(console: Console, outcome: engine.Outcome, output: Path) -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True, highlight=False)

    manifest = outcome.manifest
    assert manifest is not None
    kept = output / manifest.run_id
    if not outcome.kept:
        early = "interrupted before" if outcome.interrupted is not None else "it ended before"
        there = f"{kept} is as it was" if (kept / "manifest.json").exists() else "nothing was kept"
        say(outcome.problem or f"{early} anything was measured: {there}")
        return
    if outcome.problem is not None:
        shown = "what is shown was measured; " if outcome.records else ""
        goes_on = f"the same command with --run-id {_asked_id(manifest)} goes on once that is mended"
        say(f"{outcome.problem}; {shown}{goes_on}", "red")
    processes = f"{manifest.processes} process{'es' * (manifest.processes > 1)}"
    goes_on = f"the same command goes on with --run-id {_asked_id(manifest)}"
    if manifest.state in ("interrupted", "partial", "blocked"):
        done = f"{len(manifest.done)} of {len(manifest.cases)} cases are done"
        if not manifest.whole and outcome.records:
            done += f", {processes} of them measured"
        if lacking := manifest.uncounted(outcome.counters):
            done += f", {len(lacking)} of {len(manifest.profiled)} cells are not counted"
        say(f"{manifest.state}: {done}; {goes_on}", "yellow")
    elif manifest.short:
        say(f"the budget had room for {processes} of at least {manifest.fewest}; {goes_on}", "yellow")
    if not outcome.records:
        say(f"kept in {kept}")
        return
    command = "norm-fusion" if shutil.which("norm-fusion") else f"{os.path.relpath(sys.executable)} -m norm_fusion"
    say(f"kept in {kept}; a page of it: {command} report {kept}")


def _asked_id(manifest: Manifest) -> str:
    """The run id that is typed: of several models that before the slash."""
    return manifest.run_id.partition("/")[0]
