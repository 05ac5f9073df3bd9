"""A second opinion: the fused kernel timed by NVBench (Python package cuda-bench), beside our own device series.

NVBench flushes the cache and records an event on either side of each single launch: another method, by other people.
`python -m norm_fusion.harness.nvbench FILE CASE...` is the process that runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from norm_fusion import engine
from norm_fusion.harness.running import run
from norm_fusion.harness.trials import Trial
from norm_fusion.records import Environment, HarnessCheck
from norm_fusion.spec import Case, Op

# Large, as its events are around single launches: they add 2 to 3 us, 1.5 to 2.6% of 130 us, and half a percent here.
CASES = (
    Case(Op.RMSNORM, 32768, 16384, "float16"),
    Case(Op.RMSNORM, 32768, 8192, "float32"),
    Case(Op.LAYERNORM, 65536, 8192, "bfloat16"),
)
WITHIN = 0.02
TAGS = ("nv/cold/time/gpu/median", "nv/cold/time/gpu/mean")
NAME = "second opinion"
WANTED = f"NVBench and our device series agree within {WITHIN:.0%} on {len(CASES)} shapes"


def second_opinion(
    run_id: str, folder: Path, device: str, seed: int, command: list[str], listener: engine.Listener
) -> tuple[HarnessCheck, Environment | None]:
    """Both timings of three cases, one after the other on the same GPU; and where that was."""

    def untried(why: str) -> tuple[HarnessCheck, None]:
        return HarnessCheck(name=NAME, passed=None, wanted=WANTED, found=f"not tried: {why}"), None

    if find_spec("cuda") is None or find_spec("cuda.bench") is None:
        return untried("cuda-bench is missing: pip install 'norm-fusion[second]'")
    theirs, log = _nvbench(device)
    if not theirs:
        return untried(f"NVBench ended with: {log[-300:]}")
    ours, where = _ours(run_id, folder, device, seed, command, listener)
    rows: list[dict[str, str | int | float | None]] = [
        {"case": case.name, "ours_us": ours[case.name], "nvbench_us": us, "ratio": us / ours[case.name]}
        for case in CASES
        if (us := theirs.get(case.name)) is not None and case.name in ours
    ]
    ratios = [float(row["ratio"] or 0) for row in rows]
    check = HarnessCheck(
        name=NAME,
        passed=len(rows) == len(CASES) and all(abs(ratio - 1) <= WITHIN for ratio in ratios),
        wanted=WANTED,
        found=", ".join(f"{row['case']}: NVBench {ratio - 1:+.1%}" for row, ratio in zip(rows, ratios, strict=True)),
        details=rows,
    )
    return check, where


def _nvbench(device: str) -> tuple[dict[str, float], str]:
    """Median microseconds by case, and what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nvbench.json"
        words = [sys.executable, "-m", "norm_fusion.harness.nvbench", str(path), device, *(case.name for case in CASES)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        if not path.is_file():
            return {}, (done.stderr or done.stdout).strip()
        data: Any = json.loads(path.read_text())
    found: dict[str, float] = {}
    for benchmark in data["benchmarks"]:
        for state in benchmark["states"]:
            by_tag = {summary["tag"]: summary for summary in state.get("summaries") or ()}
            tag = next((tag for tag in TAGS if tag in by_tag), None)
            if tag is not None:
                values = {item["name"]: item["value"] for item in by_tag[tag]["data"]}
                found[benchmark["name"]] = float(values["value"]) * 1e6
    return found, done.stdout


def _ours(
    run_id: str, folder: Path, device: str, seed: int, command: list[str], listener: engine.Listener
) -> tuple[dict[str, float], Environment | None]:
    """Median microseconds by case, of the device series of one process."""
    trial = Trial(
        "second",
        "second",
        "What does NVBench say?",
        CASES,
        ("triton-fused-rmsnorm", "triton-fused-layernorm"),
        processes=1,
        series=("graph", "device"),
    )
    outcome = run(trial, run_id, folder, device, seed, command, listener)
    found = {
        record.case: record.p50_ms * 1e3
        for record in outcome.records
        if (record.timer, record.cache) == ("device", "cold") and record.p50_ms is not None
    }
    return found, outcome.manifest.environment if outcome.manifest is not None else None


def _discard(output: object) -> None:
    """NVBench wants nothing back."""


def main() -> None:
    """Register the cases and let NVBench run them."""
    import cuda.bench
    import torch

    from norm_fusion import backends
    from norm_fusion.measure.inputs import draw_input, draw_operands

    path, device, *names = sys.argv[1:]
    where = torch.device("cuda", int(device.partition(":")[2] or 0))
    torch.cuda.set_device(where)

    def benchmark(case: Case) -> Any:
        def timed(state: Any) -> None:
            x, operands = draw_input(case, where, 1), draw_operands(case, where, 0)
            fused = backends.prepare(f"triton-fused-{case.op}", operands, where).launch
            stream = torch.cuda.ExternalStream(state.get_stream().addressof(), device=where)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream), torch.inference_mode():
                fused(x)
                state.exec(lambda launch: _discard(fused(x)), sync=False, batched=False)

        timed.__name__ = case.name
        return timed

    for name in names:
        cuda.bench.register(benchmark(Case.parse(name))).set_name(name)
    words = ["--devices", str(where.index), "--json", path, "--stopping-criterion", "stdrel", "--min-samples", "200"]
    cuda.bench.run_all_benchmarks(["nvbench", *words])


if __name__ == "__main__":
    main()
