"""The two commands. Imports stay inside the functions: --help must not wait for what only a run needs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

try:
    import typer
except ModuleNotFoundError as missing:
    sys.stderr.write(f"the commands need {missing.name}: pip install 'norm-fusion[bench,report]'\n")
    raise SystemExit(2) from None

from norm_fusion import __version__, backends
from norm_fusion.spec import DEFAULT_CASES, ITEMSIZE, Case, Op, SpecError, parse_shape

if TYPE_CHECKING:
    from norm_fusion.records import Manifest, Record

EXIT_CODES = (
    "Exit codes: 0 all rows ok or unavailable; 1 a row is wrong or failed; 2 bad usage; "
    "130 or 143 interrupted (what was measured is kept and shown)."
)
DEVICES = "auto, cpu, cuda or cuda:N"

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help=f"Where to measure: {DEVICES}. auto takes a GPU where there is one."
    ),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="all, torch, triton, torch-baseline or a profile's name; repeatable.  [default: all]",
    ),
]
RunIdOption = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="ID",
        help="Name of the run and of its folder.  [default: from the clock]",
        show_default=False,
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder that holds the runs.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON array of records on stdout and nothing else there.")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Fewer samples: a first look.")]

_settings = {"help_option_names": ["-h", "--help"]}
_bench = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_lab = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=_settings,
)


def benchmark_norms() -> None:
    """Entry point of `benchmark-norms`."""
    _enter(_bench, "benchmark-norms")


def norm_fusion() -> None:
    """Entry point of `norm-fusion`."""
    _enter(_lab, "norm-fusion")


def _enter(app: typer.Typer, name: str) -> NoReturn:
    """Run a command; what the user got wrong is one line on stderr and exit code 2."""
    # The parser's own errors: typer exports only their leaf.
    usage_error: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        sys.exit(app(prog_name=name, standalone_mode=False) or 0)
    except usage_error as error:
        message: str = error.format_message()  # type: ignore[attr-defined]
        typer.echo(message if "Usage:" in message else f"{name}: {message.rstrip('.')}; see {name} --help", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"norm-fusion {__version__}")
        raise typer.Exit()


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
]


@_bench.command(context_settings=_settings, epilog=EXIT_CODES)
def _benchmark(
    op: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="OP", help=f"{', '.join(Op)} or all; repeatable.  [default: all]"),
    ] = None,
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
    device: DeviceOption = "auto",
    run_id: RunIdOption = None,
    output: OutputOption = Path("runs"),
    json: JsonOption = False,
    quick: QuickOption = False,
    version: VersionOption = False,
) -> None:
    """How much does a fused normalization kernel move latency on this machine?

    Measures fused Triton RMSNorm and LayerNorm against PyTorch (eager, native, compiled) and prints what it found.
    With no shape given: rmsnorm 512x1024, 2048x4096, 4096x4096 in float16 and layernorm 4096x4096 in float32.
    Every combination of --rows, --cols, --dtype and --op is a case; the run is kept under runs/RUN_ID/.

    \b
    Examples:
      benchmark-norms
      benchmark-norms --backend all --device cuda --rows 4096 --cols 4096 --dtype float16
      benchmark-norms --op rmsnorm --shape 4096x8192 --shape 16384x4096 --dtype bfloat16
      benchmark-norms --quick --json | jq '.[] | {case, profile, timer, p50_ms}'
    """
    with _usage("benchmark-norms"):
        cases = _cases(_ops(op), rows or [], cols or [], shape or [], dtype or [])
        profiles = backends.select(backend or ["all"], {case.op for case in cases})
        _measure(
            title="Normalizations on this machine",
            question="How much does a fused normalization kernel move latency on this machine?",
            suite=None,
            cases=cases,
            profiles=profiles,
            device=device,
            run_id=run_id,
            output=output,
            json=json,
            quick=quick,
        )


@_lab.callback()
def _main(version: VersionOption = False) -> None:
    """The normalization lab: run suites, look at runs, make reports. One quick question: benchmark-norms."""


@_lab.command("run", epilog=EXIT_CODES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _run(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A suite's name (see `norm-fusion suites`), or a .toml file.")],
    backend: BackendOption = None,
    device: DeviceOption = "auto",
    run_id: RunIdOption = None,
    output: OutputOption = Path("runs"),
    json: JsonOption = False,
    quick: QuickOption = False,
) -> None:
    """Run a suite and keep it. Its optional parts are switched on by --include-NAME.

    \b
    Example:
      norm-fusion run normalization-fusion --run-id first --include-rmsnorm-shape-sweep
    """
    from norm_fusion.runs import suites

    with _usage("norm-fusion run"):
        chosen = suites.load(suite)
        known = {f"--include-{name}": name for name in chosen.options}
        unknown = [word for word in context.args if word not in known]
        if unknown:
            raise SpecError(
                f"option {unknown[0]!r} is unknown: suite {chosen.name} has {', '.join(known) or 'no optional parts'}; "
                "other options are in `norm-fusion run --help`"
            )
        cases = chosen.select(tuple(known[word] for word in context.args))
        profiles = backends.select(backend or chosen.profiles, {case.op for case in cases})
        _measure(
            title=chosen.title,
            question=chosen.question,
            suite=chosen.name,
            cases=cases,
            profiles=profiles,
            device=device,
            run_id=run_id,
            output=output,
            json=json,
            quick=quick,
        )


@_lab.command("suites")
def _suites() -> None:
    """List the suites: the question, the cases, the optional parts and the profiles."""
    from norm_fusion.runs import suites

    for name in suites.names():
        suite = suites.load(name)
        typer.echo(f"{name}: {suite.question}\n")
        typer.echo(f"  {suite.project}, {suite.focus}. {' '.join(suite.why.split())}\n")
        for case in suite.cases:
            typer.echo(f"  {case.name}")
        for option, cases in suite.options.items():
            typer.echo(f"  --include-{option}: {', '.join(case.name for case in cases)}")
        typer.echo("")
        for profile in backends.select(suite.profiles, {case.op for case in suite.cases}):
            typer.echo(f"  {profile:24}{backends.BY_NAME[profile].summary}")


RunArgument = Annotated[str, typer.Argument(help="A run's id, or its folder.")]


@_lab.command("show")
def _show(run: RunArgument, output: OutputOption = Path("runs"), json: JsonOption = False) -> None:
    """Print a run again, as it was printed when it was measured."""
    from norm_fusion.runs.store import RunStore, in_order

    with _usage("norm-fusion show"):
        store = RunStore.open(run, output)
        manifest = store.manifest()
        records = in_order(store.records(), manifest)
        if not records:
            raise SpecError(f"run {run!r} has no records")
        _print(manifest, records, json)


@_lab.command("report")
def _report(
    run: RunArgument,
    output: OutputOption = Path("runs"),
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="The page to write.  [default: report.html in the run]"),
    ] = None,
) -> None:
    """Make one self-contained HTML page of a run: plots, tables and environment, readable offline."""
    from norm_fusion.runs.store import RunStore

    with _usage("norm-fusion report"):
        store = RunStore.open(run, output)
        try:
            from norm_fusion.report import page as pages
        except ModuleNotFoundError as missing:
            raise SpecError(f"a report needs {missing.name}: install norm-fusion[report]") from None
        typer.echo(pages.write(store, page or store.path / "report.html"))


def _measure(
    *,
    title: str,
    question: str,
    suite: str | None,
    cases: tuple[Case, ...],
    profiles: tuple[str, ...],
    device: str,
    run_id: str | None,
    output: Path,
    json: bool,
    quick: bool,
) -> NoReturn:
    """Run, print, and exit with the run's code."""
    import random
    import shutil

    from rich.console import Console

    from norm_fusion import engine
    from norm_fusion.records import Manifest
    from norm_fusion.report.progress import Watch
    from norm_fusion.runs import store
    from norm_fusion.spec import Shard

    _check_device(device)
    run_id = store.checked_run_id(run_id or store.new_run_id())
    if (output / run_id).exists():
        raise SpecError(f"run {run_id!r} exists in {output} and is never overwritten: choose another --run-id")
    seed = random.SystemRandom().randrange(2**31)
    shard = Shard(run_id, cases, profiles, device, seed=seed, quick=quick)
    manifest = Manifest(
        run_id=run_id,
        title=title,
        question=question,
        suite=suite,
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        cases=[case.name for case in cases],
        profiles=list(profiles),
        device=device,
        quick=quick,
        seed=seed,
        started_at=store.now(),
    )
    console = Console(stderr=True)
    with Watch(console) as watch:
        outcome = engine.run(shard, manifest, lambda: store.RunStore.create(output, run_id), watch)
    assert outcome.manifest is not None
    if not outcome.kept:
        console.print(outcome.problem or "interrupted before anything was measured: nothing was kept")
        raise typer.Exit(outcome.exit_code)
    _print(outcome.manifest, store.in_order(outcome.records, outcome.manifest), json)
    if outcome.problem is not None:
        console.print(f"{outcome.problem}; what is shown was measured", style="red", soft_wrap=True, highlight=False)
    command = "norm-fusion" if shutil.which("norm-fusion") else f"{os.path.relpath(sys.executable)} -m norm_fusion"
    kept = output / run_id
    console.print(f"kept in {kept}; a page of it: {command} report {kept}", soft_wrap=True, highlight=False)
    raise typer.Exit(outcome.exit_code)


