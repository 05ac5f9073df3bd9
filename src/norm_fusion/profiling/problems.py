"""Why counters were not collected, and what to do about it: in the words of `norm-fusion doctor` where it has any."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from norm_fusion.doctor.series import judge_counters
from norm_fusion.records import Status

# What Nsight Compute says where no kernel of any process could be profiled, however often it were tried.
DENIED = "ERR_NVGPUCTRPERM"
TAKEN = "driver resource was unavailable"
UNKNOWN_METRIC = "Failed to find metric"
# Of each failure, and of none the cause.
EPILOGUE = ("The application returned an error code", "An error occurred while trying to profile", "Failed to profile")


@dataclass(frozen=True)
class Problem:
    """Why there is nothing: a status, a reason, and what to do where that is known."""

    status: Status
    reason: str
    remedy: str | None = None


def on_a_cpu() -> Problem:
    return Problem(
        Status.UNAVAILABLE,
        "not collected: hardware counters are a GPU's, and this ran on a CPU",
        "run on a machine with an NVIDIA GPU",
    )


def no_ncu() -> Problem:
    found = judge_counters(None, None, None, None, "cuda")
    return Problem(Status.UNAVAILABLE, f"not collected: {found.seen}", found.remedy)


def refused(said: str) -> Problem:
    """The device cannot be had."""
    return Problem(Status.UNAVAILABLE, f"not collected: {said}", "profile when it is free, or on another device")


def hopeless(printed: str, ncu: str, version: str | None) -> Problem | None:
    """What stands in the way of all profiling here, by what Nsight Compute printed; None if that names nothing such."""
    if DENIED in printed:
        found = judge_counters(ncu, version or "of unknown version", True, False, "cuda")
        return Problem(Status.UNAVAILABLE, f"not collected: {found.seen}: {DENIED}", found.remedy)
    if TAKEN in printed:
        return Problem(
            Status.UNAVAILABLE,
            "not collected: another program holds the GPU's hardware counters (a driver resource was unavailable)",
            "end other profilers; pause DCGM's, which monitors GPUs: dcgmi profile --pause, later --resume",
        )
    return None


def unknown(metrics: Collection[str], printed: str) -> list[str]:
    """Which of these metrics Nsight Compute does not know on this GPU; it quotes them as patterns."""
    lines = [line for line in printed.splitlines() if UNKNOWN_METRIC in line]
    return [metric for metric in metrics if any(re.search(rf"\b{metric.partition('.')[0]}\b", line) for line in lines)]


def ended(how: str, printed: str) -> Problem:
    """The process ended while it was on a cell."""
    return Problem(
        Status.FAILED, f"the profiled process {how}{_in_brackets(last_words(printed))}", "profile it again, alone"
    )


def not_begun(how: str, printed: str) -> Problem:
    """The process ended before it was on any cell."""
    said = f"no cell was profiled: the process {how}{_in_brackets(last_words(printed))}"
    return Problem(Status.FAILED, said, "see that ncu runs: `norm-fusion doctor`, `ncu python3 -c 'import torch'`")


def given_up(times: int) -> Problem:
    return Problem(Status.FAILED, f"given up: {times} profiled processes had died before its turn", "profile it alone")


def no_kernels(printed: str) -> Problem:
    """The call ran, and the report has no kernel of it."""
    said = last_words("\n".join(line for line in printed.splitlines() if line.startswith("==ERROR==")))
    return Problem(
        Status.FAILED,
        f"its call ran, and ncu profiled no kernel of it{_in_brackets(said)}",
        "see that this ncu supports the GPU and its driver, and that no other profiler is attached",
    )


def unreadable(said: str) -> Problem:
    return Problem(
        Status.FAILED,
        f"the report could not be read: {said}",
        "pip install ncu-report, or install Nsight Compute whole: its extras/python reads reports",
    )


def last_words(printed: str) -> str:
    """The last error that Nsight Compute printed; else the last line that anything did; on one line, cut short."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("==ERROR==").strip() for line in lines if line.startswith("==ERROR==")]
    causes = [error for error in errors if not error.startswith(EPILOGUE)]
    others = [line for line in lines if not line.startswith("==")]
    return _plain((causes or others or errors or [""])[-1])


def _plain(said: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", said)[:200]


def _in_brackets(said: str) -> str:
    return f" ({said})" if said else ""
