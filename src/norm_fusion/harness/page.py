"""The page of a harness report: Markdown, for a terminal and for a repository alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from norm_fusion.records import HarnessCheck, HarnessReport

VERDICT = {True: "passed", False: "FAILED", None: "not tried"}
MOST_ROWS = 12

Row = Mapping[str, str | int | float | None]


def page(report: HarnessReport) -> str:
    """What was tried, what had to come out, what did; then the rows behind each."""
    return "\n".join(_lines(report)) + "\n"


def summary(report: HarnessReport) -> str:
    """One sentence."""
    tried = [check for check in report.checks if check.passed is not None]
    failed = [check.name for check in tried if not check.passed]
    said = f"{len(tried) - len(failed)} of {len(tried)} checks of the harness passed"
    return said + (f"; failed: {', '.join(failed)}" if failed else "")


def _lines(report: HarnessReport) -> Iterator[str]:
    e = report.environment
    yield f"# Harness check {report.run_id}"
    yield ""
    software = f"torch {e.torch}, triton {e.triton or 'missing'}, commit {(e.commit or 'unknown')[:10]}"
    yield f"{e.device_name}; {software}{' (dirty)' if e.dirty else ''}; {report.started_at} to {report.finished_at}."
    if report.reduced:
        yield "Reduced: fewer cases and processes than the full check."
    yield ""
    yield f"**{summary(report)}.**"
    yield ""
    yield from _table(
        [
            {"check": check.name, "verdict": VERDICT[check.passed], "wanted": check.wanted, "found": check.found}
            for check in report.checks
        ]
    )
    for check in report.checks:
        if check.details:
            yield from _details(check)
    yield ""
    yield f"Made by `{' '.join(report.command)}`, rule {report.rule}; every record and sample lies beside this page."


def _details(check: HarnessCheck) -> Iterator[str]:
    yield ""
    yield f"## {check.name}"
    yield ""
    yield from _table(check.details[:MOST_ROWS])
    if len(check.details) > MOST_ROWS:
        yield ""
        yield f"and {len(check.details) - MOST_ROWS} more, in harness.json."


def _table(rows: Sequence[Row]) -> Iterator[str]:
    heads = list(rows[0])
    cells = [[_cell(row.get(head)) for head in heads] for row in rows]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    yield "| " + " | ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in cells:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return "".join(c for c in text if c.isprintable()).replace("|", "\\|")
