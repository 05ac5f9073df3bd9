"""One case: prepare every contestant, examine it, sample all of them together, examine it again."""

from __future__ import annotations

import math
import random
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from norm_fusion import backends
from norm_fusion.backends import builtin, roof
from norm_fusion.backends.passes import Launch, get_ready
from norm_fusion.measure import graphs, timing
from norm_fusion.measure.correctness import Check, check, spread_rows
from norm_fusion.measure.environment import available_bytes
from norm_fusion.measure.examine import Examiner, Wrong
from norm_fusion.measure.inputs import draw_input, draw_operands, rows_of_parts
from norm_fusion.measure.parent import Parent
from norm_fusion.measure.ring import PLACES_SHARE, Contestant, Interrupted, Lost, Ring, Stop, sets_in_rotation
from norm_fusion.metrics import percentile
from norm_fusion.records import Cache, Code, Measurement, Status, Timer, first_line
from norm_fusion.spec import CONTROL, ITEMSIZE, ROOF, Case, Effort, Pass, Shard

# A kernel in the interpreter takes about 10 ms a program: rows enough to meet every mask and the last program.
INTERPRETED_ROWS = 64
# The parent's clock around so many milliseconds of calls: pipes cost 0.1 ms of it.
BRACKET_MS = 20.0
MOST_CALLS = 100_000

# Every series, in the order of sampling. The eager ones come last: they may allocate what the graphs have to keep.
CUDA_SERIES: tuple[tuple[Timer, Cache], ...] = (
    ("graph", "cold"),
    ("device", "cold"),
    ("device", "hot"),
    ("host", "cold"),
    ("wall", "cold"),
)
CPU_SERIES: tuple[tuple[Timer, Cache], ...] = (("wall", "cold"), ("wall", "hot"))


def series_of(shard: Shard, device: str) -> list[tuple[Timer, Cache]]:
    """The series to sample on a kind of device: those that the shard asks for, all where it asks for none."""
    every = CPU_SERIES if device == "cpu" else CUDA_SERIES
    wanted = set(shard.series)
    return [(timer, cache) for timer, cache in every if not wanted or wanted & {timer, f"{timer}-{cache}"}]


class Broken(Exception):
    """The device does not work any more in this process: another one has to go on."""


@dataclass
class Outcome:
    """What is known of one contestant so far."""

    profile: str
    status: Status = Status.OK
    code: Code | None = None
    reason: str | None = None
    remedy: str | None = None
    resolved: str | None = None
    control_of: str | None = None
    checks: list[Check] = field(default_factory=list)
    contestant: Contestant | None = None

    def fail(self, status: Status, code: Code, reason: str, remedy: str | None = None) -> None:
        self.status, self.code, self.reason, self.remedy = status, code, reason, remedy
        self.contestant = None

    def judge(self, found: Check, when: str) -> None:
        """Take an examination in; the first wrong one decides."""
        self.checks.append(found)
        if found.wrong and self.status is not Status.WRONG:
            self.status, self.code, self.reason = Status.WRONG, found.code, f"{found.wrong} ({when})"


