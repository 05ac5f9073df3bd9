"""What was decided last, and what became another decision since: with the reason, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from norm_fusion.records import Decided, DecidedRow, Ledger
from norm_fusion.runs.files import read

LEDGER = "decided.json"  # beside the decisions


def stored(folder: Path) -> Ledger | None:
    """The decisions of a folder as they were last decided; None where they never were."""
    path = folder / LEDGER
    return read(path, Ledger) if path.is_file() else None


def changes(before: Ledger | None, after: Ledger) -> Iterator[str]:
    """What became another decision since, and why: a sentence each."""
    if before is None:
        yield "nothing was decided before"
        return
    rules = [("deciding", "of decisions"), ("selection", "of selected runs"), ("rule", "of calls")]
    for field, words in rules:
        was, now = getattr(before, field), getattr(after, field)
        if was != now:
            yield f"the rule {words} is version {now}, it was {was}"
    old = {one.name: one for one in before.decisions}
    for one in after.decisions:
        was_one = old.pop(one.name, None)
        if was_one is None:
            yield f"{one.title} is new: {one.status.value}"
        else:
            yield from _changed(was_one, one)
    for gone in old.values():
        yield f"{gone.title} is gone; it was {gone.status.value}"


def _changed(was: Decided, now: Decided) -> Iterator[str]:
    if was.status != now.status:
        yield f"{now.title} is {now.status.value}, it was {was.status.value}: {now.why}"
    before = {(c.name, r.case, r.gpu): r for c in was.claims for r in c.rows}
    for claim in now.claims:
        for row in claim.rows:
            old = before.pop((claim.name, row.case, row.gpu), None)
            where = f"{now.title}, {claim.name}, {row.case}"
            if old is None:
                yield f"{where} is new: {row.standing.value}"
            elif (old.standing, old.label, old.run, old.baseline) != (row.standing, row.label, row.run, row.baseline):
                yield f"{where}: {_told(row)}, it was {_told(old)}"
            elif (old.value, old.low, old.high) != (row.value, row.low, row.high):
                yield f"{where}: its figures are others, and the run has the same name"
    for name, case, _ in before:
        yield f"{now.title}, {name}, {case} is gone"
    for what, versions in now.software.items():
        if was.software.get(what, []) != versions:
            before_that = ", ".join(was.software.get(what, [])) or "not told"
            yield f"{now.title}: {what} {', '.join(versions)}, it was {before_that}"
    for field in ("title", "domain", "statement", "owner"):
        if getattr(was, field) != getattr(now, field):
            yield f"{now.title}: its {field} was written anew"


def _told(row: DecidedRow) -> str:
    over = f" over {row.baseline}" if row.baseline else ""
    return f"{row.standing.value}{f' ({row.label})' if row.label else ''}{over} by {row.run}"


def unlike(before: Ledger | None, after: Ledger) -> list[str]:
    """What a committed ledger says and does not follow; empty where it is what follows."""
    if before == after:
        return []
    return list(changes(before, after)) or ["its figures are not those that follow"]
