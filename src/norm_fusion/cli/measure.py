"""`benchmark-norms` and `norm-fusion run`: a question becomes a shard, the engine measures it, the report shows it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from norm_fusion import backends
from norm_fusion.cli.options import (
    EXIT_CODES,
    SETTINGS,
    BackendOption,
    BudgetOption,
    ContestantOption,
    DeviceOption,
    JsonOption,
    OutputOption,
    PrecisionOption,
    ProcessesOption,
    QuickOption,
    RunIdOption,
    TimeoutOption,
    VersionOption,
    as_typed,
    bench,
    checked_device,
    lab,
    print_run,
    unused_run_id,
    usage,
)
from norm_fusion.spec import DEFAULT_CASES, FEWEST, ITEMSIZE, MOST, Case, Op, Pass, SpecError, parse_shape


@bench.command(context_settings=SETTINGS, epilog=EXIT_CODES)
def _benchmark(
    op: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="OP", help=f"{', '.join(Op)} or all; repeatable.  [default: rmsnorm, layernorm]"),
    ] = None,
    pass_: Annotated[
        str, typer.Option("--pass", metavar="PASS", help="forward, backward (all gradients) or both.")
    ] = "forward",
    rows: Annotated[list[str] | None, typer.Option("--rows", metavar="N", help="Number of rows; repeatable.")] = None,
    cols: Annotated[
        list[str] | None, typer.Option("--cols", metavar="N", help="Number of columns (hidden size); repeatable.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="ROWSxCOLS", help="Rows and columns together, like 4096x8192; repeatable."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="DTYPE", help=f"{', '.join(ITEMSIZE)}; repeatable.  [default: float16]"),
    ] = None,
    backend: BackendOption = None,
    contestant: ContestantOption = None,
    device: DeviceOption = "auto",
    processes: ProcessesOption = None,
    precision: PrecisionOption = "1%",
    budget: BudgetOption = 600,
    timeout: TimeoutOption = 300,
    quick: QuickOption = False,
    run_id: RunIdOption = None,
    output: OutputOption = Path("runs"),
    json: JsonOption = False,
    version: VersionOption = False,
) -> None:
    """How much does a fused normalization kernel move latency on this machine?

    Measures fused Triton RMSNorm and LayerNorm against PyTorch (eager, native, compiled) and prints what it found.
    With no shape given: rmsnorm 512x1024, 2048x4096, 4096x4096 in float16 and layernorm 4096x4096 in float32.
    Every combination of --rows, --cols, --dtype, --op and --pass is a case; the run is kept under runs/RUN_ID/.
    add-rmsnorm and add-layernorm add a residual first, and return the sum too; backward is timed without its forward.

    \b
    Examples:
      benchmark-norms
      benchmark-norms --backend all --device cuda --rows 4096 --cols 4096 --dtype float16
      benchmark-norms --op rmsnorm --shape 4096x8192 --shape 16384x4096 --dtype bfloat16
      benchmark-norms --op add-rmsnorm --pass both --shape 4096x4096 --dtype bfloat16
      benchmark-norms --quick --json | jq '.[] | {case, profile, timer, p50_ms}'
    """
    with usage("benchmark-norms"):
        cases = _cases(_ops(op), _passes(pass_), rows or [], cols or [], shape or [], dtype or [])
        profiles = _profiles(backend or ["all"], contestant or [], cases)
        _measure(
            title="Normalizations on this machine",
            question="How much does a fused normalization kernel move latency on this machine?",
            suite=None,
            cases=cases,
            profiles=profiles,
            device=device,
            pace=_pace(processes, precision, budget, timeout, quick),
            run_id=run_id,
            output=output,
            json=json,
        )


@lab.command("run", epilog=EXIT_CODES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _run(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A suite's name (see `norm-fusion suites`), or a .toml file.")],
    backend: BackendOption = None,
    contestant: ContestantOption = None,
    device: DeviceOption = "auto",
    processes: ProcessesOption = None,
    precision: PrecisionOption = "1%",
    budget: BudgetOption = 600,
    timeout: TimeoutOption = 300,
    quick: QuickOption = False,
    run_id: RunIdOption = None,
    output: OutputOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Run a suite and keep it. Its optional parts are switched on by --include-NAME.

    \b
    Example:
      norm-fusion run normalization-fusion --run-id first --include-rmsnorm-shape-sweep
    """
    from norm_fusion.runs import suites

    with usage("norm-fusion run"):
        chosen = suites.load(suite)
        known = {f"--include-{name}": name for name in chosen.options}
        unknown = [word for word in context.args if word not in known]
        if unknown:
            raise SpecError(
                f"option {unknown[0]!r} is unknown: suite {chosen.name} has {', '.join(known) or 'no optional parts'}; "
                "other options are in `norm-fusion run --help`"
            )
        cases = chosen.select(tuple(known[word] for word in context.args))
        profiles = _profiles(backend or chosen.profiles, contestant or [], cases)
        _measure(
            title=chosen.title,
            question=chosen.question,
            suite=chosen.name,
            cases=cases,
            profiles=profiles,
            device=device,
            pace=_pace(processes, precision, budget, timeout, quick),
            run_id=run_id,
            output=output,
            json=json,
        )