@dataclass
class CaseRun:
    """Measures one case of a shard on one device."""

    case: Case
    shard: Shard
    device: torch.device
    effort: Effort
    cache_bytes: int
    ceilings: Mapping[str, float]
    parent: Parent
    stop: Stop

    def run(self) -> list[Measurement]:
        """A measurement for every profile that serves the operator, one for the control and one for the roof."""
        skipped = {profile for case, profile in self.shard.skip if case == self.case.name}
        names = [
            p for p in self.shard.profiles if backends.serves(p, self.case.op, self.case.pass_) and p not in skipped
        ]
        self.outcomes = {name: Outcome(name) for name in names}
        self.ring: Ring | None = None
        if self.shard.yardsticks:
            if names and CONTROL not in skipped:
                original = backends.controlled(names, self.device.type)
                self.outcomes[CONTROL] = Outcome(CONTROL, control_of=original)
            self.outcomes[ROOF] = Outcome(ROOF)
        try:
            with self._differentiable():
                self.progress("draw inputs")
                self._allocate()
                for outcome in self.outcomes.values():
                    self._prepare(outcome)
                self._sample()
                self._examine_after()
        except Interrupted:
            self._interrupted()
        except torch.OutOfMemoryError as error:
            self._fail_all(f"out of memory: {first_line(error)}")
        except MemoryError as error:
            self._fail_all(str(error))
        return [self._measurement(outcome) for outcome in self.outcomes.values()]

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Tensors that autograd may save, for a backward.

        That runs on its forward's stream, and a graph cannot capture what runs on the default one.
        """
        if self.case.pass_ is Pass.FORWARD:
            yield
            return
        on_gpu = self.device.type == "cuda"
        stream = torch.cuda.stream(torch.cuda.Stream(self.device)) if on_gpu else nullcontext()  # type: ignore[no-untyped-call]
        with torch.inference_mode(False), torch.no_grad(), stream:
            yield

    def progress(self, what: str) -> None:
        self.parent.send("progress", case=self.case.name, what=what)

    def _allocate(self) -> None:
        case, there, room = self.case, available_bytes(self.device), 1
        # Each contestant keeps as many outputs as there are inputs, and what a composition's backward needs: the
        # normalized row, in fp32 and rounded. Eight more for intermediates.
        kept = sum(math.prod(shape) for shape in case.outputs) * ITEMSIZE[case.dtype]
        if case.pass_ is Pass.BACKWARD:
            kept += 3 * case.tensor_bytes
        each = case.input_bytes + len(self.outcomes) * kept
        if self.device.type == "cuda":
            room = int(PLACES_SHARE * there / each)
        sets = sets_in_rotation(case.moved_bytes, self.cache_bytes, room)
        needed = sets * each + 8 * case.tensor_bytes + 2 * self.cache_bytes
        if needed > there:
            raise MemoryError(
                f"out of memory: {self.case.name} needs about {needed / 2**30:.1f} GiB, "
                f"{there / 2**30:.1f} GiB are free: use fewer rows, columns or backends"
            )
        seed = self.shard.seed
        self.inputs: list[Tensor] = [draw_input(self.case, self.device, seed + 1 + i) for i in range(sets)]
        self.operands = draw_operands(self.case, self.device, seed)
        first = self.shard.replicate == 0
        self.examiner = Examiner(self.case, self.inputs, self.operands, seed, self.parent, self._judge, thorough=first)
        if "torch._dynamo" in sys.modules:  # which takes seconds to import
            torch._dynamo.reset()  # a recompile limit that earlier cases reached would turn compiled profiles eager

    def _judge(self, profile: str, found: Check, when: str) -> None:
        self.outcomes[profile].judge(found, when)

    def _prepare(self, outcome: Outcome) -> None:
        if self.stop():
            raise Interrupted
        if outcome.profile == ROOF:
            self._prepare_roof(outcome)
            return
        if outcome.control_of is not None:
            self._control_of_who_runs(outcome)
        self.progress(f"prepare {outcome.profile}")
        self.parent.at(self.case.name, outcome.profile)
        try:
            prepared = backends.prepare(outcome.control_of or outcome.profile, self.operands, self.device)
            outcome.resolved = prepared.resolved
            if prepared.timed:
                if prepared.judged:
                    self.examiner.before(outcome.profile, prepared.launch)
                if outcome.status is Status.OK:
                    for x in self.inputs:
                        get_ready(prepared.launch, x)
                    outcome.contestant = Contestant(outcome.profile, prepared.launch, prepared.judged)
            elif self.shard.replicate == 0 and outcome.control_of is None:
                self._interpret(outcome, prepared.launch)
            else:
                outcome.fail(Status.UNAVAILABLE, Code.MISSING, "only the first process checks what it cannot time")
        except builtin.Unavailable as missing:
            outcome.fail(Status.UNAVAILABLE, Code.MISSING, missing.reason, missing.remedy)
        except EOFError:
            raise
        except Exception as error:  # noqa: BLE001 - a contestant may raise anything: it costs its own row
            self._raised(outcome, error)

    def _control_of_who_runs(self, control: Outcome) -> None:
        """Where the contestant that was to run a second time cannot run at all, another one does."""
        there = [o.profile for o in self.outcomes.values() if o.contestant is not None]
        if there and control.control_of not in there:
            control.control_of = backends.controlled(there, self.device.type)

    def _raised(self, outcome: Outcome, error: BaseException) -> None:
        """A contestant's exception; one that leaves the device unusable ends this process."""
        if isinstance(error, Wrong):
            outcome.contestant = None  # it was judged already
            return
        # Its own words, with where they were said: worker.log keeps what is printed here.
        sys.stderr.write(f"--- {outcome.profile} at {self.case.name}, process {self.shard.replicate + 1}:\n")
        traceback.print_exception(error)
        program = builtin.missing_program(error)
        if program is None:
            full = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            outcome.fail(Status.FAILED, Code.OUT_OF_MEMORY if full else Code.RAISED, first_line(error))
        else:
            reason = f"it runs the program {program!r}, which is not on PATH"
            outcome.fail(Status.UNAVAILABLE, Code.MISSING, reason, "install it")
        if self.device.type == "cuda":
            try:
                torch.cuda.empty_cache()  # what it took, others need
                torch.cuda.synchronize()
            except RuntimeError as broken:
                raise Broken(outcome.profile, first_line(error)) from broken
        self.examiner.renew(0)  # it may have raised while that held something else

    def _prepare_roof(self, outcome: Outcome) -> None:
        """The fastest of several copies is the roof; the search is short, its winner is timed with the others."""
        self.progress("choose the copy")
        copies = roof.copies(self.inputs, self.case.moved_bytes // 2 // ITEMSIZE[self.case.dtype])
        ring = self._ring([Contestant(name, c, judged=False) for name, c in copies.items()], quick=True)
        best = ring.contestants[0]
        if len(ring.contestants) > 1:
            graphs.capture(ring)
            graphs.graph(ring)
            best = min(ring.contestants, key=lambda c: percentile(c.series["graph", "cold"].blocks, 50))
            ring.release()
        outcome.resolved = best.name
        outcome.contestant = Contestant(ROOF, best.launch, judged=False)

    def _ring(self, contestants: list[Contestant], quick: bool = False) -> Ring:
        effort = Effort(rounds=3, block=3, warmup_s=0.0, settle_s=0.0) if quick else self.effort
        rng, examiner = random.Random(self.shard.seed), None if quick else self.examiner
        return Ring(contestants, self.inputs, effort, rng, self.stop, examiner, self.cache_bytes)

    def _interpret(self, outcome: Outcome, launch: Launch) -> None:
        rows = spread_rows(self.case, INTERPRETED_ROWS, self.device)
        x = self.inputs[0][rows_of_parts(self.case, rows)]
        outcome.judge(check(launch(x), x, self.operands, replace(self.case, rows=len(rows))), "in Triton's interpreter")
        if outcome.status is Status.OK:
            outcome.status = Status.CHECKED
            outcome.reason = (
                f"correct in Triton's interpreter on {len(rows)} of {self.case.rows} rows; not timed on a CPU"
            )
            outcome.remedy = "run on a machine with an NVIDIA GPU for its latency"

    def _sample(self) -> None:
        """Every series; a contestant that raises leaves the ring, and the series begins again without it."""
        for timer, cache in series_of(self.shard, self.device.type):
            self.progress(f"time {timer}" + (", hot" if cache == "hot" else ""))
            if timer in ("host", "wall"):
                self.parent.ask("quiet")
            if cache == "hot" and self.case.moved_bytes > self.cache_bytes and self.device.type == "cpu":
                continue  # what does not fit is cold either way, and such calls take long here
            while contestants := self._contestants():
                try:
                    self._sample_one(self._continued(contestants), timer, cache)
                    break
                except Lost as lost:
                    self._raised(self.outcomes[lost.contestant.name], lost.error)
        if self.ring is not None:
            self.ring.release()

    def _contestants(self) -> list[Contestant]:
        """Who is still in the ring, in this process's own order.

        It is the order of capture too, and so of the outputs' places in memory. These matter by up to one percent, and
        if they were the same in all processes no interval would show it: of the same kernel under two names the one
        that came second was 0.3% faster in each.
        """
        found = [o.contestant for o in self.outcomes.values() if o.contestant is not None]
        random.Random(f"{self.shard.seed} {self.case.name}").shuffle(found)
        return found

    def _continued(self, contestants: list[Contestant]) -> Ring:
        """The case's ring, or a new one where a contestant has left it."""
        if self.ring is None or self.ring.contestants != contestants:
            for contestant in contestants:
                contestant.graph = None
            self.ring = self._ring(contestants)
            self._note_rotation(contestants)
        return self.ring

    def _sample_one(self, ring: Ring, timer: Timer, cache: Cache) -> None:
        if timer in ("graph", "device") and not any(contestant.graph for contestant in ring.contestants):
            graphs.capture(ring)
        if timer == "graph":
            graphs.graph(ring)
        elif timer == "device":
            graphs.device(ring, cache)
        else:
            timing.wall(ring, timer, cache)
        if cache == "cold" and timer in ("graph", "wall"):
            for contestant in ring.contestants:
                if (timer, cache) in contestant.series:
                    self._bracket(ring, contestant, timer)

    def _bracket(self, ring: Ring, contestant: Contestant, timer: Timer) -> None:
        """Calls between two messages: the parent's clock says how long they took, and so does this process's own."""
        self.examiner.entered(contestant)
        p50 = percentile(contestant.series[timer, "cold"].blocks, 50)
        calls, again = min(MOST_CALLS, max(1, round(BRACKET_MS / p50))), True
        while again:
            self.parent.ask("bracket", case=self.case.name, profile=contestant.name, timer=timer, p50_ms=p50)
            try:
                run = graphs.back_to_back if timer == "graph" else timing.back_to_back
                calls, told_ms = run(ring, contestant, calls)
            except Exception as error:
                raise Lost(contestant, error) from error
            again = bool(self.parent.ask("bracket-end", calls=calls, told_ms=told_ms)["again"])
        self.examiner.left(contestant)

    def _note_rotation(self, ring: list[Contestant]) -> None:
        footprint = len(self.inputs) * self.case.moved_bytes
        if footprint < self.cache_bytes:
            for contestant in ring:
                contestant.notes.append(
                    f"not cold: {len(self.inputs)} sets in rotation cover {footprint / 2**20:.2g} MiB of a "
                    f"{self.cache_bytes / 2**20:.0f} MiB cache"
                )

    def _examine_after(self) -> None:
        if not self.examiner.inputs_intact():
            # Whose deed it was cannot be told: every figure of the case was taken beside it.
            changed = Check.failed("an input was changed during timing, by one of the contestants", Code.MUTATED_INPUT)
            for outcome in self.outcomes.values():
                if outcome.contestant is not None:
                    outcome.judge(changed, "after timing")
        for outcome in self.outcomes.values():
            if outcome.contestant is not None and outcome.contestant.judged:
                try:
                    self.examiner.after(outcome.contestant)
                except EOFError:
                    raise
                except Exception as error:  # noqa: BLE001 - as above
                    self._raised(outcome, error)

    def _interrupted(self) -> None:
        for outcome in self.outcomes.values():
            if outcome.status is not Status.OK:
                continue
            if outcome.contestant is None or not any(any(s.blocks) for s in outcome.contestant.series.values()):
                reason = "the run was interrupted before it was measured"
                outcome.fail(Status.UNAVAILABLE, Code.INTERRUPTED, reason, "run it again")
            else:
                outcome.contestant.notes.append("interrupted: fewer samples than the protocol asks for")

    def _fail_all(self, reason: str) -> None:
        remedy = "use fewer rows or columns, or a GPU with more memory"
        for outcome in self.outcomes.values():
            if outcome.status is Status.OK:  # what was found of the others stands
                outcome.fail(Status.FAILED, Code.OUT_OF_MEMORY, reason, remedy)

    def _measurement(self, outcome: Outcome) -> Measurement:
        contestant = outcome.contestant
        absolute = [c.max_abs_error for c in outcome.checks if c.max_abs_error is not None]
        relative = [c.max_rel_error for c in outcome.checks if c.max_rel_error is not None]
        series = [s for s in contestant.series.values() if any(s.blocks)] if contestant else []
        if outcome.status is Status.OK and not series:
            outcome.status, outcome.code = Status.FAILED, Code.RAISED
            outcome.reason = "; ".join(contestant.notes if contestant else []) or "not timed"
        return Measurement(
            case=self.case.name,
            profile=outcome.profile,
            status=outcome.status,
            code=outcome.code,
            reason=outcome.reason,
            remedy=outcome.remedy,
            resolved_backend=outcome.resolved,
            control_of=outcome.control_of,
            max_abs_error=max(absolute, default=None),
            max_rel_error=max(relative, default=None),
            checked_rows=max((c.rows for c in outcome.checks), default=None),
            read_gbps=self.ceilings.get("read"),
            write_gbps=self.ceilings.get("write"),
            series=series,
            notes=contestant.notes if contestant else [],
        )
