"""Judges what can be measured: the four series and the hardware counters; and says it in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from norm_fusion.doctor.finding import Finding, limited, missing, ok, unknown
from norm_fusion.doctor.probe import Step

SERIES = ("device", "graph", "host", "wall")
COUNTERS = "counters"
KERNELS = "fused kernels"
GPU_ONLY = "needs a GPU"


def judge_series(steps: Mapping[str, Step], device: str | None) -> list[Finding]:
    """One finding a series. `device`: what was asked for turned out to be cpu, cuda:N or, as None, nothing."""
    launch = steps.get("launch")
    if device is None or launch is None or not launch.ok:
        why = launch.seen if launch else _first_failure(steps) or "there is no such device here"
        return [missing(name, why) for name in SERIES]
    wall = ok("wall", "synchronized, end to end")
    if device == "cpu":
        return [*[missing(name, GPU_ONLY) for name in SERIES[:3]], wall]
    return [_traced(steps.get("graph"), steps.get("trace")), _graph(steps.get("graph")), ok("host", "enqueues"), wall]


def _first_failure(steps: Mapping[str, Step]) -> str | None:
    return next((step.seen for step in steps.values() if not step.ok), None)


def _graph(graph: Step | None) -> Finding:
    if graph is None:
        return unknown("graph", "not tried: an earlier probe ended the process")
    if graph.ok:
        return ok("graph", "a CUDA graph was captured and replayed")
    return missing(
        "graph",
        graph.seen,
        "no speedup, no GB/s and no interval: these come from CUDA graphs; host and wall remain",
        "update the driver and torch; unset PYTORCH_NO_CUDA_MEMORY_CACHING",
    )


def _traced(graph: Step | None, trace: Step | None) -> Finding:
    if trace is None:
        return unknown("device", "not tried: an earlier probe ended the process")
    if trace.ok:
        return ok("device", "CUPTI's trace has the kernels of a CUDA graph")
    if graph is not None and not graph.ok:
        return missing("device", "no CUDA graph to trace", "no device series: see graph")
    return missing(
        "device",
        trace.seen,
        "no device series: p50, p95 and noise of a call fall back to the graph series, and say so",
        "detach other profilers (nsys, ncu, DCGM); see that libcupti belongs to torch's CUDA version",
    )


def judge_counters(
    ncu: str | None, version: str | None, restricted: bool | None, admin: bool | None, device: str | None
) -> Finding:
    """Nsight Compute and the permission to read hardware counters; nothing is profiled here.

    `restricted`: the driver gives them to administrators alone; `admin`: this process has CAP_SYS_ADMIN.
    """
    without = "occupancy, bytes moved and the like are 'not collected'; latencies need none of it"
    if device in (None, "cpu"):
        return missing(COUNTERS, GPU_ONLY)
    if ncu is None:
        return missing(
            COUNTERS, "Nsight Compute (ncu) is not here", without, "install Nsight Compute, or put its ncu on PATH"
        )
    seen = f"ncu {version or '(its version is not known)'} at {ncu}"
    permit = (
        "a person may allow it: options nvidia NVreg_RestrictProfilingToAdminUsers=0 in /etc/modprobe.d, then reboot; "
        "in a container also --cap-add=SYS_ADMIN; or run as root"
    )
    if version is None:
        return limited(COUNTERS, seen, "it does not answer `ncu --version`: it may not run", "install it anew")
    if restricted is False or admin:
        by = "all may read them" if restricted is False else "this process may, as an administrator"
        return ok(COUNTERS, f"{seen}; {by}")
    if restricted:
        return missing(COUNTERS, f"the driver gives them to administrators alone ({seen})", without, permit)
    return unknown(COUNTERS, f"the driver does not say who may read them ({seen})", without, permit)


def summary(findings: Sequence[Finding], asked: str, device: str | None) -> str:
    """What can and what cannot be measured here, and why not."""
    by_name = {finding.name: finding for finding in findings}
    wanted = [by_name[name] for name in (*SERIES, COUNTERS, KERNELS) if name in by_name]
    if not can_measure(findings):
        return f"This machine can measure nothing with --device {asked}: {_blame(by_name, asked, wanted)}."
    checked = device == "cpu" and KERNELS in by_name and by_name[KERNELS].state == "limited"
    can = [f.name for f in wanted if f.state in ("ok", "limited") and not (checked and f.name == KERNELS)]
    said = f"This machine can measure on {device}: {', '.join(can)}."
    cannot: dict[str, list[str]] = {}
    for finding in wanted:
        if finding.name not in can and not (checked and finding.name == KERNELS):
            cannot.setdefault(finding.seen, []).append(finding.name)
    if cannot:
        parts = [f"{', '.join(names)} ({why})" for why, names in cannot.items()]
        said += f" It cannot: {'; '.join(parts)}."
    if checked:
        said += f" The {KERNELS} are checked, not timed."
    limits = [f.name for f in findings if f.state == "limited" and f.name not in (*SERIES, COUNTERS, KERNELS)]
    if limits:
        said += f" What limits it: {', '.join(limits)}."
    return said


def _blame(by_name: Mapping[str, Finding], asked: str, wanted: Sequence[Finding]) -> str:
    """Why nothing can be measured: PyTorch's absence before the GPU's, and that before a probe's own words."""
    torch, gpu = by_name.get("PyTorch"), by_name.get("GPU")
    if torch is not None and torch.state == "missing":
        return f"PyTorch is {torch.seen}" if torch.seen.startswith("not ") else f"PyTorch: {torch.seen}"
    if gpu is not None and gpu.state == "missing":
        return gpu.seen + ("; use --device cpu to measure on the CPU" if asked.startswith("cuda") else "")
    return next((finding.seen for finding in wanted), "no series could be tried")


def can_measure(findings: Sequence[Finding]) -> bool:
    """Is there any series that this machine can take?"""
    return any(f.name in SERIES and f.state in ("ok", "limited") for f in findings)
