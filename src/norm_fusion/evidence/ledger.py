"""What was decided last, and what became another decision since: with the reason, a sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from norm_fusion.records import Decided, DecidedClaim, DecidedRow, Ledger
from norm_fusion.runs.files import StoreError, read

LEDGER = "decided.json"  # beside the decisions
# What a decision's file says of itself, and of a claim.
SAID = ("title", "domain", "statement", "owner")
CLAIMED = ("says", "boundary", "metric", "series", "baseline", "threshold", "at_most")


def stored(folder: Path) -> Ledger | None:
    """The decisions of a folder as they were last decided; None where they never were.

    Raises:
        StoreError: the file is damaged, or of a newer schema.
    """
    path = folder / LEDGER
    try:
        return read(path, Ledger) if path.is_file() else None
    except StoreError as error:
        raise StoreError(f"{error}; bring it back, or delete it and decide with --write") from None


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
    claims = {claim.name: claim for claim in was.claims}
    before = {(c.name, r.case, r.gpu): r for c in was.claims for r in c.rows}
    for claim in now.claims:
        yield from _claimed(f"{now.title}, {claim.name}", claims.get(claim.name), claim)
        for row in claim.rows:
            old = before.pop((claim.name, row.case, row.gpu), None)
            where = f"{now.title}, {claim.name}, {row.case} on {row.gpu}"
            if old is None:
                yield f"{where} is new: {row.standing.value}"
            elif (old.standing, old.label, old.run, old.baseline) != (row.standing, row.label, row.run, row.baseline):
                yield f"{where}: {_told(row)}, it was {_told(old)}"
            elif not alike((old.value, old.low, old.high), (row.value, row.low, row.high)):
                yield f"{where}: its figures are others, and the run has the same name"
            elif (old.alone and old.alone.standing) != (row.alone and row.alone.standing):
                yield f"{where}: by the kernels' own time it stands otherwise than it did"
            elif [(o.run, o.standing) for o in old.others] != [(o.run, o.standing) for o in row.others]:
                yield f"{where}: older runs say {_older(row)}, and said {_older(old)}"
    for name, case, gpu in before:
        yield f"{now.title}, {name}, {case} on {gpu} is gone"
    for said in now.unheard:
        if said not in was.unheard:
            yield f"{now.title}: {said.removesuffix('.')}, which is new"
    for said in was.unheard:
        if said not in now.unheard:
            yield f"{now.title}: {said.removesuffix('.')}, which is so no more"
    for what, versions in now.software.items():
        if was.software.get(what, []) != versions:
            before_that = ", ".join(was.software.get(what, [])) or "not told"
            yield f"{now.title}: {what} {', '.join(versions)}, it was {before_that}"
    for field in SAID:
        if getattr(was, field) != getattr(now, field):
            yield f"{now.title}: its {field} was written anew"


def _claimed(where: str, was: DecidedClaim | None, now: DecidedClaim) -> Iterator[str]:
    for field in CLAIMED if was is not None else ():
        one, other = getattr(was, field), getattr(now, field)
        if one != other:
            yield f"{where}: its {field} is {other!r}, it was {one!r}"


def _told(row: DecidedRow) -> str:
    over = f" over {row.baseline}" if row.baseline else ""
    return f"{row.standing.value}{f' ({row.label})' if row.label else ''}{over} by {row.run}"


def _older(row: DecidedRow) -> str:
    return ", ".join(f"{one.standing.value} ({one.run})" for one in row.others) or "nothing"


def unlike(before: Ledger | None, after: Ledger) -> list[str]:
    """What a committed ledger says and does not follow; empty where it is what follows."""
    if before is not None and alike(before.model_dump(exclude=_OF_THE_FILE), after.model_dump(exclude=_OF_THE_FILE)):
        return []
    return list(changes(before, after)) or ["what it says is not what follows"]


_OF_THE_FILE = {"schema_version"}


def alike(one: object, other: object) -> bool:
    """The same but for the last digits of figures: logarithms and quantiles differ in them from machine to machine."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other
