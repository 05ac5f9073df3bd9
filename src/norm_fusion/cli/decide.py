"""The command that decides: what the committed evidence supports, and what changed since. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from norm_fusion.cli.options import console, existing, lab, print_array, usage
from norm_fusion.spec import SpecError

if TYPE_CHECKING:
    from norm_fusion.evidence.deciding import Judged
    from norm_fusion.evidence.standing import Evidence

LONGEST = 2000  # characters of a sentence: files may hold texts of megabytes

DecisionsOption = Annotated[Path, typer.Option("--decisions", metavar="DIR", help="Folder of the decisions.")]
FromOption = Annotated[
    list[Path] | None,
    typer.Option("--from", metavar="DIR", help="A folder that holds runs; repeatable.  [default: evidence]"),
]
AsOfOption = Annotated[
    datetime | None,
    typer.Option("--as-of", formats=["%Y-%m-%d"], metavar="DATE", help="Judge ages on this day.  [default: today]"),
]


@lab.command(
    "decide",
    epilog="Exit codes: 0 decided; 1 a file of the evidence was left out, or, with --check, what is committed does not "
    "follow from it; 2 bad usage, or a decision that is wrong. Age and other software only warn.",
)
def _decide(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="DECISION", help="Show these, whole.  [default: the matrix of all]")
    ] = None,
    decisions: DecisionsOption = Path("decisions"),
    parents: FromOption = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Make all calls again from the samples, and fail where the committed statuses do not follow.",
        ),
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Make all calls again, and keep the statuses, in decided.json.")
    ] = False,
    as_of: AsOfOption = None,
    here: Annotated[
        bool, typer.Option("--here", help="Warn where this machine's software or GPU is not the evidence's.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array of decisions on stdout.")] = False,
) -> None:
    """Compute the status of each decision.

    From the calls of the runs that speak for it; what changed since the last time is told, and why. A decision is a
    .toml file: a statement, and the claims that it rests on. Supported: every claim holds in every row. Caveated:
    it holds in part, and the rows where it does not are named. Measured: figures show it that no rule calls.
    Rejected: the evidence is against it. Nobody types a status; decided.json keeps what was decided last.

    \b
    Examples:
      norm-fusion decide
      norm-fusion decide fused-rmsnorm
      norm-fusion decide --from evidence --from runs --write
      norm-fusion decide --check && git push
    """
    from norm_fusion.evidence.deciding import decide, ledger
    from norm_fusion.evidence.decisions import load_all
    from norm_fusion.evidence.expiry import expired
    from norm_fusion.evidence.ledger import LEDGER, stored, unlike
    from norm_fusion.report import decided as view
    from norm_fusion.report.sheet import PIPE_WIDTH
    from norm_fusion.runs import suites
    from norm_fusion.runs.files import as_json, write_whole

    with usage("norm-fusion decide"):
        day = (as_of or datetime.now(UTC)).date()
        loaded = load_all(decisions, suites.names())
        for name in names or []:
            if name not in [one.name for one in loaded]:
                raise SpecError(f"there is no decision {name!r}: choose from {', '.join(one.name for one in loaded)}")
        before = stored(decisions)
        evidence, unreadable = evidence_of(parents, anew=check or write)
        try:
            judged = [decide(one, evidence) for one in loaded]
        finally:  # a decision may fail for want of what was left out
            unreadable += evidence.archive.damaged
            _tell(f"left out: {said}" for said in unreadable)
        made = ledger(judged)
        shown = [one for one in judged if not names or one.decision.name in names]
        if json:
            print_array(one.decided.model_dump_json() for one in shown)
        elif names:
            for i, one in enumerate(shown):
                if i:
                    typer.echo("")
                _show(one, evidence, day)
        else:
            view.show_matrix(console(PIPE_WIDTH), [one.decided for one in shown])
        changed = unlike(before, made)
        _tell(f"since {decisions / LEDGER}: {said}" for said in changed)
        facts = _here() if here else {}
        _tell(f"warning: {said}" for one in judged for said in expired(one.decision, one.decided, day, facts))
        if write and unreadable:
            raise SpecError("nothing is kept while files are left out: bring them back, or delete their runs")
        if write:
            write_whole(decisions / LEDGER, as_json(made))
        raise typer.Exit(int((check and bool(changed)) or bool(unreadable)))


def evidence_of(parents: Sequence[Path] | None, anew: bool = False) -> tuple[Evidence, list[str]]:
    """The evidence in some folders, its calls made `anew`, and a sentence for what of it cannot be read."""
    from norm_fusion.evidence.archive import Archive
    from norm_fusion.evidence.examples import examples
    from norm_fusion.evidence.standing import Evidence

    folders = existing(parents or [Path("evidence")])
    archive = Archive(folders, anew)
    kept, unreadable = examples(folders)
    return Evidence(archive, kept), [*archive.unreadable, *unreadable]


def _tell(sentences: Iterable[str]) -> None:
    from norm_fusion.report.notes import printable

    for said in sentences:
        typer.echo(f"norm-fusion decide: {printable(said)[:LONGEST]}", err=True)


def _show(one: Judged, evidence: Evidence, day: date) -> None:
    from norm_fusion.evidence.boundary import of_decision
    from norm_fusion.evidence.expiry import expires
    from norm_fusion.report import decided as view
    from norm_fusion.report.sheet import PIPE_WIDTH

    boundary = of_decision(one, evidence.archive, day)
    ending = expires(one.decision, one.decided)
    view.show_decision(console(PIPE_WIDTH), one.decided, boundary, ending, one.selected)


def _here() -> dict[str, str]:
    """What is installed here, and the GPU and driver where there is one; without importing PyTorch."""
    from importlib.metadata import PackageNotFoundError, version

    from norm_fusion import nvml

    found = {}
    for name in ("torch", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    seen = nvml.read()
    found |= {"driver": seen.driver} if seen.driver else {}
    if seen.cards and seen.cards[0].name:
        found["gpu"] = seen.cards[0].name
    return found
