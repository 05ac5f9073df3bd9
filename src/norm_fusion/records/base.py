"""What every stored model shares."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

# 2: replicates, attempts, intervals and calls. Files of schema 1 are read: they are runs of one process.
# 3: probe_ms, and the hash of each file in SHA256SUMS.
# 4: runs of several cards, that go on after an end, and with hardware counters.
SCHEMA = 4

# What can be counted or measured: a file is data, and may say anything.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[FiniteFloat, Field(gt=0, le=1e15)]
NotNegative = Annotated[FiniteFloat, Field(ge=0, le=1e15)]

Timer = Literal["device", "graph", "host", "wall", "none"]
Cache = Literal["cold", "hot", "none"]


def first_line(error: BaseException) -> str:
    """An exception as a reason that can be kept: its kind and the first line that it prints, at most 300 characters."""
    text = str(error).encode("utf-8", "backslashreplace").decode().strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


class Status(StrEnum):
    """How the attempt at a record ended."""

    OK = "ok"
    CHECKED = "checked"  # correct, not timed: Triton's interpreter
    WRONG = "wrong"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"

    @property
    def bad(self) -> bool:
        """It computed something else, or did not end: nothing of it may be quoted."""
        return self in (Status.WRONG, Status.FAILED)


class Stored(BaseModel):
    """What is written to files: no field that is not known, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
