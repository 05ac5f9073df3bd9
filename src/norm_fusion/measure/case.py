"""One case: prepare every contestant, verify it, sample all of them together, verify again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from norm_fusion import backends
from norm_fusion.backends import builtin, roof
from norm_fusion.measure.correctness import Check, check, draw_input, draw_operands, poison, spread_rows
from norm_fusion.measure.environment import available_bytes
from norm_fusion.measure.timing import Bench, Contestant, Interrupted, first_line, missing_program, sets_in_rotation
from norm_fusion.metrics import percentile
from norm_fusion.records import Measurement, Status
from norm_fusion.spec import ROOF, Case, Effort

# A kernel in the interpreter takes about 10 ms a program: rows enough to meet every mask and the last program.
INTERPRETED_ROWS = 64
# On a CPU a fp64 reference of all rows costs more than the timing; in-run verifications take a sample.
CPU_SAMPLED_ROWS = 256
# Values that poisoned memory holds: one that spreads, one that looks like a result.
POISONS = (float("nan"), 1234.5)
# What is added to the input meanwhile: a kernel may treat rows far from zero in a way of its own.
SHIFTS = (0.0, 3.0)

CUDA_SERIES = ("graph", "device", "host", "wall")
CPU_SERIES = ("wall",)


@dataclass
class Outcome:
    """What is known of one contestant so far."""

    profile: str
    status: Status = Status.OK
    reason: str | None = None
    remedy: str | None = None
    resolved: str | None = None
    checks: list[Check] = field(default_factory=list)
    contestant: Contestant | None = None

    def fail(self, status: Status, reason: str, remedy: str | None = None) -> None:
        self.status, self.reason, self.remedy = status, reason, remedy
        self.contestant = None

    def judge(self, found: Check, when: str) -> None:
        """Take a verification in; the first wrong one decides."""
        self.checks.append(found)
        if found.wrong and self.status is not Status.WRONG:
            self.status, self.reason = Status.WRONG, f"{found.wrong} ({when})"


@dataclass
class CaseRun:
    """Measures one case on one device. `progress(what)` is told of each step; `stop()` asks to end early."""

    case: Case
    profiles: Sequence[str]
    device: torch.device
    effort: Effort
    cache_bytes: int
    seed: int
    progress: Callable[[str], None]
    stop: Callable[[], bool]

    def run(self) -> list[Measurement]:
        """A measurement for every profile that serves the operator, and one for the roof."""
        names = [name for name in self.profiles if backends.serves(name, self.case.op)]
        self.outcomes = {name: Outcome(name) for name in (*names, ROOF)}
        try:
            self._allocate()
            self._prepare(names)
            self._sample()
            self._verify_after()
        except Interrupted:
            for outcome in self.outcomes.values():
                if outcome.contestant is None and outcome.status is Status.OK:
                    outcome.fail(Status.UNAVAILABLE, "the run was interrupted before it was measured", "run it again")
                elif outcome.contestant is not None:
                    outcome.contestant.notes.append("interrupted: fewer samples than the protocol asks for")
        except torch.OutOfMemoryError as error:
            self._fail_all(f"out of memory: {first_line(error)}")
        except MemoryError as error:
            self._fail_all(str(error))
        return [self._measurement(outcome) for outcome in self.outcomes.values()]

    def _allocate(self) -> None:
        sets = sets_in_rotation(2 * self.case.input_bytes, self.cache_bytes)
        # Each contestant keeps as many outputs as there are inputs; eight more for the composition's intermediates.
        outputs = sets * len(self.outcomes) + 8
        needed = (sets + outputs) * self.case.input_bytes + 2 * self.cache_bytes
        there = available_bytes(self.device)
        if needed > there:
            raise MemoryError(
                f"out of memory: {self.case.name} needs about {needed / 2**30:.1f} GiB, "
                f"{there / 2**30:.1f} GiB are free: use fewer rows, columns or backends"
            )
        self.inputs = [self._input(i) for i in range(sets)]
        self.operands = draw_operands(self.case, self.device, self.seed)
        sampled = spread_rows(self.case, CPU_SAMPLED_ROWS, self.device)
        self.sampled_rows = sampled if self.device.type == "cpu" else None

    def _input(self, i: int) -> Tensor:
        return draw_input(self.case, self.device, self.seed + 1 + i)

    def _prepare(self, names: Sequence[str]) -> None:
        torch._dynamo.reset()  # a recompile limit reached by earlier cases would turn compiled profiles into eager ones
        for name in names:
            if self.stop():
                raise Interrupted
            self.progress(f"prepare {name}")
            outcome = self.outcomes[name]
            try:
                prepared = builtin.prepare(name, self.operands, self.device)
                outcome.resolved = prepared.resolved
                if prepared.timed:
                    self._verify_before(outcome, prepared.launch)
                    if outcome.status is Status.OK:
                        outcome.contestant = Contestant(name, prepared.launch)
                else:
                    self._interpret(outcome, prepared.launch)
            except builtin.Unavailable as missing:
                outcome.fail(Status.UNAVAILABLE, missing.reason, missing.remedy)
            except Exception as error:  # noqa: BLE001 - a contestant may raise anything: it costs its own row
                program = missing_program(error)
                if program is None:
                    outcome.fail(Status.FAILED, first_line(error))
                else:
                    outcome.fail(
                        Status.UNAVAILABLE, f"it runs the program {program!r}, which is not on PATH", "install it"
                    )
        self._prepare_roof()

    def _prepare_roof(self) -> None:
        """The fastest of several copies is the roof; the search is short, its winner is timed with the others."""
        outcome = self.outcomes[ROOF]
        ring = [Contestant(name, launch) for name, launch in roof.candidates(self.inputs).items()]
        best = ring[0]
        if len(ring) > 1:
            quick = Effort(rounds=3, block=3, warmup_s=0.0, settle_s=0.0)
            rng = random.Random(self.seed)
            bench = Bench(ring, self.inputs, quick, rng, self.stop, lambda *_: None, self.cache_bytes)
            bench.graphs()
            bench.graph()
            best = min(ring, key=lambda contestant: percentile(contestant.series["graph"].blocks, 50))
            bench.release()
        outcome.resolved = best.name
        outcome.contestant = Contestant(ROOF, best.launch)

    def _verify_before(self, outcome: Outcome, launch: builtin.Launch) -> None:
        """Calls on poisoned memory, after one that compiles: all rows are checked, and the input is compared."""
        x, pristine = self.inputs[0], self._input(0)
        for value, shift in zip(POISONS, SHIFTS, strict=True):
            given = pristine + shift
            x.copy_(given)
            launch(x)  # its output is freed at once: what it leaves behind is the memory poisoned next
            poison(x, value)
            out = launch(x)
            if not torch.equal(x, given):
                outcome.judge(Check(None, None, 0, "it changed its input"), "before timing")
            outcome.judge(check(out, given, self.operands, self.case), "before timing")
        x.copy_(pristine)

    def _interpret(self, outcome: Outcome, launch: builtin.Launch) -> None:
        rows = spread_rows(self.case, INTERPRETED_ROWS, self.device)
        x = self.inputs[0][rows]
        outcome.judge(check(launch(x), x, self.operands, self.case), "in Triton's interpreter")
        if outcome.status is Status.OK:
            outcome.status = Status.CHECKED
            outcome.reason = (
                f"correct in Triton's interpreter on {len(rows)} of {self.case.rows} rows; not timed on a CPU"
            )
            outcome.remedy = "run on a machine with an NVIDIA GPU for its latency"

    def _sample(self) -> None:
        def verify(contestant: Contestant, i: int, out: Any) -> None:
            if contestant.name != ROOF:
                found = check(out, self.inputs[i], self.operands, self.case, self.sampled_rows)
                self.outcomes[contestant.name].judge(found, "a timed call")

        ring = [outcome.contestant for outcome in self.outcomes.values() if outcome.contestant is not None]
        footprint = len(self.inputs) * 2 * self.case.input_bytes
        if footprint < self.cache_bytes:
            for contestant in ring:
                contestant.notes.append(
                    f"not cold: {len(self.inputs)} sets in rotation cover {footprint / 2**20:.2g} MiB of a "
                    f"{self.cache_bytes / 2**20:.0f} MiB cache"
                )
        bench = Bench(ring, self.inputs, self.effort, random.Random(self.seed), self.stop, verify, self.cache_bytes)
        try:
            if self.device.type == "cpu":
                self.progress("time wall")
                bench.wall()
                return
            self.progress("time graph")
            bench.graphs()
            bench.graph()
            self.progress("time device")
            bench.device()
            self.progress("time host")
            bench.wall("host")
            self.progress("time wall")
            bench.wall("wall")
        finally:
            bench.release()

    def _verify_after(self) -> None:
        if not all(torch.equal(x, self._input(i)) for i, x in enumerate(self.inputs)):
            # Whose deed it was cannot be told: every figure of the case was taken beside it.
            changed = Check(None, None, 0, "an input was changed during timing, by one of the contestants")
            for outcome in self.outcomes.values():
                outcome.judge(changed, "after timing")
        for outcome in self.outcomes.values():
            if outcome.contestant is not None and outcome.profile != ROOF:
                # New content at an address that the contestant knows: an output remembered by address is stale now.
                x = self.inputs[-1].copy_(self._input(len(self.inputs)))
                poison(x, POISONS[0])
                found = check(outcome.contestant.launch(x), x, self.operands, self.case, self.sampled_rows)
                outcome.judge(found, "after timing")

    def _fail_all(self, reason: str) -> None:
        for outcome in self.outcomes.values():
            outcome.fail(Status.FAILED, reason, "use fewer rows or columns, or a GPU with more memory")

    def _measurement(self, outcome: Outcome) -> Measurement:
        contestant = outcome.contestant
        absolute = [c.max_abs_error for c in outcome.checks if c.max_abs_error is not None]
        relative = [c.max_rel_error for c in outcome.checks if c.max_rel_error is not None]
        series = [s for s in contestant.series.values() if any(s.blocks)] if contestant else []
        if outcome.status is Status.OK and not series:
            outcome.status, outcome.reason = Status.FAILED, "; ".join(contestant.notes if contestant else ["not timed"])
        return Measurement(
            case=self.case.name,
            profile=outcome.profile,
            status=outcome.status,
            reason=outcome.reason,
            remedy=outcome.remedy,
            resolved_backend=outcome.resolved,
            max_abs_error=max(absolute, default=None),
            max_rel_error=max(relative, default=None),
            checked_rows=max((c.rows for c in outcome.checks), default=None),
            series=series,
            notes=contestant.notes if contestant else [],
        )
