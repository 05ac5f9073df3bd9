"""What a check of the harness found."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from norm_fusion.records.base import SCHEMA, Stored
from norm_fusion.records.environment import Environment


class HarnessCheck(Stored):
    """One thing that the harness was tried on: what had to be found, what was."""

    name: str
    passed: bool | None  # null: it could not be tried here
    wanted: str
    found: str
    details: list[dict[str, str | int | FiniteFloat | None]] = Field(default_factory=list)


class HarnessReport(Stored):
    """What `norm-fusion check-harness` found: can the figures of this lab, on this machine, be trusted?"""

    schema_version: int = SCHEMA
    run_id: str
    command: list[str]
    reduced: bool
    rule: int
    started_at: str
    finished_at: str
    environment: Environment
    checks: list[HarnessCheck]
