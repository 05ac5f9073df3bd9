"""The ring of a case's contestants: rounds in balanced order, warm-up, and calls picked at random to be examined.

Sampling itself, one module a kind of clock: timing.py (the host's clock), graphs.py (the device's).
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from norm_fusion.measure.clocks import CpuProbe, GpuProbe, monotonic, perf_counter_ns, watch
from norm_fusion.records import Cache, Series, Timer
from norm_fusion.spec import MOST_ROUNDS, Effort

# Cold by rotation: the sets in turn exceed the cache this many times. At four, eight and sixteen kernels without cache
# hints take the same time on an H200; at three some still hit.
CACHE_MULTIPLE = 4
MAX_SETS = 512
# A kernel's speed depends by some percent on where its input and output lie: so many places make a mean of it, where
# a share of the memory that is free has room for them.
PLACES, PLACES_SHARE = 16, 0.25
SETTLED_WITHIN = 0.01

SeriesKey = tuple[Timer, Cache]


class Interrupted(Exception):
    """The run was asked to stop; what was sampled so far is kept."""


class Lost(Exception):
    """A contestant raised while it was sampled, or did what no contestant may: it leaves the ring."""

    def __init__(self, contestant: Contestant, error: Exception) -> None:
        super().__init__(str(error))
        self.contestant, self.error = contestant, error


@dataclass
class Contestant:
    """One implementation in the ring. `outputs` stays alive: as many outputs as inputs, so none is written in cache."""

    name: str
    launch: Callable[[Tensor], Any]
    judged: bool = True  # are its outputs examined? Not those of a copy
    outputs: list[Any] = field(default_factory=list)
    turn: int = 0
    series: dict[SeriesKey, Series] = field(default_factory=dict)
    graph: torch.cuda.CUDAGraph | None = None
    replays: int = 1
    notes: list[str] = field(default_factory=list)

    def call(self, inputs: list[Tensor]) -> Any:
        """The next call in the rotation; its output is kept until that input's turn comes again."""
        i = self.turn % len(inputs)
        self.turn += 1
        self.outputs[i] = None
        self.outputs[i] = self.launch(inputs[i])
        return self.outputs[i]


class Examiner(Protocol):
    """Who is told of each block, and judges calls picked at random; `set_up` may change input `i` before its call.

    `left` and `examine` raise `Lost` for a contestant that has to leave the ring.
    """

    def entered(self, contestant: Contestant) -> None: ...
    def set_up(self, contestant: Contestant, i: int) -> None: ...
    def left(self, contestant: Contestant) -> None: ...
    def examine(self, contestant: Contestant, i: int, output: Any) -> None: ...


