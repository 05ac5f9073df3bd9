"""What README.md and docs/ quote of the runs in evidence/. Cog calls it from comments in these files:

cog -r -I docs README.md docs/*.md    # quote again; with --check instead of -r: is all of it as the runs say?
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from norm_fusion.metrics import half_width

ROOT = Path(__file__).parents[1]
COLUMNS = 100

Record = dict[str, Any]


def shown(run: str) -> str:
    """A run's command, and what it prints, as a block of code."""
    return _block(_manifest(run)["command"], "show", run)


def compared(a: str, b: str, *words: str) -> str:
    """How two runs compare, as a block of code."""
    command = ["compare", f"evidence/{a}", f"evidence/{b}", *words]
    return _block(["norm-fusion", *command], *command)


def made(*runs: str) -> str:
    """A table of runs: the command that made each, its commit, how long it took."""
    table = ["| run | made by | commit | took |", "|---|---|---|---:|"]
    for run in runs:
        folder = ROOT / "evidence" / run
        check = folder / "harness.json"
        told = json.loads(check.read_text()) if check.is_file() else _manifest(run)
        commit = told["environment"]["commit"][:10]
        table.append(f"| `{run}` | `{' '.join(told['command'])}` | {commit} | {_seconds(told):.0f} s |")
    return "\n".join(table) + "\n"


def tried(run: str) -> str:
    """What a check of the harness found: its machine, its verdict, its table."""
    lines = (ROOT / "evidence" / run / "harness.md").read_text().splitlines()
    ended = next(i for i, line in enumerate(lines) if line.startswith("## "))
    return "\n".join(lines[2:ended]).strip() + "\n"


def claims(*runs: str) -> str:
    """A table of the fused kernels: share of the copy, speedup over either baseline with interval and label.

    The fastest PyTorch is the one over which the speedup is smallest.
    """
    heads = "run | case | of copy | over torch-baseline | over the fastest PyTorch | the same, single kernels"
    table = [f"| {heads} |", "|---|---|---:|---|---|---|"]
    for run in runs:
        cold = [r for r in _records(run) if r["cache"] == "cold" and r["profile"].startswith("triton-fused")]
        for mine in (r for r in cold if r["timer"] == "graph"):
            torch = [name for name in mine["speedup"] if name != "torch-baseline"]
            fastest = min(torch, key=mine["speedup"].__getitem__)
            single = next(r for r in cold if r["timer"] == "device" and r["case"] == mine["case"])
            over = [_quoted(mine, "torch-baseline"), f"{_quoted(mine, fastest)} ({fastest})", _quoted(single, fastest)]
            table.append(f"| {run} | {mine['case']} | {mine['roof_share']:.3f} | {' | '.join(over)} |")
    return "\n".join(table) + "\n"


def widths(run: str) -> str:
    """A table of the half-widths of the fused kernels' intervals over each PyTorch, by graph."""
    torch = ("torch-eager", "torch-native", "torch-compile", "torch-compile-max")
    table = [f"| {run}, over | {' | '.join(torch)} |", "|---|" + "---:|" * len(torch)]
    for r in _records(run):
        if (r["timer"], r["cache"]) == ("graph", "cold") and r["profile"].startswith("triton-fused"):
            ends = [r["interval"][name] for name in torch]
            table.append(f"| {r['case']} | {' | '.join(f'±{half_width(*each):.1%}' for each in ends)} |")
    return "\n".join(table) + "\n"


def medians(profiles: Sequence[str], *runs: str) -> str:
    """A table of what a profile's call takes in each process, by graph."""
    table = ["| run | case | profile | us, a process each, in order of size |", "|---|---|---|---|"]
    for run in runs:
        found: dict[tuple[str, str], list[float]] = {}
        for path in sorted((ROOT / "evidence" / run / "records").glob("*.json")):
            for r in json.loads(path.read_text()):
                if (r["timer"], r["cache"]) == ("graph", "cold") and r["profile"] in profiles:
                    found.setdefault((r["case"], r["profile"]), []).append(r["p50_ms"] * 1e3)
        for (case, profile), each in found.items():
            table.append(f"| {run} | {case} | {profile} | {' '.join(f'{us:.1f}' for us in sorted(each))} |")
    return "\n".join(table) + "\n"


def _seconds(manifest: dict[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(manifest[name]) for name in ("started_at", "finished_at"))
    return (ended - began).total_seconds()


def _quoted(record: Record, baseline: str) -> str:
    if baseline not in record["speedup"]:
        return "-"
    low, high = record["interval"].get(baseline, (None, None))
    reach = f" [{low:.2f}, {high:.2f}]" if low is not None else ""
    return f"{record['speedup'][baseline]:.2f}x{reach} {record['call'].get(baseline, '')}".strip()


@cache
def _manifest(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "evidence" / run / "manifest.json").read_text())
    return found


@cache
def _records(run: str) -> list[Record]:
    found: list[Record] = json.loads(_printed("show", run, "--json"))
    return found


def _block(command: Sequence[str], *words: str) -> str:
    lines = [f"$ {' '.join(command)}", *_printed(*words).splitlines()]
    # Tables fit: it is sentences that are wrapped.
    told = [
        part
        for line in lines
        for part in ([line] if len(line) <= COLUMNS else textwrap.wrap(line, COLUMNS, subsequent_indent=_indent(line)))
    ]
    return "\n".join(["```", *told, "```"]) + "\n"


def _indent(line: str) -> str:
    return "  " if line.startswith("- ") else ""


def _printed(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "norm_fusion", *words, "--output", "evidence"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
