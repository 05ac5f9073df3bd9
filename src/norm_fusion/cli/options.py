"""What the commands share: the two applications, their common options, and how a user's error is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from norm_fusion import __version__
from norm_fusion.spec import SpecError

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

SETTINGS = {"help_option_names": ["-h", "--help"]}
bench = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
lab = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=SETTINGS,
)


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


def print_run(manifest: Manifest, records: list[Record], json: bool) -> None:
    if json:
        rows = ",\n".join(record.model_dump_json(by_alias=True) for record in records)
        typer.echo(f"[\n{rows}\n]" if rows else "[]")
        return
    from rich.console import Console

    from norm_fusion.report.rows import join
    from norm_fusion.report.table import PIPE_WIDTH, show

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    show(Console(width=PIPE_WIDTH) if piped else Console(), manifest, join(records))