def _print(manifest: Manifest, records: list[Record], json: bool) -> None:
    if json:
        rows = ",\n".join(record.model_dump_json(by_alias=True) for record in records)
        typer.echo(f"[\n{rows}\n]" if rows else "[]")
        return
    from rich.console import Console

    from norm_fusion.report.rows import join
    from norm_fusion.report.table import PIPE_WIDTH, show

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    show(Console(width=PIPE_WIDTH) if piped else Console(), manifest, join(records))


def _ops(names: list[str] | None) -> tuple[Op, ...]:
    chosen: list[Op] = []
    for name in names or ["all"]:
        if name != "all" and name not in set(Op):
            raise SpecError(f"op {name!r} is unknown: choose from {', '.join(Op)}, all")
        chosen += list(Op) if name == "all" else [Op(name)]
    return tuple(dict.fromkeys(chosen))


def _count(option: str, text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()) is None:
        raise SpecError(f"{option} {text[:40]!r} is not a whole number: write it like {option} 4096")
    return int(text)


def _cases(
    ops: tuple[Op, ...], rows: list[str], cols: list[str], shapes: list[str], dtypes: list[str]
) -> tuple[Case, ...]:
    """Every combination asked for; the seed's four cases where no shape is given."""
    if bool(rows) != bool(cols):
        given, missing = ("--rows", "--cols") if rows else ("--cols", "--rows")
        raise SpecError(f"{given} is given without {missing}: give both, or --shape ROWSxCOLS")
    sizes = [(_count("--rows", r), _count("--cols", c)) for r in rows for c in cols]
    sizes += [parse_shape(text) for text in shapes]
    if sizes:
        made = [Case(op, r, c, dtype) for op in ops for r, c in sizes for dtype in dtypes or ["float16"]]
    else:
        made = [
            Case(case.op, case.rows, case.cols, dtype)
            for case in DEFAULT_CASES
            if case.op in ops
            for dtype in dtypes or [case.dtype]
        ]
    return tuple(dict.fromkeys(made))


def _check_device(name: str) -> None:
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name) is None:
        raise SpecError(f"device {name!r} is unknown: choose {DEVICES}")


@contextmanager
def _usage(command: str) -> Iterator[None]:
    """Turns an error of the user's, or of a file that the user named, into one line on stderr and exit code 2."""
    try:
        yield
    except SpecError as error:
        typer.echo(f"{command}: {error}", err=True)
    except OSError as error:
        typer.echo(f"{command}: {error.filename or 'a file'}: {error.strerror}", err=True)
    else:
        return
    raise typer.Exit(2)