@dataclass(frozen=True)
class Pace:
    """How many processes measure, how precisely and for how long."""

    fewest: int
    most: int
    precision: float
    budget_s: float | None
    timeout_s: float
    quick: bool


def _pace(processes: str | None, precision: str, budget: float, timeout: float, quick: bool) -> Pace:
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
    if budget < 0 or timeout <= 0:
        raise SpecError("--budget must be 0 or more, and --timeout more than 0: both in seconds")
    if quick:
        fewest = most = 1
    return Pace(fewest, most, width, budget or None, timeout, quick=most == 1)


def _measure(
    *,
    title: str,
    question: str,
    suite: str | None,
    cases: tuple[Case, ...],
    profiles: tuple[str, ...],
    device: str,
    pace: Pace,
    run_id: str | None,
    output: Path,
    json: bool,
) -> NoReturn:
    """Run, print, and exit with the run's code."""
    import random
    import shutil

    from rich.console import Console

    from norm_fusion import engine
    from norm_fusion.records import Conclusions, Manifest
    from norm_fusion.report.progress import Watch
    from norm_fusion.runs import store
    from norm_fusion.spec import Shard

    checked_device(device)
    run_id = unused_run_id(run_id, output)
    seed = random.SystemRandom().randrange(2**31)
    shard = Shard(run_id, cases, profiles, device, seed=seed, quick=pace.quick)
    plan = engine.Plan(shard, pace.fewest, pace.most, pace.precision, pace.budget_s, pace.timeout_s)
    manifest = Manifest(
        run_id=run_id,
        title=title,
        question=question,
        suite=suite,
        command=as_typed(),
        cases=[case.name for case in cases],
        profiles=list(profiles),
        device=device,
        quick=pace.quick,
        seed=seed,
        fewest=pace.fewest,
        most=pace.most,
        precision=pace.precision,
        budget_s=pace.budget_s,
        started_at=store.now(),
    )
    console = Console(stderr=True)
    with Watch(console) as watch:
        outcome = engine.run(plan, manifest, lambda: store.RunStore.create(output, run_id), watch)
    assert outcome.manifest is not None
    if not outcome.kept:
        console.print(outcome.problem or "interrupted before anything was measured: nothing was kept")
        raise typer.Exit(outcome.exit_code)
    # Without conclusions (the disk was full, say) what was measured is shown as it is.
    concluded = outcome.conclusions or Conclusions(rule=0, pooled=outcome.records, calls=[])
    print_run(outcome.manifest, concluded, json)
    if outcome.problem is not None:
        console.print(f"{outcome.problem}; what is shown was measured", style="red", soft_wrap=True, highlight=False)
    command = "norm-fusion" if shutil.which("norm-fusion") else f"{os.path.relpath(sys.executable)} -m norm_fusion"
    kept = output / run_id
    console.print(f"kept in {kept}; a page of it: {command} report {kept}", soft_wrap=True, highlight=False)
    raise typer.Exit(outcome.exit_code)


def _ops(names: list[str] | None) -> tuple[Op, ...]:
    chosen: list[Op] = []
    for name in names or [Op.RMSNORM, Op.LAYERNORM]:
        if name != "all" and name not in set(Op):
            raise SpecError(f"op {name!r} is unknown: choose from {', '.join(Op)}, all")
        chosen += list(Op) if name == "all" else [Op(name)]
    return tuple(dict.fromkeys(chosen))


def _passes(name: str) -> tuple[Pass, ...]:
    if name not in (*Pass, "both"):
        raise SpecError(f"pass {name!r} is unknown: choose from {', '.join(Pass)}, both")
    return tuple(Pass) if name == "both" else (Pass(name),)


def _count(option: str, text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()) is None:
        raise SpecError(f"{option} {text[:40]!r} is not a whole number: write it like {option} 4096")
    return int(text)


def _profiles(named: Sequence[str], contestants: Sequence[str], cases: Sequence[Case]) -> tuple[str, ...]:
    """The profiles of both kinds that some case has a use for."""
    ops = {case.op for case in cases}
    return (*backends.select(named, ops), *(backends.contestant(text, ops) for text in contestants))


def _cases(
    ops: tuple[Op, ...],
    passes: tuple[Pass, ...],
    rows: list[str],
    cols: list[str],
    shapes: list[str],
    dtypes: list[str],
) -> tuple[Case, ...]:
    """Every combination asked for; the seed's four cases where no shape is given, with or without a residual."""
    if bool(rows) != bool(cols):
        given, missing = ("--rows", "--cols") if rows else ("--cols", "--rows")
        raise SpecError(f"{given} is given without {missing}: give both, or --shape ROWSxCOLS")
    sizes = [(_count("--rows", r), _count("--cols", c)) for r in rows for c in cols]
    sizes += [parse_shape(text) for text in shapes]
    if sizes:
        shaped = [Case(op, r, c, dtype) for op in ops for r, c in sizes for dtype in dtypes or ["float16"]]
    else:
        shaped = [
            Case(op, case.rows, case.cols, dtype)
            for op in ops
            for case in DEFAULT_CASES
            if case.op.centred == op.centred
            for dtype in dtypes or [case.dtype]
        ]
    made = [replace(case, pass_=pass_) for pass_ in passes for case in shaped]
    return tuple(dict.fromkeys(made))
