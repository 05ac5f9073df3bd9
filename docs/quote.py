"""What README.md and docs/ quote of the runs in evidence/. Cog calls it from comments in these files:

cog -r -I docs README.md docs/*.md    # quote again; with --check instead of -r: is all of it as the runs say?
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLUMNS = 100


def shown(run: str) -> str:
    """A run's command, and what it prints, as a block of code."""
    return f"```\n$ {_command(run)}\n{_printed('show', run)}\n```\n"


def tried(run: str) -> str:
    """What a check of the harness found: its machine, its verdict, its table."""
    lines = (ROOT / "evidence" / run / "harness.md").read_text().splitlines()
    ended = next(i for i, line in enumerate(lines) if line.startswith("## "))
    return "\n".join(lines[2:ended]).strip() + "\n"


def claims(*runs: str) -> str:
    """A table of the fused kernels: share of the copy, speedup over either baseline with interval and label."""
    table = ["| run | case | of copy | over torch-baseline | over the fastest PyTorch |", "|---|---|---:|---:|---:|"]
    for run in runs:
        records = [r for r in _records(run) if r["timer"] == "graph" and r["cache"] == "cold"]
        for mine in (r for r in records if r["profile"].startswith("triton-fused")):
            beside = [r for r in records if r["case"] == mine["case"] and r["profile"].startswith("torch-")]
            fastest = min(beside, key=lambda r: r["p50_ms"])["profile"]
            over = [f"{_quoted(mine, 'torch-baseline')}", f"{_quoted(mine, fastest)} ({fastest})"]
            table.append(f"| {run} | {mine['case']} | {mine['roof_share']:.3f} | {' | '.join(over)} |")
    return "\n".join(table) + "\n"


def _quoted(record: dict[str, Any], baseline: str) -> str:
    if baseline not in record["speedup"]:
        return "-"
    low, high = record["interval"].get(baseline, (None, None))
    reach = f" [{low:.2f}, {high:.2f}]" if low is not None else ""
    return f"{record['speedup'][baseline]:.2f}x{reach} {record['call'].get(baseline, '')}".strip()


def _command(run: str) -> str:
    return " ".join(json.loads((ROOT / "evidence" / run / "manifest.json").read_text())["command"])


@cache
def _records(run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_printed("show", run, "--json"))
    return found


def _printed(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "norm_fusion", *words, "--output", "evidence"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
