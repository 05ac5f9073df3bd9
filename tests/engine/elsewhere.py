"""Shards in processes of their own, here and on a real Ray cluster: their workers are a few lines of Python too.

A process that is started finds this module's settings in `sitecustomize`, on a PYTHONPATH of the test's.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from workers import WORKER

from norm_fusion import engine
from norm_fusion.records import Environment, Manifest
from norm_fusion.runs import resume
from norm_fusion.runs.plan import Plan
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case, Shard

# A card whose own name is what CUDA_VISIBLE_DEVICES says, so that a test sees who was where.
CARD = Environment(
    device="cuda",
    device_name="NVIDIA A10G",
    device_index=0,
    device_uuid="?",
    memory_bytes=1,
    cache_bytes=1,
    python="3",
    platform="p",
    torch="2",
    norm_fusion="0",
)
SITE = """
import sys
if sys.argv[0] == "-m" and "norm_fusion.engine.shard" in sys.orig_argv:
    from norm_fusion.engine import processes

    processes.WORKER = [sys.executable, "-I", "-c", {worker!r}]
    processes.VERIFIER = [sys.executable, "-I", "-c", {verifier!r}]
    if {beat_s} != 5.0:
        from norm_fusion.engine import messages

        messages.BEAT_S = {beat_s}
"""
VERIFIER = """
import json, sys
for line in sys.stdin:
    print(json.dumps(dict(wrong=None, code=None)), flush=True)
"""
# What importing PyTorch takes at least: 2.7 s on the host of an H200.
IMPORTS_S = 2.0
HERE = 'environment["device_uuid"] = os.environ.get("CUDA_VISIBLE_DEVICES", "none")'


def shards_do(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    misdeed: str = "",
    before: str = "",
    beat_s: float = 5.0,
    model: str = "A10G",
    imports_s: float = 0.0,
) -> None:
    """From now on the workers of shards' processes do this: see `workers.worker`; `imports_s` later they listen."""
    text = WORKER.format(
        environment=CARD.model_copy(update={"device_name": f"NVIDIA {model}"}).model_dump(),
        early=f"time.sleep({imports_s})",
        before=f"{HERE}\n{textwrap.dedent(before)}",
        misdeed=textwrap.indent(textwrap.dedent(misdeed), " " * 8),
        told="",
        last="",
    )
    folder.mkdir(exist_ok=True)
    site = SITE.format(worker=text, verifier=VERIFIER, beat_s=beat_s)
    (folder / "sitecustomize.py").write_text(site)
    source = str(Path(engine.__file__).parents[2])
    there = filter(None, [os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), source, *there]))


def asked(cases: Sequence[Case], run_id: str = "a", model: str | None = None, **changes: object) -> Plan:
    """A plan of one process."""
    shard = Shard(run_id, tuple(cases), ("torch-eager",), "cuda", quick=True, yardsticks=False)
    return Plan(shard, **({"fewest": 1, "most": 1, "reruns": 0, "timeout_s": 60.0} | changes))  # type: ignore[arg-type]


def manifest_of(plan: Plan, model: str | None = None) -> Manifest:
    return Manifest(
        run_id=plan.shard.run_id,
        title="t",
        question="q",
        command=[],
        cases=[case.name for case in plan.cases],
        profiles=list(plan.shard.profiles),
        device="cuda",
        quick=plan.shard.quick,
        seed=0,
        fewest=plan.fewest,
        most=plan.most,
        started_at="now",
        model=model,
    )


def run_of(folder: Path, plan: Plan, listener: engine.Listener, model: str | None = None) -> engine.Run:
    """A new run in `folder`, or what is left of the one that is there."""
    manifest = manifest_of(plan, model)
    store = RunStore(folder / plan.shard.run_id)
    if not store.path.exists():
        return engine.Run(plan, manifest, lambda: RunStore.create(store.path.parent, store.path.name), listener)
    left = resume.left(store, manifest, plan.cases, mixed=False, retry_failed=False)
    return engine.Run(plan.of(left.cases, left.profiled), left.manifest, lambda: store, listener, left.earlier)


def cost_s(folder: Path, crew: Callable[[], engine.Crew], cases: Sequence[Case], model: str | None = None) -> float:
    """What the engine itself takes for a shard of one case: the best of three runs.

    Their workers take `IMPORTS_S` until they listen and no time to measure: the first is importing PyTorch, not ours.
    """
    took = []
    for number in range(3):
        one = run_of(folder, asked(cases, f"cost-{number}"), lambda where, message: None, model)
        began = time.monotonic()
        (outcome,) = engine.carry_out([one], crew())
        took.append((time.monotonic() - began) / len(cases) - IMPORTS_S)
        assert outcome.exit_code == 0
    print(f"{min(took):.2f} s a shard")
    return min(took)


def bound_s(seconds: float) -> float:
    """A bound that is meant for the host of a GPU, on this machine."""
    return seconds if len(os.sched_getaffinity(0)) >= 8 else 3 * seconds


def running() -> list[tuple[int, int, str]]:
    """What runs on this machine: number, parent's number and command line of each process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
        found.append((int(folder.name), parent, words))
    return found
