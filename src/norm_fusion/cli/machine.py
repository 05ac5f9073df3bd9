"""The commands about this machine and this lab: what can be measured here, and whether the lab can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from norm_fusion.cli.options import (
    DeviceOption,
    OutputOption,
    RunIdOption,
    as_typed,
    checked_device,
    console,
    lab,
    print_array,
    unused_run_id,
    usage,
)
from norm_fusion.spec import SpecError

if TYPE_CHECKING:
    from norm_fusion.doctor import Report
    from norm_fusion.records import HarnessReport

DOCTOR_CODES = "Exit codes: 0 something can be measured on that device, be it with limits; 1 nothing can; 2 bad usage."


@lab.command("doctor", epilog=DOCTOR_CODES)
def _doctor(
    device: DeviceOption = "auto",
    output: OutputOption = Path("runs"),
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array of findings on stdout and nothing else there.")
    ] = False,
) -> None:
    """Say what this machine can measure, and what to mend. Takes seconds, changes nothing.

    \b
    Each finding is ok, limited (works, and is worth less), missing or unknown.

    \b
    Examples:
      norm-fusion doctor
      norm-fusion doctor --device cuda:1
      norm-fusion doctor --json | jq '.[] | select(.state != "ok") | {name, seen, remedy}'
    """
    with usage("norm-fusion doctor"):
        report = _examine(checked_device(device), output)
    if json:
        from dataclasses import asdict
        from json import dumps

        print_array(dumps(asdict(finding)) for finding in report.findings)
        if not report.measurable:
            typer.echo(report.summary, err=True)
    else:
        from norm_fusion.doctor.show import PIPE_WIDTH, show

        show(console(PIPE_WIDTH), report)
    raise typer.Exit(0 if report.measurable else 1)


def _examine(device: str, output: Path) -> Report:
    """Look at the machine; somebody who waits at a terminal is told what for."""
    from rich.console import Console

    from norm_fusion import doctor

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        return doctor.examine(device, output)
    with terminal.status("looking at this machine (imports PyTorch)"):
        return doctor.examine(device, output)


HARNESS_CODES = (
    "Exit codes: 0 every check that could be tried passed; 1 one failed; 2 bad usage; 130 or 143 interrupted."
)


@lab.command("check-harness", epilog=HARNESS_CODES)
def _check_harness(
    device: DeviceOption = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="GROUP",
            help="aa (a kernel against itself), planted (effects of known size), known (known durations), disturbed "
            "(noise and drift, on a CPU), sabotage, breakage, second (NVBench); repeatable.  [default: all]",
        ),
    ] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Fewer cases and processes: what every change is tested with.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of inputs and orders.")] = 0,
    run_id: RunIdOption = None,
    output: OutputOption = Path("runs"),
    json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout, nothing else there.")
    ] = False,
) -> None:
    """Try the lab itself on what is known beforehand.

    Is a kernel faster than itself, is a planted effect found, is cheating? Everything goes the way of any other run.
    Prints a page of results, and keeps it with every record and sample under runs/RUN_ID/. Takes about ten minutes on
    a GPU, half an hour on two cores of a CPU; reduced, two to three.

    \b
    Examples:
      norm-fusion check-harness
      norm-fusion check-harness --only sabotage --only breakage
      norm-fusion check-harness --device cpu --reduced --json | jq '.checks[] | {name, passed, found}'
    """
    with usage("norm-fusion check-harness"):
        report = _tried(device, only or [], reduced, seed, run_id, output)
    from norm_fusion.harness import page as pages

    typer.echo(report.model_dump_json(indent=1) if json else pages.page(report))
    typer.echo(f"{pages.summary(report)}; kept in {output / report.run_id}", err=True)
    raise typer.Exit(int(any(check.passed is False for check in report.checks)))


def _tried(device: str, only: list[str], reduced: bool, seed: int, run_id: str | None, output: Path) -> HarnessReport:
    from rich.console import Console

    from norm_fusion import harness, machine
    from norm_fusion.harness import page as pages
    from norm_fusion.report.progress import Watch
    from norm_fusion.runs import files

    checked_device(device)
    for group in only:
        if group not in harness.GROUPS:
            raise SpecError(f"group {group!r} is unknown: choose from {', '.join(harness.GROUPS)}")
    if device == "auto":
        device = "cuda" if machine.gpus() else "cpu"
    run_id = unused_run_id(run_id, output)
    folder = output / run_id
    with Watch(Console(stderr=True)) as watch:
        report = harness.try_all(run_id, folder, device, reduced, only or harness.GROUPS, seed, as_typed(), watch)
    files.write_whole(folder / "harness.json", (report.model_dump_json(indent=1) + "\n").encode())
    files.write_whole(folder / "harness.md", pages.page(report).encode())
    return report
