"""The commands that look at runs and suites: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from norm_fusion import backends
from norm_fusion.cli.options import JsonOption, OutputOption, lab, print_run, usage
from norm_fusion.spec import SpecError


@lab.command("suites")
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


@lab.command("show")
def _show(run: RunArgument, output: OutputOption = Path("runs"), json: JsonOption = False) -> None:
    """Print a run again, as it was printed when it was measured."""
    from norm_fusion.runs.store import RunStore, in_order

    with usage("norm-fusion show"):
        store = RunStore.open(run, output)
        manifest = store.manifest()
        records = in_order(store.records(), manifest)
        if not records:
            raise SpecError(f"run {run!r} has no records")
        print_run(manifest, records, json)


@lab.command("report")
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

    with usage("norm-fusion report"):
        store = RunStore.open(run, output)
        try:
            from norm_fusion.report import page as pages
        except ModuleNotFoundError as missing:
            raise SpecError(f"a report needs {missing.name}: install norm-fusion[report]") from None
        typer.echo(pages.write(store, page or store.path / "report.html"))
