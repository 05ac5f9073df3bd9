"""Hardware counters of profiles on cases, by NVIDIA Nsight Compute, in processes apart from all timing; and a trace.

A cell is a case and a profile, by their names. Importing PyTorch and starting ncu take several seconds, so that one
process profiles all cells, one after the other, and a trace of them all by torch.profiler is one more: two profilers
cannot share a process. Whoever dies or hangs costs its own cell: another process goes on with those whose counters are
not known yet.

counters.py  what is counted, and the totals of a call      limiting.py (of evidence) says what they mean
ncu.py       ncu's command line                             read.py      its report
cells.py     the process whose calls are profiled           traced.py    what torch.profiler sees there
child.py     that process seen from here                    problems.py  why nothing was collected, and the remedy

This is torch-free itself. A duration under ncu is that of a kernel replayed alone, and never a latency.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from norm_fusion import backends
from norm_fusion.backends import matmul
from norm_fusion.profiling import child, ncu, problems
from norm_fusion.profiling.counters import METRICS, fastest, totals
from norm_fusion.profiling.problems import Problem
from norm_fusion.records import Counters, KernelCounters, Status
from norm_fusion.spec import ROOF, Case, Matmul, profiled

Cell = tuple[str, str]
Progress = Callable[[str, str], None]

# A process that says nothing for so long is given up: the longest silence is that of a compiler.
TIMEOUT_S = 300.0
# After so many deaths the cells that are left are given up too: each may have cost the timeout.
MOST_DEATHS = 3


@dataclass(frozen=True)
class Traced:
    """What torch.profiler saw of a call."""

    kernels: int
    ms: float


@dataclass(frozen=True)
class Counted:
    """What ncu counted of a call: its kernels, what really ran, and with which tool."""

    kernels: Sequence[KernelCounters]
    resolved: str | None
    tool: str


@dataclass
class _Attempt:
    """What one process came to: what it found of cells, by their numbers, and why there is nothing of the others.

    `hopeless`: no other process would do better; `silent`: of a cell that was done, and nothing was found of.
    """

    told: child.Told
    found: Mapping[int, Counted | Traced] = field(default_factory=dict)
    hopeless: Problem | None = None
    silent: Problem | None = None


Attempt = Callable[[Sequence[int]], _Attempt]
Verdict = Counted | Traced | Problem


def cells_of(cases: Sequence[Case | Matmul], profiles: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of cases: each profile that serves it, and the roof; of a matrix product its own contestants."""
    cells: list[Cell] = []
    for case in cases:
        if isinstance(case, Matmul):
            cells += [(case.name, name) for name in matmul.CONTESTANTS]
        else:
            serving = [name for name in profiles if backends.serves(name, case.op, case.pass_)]
            cells += [(case.name, name) for name in (*serving, ROOF)]
    return tuple(dict.fromkeys(cells))


def profile(
    cells: Sequence[Cell],
    *,
    run_id: str,
    device: str,
    seed: int = 0,
    fingerprint: str,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = lambda case, what: None,
) -> Iterator[Counters]:
    """A row for each cell, in their order, whatever fails; the last of the processes ends before the first row comes.

    `device`: cuda:N, on this machine, or cpu, where there is nothing to collect. `progress` is told a case's name and
    what begins; what it raises is raised here, and ends the process at work, as the end of this process does.

    Raises:
        SpecError: a case's name is none.
    """
    cases = {name: profiled(name) for name, _ in cells}
    asked = list(dict.fromkeys(cells))
    job = {"device": device, "seed": seed}
    counted, traced = _all(asked, job, timeout_s, progress)
    number = {cell: i for i, cell in enumerate(asked)}
    for name, contestant in cells:
        i = number[name, contestant]
        yield Counters(
            run_id=run_id,
            case=name,
            profile=contestant,
            compulsory_bytes=cases[name].compulsory_bytes,
            fingerprint=fingerprint,
            **_counted(counted[i]),
            **_traced(traced[i]),
        )


