"""What examples measured and was kept: samples of contestants that are no profile of the lab, such as a decoder block.

A file is what `python examples/decoder_block.py --json` printed: processes with blocks of samples by series and name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, model_validator

from norm_fusion import metrics
from norm_fusion.evidence.pool import ENOUGH
from norm_fusion.evidence.verdicts import RULE, verdict
from norm_fusion.records import Call, Environment, Label
from norm_fusion.runs.files import StoreError, load

Blocks = list[list[FiniteFloat]]


class _Process(BaseModel):
    """One process: blocks of samples in ms by series and contestant, None of what could not be captured."""

    samples: dict[str, dict[str, Blocks | None]]


class Example(BaseModel):
    """A kept example of one machine."""

    name: str
    command: str
    asked: dict[str, Any]
    runs: list[_Process]
    environment: Environment

    @model_validator(mode="after")
    def _there(self) -> Example:
        if not self.runs:
            raise ValueError("it holds no process")
        return self

    @property
    def case(self) -> str:
        """What was measured, in words."""
        told = {name: value for name, value in self.asked.items() if name in ("model", "hidden", "tokens", "backward")}
        passes = "forward and backward" if told.get("backward") else "forward"
        return (
            f"{told.get('model', self.name)} block, hidden {told.get('hidden')}, {told.get('tokens')} tokens, {passes}"
        )

    def contestants(self, series: str) -> list[str]:
        """Who has samples in a series in every process."""
        each = [{name for name, blocks in run.samples.get(series, {}).items() if blocks} for run in self.runs]
        return sorted(set.intersection(*each))

    def called(self, profile: str, baseline: str, series: str) -> Call:
        """How many times faster one is than another, by the same statistics as a claim of the lab."""
        ratios = [self._ratio(run, profile, baseline, series) for run in self.runs]
        low, high = metrics.interval(ratios) if len(ratios) > 1 else (None, None)
        label, code, reason = Label.INCONCLUSIVE, "processes", f"{len(ratios)} of at least {ENOUGH} processes"
        if low is not None and high is not None and len(ratios) >= ENOUGH:
            label, code, reason = verdict(low, high)
        return Call(
            case=self.case,
            profile=profile,
            baseline=baseline,
            timer="graph" if series == "graph" else "wall",
            cache="cold",
            label=label,
            code=code,
            reason=reason,
            rule=RULE,
            processes=len(ratios),
            speedup=metrics.geometric_mean(ratios),
            low=low,
            high=high,
            ratios=ratios,
        )

    @staticmethod
    def _ratio(run: _Process, profile: str, baseline: str, series: str) -> float:
        found = run.samples[series]
        over, mine = found[baseline], found[profile]
        assert over is not None and mine is not None, "contestants() has said so"  # noqa: PT018
        return metrics.speedup(over, mine)


def examples(folders: Sequence[Path]) -> tuple[dict[str, Example], list[str]]:
    """Those below `examples/` of some folders that hold samples, by name, and a sentence for each unreadable file."""
    found: dict[str, Example] = {}
    unreadable = []
    for path in [path for folder in folders for path in sorted((folder / "examples").glob("*.json"))]:
        try:
            data = load(path, "example")
            if not isinstance(data, dict) or not _holds_samples(data):
                continue  # of an example that compares losses, say
            found[path.stem] = Example.model_validate(data | {"name": path.stem})
        except (StoreError, ValueError) as error:
            unreadable.append(f"{path}: {str(error).splitlines()[0]}")
    return found, unreadable


def _holds_samples(data: dict[str, Any]) -> bool:
    runs = data.get("runs")
    return isinstance(runs, list) and all(isinstance(run, dict) and "samples" in run for run in runs)
