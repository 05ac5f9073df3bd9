"""Where an experiment's figures come from: the runs that speak, those passed over, and what changed since the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from norm_fusion.evidence.archive import Archive, Kept
from norm_fusion.evidence.boundary import named
from norm_fusion.evidence.compare import EVERYTHING, Side, compare, summary
from norm_fusion.evidence.selection import Selected
from norm_fusion.records import Label
from norm_fusion.site.runs import Address
from norm_fusion.spec import SpecError


def told(run: Kept, selected: Sequence[Selected], at: Mapping[str, Address], to: str) -> dict[str, Any]:
    """A run that speaks, as the page lists it. `to`: from the page to the site's root."""
    mine = [one.case for one in selected if one.run is run]
    return {
        "name": run.name,
        "url": to + at[run.name].page,
        "cases": mine,
        "command": " ".join(run.manifest.command),
        "began": run.manifest.started_at,
        "commit": (run.manifest.environment.commit or "")[:10] if run.manifest.environment is not None else "",
        "sums": to + at[run.name].file("SHA256SUMS"),
        "manifest": to + at[run.name].file("manifest.json"),
    }


def passed_over(
    selected: Sequence[Selected], at: Mapping[str, Address], to: str
) -> Iterator[tuple[str, str, list[str]]]:
    """The runs that do not speak: name, page, and why, each reason once."""
    why: dict[str, dict[str, None]] = {}
    speaking = {one.run.name for one in selected}
    for one in selected:
        for run, reason in one.passed_over:
            if run.name not in speaking:
                why.setdefault(run.name, {})[reason] = None
    for name, reasons in why.items():
        yield name, to + at[name].page, list(reasons)


def changed(newest: Kept, gpu: str, archive: Archive, at: Mapping[str, Address], to: str) -> Iterator[tuple[str, str]]:
    """Since the run before the newest one: other facts of the machine; what became faster or slower, and where."""
    before = next(
        (
            run
            for run in archive.runs
            if run.manifest.started_at < newest.manifest.started_at
            and run.manifest.state == "finished"
            and run.manifest.suite == newest.manifest.suite
            and set(run.manifest.cases) & set(newest.manifest.cases)
            and run.manifest.environment is not None
            and run.manifest.environment.device_name == gpu
        ),
        None,
    )
    if before is None or newest.manifest.environment is None or before.manifest.environment is None:
        return
    unlike = before.manifest.environment.unlike(newest.manifest.environment)
    facts = [
        f"{name.replace('_', ' ')} {_brief(here)} became {_brief(there)}" for name, (here, there) in unlike.items()
    ]
    yield f"Since {before.name}: {'; '.join(facts) if facts else 'the same card and software'}.", ""
    try:
        sides = []
        for run in (before, newest):
            if run.conclusions is None:
                raise SpecError(f"nothing of {run.name} can be judged")
            sides.append(Side(run.manifest, run.conclusions.pooled, run.records))
        found = compare(sides[0], sides[1], allowed=["all"])
        moved = [f"{row.profile} at {row.case}" for row in found.rows if row.counts and row.label is Label.REGRESSION]
        slower = f" Slower: {named(moved)}." if moved else ""
        pair = urlencode({"a": at[before.name].slug, "b": at[newest.name].slug, "allow": EVERYTHING})
        yield summary(found, before.name, newest.name) + slower, f"{to}compare/index.html#{pair}"
    except SpecError as error:
        yield f"They were not compared: {error}.", ""


def _brief(value: object) -> str:
    return "none" if value is None else str(value)[:40]
