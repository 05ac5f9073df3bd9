"""The commands that look at runs and suites: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from norm_fusion import backends
from norm_fusion.cli.options import (
    JsonOption,
    OutputOption,
    console,
    lab,
    name_left_out,
    print_array,
    print_runs,
    usage,
)
from norm_fusion.spec import SpecError


@lab.command("suites")
def _suites(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array of suites on stdout.")] = False,
) -> None:
    """List the suites: question, cases, optional parts, profiles, metrics."""
    from dataclasses import asdict
    from json import dumps

    from norm_fusion.runs import suites

    with usage("norm-fusion suites"):
        found = [suites.load(name) for name in suites.names()]
    if json:
        print_array(dumps(asdict(suite) | {"cases": [case.name for case in suite.cases]}) for suite in found)
        return
    for suite in found:
        typer.echo(f"{suite.name}: {suite.question}\n")
        typer.echo(f"  {suite.project}, {suite.focus}. {' '.join(suite.why.split())}\n")
        for case in suite.cases:
            typer.echo(f"  {case.name:32}{suite.summaries.get(case.name, '')}".rstrip())
        for name, option in suite.options.items():
            typer.echo(f"\n  --include-{name}: {option.summary}")
            for case in option.cases:
                typer.echo(f"    {case.name}")
        if suite.profiled:
            typer.echo(f"\n  --with-profiling: counters of all these, and of {', '.join(suite.profiled)}")
        typer.echo("")
        for profile in backends.select(suite.profiles, {case.op for case in suite.cases}):
            typer.echo(f"  {profile:24}{backends.BY_NAME[profile].summary}")
        for group, metrics in suite.metrics.items():
            typer.echo(
                f"\n  {group}: {', '.join(metrics)}"
                if group == next(iter(suite.metrics))
                else f"  {group}: {', '.join(metrics)}"
            )


RunArgument = Annotated[str, typer.Argument(help="A run's id, or its folder.")]


LEFT_OUT = "Exit codes: 0 all of it; 1 a file was left out, as it cannot be read or was changed; 2 bad usage."


@lab.command("runs", epilog="Exit codes: 0 all of them; 1 one cannot be read; 2 bad usage.")
def _runs(
    output: OutputOption = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array of runs on stdout.")] = False,
) -> None:
    """List the runs, the newest first: what was asked, where, and how far it is.

    A run whose process ended suddenly is "interrupted" here: the command that it was made by, with its --run-id, goes
    on with it.

    \b
    Examples:
      norm-fusion runs
      norm-fusion runs --output evidence
      norm-fusion runs --json | jq -r '.[] | select(.state != "finished") | .run_id'
    """
    from dataclasses import asdict
    from json import dumps

    from norm_fusion.report.listing import show_runs
    from norm_fusion.report.sheet import PIPE_WIDTH
    from norm_fusion.runs.listing import listed

    with usage("norm-fusion runs"):
        found, unreadable = listed(output)
        name_left_out("norm-fusion runs", unreadable)
        if json:
            print_array(dumps(asdict(one)) for one in found)
        elif found:
            show_runs(console(PIPE_WIDTH), found)
        else:
            typer.echo(f"{output} holds no runs yet: make one with `norm-fusion run` or `benchmark-norms`", err=True)
        raise typer.Exit(int(bool(unreadable)))


@lab.command(
    "verify",
    epilog="Exit codes: 0 everything is as it was written; 1 something is not, or is missing; 2 bad usage.",
)
def _verify(run: RunArgument, output: OutputOption = Path("runs")) -> None:
    """Check every file of a run against its hash, every record against its samples, every call against the records.

    Records, samples and counters have hashes; of what else there is, that it is there and can be read.

    \b
    Examples:
      norm-fusion verify first
      for run in evidence/h200-*; do norm-fusion verify $run; done
    """
    from norm_fusion.evidence.stored import forged, rejudged
    from norm_fusion.runs.files import StoreError
    from norm_fusion.runs.store import RunStore
    from norm_fusion.runs.verify import damaged, incomplete

    with usage("norm-fusion verify"):
        store = RunStore.open(run, output)
        odd, files = damaged(store)
        made, records, left_out = rejudged(store, store.manifest())
        odd += left_out
        try:
            stored = store.conclusions()
            if stored is not None and not odd:
                odd += [f"{store.path / 'calls.json'}: {said}" for said in forged(stored, made)]
        except StoreError as error:
            odd.append(str(error))
        odd = list(dict.fromkeys([*odd, *incomplete(store)]))
        name_left_out("norm-fusion verify", odd, "is not as it was written")
        if odd:
            raise typer.Exit(1)
        whole = f"{files} files of records, samples and counters are as they were written, and"
        unknown = "its files have no hashes, so that nobody can tell whether they are as they were written;"
        typer.echo(f"{run}: {whole if files else unknown} {len(records)} records follow from their samples")


@lab.command("show", epilog=LEFT_OUT)
def _show(run: RunArgument, output: OutputOption = Path("runs"), json: JsonOption = False) -> None:
    """Print a run again, as when it was measured.

    \b
    Examples:
      norm-fusion show first
      norm-fusion show evidence/h200-seed | less -R
      norm-fusion show first --json | jq '.[] | select(.timer == "graph") | {case, profile, gbps, speedup}'
    """
    from norm_fusion.evidence.stored import concluded
    from norm_fusion.runs.store import RunStore

    with usage("norm-fusion show"):
        store = RunStore.open(run, output)
        manifest = store.manifest()
        made, left_out = concluded(store, manifest)
        name_left_out("norm-fusion show", left_out)
        if not made.pooled:
            raise SpecError(f"run {run!r} has no records: it is {manifest.state}{_why(manifest.notes)}")
        print_runs([(manifest, made, list(store.counters()))], json)
        raise typer.Exit(int(bool(left_out)))


@lab.command("report", epilog=LEFT_OUT)
def _report(
    run: RunArgument,
    output: OutputOption = Path("runs"),
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="The page to write.  [default: report.html in the run]"),
    ] = None,
) -> None:
    """Make one HTML page of a run: plots, tables, environment. It opens offline; its path is printed.

    \b
    Examples:
      norm-fusion report first
      norm-fusion report evidence/h200-seed --page h200.html
    """
    from norm_fusion.evidence.stored import concluded
    from norm_fusion.runs.store import RunStore

    with usage("norm-fusion report"):
        store = RunStore.open(run, output)
        try:
            from norm_fusion.report import page as pages
        except ModuleNotFoundError as missing:
            raise SpecError(f"a report needs {missing.name}: install norm-fusion[report]") from None
        made, left_out = concluded(store, store.manifest())
        name_left_out("norm-fusion report", left_out)
        if not made.pooled:
            raise SpecError(f"run {run!r} has no records")
        typer.echo(pages.write(store, page or store.path / "report.html", made))
        raise typer.Exit(int(bool(left_out)))


@lab.command(
    "judge",
    epilog="Exit codes: 0 judged, whatever changed; 1 a file was left out, as it cannot be read or was changed; "
    "2 bad usage.",
)
def _judge(
    run: RunArgument,
    output: OutputOption = Path("runs"),
    write: Annotated[
        bool,
        typer.Option("--write", help="Store the new calls as the run's calls.json. Not where records are left out."),
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON array of calls, each with what it was, on stdout."),
    ] = False,
) -> None:
    """Judge a run again, and say which calls changed.

    By its records and samples alone; nothing is measured. A call is the label of one claim ("this kernel is faster
    than that one here"): supported, regression, no difference, inconclusive, rerun noise or invalid, by a rule that
    has a version.

    \b
    Examples:
      norm-fusion judge first
      norm-fusion judge runs/first --write
      norm-fusion judge first --json | jq '.[] | select(.label == "supported") | {case, profile, baseline, low}'
    """
    from json import dumps

    from norm_fusion.evidence.stored import rejudged
    from norm_fusion.records import Conclusions
    from norm_fusion.report import verdicts
    from norm_fusion.report.sheet import PIPE_WIDTH
    from norm_fusion.runs.files import StoreError
    from norm_fusion.runs.store import RunStore

    with usage("norm-fusion judge"):
        store = RunStore.open(run, output)
        stored: Conclusions | None = None
        unreadable = []
        try:
            stored = store.conclusions()
        except StoreError as error:
            unreadable.append(str(error))
        made, records, left_out = rejudged(store, store.manifest())
        name_left_out("norm-fusion judge", unreadable + left_out)
        if not records:
            raise SpecError(f"run {run!r} has no records")
        if json:
            was = {call.claim: call for call in stored.calls} if stored else {}
            print_array(
                dumps(
                    call.model_dump(mode="json")
                    | {"was": was[call.claim].model_dump(mode="json") if call.claim in was else None}
                )
                for call in made.calls
            )
        else:
            verdicts.show_calls(console(PIPE_WIDTH), made, stored)
        if write and left_out:
            typer.echo("norm-fusion judge: nothing stored: bring these files back, or delete them, first", err=True)
        elif write:
            store.write_conclusions(made)
            typer.echo(f"norm-fusion judge: stored {len(made.calls)} calls in {store.path / 'calls.json'}", err=True)
        raise typer.Exit(int(bool(unreadable + left_out)))


@lab.command(
    "compare",
    epilog="Exit codes: 0 compared; 1 a file was left out, or with --fail-on: a row has such a label, is invalid, was "
    "not timed in RUN_B any more, or none could be decided; 2 bad usage, unlike runs, or no row in common.",
)
def _compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="The run before: its id, or its folder.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run after.")],
    output: OutputOption = Path("runs"),
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="NAME",
            help="Compare although they differ in this: device, machine, clocks, driver, torch, triton, inductor, "
            "peers, python, commit, quick or all; repeatable.",
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="LABEL",
            help="Exit with 1 where a row is this: regression, supported, difference (either), no-difference, "
            "inconclusive, rerun-noise or invalid; repeatable.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array of rows on stdout and nothing else there.")
    ] = False,
) -> None:
    """Compare two runs: what became faster, what slower.

    "B speedup" is the time in RUN_A over that in RUN_B, with Welch's 95% interval over their processes. A difference
    counts from 2%. The copy is compared too: where the roof changed, the machine did. Runs on unlike
    machines or software are refused, unless the difference is what you ask about: then allow it by name.

    \b
    Examples:
      norm-fusion compare before after --allow commit --fail-on regression
      norm-fusion compare torch-2.12 torch-2.13 --allow torch --allow triton
      norm-fusion compare h100/first h200/first --allow all --json | jq '.[] | {case, profile, speedup}'
    """
    from dataclasses import asdict
    from json import dumps

    from norm_fusion.evidence import stored
    from norm_fusion.evidence.compare import FAILURES, Side, compare
    from norm_fusion.report import verdicts
    from norm_fusion.report.sheet import PIPE_WIDTH
    from norm_fusion.runs.store import RunStore

    with usage("norm-fusion compare"):
        for name in fail_on or []:
            if name not in FAILURES:
                raise SpecError(f"--fail-on {name!r} is unknown: choose from {', '.join(FAILURES)}")
        sides, names, left_out = [], [], []
        stores = [RunStore.open(run, output) for run in (run_a, run_b)]
        if stores[0].path.resolve() == stores[1].path.resolve():
            raise SpecError(f"{run_a} and {run_b} are the same run: it differs from itself in nothing")
        for store in stores:
            manifest = store.manifest()
            made, records, odd = stored.with_records(store, manifest)
            sides.append(Side(manifest, made.pooled, records))
            names.append(manifest.run_id)
            left_out += odd
        name_left_out("norm-fusion compare", left_out)
        if names[0] == names[1]:  # a copy, or the same one
            names = [run_a, run_b]
        found = compare(sides[0], sides[1], allowed=allow or [])
        if json:
            print_array(dumps(asdict(row)) for row in found.rows)
        else:
            verdicts.show_comparison(console(PIPE_WIDTH), found, names[0], names[1])
        wanted = {label for name in fail_on or [] for label in FAILURES[name]}
        refused = found.refused(wanted) if wanted else []
        name_left_out("norm-fusion compare", refused, "--fail-on")
        raise typer.Exit(int(bool(refused or left_out)))


def _why(notes: Sequence[str]) -> str:
    return f", {notes[-1]}" if notes else ""
