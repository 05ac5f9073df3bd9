"""What the commands share: the two applications, their common options, and how a user's error is told."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from norm_fusion import __version__
from norm_fusion.spec import FEWEST, MOST, SpecError

LISTED = 12  # of what is not believed, or a gate refuses

if TYPE_CHECKING:
    from rich.console import Console

    from norm_fusion.records import Conclusions, Counters, Manifest

EXIT_CODES = (
    "Exit codes: 0 all rows ok or unavailable; 1 a row is wrong or failed (it raised, crashed or hung), or a "
    "--contestant is not there; 2 bad usage; 3 not all of it could be measured (no node, a card that was lost): the "
    "same --run-id goes on; 130 or 143 interrupted (what was measured is kept and shown, the same --run-id goes on)."
)
# Five processes over the six cases of the seed's sweep take 180 to 240 s on an H200; a CPU's take twice that.
GPU_BUDGET_S, CPU_BUDGET_S = 270.0, 600.0
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
        help="Name of the run and of its folder; one that is there is gone on with.  [default: from the clock]",
        show_default=False,
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder that holds the runs.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON array of records on stdout and nothing else there.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="One process, no reruns: figures for a first look, without intervals and calls.")
]
ProcessesOption = Annotated[
    str | None,
    typer.Option(
        "--processes",
        metavar="K[:MOST]",
        help="Measure in K fresh processes, and add more, up to MOST, until the intervals are as narrow as --precision "
        f"asks; that needs a K of {FEWEST} or more. K alone means exactly K, and 1 is --quick.  "
        f"[default: {FEWEST}:{MOST}]",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", metavar="P", help="Half-width of the 95% intervals at which to stop, like 1% or 0.01."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="SECONDS",
        help="Start no further process that would end later than so, on one card; several share it. The first always "
        f"runs, profiling is not counted. 0: no limit.  [default: {GPU_BUDGET_S:.0f}, on a CPU {CPU_BUDGET_S:.0f}]",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", help="Give a contestant up that shows no sign of life for so long."),
]
ContestantOption = Annotated[
    list[str] | None,
    typer.Option(
        "--contestant",
        metavar="MODULE:FUNCTION",
        help="Your own kernel beside the others, called like torch.nn.functional's: (x, shape, weight, eps), for "
        "LayerNorm (x, shape, weight, bias, eps). The module is looked for here and on PYTHONPATH. "
        "rmsnorm=MODULE:FUNCTION serves one operator; repeatable.",
    ),
]

ProfilingOption = Annotated[
    bool,
    typer.Option(
        "--with-profiling",
        help="Read hardware counters too, with Nsight Compute, after and apart from all timing; where that cannot be, "
        "say why.",
    ),
]
RetryOption = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Of a run that is there, measure cases with a failed row anew, and ask again for counters that were not "
        "to be had.",
    ),
]
MixedOption = Annotated[
    bool, typer.Option("--allow-mixed", help="Go on with a run that was begun by another commit of this code.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        envvar="RAY_ADDRESS",
        help="Measure on the GPUs of the Ray cluster with this head.  [default: this machine's GPUs]",
        show_default=False,
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu-model",
        metavar="MODEL",
        help="Of the cluster's GPUs, those of this model, as Ray names it (A10G, H200, ...); repeatable: the suite is "
        "run on each.  [default: the only one that is there]",
    ),
]
ShardsOption = Annotated[
    int | None,
    typer.Option(
        "--shards",
        metavar="N",
        min=1,
        help="On a cluster: deal the cases of a model to so many shards.  [default: one a free card]",
        show_default=False,
    ),
]

SETTINGS = {"help_option_names": ["-h", "--help"]}
bench = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
lab = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=SETTINGS,
)


def as_typed() -> list[str]:
    """The command that goes on, as one would type it again."""
    name = Path(sys.argv[0]).name
    return ["norm-fusion" if name == "__main__.py" else name, *sys.argv[1:]]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"norm-fusion {__version__}")
        raise typer.Exit()


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
]


@contextmanager
def usage(command: str) -> Iterator[None]:
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


def checked_device(name: str) -> str:
    """A device's name as it may be asked for, else SpecError."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name) is None:
        raise SpecError(f"device {name!r} is unknown: choose {DEVICES}")
    return name


def unused_run_id(run_id: str | None, output: Path) -> str:
    """The id of a run that is not there yet: the one asked for, or one from the clock."""
    from norm_fusion.runs import store

    run_id = store.checked_run_id(store.new_run_id() if run_id is None else run_id)
    if (output / run_id).exists():
        raise SpecError(f"run {run_id!r} exists in {output} and is never overwritten: choose another --run-id")
    return run_id


def console(pipe_width: int) -> Console:
    """The terminal; a pipe has no width, and gets this one."""
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=pipe_width) if piped else Console()


def existing(folders: Iterable[Path], option: str = "--from", what: str = "runs") -> list[Path]:
    """Those that an option named; raises SpecError where one is no folder."""
    found = list(folders)
    for folder in found:
        if not folder.is_dir():
            raise SpecError(f"there is no folder {folder}: {option} names one that holds {what}")
    return found


def name_left_out(command: str, sentences: Sequence[str], why: str = "not believed") -> None:
    """The first of them on stderr, and how many more there are."""
    more = len(sentences) - LISTED
    for said in [*sentences[:LISTED], *([f"and {more} more"] if more > 0 else [])]:
        typer.echo(f"{command}: {why}: {said}", err=True)


def print_array(items: Iterable[str]) -> None:
    """Print one JSON array, a line an item."""
    lines = ",\n".join(items)
    typer.echo(f"[\n{lines}\n]" if lines else "[]")


def print_runs(runs: Sequence[tuple[Manifest, Conclusions, Sequence[Counters]]], json: bool) -> None:
    """Print runs: their pooled records as one JSON array, or of each its tables, notes and answer."""
    from norm_fusion.report.rows import rows_of

    made = [(manifest, rows_of(conclusions, manifest), counters) for manifest, conclusions, counters in runs]
    if json:
        records = [record for _, rows, _ in made for row in rows for record in row.series.values()]
        print_array(record.model_dump_json(by_alias=True) for record in records)
        return
    from norm_fusion.report.sheet import PIPE_WIDTH
    from norm_fusion.report.table import show

    for manifest, rows, counters in made:
        if len(made) > 1:
            console(PIPE_WIDTH).rule(manifest.run_id, align="left")
        show(console(PIPE_WIDTH), manifest, rows, counters)
