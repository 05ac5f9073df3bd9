"""Runs the probes of trial.py in a process of their own: what crashes or hangs there is a finding, and no more.

The compiler's cache is a fresh folder, so that a kernel found in an old one proves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT_S = 90.0  # importing torch from a cold disk has taken 40 s


@dataclass(frozen=True)
class Step:
    """How one probe went: `seen` is why it failed, `facts` what it told."""

    ok: bool
    seen: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def run(device: str, timeout_s: float = TIMEOUT_S) -> dict[str, Step]:
    """The probes' steps by name; the one at which the process died or hung says so, and later ones are absent.

    `device` is what `--device` was given.
    """
    with tempfile.TemporaryDirectory(prefix="norm-fusion-doctor-", ignore_cleanup_errors=True) as place:
        lines, printed = Path(place, "steps"), Path(place, "printed")
        with printed.open("wb") as sink:
            child = subprocess.Popen(
                [sys.executable, "-m", "norm_fusion.doctor.trial", str(lines), device],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env={**os.environ, "TRITON_CACHE_DIR": str(Path(place, "triton"))},
            )
        try:
            code = child.wait(timeout_s)
            end = f"the process died: {_died(code)}" if code else "the process ended"
        except subprocess.TimeoutExpired:
            end = f"no answer within {timeout_s:.0f} s"
        finally:
            _end(child)
        return steps(_text(lines), end, _last_line(_text(printed)))


def steps(told: str, end: str, last_printed: str = "") -> dict[str, Step]:
    """The lines that a probing process wrote as steps; `end` is how the process ended, for a step that never did."""
    found: dict[str, Step] = {}
    begun = "start"
    for line in told.splitlines():
        try:
            step = json.loads(line)
            begun = str(step["step"])
            if "ok" in step:
                found[begun] = Step(step["ok"] is True, str(step["seen"]), dict(step["facts"]))
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by the process's end
    if begun not in found:
        found[begun] = Step(False, f"{end} ({last_printed})" if last_printed else end)
    return found


def _end(child: subprocess.Popen[bytes]) -> None:
    """Whatever is left of the probing process and of the compilers that it called."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process stuck in a driver does not die: leave it
        child.wait(5)


def _died(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _last_line(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
