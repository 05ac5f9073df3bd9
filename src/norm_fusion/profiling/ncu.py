"""Hardware counters of cells by NVIDIA Nsight Compute: its command line, and what comes of one process under it.

Clocks are left alone. Before each replay of a kernel ncu writes back its memory and flushes all caches, as it does by
default: what is counted is a cold call.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from norm_fusion.doctor import facts
from norm_fusion.profiling import child, problems, read
from norm_fusion.profiling.counters import Label, by_call
from norm_fusion.profiling.problems import Problem
from norm_fusion.records import KernelCounters

CELLS = ("-m", "norm_fusion.profiling.cells")
REPORT = "report"
# Push/pop ranges end with a slash in ncu's expressions.
RANGES = f"regex:{Label.PREFIX.rstrip(':')}.*/"

Kernels = Mapping[int, Sequence[KernelCounters]]


@dataclass(frozen=True)
class Ncu:
    """A Nsight Compute that is here."""

    path: str
    version: str | None

    def __str__(self) -> str:
        return f"ncu {self.version or 'of unknown version'}"


@dataclass
class Taken:
    """What one process under ncu came to: what it told, the kernels of its cells, what read them, what went wrong."""

    told: child.Told
    kernels: Mapping[tuple[str, str], Kernels] = field(default_factory=dict)
    reader: str | None = None
    hopeless: Problem | None = None  # no process would do better
    unknown: list[str] = field(default_factory=list)  # metrics that this ncu does not have on this GPU
    unreadable: Problem | None = None


def find() -> Ncu | None:
    """The Nsight Compute of this machine, as `norm-fusion doctor` finds it."""
    path = facts.find_ncu()
    if path is None:
        return None
    version = re.search(r"^Version ([\w.]{1,40})", facts.says(path, "--version") or "", re.MULTILINE)
    return Ncu(path, version[1] if version else None)


def command(ncu: str, folder: Path, metrics: Sequence[str]) -> list[str]:
    """Profile each kernel within a cell's range of the process that `folder` has the job of, into a report there."""
    options = {
        "--nvtx-include": RANGES,
        "--target-processes": "application-only",  # not the compilers that it starts
        "--replay-mode": "kernel",
        "--clock-control": "none",
        "--cache-control": "all",
        "--metrics": ",".join(metrics),
        "--export": str(folder / REPORT),
    }
    words = [word for option in options.items() for word in option]
    return [ncu, "--nvtx", *words, "--force-overwrite", sys.executable, *CELLS, str(folder)]


def take(
    ncu: Ncu,
    job: child.Event,
    metrics: Sequence[str],
    timeout_s: float,
    heard: Callable[[child.Event], None],
    meanwhile: Callable[[], None],
) -> Taken:
    """Run one process under ncu and read what it wrote, whatever became of it; `meanwhile` is called as it starts."""

    def in_the_way(printed: str) -> Problem | None:
        return problems.hopeless(printed, ncu.path, ncu.version)

    with tempfile.TemporaryDirectory(prefix="norm-fusion-profile-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        told = child.run(
            command(ncu.path, folder, metrics),
            job,
            folder,
            timeout_s,
            heard,
            hopeless=lambda printed: in_the_way(printed) is not None,
            # Its lock lies in TMPDIR: one for all cards of a machine would have them wait for each other, where each
            # card has a lock of ours. The process that it profiles gets its own TMPDIR back.
            environment={"TMPDIR": place, child.TEMPORARY: os.environ.get("TMPDIR", "")},
            meanwhile=meanwhile,
        )
        taken = Taken(told, hopeless=in_the_way(told.printed), unknown=problems.unknown(metrics, told.printed))
        report = folder / f"{REPORT}.ncu-rep"
        if report.is_file():
            try:
                rows, taken.reader = read.rows(report, ncu.path)
                taken.kernels = by_call(rows)
            except read.Unreadable as error:
                taken.unreadable = problems.unreadable(str(error))
        return taken
