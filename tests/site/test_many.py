"""A hundred runs, a hundred thousand records: how long the site takes, and how much memory. Alone on the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from built import ROOT

from norm_fusion.site.build import WORKERS

RUNS, COLD_S, AGAIN_S, MOST_KB = 100, 60.0, 10.0, 1_000_000
BUILD = """
import resource, sys
from pathlib import Path
from norm_fusion.cli import norm_fusion
sys.argv = ["norm-fusion", "site", *sys.argv[1:]]
try:
    norm_fusion()
except SystemExit as ended:
    code = ended.code
# ru_maxrss of a process outlives exec: of this one it would be pytest's, with all that pytest has imported.
[own] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
print(code or 0, own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one run, each a run of its own by name and by time."""
    runs = tmp_path_factory.mktemp("runs")
    for number in range(RUNS):
        shutil.copytree(ROOT / "evidence" / "h200-live", runs / f"run-{number:03}")
    return runs


def built(output: Path, runs: Path) -> tuple[float, int, int]:
    """Seconds; KB of the process, and of the largest of those that it started."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "--output", str(output), "--from", str(runs)], capture_output=True, text=True
    )
    took = time.perf_counter() - began
    code, own, child = (int(word) for word in done.stdout.split()[-3:])
    assert code == 0, done.stderr[-2000:]
    return took, own, child


def test_a_hundred_runs_in_a_minute_and_again_in_seconds(many: Path, tmp_path: Path) -> None:
    records = sum(len(json.loads(path.read_bytes())) for path in many.glob("run-000/records/*.json")) * RUNS
    assert records >= 100_000
    cold, own, child = built(tmp_path / "site", many)
    again, _, _ = built(tmp_path / "site", many)
    memory = f"{own / 1e3:.0f} MB and {child / 1e3:.0f} MB a worker"
    print(f"{records:,} records: cold {cold:.1f} s, again {again:.1f} s, {memory}")
    assert cold <= COLD_S
    assert again <= AGAIN_S
    assert own + WORKERS * child <= MOST_KB
    assert len(list((tmp_path / "site" / "runs").glob("run-*/index.html"))) == RUNS
