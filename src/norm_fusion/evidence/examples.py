"""What examples measured and was kept: samples of contestants that are no profile of the lab, such as a decoder block.

A file is what `python examples/decoder_block.py --json` printed: processes with blocks of samples by series and name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from norm_fusion import metrics
from norm_fusion.evidence.archive import each_once, odd
from norm_fusion.evidence.pool import ENOUGH
from norm_fusion.evidence.verdicts import RULE, verdict
from norm_fusion.records import Call, Environment, Label, Timer
from norm_fusion.runs.files import StoreError, load, problem
from norm_fusion.spec import FEWEST

Ms = Annotated[float, Field(gt=1e-9, lt=1e9)]  # no clock tells a femtosecond, and no call lasts ten days
Block = Annotated[list[Ms], Field(min_length=1)]
Blocks = Annotated[list[Block], Field(min_length=1)]
LONGEST = 60  # characters of what was asked


class _Process(BaseModel):
    """One process: blocks of samples in ms by series and contestant, None of what could not be captured."""

    samples: dict[str, dict[str, Blocks | None]]


class Example(BaseModel):
    """A kept example of one machine."""

    name: str
    path: Path
    command: str
    asked: dict[str, Any]
    runs: list[_Process]
    environment: Environment
    started_at: str | None = None  # ISO 8601

    @model_validator(mode="after")
    def _there(self) -> Example:
        if not self.runs:
            raise ValueError("it holds no process")
        if (why := odd(self.environment)) is not None:
            raise ValueError(why)
        return self

    @property
    def case(self) -> str:
        """What was measured, in words."""
        told = {name: str(value)[:LONGEST] for name, value in self.asked.items()}
        passes = "forward and backward" if self.asked.get("backward") else "forward"
        dtype = f", {told['dtype']}" if "dtype" in told else ""
        sizes = f"hidden {told.get('hidden')}, {told.get('tokens')} tokens"
        return f"{told.get('model', self.name)} block, {sizes}{dtype}, {passes}"

    @property
    def short_of(self) -> str | None:
        """Which gate would not let a run pass that was made so (evidence/selection.py); None where it passes all."""
        if self.asked.get("quick"):
            return "is a quick one"
        if self.environment.device != "cuda":
            return "was not measured on a GPU"
        if self.environment.commit is None or self.environment.dirty is not False:
            return "was measured with uncommitted changes, or by code of no known commit"
        return f"has {len(self.runs)} processes, {FEWEST} are needed" if len(self.runs) < FEWEST else None

    def contestants(self, series: str) -> list[str]:
        """Who has samples in a series in every process."""
        each = [{name for name, blocks in run.samples.get(series, {}).items() if blocks} for run in self.runs]
        return sorted(set.intersection(*each))

    def called(self, profile: str, baseline: str, series: str) -> Call:
        """How many times faster one is than another, by the same statistics and the same gate of noise as a claim."""
        ratios = [self._ratio(run, profile, baseline, series) for run in self.runs]
        low, high = metrics.interval(ratios) if len(ratios) > 1 else (None, None)
        label, code, reason = Label.INCONCLUSIVE, "processes", f"{len(ratios)} of at least {ENOUGH} processes"
        if low is not None and high is not None and len(ratios) >= ENOUGH:
            label, code, reason = verdict(low, high)
        timer: Timer = "graph" if series == "graph" else "wall"
        if loud := [name for name in (profile, baseline) if self._noisy(name, timer)]:
            gate = metrics.GATES[metrics.CLOCK[timer]][1]
            label, code = Label.RERUN_NOISE, "noise"
            reason = f"p95/p50 of {loud[0]} is above {gate:g} in most processes: too noisy for a precise claim"
        return Call(
            case=self.case,
            profile=profile,
            baseline=baseline,
            timer=timer,
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

    def _noisy(self, name: str, timer: Timer) -> bool:
        """Of most processes, as of a run's (evidence/pool.py)."""
        each = [blocks for run in self.runs if (blocks := run.samples[timer][name])]
        ends = [(metrics.percentile(blocks, 50), metrics.percentile(blocks, 95)) for blocks in each]
        return sum(metrics.noise_gate(*two, timer) is metrics.Noise.RERUN for two in ends) > len(ends) / 2

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
    for path in [path for folder in each_once(folders) for path in sorted((folder / "examples").glob("*.json"))]:
        try:
            data = load(path, "example")
            if not isinstance(data, dict) or not _holds_samples(data):
                continue  # of an example that compares losses, say
            if path.stem in found:
                raise StoreError(f"{path} has the name of another example, which is taken")
            found[path.stem] = Example.model_validate(data | {"name": path.stem, "path": path})
        except StoreError as error:
            unreadable.append(str(error))
        except ValueError as error:
            unreadable.append(f"{path} is not a readable example: {problem(error)}")
    return found, unreadable


def _holds_samples(data: dict[str, Any]) -> bool:
    runs = data.get("runs")
    return isinstance(runs, list) and all(isinstance(run, dict) and "samples" in run for run in runs)
