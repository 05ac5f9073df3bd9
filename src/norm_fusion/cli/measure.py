"""`benchmark-norms` and `norm-fusion run`: what is typed becomes a question; launch.py has it answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from norm_fusion import backends
from norm_fusion.cli.launch import Kept, Question, answer, asked_cluster, pace
from norm_fusion.cli.options import (
    EXIT_CODES,
    SETTINGS,
    AddressOption,
    BackendOption,
    BudgetOption,
    ContestantOption,
    DeviceOption,
    JsonOption,
    MixedOption,
    ModelOption,
    OutputOption,
    PrecisionOption,
    ProcessesOption,
    ProfilingOption,
    QuickOption,
    RetryOption,
    RunIdOption,
    ShardsOption,
    TimeoutOption,
    VersionOption,
    bench,
    checked_device,
    lab,
    usage,
)
from norm_fusion.spec import DEFAULT_CASES, ITEMSIZE, Case, Op, Pass, SpecError, parse_shape


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
    budget: BudgetOption = None,
    timeout: TimeoutOption = 300,
    quick: QuickOption = False,
    with_profiling: ProfilingOption = False,
    run_id: RunIdOption = None,
    retry_failed: RetryOption = False,
    allow_mixed: MixedOption = False,
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
        question = Question(
            title="Normalizations on this machine",
            question="How much does a fused normalization kernel move latency on this machine?",
            suite=None,
            cases=cases,
            profiles=_profiles(backend or ["all"], contestant or [], cases),
            device=checked_device(device),
            pace=pace(processes, precision, budget, timeout, quick),
            profiling=with_profiling,
        )
        answer(question, Kept(run_id, output, retry_failed, allow_mixed), json)


@lab.command("run", epilog=EXIT_CODES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _run(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A suite's name (see `norm-fusion suites`), or a .toml file.")],
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            metavar="PATTERN",
            help="Of the suite's cases those whose names fit, like 'rmsnorm-*x65536-*'; repeatable. What one run has "
            "no time for may be measured by another.  [default: all]",
        ),
    ] = None,
    backend: BackendOption = None,
    contestant: ContestantOption = None,
    device: DeviceOption = "auto",
    processes: ProcessesOption = None,
    precision: PrecisionOption = "1%",
    budget: BudgetOption = None,
    timeout: TimeoutOption = 300,
    quick: QuickOption = False,
    with_profiling: ProfilingOption = False,
    run_id: RunIdOption = None,
    retry_failed: RetryOption = False,
    allow_mixed: MixedOption = False,
    address: AddressOption = None,
    gpu_model: ModelOption = None,
    shards: ShardsOption = None,
    output: OutputOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Run a suite and keep it: on all GPUs of this machine, or of a Ray cluster. Its optional parts are switched on by
    --include-NAME (see `norm-fusion suites`).

    The same run id goes on with a run that was interrupted, or whose budget ended before all processes that were asked
    for: what is finished is not measured again.

    \b
    Examples:
      norm-fusion run normalization-fusion --run-id first --include-rmsnorm-shape-sweep
      norm-fusion run normalization-fusion --run-id first --with-profiling
      norm-fusion run forward --run-id wide --case 'rmsnorm-*x65536-*'
      norm-fusion run my-suite.toml --run-id mine --retry-failed
      norm-fusion run normalization-fusion --run-id two --address 10.0.0.4:6379 --gpu-model A10G --gpu-model H200
    """
    from norm_fusion.runs import suites

    with usage("norm-fusion run"):
        # An option of a suite's own may stand before it: the parser knows neither.
        typed = [suite, *context.args]
        named = next((word for word in typed if not word.startswith("-")), suite)
        typed.remove(named)
        chosen = suites.load(named, _known)
        known = {f"--include-{name}": name for name in chosen.options}
        unknown = [word for word in typed if word not in known]
        if unknown:
            raise SpecError(
                f"option {unknown[0]!r} is unknown: suite {chosen.name} has {', '.join(known) or 'no optional parts'}; "
                "other options are in `norm-fusion run --help`"
            )
        cases = chosen.select(tuple(known[word] for word in typed), case or [])
        question = Question(
            title=chosen.title,
            question=chosen.question,
            suite=chosen.name,
            cases=cases,
            profiles=_profiles(backend or chosen.profiles, contestant or [], cases),
            device=checked_device(device),
            pace=pace(processes, precision, budget, timeout, quick),
            profiling=with_profiling,
            profiled=chosen.profiled,
        )
        cluster = asked_cluster(address, gpu_model or [], shards, device)
        answer(question, Kept(run_id, output, retry_failed, allow_mixed), json, cluster)


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


def _known(profile: str) -> str:
    """A profile's name, or a family's, else SpecError."""
    backends.select([profile], tuple(Op))
    return profile


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
