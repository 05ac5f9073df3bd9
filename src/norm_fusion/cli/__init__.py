"""The two commands. Imports stay inside the functions: --help must not wait for what only a run needs.

options.py  what they share      measure.py  benchmark-norms, norm-fusion run, by way of launch.py
runs.py     looking at runs      machine.py  norm-fusion doctor, check-harness
export.py   norm-fusion export   streams.py  stdout and stderr, whose readers may go
"""

from __future__ import annotations

import sys
from typing import NoReturn

try:
    import typer
except ModuleNotFoundError as missing:
    sys.stderr.write(f"the commands need {missing.name}: pip install 'norm-fusion[bench,report]'\n")
    raise SystemExit(2) from None

from norm_fusion.cli import decide, export, machine, measure, runs, site  # noqa: F401 - they register their commands
from norm_fusion.cli.options import VersionOption, bench, lab
from norm_fusion.cli.streams import make_lasting


@lab.callback()
def _main(version: VersionOption = False) -> None:
    """The normalization lab: run suites, look at runs, make reports. One quick question: benchmark-norms."""


def benchmark_norms() -> None:
    """Entry point of `benchmark-norms`."""
    _enter(bench, "benchmark-norms")


def norm_fusion() -> None:
    """Entry point of `norm-fusion`."""
    _enter(lab, "norm-fusion")


def _enter(app: typer.Typer, name: str) -> NoReturn:
    """Run a command; what the user got wrong is one line on stderr and exit code 2."""
    make_lasting()
    # The parser's own errors: typer exports only their leaf.
    usage_error: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        sys.exit(app(prog_name=name, standalone_mode=False) or 0)
    except usage_error as error:
        message: str = error.format_message()  # type: ignore[attr-defined]
        command = getattr(getattr(error, "ctx", None), "command_path", name)
        said = f"{command}: {message.rstrip('.')}; see {command} --help"
        typer.echo(message if "Usage:" in message else said, err=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