def sets_in_rotation(set_bytes: int, cache_bytes: int, room: int = 1) -> int:
    """Input and output pairs whose sum is four times the cache; where there is room for more, up to 16 all the same."""
    return min(MAX_SETS, max(-(-CACHE_MULTIPLE * cache_bytes // set_bytes), min(PLACES, room)))


def williams(n: int) -> list[list[int]]:
    """Orders of n in which each follows each other equally often (Williams 1949): n rows if n is even, else 2n."""
    first = [0]
    for step in range(1, n):
        first.append((first[-1] + (step if step % 2 else -step)) % n)
    square = [[(value + shift) % n for value in first] for shift in range(n)]
    return square if n % 2 == 0 else square + [row[::-1] for row in square]


Stop = Callable[[], bool]
# Runs a contestant `size` times and appends the samples; with `pick` it returns the output of the last call on input
# `pick`, as the caller found it on return.
Block = Callable[[Contestant, list[float], int, int | None], Any]


@dataclass
class Ring:
    """A case's contestants, its inputs, and how long to measure.

    `cache_bytes`: the GPU's last level of cache, scrubbed before each block of samples; 0 where nothing is to be.
    """

    contestants: list[Contestant]
    inputs: list[Tensor]
    effort: Effort
    rng: random.Random
    stop: Stop
    examiner: Examiner | None = None
    cache_bytes: int = 0
    settled: bool | None = None
    pass_s: float = float("inf")  # how long a call of everyone takes, once warmed up
    warmup: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for contestant in self.contestants:
            contestant.outputs = [None] * len(self.inputs)
        x = self.inputs[0]
        self.cuda = x.is_cuda
        self.neutral = torch.zeros(2 * self.cache_bytes // 4, device=x.device) if self.cuda else None
        self.probe: GpuProbe | CpuProbe = GpuProbe() if self.cuda else CpuProbe()

    @property
    def calls_per_replay(self) -> int:
        """Calls in a graph: whole rotations, at least eight calls."""
        return len(self.inputs) * -(-8 // len(self.inputs))

    def scrub(self) -> None:
        """Read neutral memory twice the size of the cache, so that none starts on what its predecessor left there.

        Rotation alone does not see to that. Lines loaded with `evict_first` replace each other and leave the rest of
        the cache as it was: on an H200 such a kernel fetched 20 to 24 of an input's 34 MB from memory, every time that
        its turn came, because a predecessor's lines of that input stayed. It measured 7% faster than it was.
        """
        if self.neutral is not None:
            self.neutral.sum()

    def warm_up(self, ring: list[Contestant], block: Block) -> None:
        """Alternate calls for at least 200 ms, until three passes over the ring agree within 1% or time is up."""
        self.warmup = {contestant.name: [] for contestant in ring}
        passes: list[int] = []
        start = perf_counter_ns()
        while True:
            self.check_stop()
            before = perf_counter_ns()
            for contestant in ring:
                self.run(block, contestant, self.warmup[contestant.name], 1)
            passes.append(perf_counter_ns() - before)
            last = passes[-3:]
            self.settled = len(last) == 3 and max(last) <= min(last) * (1 + SETTLED_WITHIN)
            self.pass_s = min(last) / 1e9
            elapsed = (perf_counter_ns() - start) / 1e9
            if elapsed >= self.effort.warmup_s and (self.settled or elapsed >= self.effort.settle_s):
                return

    def rounds(self, timer: Timer, cache: Cache, ring: list[Contestant], block: Block) -> None:
        """Sample every contestant in every round, and examine one call of each, at a random round."""
        began = monotonic()
        samples: dict[str, list[list[float]]] = {contestant.name: [] for contestant in ring}
        probes: dict[str, list[float]] = {contestant.name: [] for contestant in ring}
        positions: dict[str, list[int]] = {contestant.name: [] for contestant in ring}
        orders, size = self._schedule(timer, len(ring))
        examined = [self.rng.randrange(len(orders)) for _ in ring]
        gc.collect()
        gc.disable()
        try:
            for r, places in enumerate(orders):
                self.check_stop()
                for position, place in enumerate(places):
                    contestant = ring[place]
                    sink: list[float] = []
                    # A hot series has one input, which its producer writes: nothing there to change or to mix up.
                    examine = r == examined[place] and contestant.judged and cache == "cold"
                    picked = self._pick(contestant, timer, size) if examine else None
                    self.run(block, contestant, sink, size, picked)
                    samples[contestant.name].append(sink)
                    probes[contestant.name].append(self.probe.ms())
                    positions[contestant.name].append(position)
        finally:
            gc.enable()
            ended = monotonic()
            for contestant in ring:
                contestant.series[timer, cache] = Series(
                    timer=timer,
                    cache=cache,
                    blocks=samples[contestant.name],
                    positions=positions[contestant.name],
                    calls_per_sample=contestant.replays * self.calls_per_replay if timer == "graph" else 1,
                    warmup=self.warmup.pop(contestant.name, []),
                    probes_ms=probes[contestant.name],
                    settled=self.settled,
                    rotation=len(self.inputs) if cache == "cold" else 1,
                    began_s=began,
                    ended_s=ended,
                )

    def _schedule(self, timer: Timer, n: int) -> tuple[list[list[int]], int]:
        """The orders of a series' rounds, and how many samples a block has."""
        effort, fill_s = self.effort, self.effort.fill_s
        orders = self.orders(n, effort.rounds)
        if fill_s is None or timer not in ("host", "wall") or not orders:
            return orders, effort.block
        in_time = int(fill_s / (len(orders) * self.pass_s))
        size = max(1, -(-effort.least // len(orders)), min(effort.block, in_time))
        more = min(MOST_ROUNDS, int(fill_s / (size * self.pass_s)))
        return (self.orders(n, more) if more > len(orders) else orders), size

    def run(
        self, block: Block, contestant: Contestant, sink: list[float], size: int, picked: int | None = None
    ) -> None:
        """One block of one contestant; whatever it raises names it."""
        self.entered(contestant)
        if picked is not None and self.examiner is not None:
            self.examiner.set_up(contestant, picked)
        try:
            output = block(contestant, sink, size, picked)
            if any(not 0 < sample < float("inf") for sample in sink):
                raise ValueError(f"a sample of {min(sink)} ms is no duration: a clock jumped, or was tampered with")
        except Interrupted:
            raise
        except Exception as error:
            raise Lost(contestant, error) from error
        if self.examiner is not None:
            self.examiner.left(contestant)
            if picked is not None:
                self.examiner.examine(contestant, picked, output)

    def entered(self, contestant: Contestant) -> None:
        """Note whose code runs next."""
        if self.examiner is not None:
            self.examiner.entered(contestant)

    def _pick(self, contestant: Contestant, timer: Timer, size: int) -> int:
        """The input whose output is examined: that of the block's last call, which no other call has to wait for."""
        if timer == "graph":
            return self.rng.randrange(len(self.inputs))
        return (contestant.turn + size - 1) % len(self.inputs)

    def orders(self, n: int, rounds: int) -> list[list[int]]:
        """At least so many rounds, and whole squares: each contestant follows each other equally often."""
        orders: list[list[int]] = []
        while n and len(orders) < rounds:
            square = williams(n)
            self.rng.shuffle(square)
            orders += square
        return orders

    def check_stop(self) -> None:
        if self.stop():
            raise Interrupted

    def release(self) -> None:
        """Let go of outputs and graphs."""
        for contestant in self.contestants:
            contestant.graph = None
            contestant.outputs = []


watch(__name__, "perf_counter_ns", "monotonic", "Ring")
watch(Ring, "run", "rounds", "warm_up", "scrub", "orders", "entered")
