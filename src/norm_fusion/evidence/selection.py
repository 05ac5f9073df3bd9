"""Which run speaks for a case: per model of GPU the newest that passes its gates, never the best.

The gates look at how a run was made and whether it is whole, never at what it found: who chose among runs by their
results would find what he looked for. A change of them is a new SELECTION.

    finished    it says when it began, which is past, ended by itself, and is no quick run
    clean       on GPUs, of a commit, without uncommitted changes
    whole       its files have hashes, and none of them is missing, edited or unreadable
    there       the case was measured, by as many processes as the protocol begins with (FEWEST, step 13), with those
                whom the claim compares
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

from norm_fusion.evidence.archive import EARLIEST, LONGEST, Kept
from norm_fusion.evidence.pool import quoted
from norm_fusion.records import Environment, Manifest, Record, Status
from norm_fusion.runs.store import SUMMED
from norm_fusion.spec import FEWEST

# 2: the model of each case's own card; the fastest PyTorch is of runs with the native and the compiled one.
# 3: a run whose files have no hashes does not speak.
SELECTION = 3
OLDER = 8  # runs that are asked what they say of a row besides the one that speaks


@dataclass(frozen=True)
class Selected:
    """The run that speaks for a case on a model of GPU, and those that do not, each with the reason."""

    case: str
    gpu: str
    run: Kept
    passed_over: Sequence[tuple[Kept, str]] = field(default=())
    counted: bool = False  # by hardware counters

    @property
    def rows(self) -> list[Record]:
        """The pooled records of the case: the attempt that is quoted."""
        made = self.run.conclusions
        return [] if made is None else quoted([r for r in made.pooled if r.case == self.case])

    @property
    def environment(self) -> Environment:
        """Of the card that measured it."""
        found = self.run.environment_of(self.case, self.counted)
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
    chosen, others = _sorted_out(runs, case, profiles, counted)
    return [Selected(case, gpu, run, others.get(gpu, ()), counted) for gpu, run in sorted(chosen.items())]


def older(one: Selected, profiles: Collection[str] = ()) -> list[Selected]:
    """The newest OLDER of the runs that were passed over for their age alone."""
    passing = (run for run, _ in one.passed_over if refused(run, one.case, profiles, one.counted) is None)
    return [Selected(one.case, one.gpu, run, counted=one.counted) for run in islice(passing, OLDER)]


def speaking(selected: Sequence[Selected]) -> list[Kept]:
    """The runs that speak for some case, each once, newest first."""
    found = {one.run.name: one.run for one in selected}
    return sorted(found.values(), key=lambda run: (run.began or EARLIEST, run.name), reverse=True)


def unheard(
    runs: Sequence[Kept], case: str, profiles: Collection[str] = (), counted: bool = False
) -> Mapping[str, tuple[Kept, str]]:
    """By each model of GPU on which a case was measured by runs that may not speak: the newest of them, and why not."""
    chosen, others = _sorted_out(runs, case, profiles, counted)
    return {gpu: over[0] for gpu, over in others.items() if gpu not in chosen and _on_gpus(over[0][0].manifest)}


def _sorted_out(
    runs: Sequence[Kept], case: str, profiles: Collection[str], counted: bool
) -> tuple[dict[str, Kept], dict[str, list[tuple[Kept, str]]]]:
    """By model of GPU the run that speaks for a case, and those that do not, each with the reason."""
    chosen: dict[str, Kept] = {}
    others: dict[str, list[tuple[Kept, str]]] = {}
    for run in runs:
        if not _covers(run.manifest, case, counted):
            continue
        gpu = _model(run, case, counted)
        if gpu in chosen:
            others.setdefault(gpu, []).append((run, _not_newer(run, chosen[gpu])))
        elif (why := refused(run, case, profiles, counted)) is not None:
            others.setdefault(gpu, []).append((run, why))
        else:
            chosen[gpu] = run
    return chosen, others


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
    if run.began is None:
        return "does not say when it was measured"
    if run.began > datetime.now(UTC) + timedelta(days=1):
        return "says that it began in the future"
    if manifest.quick:
        return "is a quick run, without intervals"
    if not _on_gpus(manifest):
        return "was not measured on a GPU"
    if any(where.commit is None or where.dirty is not False for where in manifest.environments):
        return "was measured with uncommitted changes, or by code of no known commit"
    if manifest.schema_version < SUMMED or not run.store.sum_lines():
        return "has no hashes of its files, so that nobody can tell whether they are whole"
    if run.odd is not None or run.conclusions is None or run.left_out:
        return f"is damaged: {run.odd or (*run.left_out, 'nothing of it can be judged')[0]}"
    if counted:
        if run.uncounted:
            return f"is damaged: {run.uncounted}"
        there = {one.profile for one in run.counters if one.case == case and one.status is Status.OK}
        missing = [name for name in profiles if name not in there]
        return f"has no counters of {', '.join(missing)}" if missing or not there else None
    rows = quoted([r for r in run.conclusions.pooled if r.case == case])
    counts = max((r.processes or 1 for r in rows), default=0)
    if counts < FEWEST:
        return f"measured it in {counts} process{'' if counts == 1 else 'es'}, {FEWEST} are needed"
    measured = {r.profile for r in rows if r.status is not Status.UNAVAILABLE}
    missing = [name for name in profiles if name not in measured]
    return f"did not measure {', '.join(missing)}" if missing else None


def _covers(manifest: Manifest, case: str, counted: bool) -> bool:
    if counted:
        return any(case == one for one, _ in manifest.profiled)
    return case in manifest.cases


def _not_newer(run: Kept, than: Kept) -> str:
    if run.began is None:
        return "does not say when it was measured"
    return f"{'as old as' if run.began == than.began else 'older than'} {than.name}"


def _on_gpus(manifest: Manifest) -> bool:
    return bool(manifest.environments) and all(where.device == "cuda" for where in manifest.environments)


def _model(run: Kept, case: str, counted: bool) -> str:
    """Of the GPU that measured a case: a run's cards may be of several models. Read from its records only then."""
    names = {where.device_name for where in run.manifest.environments}
    found = run.environment_of(case, counted) if len(names) > 1 else run.manifest.environment
    # Of a damaged one too there is a sentence, which is printed and written.
    return "" if found is None else found.device_name[:LONGEST]
