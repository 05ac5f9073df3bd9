"""Reads a report of Nsight Compute: with its own Python module where that is, else through ncu's CSV.

`python -m norm_fusion.profiling.read REPORT` prints a report's rows as JSON: the module is a C++ library, so it works
in a process of its own, which it may take down.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from norm_fusion.profiling.counters import DIMENSIONS, METRICS, Label, Row

TIMEOUT_S = 120
WANTED = (*(metric for metric, _ in METRICS.values()), *(name for names in DIMENSIONS.values() for name in names))
BY_MODULE, BY_CSV = "read with ncu-report", "read from its CSV"
# The columns of a report as CSV that are no metrics.
RANGE, NAME, IDENTIFIER = "Push/Pop_Range", "Kernel Name", "ID"
# A range in that column: domain, message, and six more fields that nobody set.
NAMED = re.compile(r'"<[^">]*>:(?P<message>[^"]*?)(?::[^:"]*){6}"')


class Unreadable(Exception):
    """A report that neither reader can read: the message says why."""


def rows(report: Path, ncu: str) -> tuple[list[Row], str]:
    """The kernels of a report, in the order of their launches, and what read them.

    Raises:
        Unreadable: neither way works.
    """
    try:
        return _by_module(report, ncu), BY_MODULE
    except Unreadable as first:
        try:
            return _by_csv(report, ncu), BY_CSV
        except Unreadable as second:
            raise Unreadable(f"{first}; {second}") from None


def _by_module(report: Path, ncu: str) -> list[Row]:
    # The copy beside ncu first: it is of the version that wrote the report.
    places = [str(place) for place in modules_beside(ncu)]
    path = os.pathsep.join(filter(None, [*places, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "norm_fusion.profiling.read", str(report)]
    return [
        Row(row["range"], row["name"], {metric: (value, unit) for metric, (value, unit) in row["values"].items()})
        for row in json.loads(_said(command, {"PYTHONPATH": path}, "ncu_report"))
    ]


def _by_csv(report: Path, ncu: str) -> list[Row]:
    command = [ncu, "-i", str(report), "--csv", "--page", "raw", "--print-units", "base"]
    # Commas between thousands or not, by the locale: a German one would have points there.
    found = list(parsed(_said([*command, "--print-nvtx-rename", "kernel"], {"LC_ALL": "C"}, "ncu -i")))
    if not found:
        raise Unreadable("ncu -i printed no kernel")
    return found


def _said(command: Sequence[str], more: dict[str, str], what: str) -> str:
    """What a program prints."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            env=os.environ | more,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreadable(f"{what}: {type(error).__name__}") from None
    if done.returncode:
        words = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Unreadable(f"{what}: {words[-1].strip()[:200] if words else f'exit code {done.returncode}'}")
    return done.stdout


def modules_beside(ncu: str) -> list[Path]:
    """Folders with the Python module that belongs to this ncu, which may be a link or a script far from the rest."""
    above = Path(ncu).resolve().parents
    places = [folder / "extras" / "python" for folder in above[:3]]
    for toolkit in above[1:2]:  # /usr/local/cuda/bin/ncu: /usr/local/cuda/nsight-compute-2025.3.1
        places += [folder / "extras" / "python" for folder in sorted(toolkit.glob("nsight-compute-*"), reverse=True)]
    return [place for place in places if (place / "ncu_report.py").is_file()]


def parsed(text: str) -> Iterator[Row]:
    """The rows of a report as `ncu --csv --page raw` prints it: a header, a line of units, a line for each kernel."""
    lines = [line for line in text.splitlines() if not line.startswith("==")]
    starts = [i for i, line in enumerate(lines) if line.startswith(f'"{IDENTIFIER}",')]
    if not starts:
        return
    header, units, *kernels = csv.reader(lines[starts[0] :])
    column = {name: i for i, name in enumerate(header)}
    ranges = [i for i, name in enumerate(header) if RANGE in name]
    for kernel in kernels:
        if len(kernel) != len(header):
            continue  # what an application printed in between
        values = {}
        for metric in WANTED:
            value = _number(kernel[column[metric]]) if metric in column else None
            if value is not None:
                values[metric] = value, units[column[metric]]
        messages = [named["message"] for i in ranges for named in NAMED.finditer(kernel[i])]
        # Where ncu was told to rename kernels, the innermost range stands before the name too.
        message, slash, name = kernel[column[NAME]].partition("/")
        renamed = bool(slash) and Label.parse(message) is not None
        yield Row(_cell([*messages, message]), name if renamed else kernel[column[NAME]], values)


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None  # n/a, or nothing


def _cell(messages: Sequence[str]) -> str:
    """The range of ours among those that a kernel ran in."""
    return next((message for message in messages if Label.parse(message)), "")


def loaded(report: str) -> Iterator[Row]:
    """The rows of a report as NVIDIA's module reads it."""
    module: Any = import_module("ncu_report")
    context = module.load_report(report)
    for i in range(context.num_ranges()):
        part = context.range_by_idx(i)
        for j in range(part.num_actions()):
            yield _row(part.action_by_idx(j))


def _row(action: Any) -> Row:
    values = {}
    for name in WANTED:
        metric = action.metric_by_name(name)
        value = None if metric is None else metric.value()
        if isinstance(value, int | float):
            values[name] = float(value), str(metric.unit())
    state = action.nvtx_state()
    domains = [state.domain_by_id(number) for number in state.domains()] if state is not None else []
    messages = [str(message) for domain in domains for message in domain.push_pop_ranges()]
    return Row(_cell(messages), str(action.name(action.NameBase_DEMANGLED)), values)


def main() -> int:
    found = [{"range": row.range, "name": row.name, "values": row.values} for row in loaded(sys.argv[1])]
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
