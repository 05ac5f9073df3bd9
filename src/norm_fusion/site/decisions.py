"""The matrix of decisions, and a page for each: its claims row by row, its evidence, its boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.boundary import of_decision
from norm_fusion.evidence.deciding import Judged
from norm_fusion.evidence.decisions import SERIES
from norm_fusion.evidence.expiry import expired, expires
from norm_fusion.records import Decided, DecidedClaim, DecidedRow, DecisionStatus, Standing, tally
from norm_fusion.report.decided import metric, value, wanted
from norm_fusion.report.rows import case_title, span
from norm_fusion.site.pages import Pages, up
from norm_fusion.site.runs import Address


def page_of(name: str) -> str:
    """A decision's page; its name is that of a file already."""
    return f"decisions/{name}.html"


@dataclass(frozen=True)
class Line:
    """One row of a claim, as the page shows it."""

    row: DecidedRow
    case: str
    value: str
    interval: str
    url: str | None
    run_url: str | None

    older: Sequence[tuple[str, str, str]]  # what older runs say: class, words, which runs

    @property
    def mark(self) -> str:
        """Its class in the style sheet."""
        return mark(self.row.standing)


def mark(standing: Standing) -> str:
    return standing.value.replace(" ", "-")


def write(
    pages: Pages,
    judged: Sequence[Judged],
    archive: Archive,
    at: Mapping[str, Address],
    kept: Mapping[str, str],
    as_of: date,
    experiments: Mapping[str, Sequence[tuple[str, str]]],
) -> None:
    """A page for each. `kept`: files of examples, by name; `experiments`: by suite, titles and paths of its pages."""
    for one in judged:
        path = page_of(one.decision.name)
        pages.write(
            path,
            "decision.html",
            one=one.decided,
            claims=[
                (claim, metric(claim), wanted(claim), tally(claim.rows), _lines(one, claim, at, kept, path))
                for claim in one.decided.claims
            ],
            boundary=of_decision(one, archive, as_of),
            expires=expires(one.decision, one.decided),
            expired=list(expired(one.decision, one.decided, as_of, {})),
            experiments=[
                (title, up(path) + to) for name in one.decision.experiments for title, to in experiments[name]
            ],
            speaking=_speaking(one, at, path),
            source=one.decision.path.read_text("utf-8"),
            file=f"{one.decision.path.parent.name}/{one.decision.path.name}",
        )


def _lines(
    one: Judged, claim: DecidedClaim, at: Mapping[str, Address], kept: Mapping[str, str], path: str
) -> list[Line]:
    lines = []
    of = {(selected.run.name, selected.case): selected.rows for selected in one.selected}
    series = SERIES.get(claim.series), "cold"
    for row in claim.rows:
        address = at.get(row.run)
        run = url = None if row.run not in kept else up(path) + kept[row.run]
        if address is not None:
            run, url = up(path) + address.page, f"{up(path)}{address.page}#h-counters"
            if row.case in address.cases:
                mine = (r for r in of.get((row.run, row.case), ()) if r.profile == row.profile)
                record = next((r for r in mine if (r.timer, r.cache) == series), None)
                counters = f"{address.case(row.case)}#h-counters"
                url = up(path) + (counters if record is None else address.record(record.key, row.case))
        interval = "" if row.low is None or row.high is None else span(row.low, row.high)
        lines.append(Line(row, case_title(row.case), value(claim, row), interval, url, run, list(_older(claim, row))))
    return lines


def _older(claim: DecidedClaim, row: DecidedRow) -> Iterator[tuple[str, str, str]]:
    """What older runs say, by how the row stands in them, with the smallest and the largest of their figures."""
    for standing in dict.fromkeys(one.standing for one in row.others):
        those = [one for one in row.others if one.standing is standing]
        ends = sorted(one.value for one in those if one.value is not None)
        figures = [value(claim, row.model_copy(update={"value": end})) for end in dict.fromkeys(ends[:1] + ends[-1:])]
        words = f"{standing.value} in {len(those)}" + (f": {' to '.join(figures)}" if figures else "")
        yield mark(standing), words, ", ".join(one.run for one in those)


def _speaking(
    one: Judged, at: Mapping[str, Address], path: str
) -> list[tuple[str, str, list[str], list[tuple[str, str]]]]:
    """The runs that speak: name, page, for which cases; and those passed over there, with the reason."""
    cases: dict[str, list[str]] = {}
    over: dict[str, dict[str, str]] = {}
    for selected in one.selected:
        cases.setdefault(selected.run.name, []).append(selected.case)
        told = over.setdefault(selected.run.name, {})
        for run, why in selected.passed_over:
            told.setdefault(run.name, why)
    return [(name, up(path) + at[name].page, those, list(over[name].items())) for name, those in cases.items()]


def matrix(decided: Sequence[Decided]) -> list[tuple[str, list[list[Decided]]]]:
    """By domain: the decisions of each status."""
    domains = dict.fromkeys(one.domain for one in decided)
    return [
        (
            domain,
            [[one for one in decided if (one.domain, one.status) == (domain, status)] for status in DecisionStatus],
        )
        for domain in domains
    ]


def summary(one: Decided) -> str:
    """`Holds in 5 of 5 rows; at its boundary holds in 8 of 20 rows, is undecided in 12`."""
    outer = one.rows(boundary=True)
    said = tally(one.rows(boundary=False)) + (f"; at its boundary {tally(outer)}" if outer else "")
    return said[:1].upper() + said[1:]
