"""Which run speaks for a case: per model of GPU the newest that passes its gates, never the best.

The gates look at how a run was made and whether it is whole, never at what it found: who chose among runs by their
results would find what he looked for. A change of them is a new SELECTION.

    finished    it ended by itself, and is no quick run
    clean       of a commit, without uncommitted changes
    whole       no file of it is missing, edited or unreadable
    there       the case was measured, by as many processes as the protocol begins with (FEWEST, step 13), with those
                whom the claim compares
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from norm_fusion.evidence.archive import Kept
from norm_fusion.evidence.pool import quoted
from norm_fusion.records import Environment, Manifest, Record, Status
from norm_fusion.spec import FEWEST

SELECTION = 1


@dataclass(frozen=True)
class Selected:
    """The run that speaks for a case on a model of GPU, and those that do not, each with the reason."""

    case: str
    gpu: str
    run: Kept
    passed_over: Sequence[tuple[Kept, str]] = field(default=())

    @property
    def rows(self) -> list[Record]:
        """The pooled records of the case: the attempt that is quoted."""
        made = self.run.conclusions
        return [] if made is None else quoted([r for r in made.pooled if r.case == self.case])

    @property
    def environment(self) -> Environment:
        """Of the card that measured it."""
        found = self.run.environment_of(self.case)
        assert found is not None, "a gate has seen to it"
        return found


def select(runs: Sequence[Kept], case: str, profiles: Collection[str] = (), counted: bool = False) -> list[Selected]:
    """One for each model of GPU that any run measured the case on; none where no run passes.

    Args:
        runs: newest first.
        case: its name.
        profiles: who has to be there, correct or not; none asks for anybody.
        counted: by hardware counters, not by timing.
    """
    chosen: dict[str, Kept] = {}
    others: dict[str, list[tuple[Kept, str]]] = {}
    for run in runs:
        if not _covers(run.manifest, case, counted):
            continue
        gpu = _model(run.manifest)
        if gpu in chosen:
            others.setdefault(gpu, []).append((run, f"older than {chosen[gpu].name}"))
        elif (why := refused(run, case, profiles, counted)) is not None:
            others.setdefault(gpu, []).append((run, why))
        else:
            chosen[gpu] = run
    return [Selected(case, gpu, run, others.get(gpu, ())) for gpu, run in sorted(chosen.items())]


def refusals(runs: Sequence[Kept], case: str, profiles: Collection[str] = (), counted: bool = False) -> Iterator[str]:
    """Why each run that measured a case does not speak for it, a sentence each, newest first."""
    for run in runs:
        if _covers(run.manifest, case, counted) and (why := refused(run, case, profiles, counted)) is not None:
            yield f"{run.name} {why}"


def refused(run: Kept, case: str, profiles: Collection[str], counted: bool) -> str | None:
    """Why a run may not speak for a case; None where it may. Cheap gates first: most runs are never read."""
    manifest = run.manifest
    if manifest.state != "finished":
        return f"is {manifest.state}"
    if manifest.quick:
        return "is a quick run, without intervals"
    where = manifest.environment
    if where is None or where.device != "cuda":
        return "was not measured on a GPU"
    if where.commit is None or where.dirty:
        return "was measured with uncommitted changes"
    if run.conclusions is None or run.left_out:
        return f"is damaged: {run.left_out[0] if run.left_out else 'nothing of it can be judged'}"
    if counted:
        there = {one.profile for one in run.counters if one.case == case and one.status is Status.OK}
        missing = [name for name in profiles if name not in there]
        return f"has no counters of {', '.join(missing)}" if missing or not there else None
    rows = quoted([r for r in run.conclusions.pooled if r.case == case])
    counts = max((r.processes or 1 for r in rows), default=0)
    if counts < FEWEST:
        return f"measured it in {counts} process{'' if counts == 1 else 'es'}, {FEWEST} are needed"
    missing = [name for name in profiles if name not in {r.profile for r in rows}]
    return f"did not measure {', '.join(missing)}" if missing else None


def _covers(manifest: Manifest, case: str, counted: bool) -> bool:
    if counted:
        return any(case == one for one, _ in manifest.profiled)
    return case in manifest.cases


def _model(manifest: Manifest) -> str:
    return manifest.environment.device_name if manifest.environment is not None else ""