def _all(
    asked: Sequence[Cell], job: Mapping[str, Any], timeout_s: float, progress: Progress
) -> tuple[Mapping[int, Verdict], Mapping[int, Verdict]]:
    """What ncu and what torch.profiler found of each cell, by its number."""
    numbers = range(len(asked))
    if job["device"] == "cpu":
        nothing: dict[int, Verdict] = dict.fromkeys(numbers, problems.on_a_cpu())
        return nothing, nothing

    def work(left: Sequence[int], trace: bool) -> Mapping[str, Any]:
        return {**job, "trace": trace, "cells": [[i, *asked[i]] for i in left]}

    def heard(what: str) -> Callable[[child.Event], None]:
        def hear(event: child.Event) -> None:
            if event["event"] == "begin":
                name, contestant = asked[event["cell"]]
                progress(name, f"{what} {contestant}")

        return hear

    traced: dict[int, Verdict] = {}

    def trace_first() -> None:
        """It leaves compiled kernels on the disk, and compiling takes longer under ncu, which meanwhile starts."""
        if not traced:
            traced.update(_until_known(numbers, lambda left: _trace(work(left, True), timeout_s, heard("trace"))))

    def count(left: Sequence[int]) -> _Attempt:
        assert found is not None
        return _count(found, work(left, False), asked, timeout_s, heard("count"), trace_first)

    found = ncu.find()
    counted = dict.fromkeys(numbers, problems.no_ncu()) if found is None else _until_known(numbers, count)
    trace_first()  # where there is no process to start
    return counted, traced


def _until_known(numbers: Sequence[int], attempt: Attempt) -> dict[int, Verdict]:
    """Process after process, until something is known of each cell; each process settles at least one of them."""
    known: dict[int, Verdict] = {}
    left, deaths = list(numbers), 0
    while left:
        if deaths == MOST_DEATHS:
            return known | dict.fromkeys(left, problems.given_up(deaths))
        one = attempt(left)
        told = one.told
        settled: dict[int, Verdict] = {**one.found, **told.failed}
        if told.lost is not None:
            settled[told.lost] = one.hopeless or problems.ended(told.how, told.printed)
        known |= settled
        left = [i for i in left if i not in known]
        stop = problems.refused(told.refused) if told.refused is not None else one.hopeless
        if stop is None and told.finished:
            stop = one.silent or problems.no_kernels(told.printed)
        if stop is None and not settled:
            stop = problems.not_begun(told.how, told.printed)
        if stop is not None:
            return known | dict.fromkeys(left, stop)
        deaths += 1
    return known


def _trace(job: Mapping[str, Any], timeout_s: float, heard: Callable[[child.Event], None]) -> _Attempt:
    with tempfile.TemporaryDirectory(prefix="norm-fusion-trace-", ignore_cleanup_errors=True) as place:
        told = child.run([sys.executable, *ncu.CELLS, place], job, Path(place), timeout_s, heard)
    return _Attempt(told, {i: Traced(event["kernels"], event["ms"]) for i, event in told.done.items()})


def _count(
    found: ncu.Ncu,
    job: Mapping[str, Any],
    asked: Sequence[Cell],
    timeout_s: float,
    heard: Callable[[child.Event], None],
    meanwhile: Callable[[], None],
) -> _Attempt:
    metrics = [metric for metric, _ in METRICS.values()]
    taken = ncu.take(found, job, metrics, timeout_s, heard, meanwhile)
    while taken.unknown and not taken.kernels and len(metrics) > len(taken.unknown):
        metrics = [metric for metric in metrics if metric not in taken.unknown]
        taken = ncu.take(found, job, metrics, timeout_s, heard, meanwhile)
    calls: dict[int, Counted] = {}
    for i, event in taken.told.done.items():
        variants = taken.kernels.get(asked[i])
        if variants:
            best = fastest(variants)
            calls[i] = Counted(variants[best], event["resolved"][best], f"{found}, {taken.reader}")
    return _Attempt(taken.told, calls, taken.hopeless, taken.unreadable)


def _counted(verdict: Verdict) -> dict[str, Any]:
    """A row's fields from ncu."""
    if isinstance(verdict, Problem):
        return {"status": verdict.status, "reason": verdict.reason, "remedy": verdict.remedy}
    assert isinstance(verdict, Counted)
    summed = totals(verdict.kernels)
    lacking = ", ".join(name for name, value in summed.items() if value is None)
    return {
        "status": Status.OK,
        "reason": f"not collected: {lacking}: the report has no value of them" if lacking else None,
        "remedy": "a newer Nsight Compute may know the metrics of this GPU" if lacking else None,
        "resolved_backend": verdict.resolved,
        "tool": verdict.tool,
        "kernels": list(verdict.kernels),
        **summed,
    }


def _traced(verdict: Verdict) -> dict[str, Any]:
    """A row's fields from torch.profiler."""
    if isinstance(verdict, Problem):
        return {"traced_reason": verdict.reason}
    assert isinstance(verdict, Traced)
    return {"traced_kernels": verdict.kernels, "traced_ms": verdict.ms}
