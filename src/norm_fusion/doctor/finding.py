"""A finding, the few ways to make one, and how amounts are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "limited", "missing", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `means` and `remedy` are there where the state is not ok: a sentence each."""

    name: str
    state: State
    seen: str
    means: str | None = None
    remedy: str | None = None
    group: str = ""


def ok(name: str, seen: str) -> Finding:
    return Finding(name, "ok", seen)


def limited(name: str, seen: str, means: str, remedy: str | None = None) -> Finding:
    """It works, and what it yields is worth less, or is something else than its name says."""
    return Finding(name, "limited", seen, means, remedy)


def missing(name: str, seen: str, means: str | None = None, remedy: str | None = None) -> Finding:
    return Finding(name, "missing", seen, means, remedy)


def unknown(name: str, seen: str, means: str | None = None, remedy: str | None = None) -> Finding:
    return Finding(name, "unknown", seen, means, remedy)


def release(version: str | None) -> tuple[int, int] | None:
    """The first two numbers of a version: (2, 13) of '2.13.0+cpu'; None if it has none."""
    found = re.match(r"\s*v?(\d{1,6})\.(\d{1,6})", version or "", re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"


def gib(amount: int) -> str:
    """Bytes as people say them."""
    if amount < 2**30:
        return f"{amount / 2**20:.0f} MiB"
    return f"{amount / 2**30:.1f} GiB" if amount < 10 * 2**30 else f"{amount / 2**30:.0f} GiB"


def share(part: float) -> str:
    """0.034 as 3.4%."""
    return f"{part:.1%}" if part < 0.1 else f"{part:.0%}"


def printable(text: str, most: int = 400) -> str:
    """One line that steers no terminal: names of processes, versions and messages are others' text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 3] + "..."
