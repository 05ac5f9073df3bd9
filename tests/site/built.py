"""A site as these tests ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from norm_fusion import backends
from norm_fusion.runs import suites
from norm_fusion.site.build import Asked, Built

ROOT = Path(__file__).parents[2]
AS_OF = date(2026, 12, 1)


@dataclass(frozen=True)
class Site:
    """A site that was built, and where."""

    path: Path
    built: Built


def asked(output: Path, *folders: Path, decisions: Path | None = None) -> Asked:
    """What a site is made of in these tests."""
    return Asked(
        output=output,
        folders=folders,
        decisions=decisions,
        suites=[suites.load(name) for name in suites.names()],
        summaries={name: profile.summary for name, profile in backends.BY_NAME.items()},
        as_of=AS_OF,
    )
