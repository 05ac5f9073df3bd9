"""An experiment: a suite, the runs that speak for its cases, and how far its question is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from norm_fusion.evidence.archive import Archive, Kept
from norm_fusion.evidence.selection import Selected, refusals, select, speaking
from norm_fusion.runs.suites import Suite
from norm_fusion.spec import BASELINE, BASELINE_OF, FUSED_OF, Case

State = Literal["planned", "blocked", "partial", "ready"]


@dataclass(frozen=True)
class Readiness:
    """How far a suite's question is answered. Computed: nobody types it."""

    state: State
    sentence: str


@dataclass(frozen=True)
class Experiment:
    """A suite with its evidence. `cases`: its own and those of its options; `counted`: who speaks by counters."""

    suite: Suite
    cases: Sequence[Case]
    selected: Sequence[Selected]
    counted: Sequence[Selected]
    readiness: Readiness

    @property
    def runs(self) -> list[Kept]:
        """Those that speak, newest first."""
        return speaking(self.selected)

    @property
    def latest(self) -> str | None:
        """When the newest of them began."""
        return self.runs[0].manifest.started_at if self.selected else None


def experiment(suite: Suite, archive: Archive) -> Experiment:
    """A suite, with one run per case and model of GPU: one that measured all of the suite's profiles there."""
    cases = suite.select(tuple(suite.options))
    selected = [one for case in cases for one in select(archive.runs, case.name, needed(suite, case))]
    profiled = [*(case.name for case in cases), *suite.profiled]
    counted = [one for name in profiled for one in select(archive.runs, name, counted=True)]
    return Experiment(suite, cases, selected, counted, _readiness(suite, cases, selected, archive))


def needed(suite: Suite, case: Case) -> list[str]:
    """The suite's profiles that serve a case, each by the name of what it is."""
    named = [BASELINE_OF[case.op] if name == BASELINE else name for name in suite.profiles]
    others = {fused for op, fused in FUSED_OF.items() if fused != FUSED_OF[case.op]}
    return list(dict.fromkeys(name for name in named if name not in others))


def _readiness(suite: Suite, cases: Sequence[Case], selected: Sequence[Selected], archive: Archive) -> Readiness:
    """Of the suite's own cases; its options are more than the question needs."""
    own = {case.name: case for case in suite.cases}
    measured = {one.case for one in selected}
    there = sum(name in measured for name in own)
    extra = len({case.name for case in cases} - {*own} - measured)
    optional = f"; {extra} optional {'case has' if extra == 1 else 'cases have'} none" if extra else ""
    if there == len(own):
        return Readiness("ready", f"all {there} cases have a run that passes its gates{optional}")
    if there:
        return Readiness("partial", f"{there} of {len(own)} cases have a run that passes its gates{optional}")
    why = next((said for name, case in own.items() for said in refusals(archive.runs, name, needed(suite, case))), None)
    if why is not None:
        return Readiness("blocked", f"no run may speak: {why}")
    return Readiness("planned", "no run has measured any of its cases")
