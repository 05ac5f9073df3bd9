"""Sampling: contestants in rounds of balanced order, over rotated inputs and outputs, one series a timer.

    device  kernel time of each call, first start to last end, traced by CUPTI while the graph below replays:
            p50, p95, noise
    graph   events around replays of a CUDA graph of rotated calls, over their number: speedup and GB/s
    host    time to enqueue one call
    wall    one call, synchronized end to end; on a CPU the only one

Series are never mixed in a ratio. No sample is ever deleted.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from norm_fusion.records import Series, Timer
from norm_fusion.spec import Effort

# Cold by rotation: the sets in turn exceed the cache this many times. At four, eight and sixteen kernels without cache
# hints take the same time on an H200; at three some still hit.
CACHE_MULTIPLE = 4
MAX_SETS = 512
# A graph sample lasts at least this long, so that the events' own resolution (0.5 us) is 0.1% of it.
GRAPH_SAMPLE_MS = 0.5
# CUPTI traces every kernel: enough calls for p95, few enough to trace in a second.
DEVICE_SAMPLES = 400
SETTLED_WITHIN = 0.01


# Runs a contestant a number of times, appends the samples, returns the last call's input index and output.
Block = Callable[["Contestant", list[float], int], tuple[int, Any]]


class Interrupted(Exception):
    """The run was asked to stop; what was sampled so far is kept."""


@dataclass
class Contestant:
    """One implementation in the ring. `outputs` stays alive: as many outputs as inputs, so none is written in cache."""

    name: str
    launch: Callable[[Tensor], Any]
    outputs: list[Any] = field(default_factory=list)
    turn: int = 0
    series: dict[Timer, Series] = field(default_factory=dict)
    graph: torch.cuda.CUDAGraph | None = None
    replays: int = 1
    notes: list[str] = field(default_factory=list)

    def call(self, inputs: list[Tensor]) -> tuple[int, Any]:
        """The next call in the rotation: which input it took, and its output, kept until that turn comes again."""
        i = self.turn % len(inputs)
        self.turn += 1
        self.outputs[i] = None
        self.outputs[i] = self.launch(inputs[i])
        return i, self.outputs[i]


def sets_in_rotation(set_bytes: int, cache_bytes: int) -> int:
    """Input and output pairs whose sum is four times the cache; one where a single pair is that large already."""
    return min(MAX_SETS, -(-CACHE_MULTIPLE * cache_bytes // set_bytes))


def williams(n: int) -> list[list[int]]:
    """Orders of n in which each follows each other equally often (Williams 1949): n rows if n is even, else 2n."""
    first = [0]
    for step in range(1, n):
        first.append((first[-1] + (step if step % 2 else -step)) % n)
    square = [[(value + shift) % n for value in first] for shift in range(n)]
    return square if n % 2 == 0 else square + [row[::-1] for row in square]


@dataclass
class Bench:
    """A case's contestants, its inputs, and how long to measure. `verify` judges one output of a timed call.

    `cache_bytes`: the GPU's last level of cache, scrubbed before each block of samples; 0 where nothing is to be.
    """

    contestants: list[Contestant]
    inputs: list[Tensor]
    effort: Effort
    rng: random.Random
    stop: Callable[[], bool]
    verify: Callable[[Contestant, int, Any], None]
    cache_bytes: int = 0
    settled: bool | None = None
    warmup: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for contestant in self.contestants:
            contestant.outputs = [None] * len(self.inputs)
        x = self.inputs[0]
        self.neutral = torch.zeros(2 * self.cache_bytes // 4, device=x.device) if x.is_cuda else None

    def wall(self, timer: Timer = "wall") -> None:
        """One call at a time, synchronized; on a GPU with timer="host" the time until the call returns instead."""
        cuda = self.inputs[0].is_cuda
        synchronize = torch.cuda.synchronize if cuda else _nothing
        after = _nothing if timer == "host" else synchronize
        clock = time.perf_counter_ns

        def block(contestant: Contestant, sink: list[float], size: int) -> tuple[int, Any]:
            self._scrub()
            synchronize()
            i, out = 0, None
            for _ in range(size):
                start = clock()
                i, out = contestant.call(self.inputs)
                after()
                sink.append((clock() - start) / 1e6)
            synchronize()
            return i, out

        if self.settled is None:
            self._warm_up(self.contestants, block)
        self._rounds(timer, self.contestants, self.effort.block, block)

    def graphs(self) -> None:
        """Capture every contestant's calls over all inputs; one that cannot be captured says so and has no series."""
        for contestant in self.contestants:
            self._check_stop()
            try:
                self._capture(contestant)
            except Exception as error:  # noqa: BLE001 - a contestant may do anything that a capture forbids
                contestant.graph = None
                contestant.notes.append(f"no graph and no device series: capture failed: {first_line(error)}")
                torch.cuda.synchronize()

    def graph(self) -> None:
        """Time of a replay over its calls."""
        calls = self.calls_per_replay

        def block(contestant: Contestant, sink: list[float], size: int) -> tuple[int, Any]:
            assert contestant.graph is not None
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(size + 1)]  # type: ignore[no-untyped-call]
            self._scrub()
            marks[0].record()
            for mark in marks[1:]:
                for _ in range(contestant.replays):
                    contestant.graph.replay()
                mark.record()
            marks[-1].synchronize()
            for start, end in pairwise(marks):
                sink.append(start.elapsed_time(end) / (contestant.replays * calls))
            i = self.rng.randrange(len(self.inputs))
            return i, contestant.outputs[i]

        ring = self._captured()
        for contestant in ring:
            sink: list[float] = []
            block(contestant, sink, 3)
            contestant.replays = max(1, round(GRAPH_SAMPLE_MS / (min(sink) * calls)))
        self._warm_up(ring, block)
        self._rounds("graph", ring, self.effort.block, block)

    def device(self) -> None:
        """Kernel intervals of each call, traced by CUPTI through torch.profiler while the graphs replay."""
        ring = self._captured()
        rounds = max(10, -(-DEVICE_SAMPLES // self.calls_per_replay))
        order = self._orders(len(ring), rounds)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            torch.cuda.synchronize()
            for places in order:
                self._check_stop()
                for place in places:
                    # A kernel of known name marks where the scrub begins, and again where the replay does.
                    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
                    self._scrub()
                    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
                    graph = ring[place].graph
                    assert graph is not None
                    graph.replay()
            torch.cuda.synchronize()
        replays = _replays(profile.events())
        turns = [(ring[place], position) for places in order for position, place in enumerate(places)]
        if len(replays) != len(turns):
            for contestant in ring:
                contestant.notes.append(
                    "no device series: CUPTI traced no kernels here"
                    if not replays
                    else f"no device series: CUPTI traced {len(replays)} of {len(turns)} replays"
                )
            return
        for contestant in ring:
            mine = [(replays[k], position) for k, (who, position) in enumerate(turns) if who is contestant]
            blocks = [_call_intervals(kernels, self.calls_per_replay) for kernels, _ in mine]
            if any(block is None for block in blocks):
                contestant.notes.append("no device series: its kernels do not repeat from call to call")
                continue
            contestant.series["device"] = Series(
                timer="device",
                cache="cold",
                blocks=[block for block in blocks if block is not None],
                positions=[position for _, position in mine],
                rotation=len(self.inputs),
            )

    @property
    def calls_per_replay(self) -> int:
        """Calls in a graph: whole rotations, at least eight calls."""
        return len(self.inputs) * -(-8 // len(self.inputs))

    def release(self) -> None:
        """Let go of outputs and graphs."""
        for contestant in self.contestants:
            contestant.graph = None
            contestant.outputs = []

    def _scrub(self) -> None:
        """Read neutral memory twice the size of the cache, so that none starts on what its predecessor left there.

        Rotation alone does not see to that. Lines loaded with `evict_first` replace each other and leave the rest of
        the cache as it was: on an H200 such a kernel fetched 20 to 24 of an input's 34 MB from memory, every time that
        its turn came, because a predecessor's lines of that input stayed. It measured 7% faster than it was.
        """
        if self.neutral is not None:
            self.neutral.sum()

    def _captured(self) -> list[Contestant]:
        return [contestant for contestant in self.contestants if contestant.graph is not None]

    def _capture(self, contestant: Contestant) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        outputs: list[Any] = []
        with torch.cuda.graph(graph):
            for i in range(self.calls_per_replay):
                out = contestant.launch(self.inputs[i % len(self.inputs)])
                if i < len(self.inputs):
                    outputs.append(out)
                else:
                    outputs[i % len(self.inputs)] = out
        contestant.graph, contestant.outputs = graph, outputs
        graph.replay()
        torch.cuda.synchronize()

    def _warm_up(self, ring: list[Contestant], block: Block) -> None:
        """Alternate calls for at least 200 ms, until three passes over the ring agree within 1% or time is up."""
        self.warmup = {contestant.name: [] for contestant in ring}
        passes: list[float] = []
        start = time.perf_counter()
        while True:
            self._check_stop()
            before = time.perf_counter()
            for contestant in ring:
                block(contestant, self.warmup[contestant.name], 1)
            passes.append(time.perf_counter() - before)
            last = passes[-3:]
            self.settled = len(last) == 3 and max(last) <= min(last) * (1 + SETTLED_WITHIN)
            elapsed = time.perf_counter() - start
            if elapsed >= self.effort.warmup_s and (self.settled or elapsed >= self.effort.settle_s):
                return

    def _rounds(self, timer: Timer, ring: list[Contestant], block_size: int, block: Block) -> None:
        """Sample every contestant in every round, and verify one call of each at a random round."""
        for contestant in ring:
            contestant.series[timer] = Series(
                timer=timer,
                cache="cold",
                blocks=[],
                positions=[],
                calls_per_sample=contestant.replays * self.calls_per_replay if timer == "graph" else 1,
                warmup=self.warmup.pop(contestant.name, []),
                settled=self.settled,
                rotation=len(self.inputs),
            )
        orders = self._orders(len(ring), self.effort.rounds)
        verified = [self.rng.randrange(len(orders)) for _ in ring]
        gc.collect()
        gc.disable()
        try:
            for r, places in enumerate(orders):
                self._check_stop()
                for position, place in enumerate(places):
                    contestant = ring[place]
                    sink: list[float] = []
                    i, out = block(contestant, sink, block_size)
                    contestant.series[timer].blocks.append(sink)
                    contestant.series[timer].positions.append(position)
                    if r == verified[place]:
                        self.verify(contestant, i, out)
        finally:
            gc.enable()

    def _orders(self, n: int, rounds: int) -> list[list[int]]:
        """At least so many rounds, and whole squares: each contestant follows each other equally often."""
        orders: list[list[int]] = []
        while n and len(orders) < rounds:
            square = williams(n)
            self.rng.shuffle(square)
            orders += square
        return orders

    def _check_stop(self) -> None:
        if self.stop():
            raise Interrupted


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line that it prints, at most 300 characters."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def missing_program(error: BaseException | None) -> str | None:
    """The program whose absence is behind an exception: a compiler, say, or what a compiler's driver calls."""
    while error is not None:
        if isinstance(error, FileNotFoundError) and error.filename and os.sep not in str(error.filename):
            return str(error.filename)
        error = error.__cause__ or error.__context__
    return None


def _nothing() -> None:
    pass


def _replays(events: Any) -> list[list[tuple[str, float, float]]]:
    """Kernels as (name, start, end) in us, one list per replay: what follows each second marking kernel."""
    kernels = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in events
        if e.device_type == DeviceType.CUDA and not e.is_user_annotation
    )
    spans: list[list[tuple[str, float, float]]] = []
    for start, end, name in kernels:
        if "spin_kernel" in name:
            spans.append([])
        elif spans:
            spans[-1].append((name, start, end))
    return spans[1::2]


def _call_intervals(kernels: list[tuple[str, float, float]], calls: int) -> list[float] | None:
    """ms from first kernel's start to last kernel's end, per call; None if the kernels are not `calls` equal runs."""
    per_call, rest = divmod(len(kernels), calls)
    if rest or not per_call:
        return None
    runs = [kernels[i : i + per_call] for i in range(0, len(kernels), per_call)]
    if any([name for name, _, _ in run] != [name for name, _, _ in runs[0]] for run in runs):
        return None
    return [(max(end for _, _, end in run) - run[0][1]) / 1e3 for run in runs]
