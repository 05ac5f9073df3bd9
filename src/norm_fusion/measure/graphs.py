"""Series by the device's clock: CUDA graphs of rotated calls.

    graph   events around replays, over their number of calls: speedup and GB/s
    device  kernel time of each call, first start to last end, traced by CUPTI while the graph replays: p50, p95, noise

Events alone are unsafe under 20-30 us a call; a replay of many calls, and CUPTI's timestamps, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from norm_fusion.backends.passes import get_ready
from norm_fusion.measure.clocks import monotonic, watch
from norm_fusion.measure.ring import Contestant, Lost, Ring
from norm_fusion.records import Cache, Series, first_line

# A graph sample lasts at least this long, so that the events' own resolution (0.5 us) is 0.1% of it.
GRAPH_SAMPLE_MS = 0.5
# Calls of a hot graph: each behind a producer that has just written its one input.
HOT_CALLS = 8

Event = torch.cuda.Event
profiler = torch.profiler.profile
Kernel = tuple[str, int, int]  # name, start, end in ns since 1970: too many for a float to tell two apart


def capture(ring: Ring) -> None:
    """Capture every contestant's calls over all inputs; one that cannot be captured says so and has no series."""
    for contestant in ring.contestants:
        ring.check_stop()
        ring.entered(contestant)
        torch.cuda.synchronize()
        try:
            inputs = [ring.inputs[i % len(ring.inputs)] for i in range(ring.calls_per_replay)]
            contestant.graph, contestant.outputs = _captured(contestant, inputs, places=len(ring.inputs))
        except Exception as error:  # noqa: BLE001 - a contestant may do anything that a capture forbids
            contestant.graph = None
            contestant.notes.append(f"no graph and no device series: capture failed: {first_line(error)}")
            _recover(contestant, error)


def graph(ring: Ring) -> None:
    """Time of a replay over its calls."""
    calls = ring.calls_per_replay

    def block(contestant: Contestant, sink: list[float], size: int, picked: int | None) -> Any:
        assert contestant.graph is not None
        marks = [Event(enable_timing=True) for _ in range(size + 1)]  # type: ignore[no-untyped-call]
        ring.probe.enqueue()
        ring.scrub()
        # Untimed: behind it the queue is never empty, and the cache as full of written lines as between later calls.
        contestant.graph.replay()
        marks[0].record()
        for mark in marks[1:]:
            for _ in range(contestant.replays):
                contestant.graph.replay()
            mark.record()
        marks[-1].synchronize()
        for start, end in pairwise(marks):
            sink.append(start.elapsed_time(end) / (contestant.replays * calls))
        return None if picked is None else contestant.outputs[picked]

    captured = [contestant for contestant in ring.contestants if contestant.graph is not None]
    for contestant in captured:
        contestant.replays = 1
        sink: list[float] = []
        ring.run(block, contestant, sink, 3)
        contestant.replays = max(1, round(GRAPH_SAMPLE_MS / (min(sink) * calls)))
    ring.warm_up(captured, block)
    ring.rounds("graph", "cold", captured, block)


def back_to_back(ring: Ring, contestant: Contestant, calls: int) -> tuple[int, float]:
    """At least so many calls, replayed and nothing else, for a clock outside; how many, and ms by our events."""
    assert contestant.graph is not None
    replays = -(-calls // ring.calls_per_replay)
    start, end = (Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(replays):
        contestant.graph.replay()
    end.record()
    torch.cuda.synchronize()
    return replays * ring.calls_per_replay, start.elapsed_time(end)


def device(ring: Ring, cache: Cache = "cold") -> None:
    """Kernel intervals of each call, traced by CUPTI through torch.profiler while the graphs replay.

    Hot: each call follows a kernel that has just written its input, and is timed without it. Each contestant has an
    input of its own: compiled PyTorch loads x with `evict_last`, and lines of one that all shared stayed in the cache
    for everybody: in such company all others, a copy too, took up to 7% less time (an H200).
    """
    hot = cache == "hot"
    captured = [contestant for contestant in ring.contestants if contestant.graph is not None]
    made = {c.name: _hot(ring, c) for c in captured} if hot else {}
    graphs = {name: one.graph for name, one in made.items()} if hot else {c.name: c.graph for c in captured}
    calls, lead = (HOT_CALLS, 1) if hot else (ring.calls_per_replay, 0)
    orders = ring.orders(len(captured), -(-ring.effort.traced // calls))
    began = monotonic()
    with profiler(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.cuda.synchronize()
        for places in orders:
            ring.check_stop()
            for place in places:
                # Kernels of known name: the first is the clock's probe too, between the second and the third lie what
                # fills the cache and an untimed replay, behind the third the one whose calls are timed.
                torch.cuda._sleep(DEVICE_PROBE_CYCLES)  # type: ignore[no-untyped-call]
                ring.scrub()
                chosen = graphs[captured[place].name]
                assert chosen is not None
                chosen.replay()
                torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
                chosen.replay()
        torch.cuda.synchronize()
    ended = monotonic()
    for contestant in captured if hot else ():
        if not torch.equal(made[contestant.name].x, made[contestant.name].source):
            raise Lost(contestant, ValueError("it changed its input, hot"))
    # As CUPTI told them: `profile.events()` would make a tree of Python objects first, which takes 0.1 ms a kernel.
    probes, replays = _replays(profile.profiler.kineto_results.events())
    turns = [(captured[place], position) for places in orders for position, place in enumerate(places)]
    if len(replays) != len(turns):
        for contestant in captured:
            contestant.notes.append(
                f"no {cache} device series: CUPTI traced no kernels here"
                if not replays
                else f"no {cache} device series: CUPTI traced {len(replays)} of {len(turns)} replays"
            )
        return
    for contestant in captured:
        mine = [k for k, (who, _) in enumerate(turns) if who is contestant]
        blocks = [call_intervals(replays[k], calls, lead) for k in mine]
        if any(block is None for block in blocks):
            contestant.notes.append(f"no {cache} device series: its kernels do not repeat from call to call")
            continue
        contestant.series["device", cache] = Series(
            timer="device",
            cache=cache,
            blocks=[block for block in blocks if block is not None],
            positions=[turns[k][1] for k in mine],
            probes_ms=[probes[k] for k in mine],
            rotation=1 if hot else len(ring.inputs),
            began_s=began,
            ended_s=ended,
        )


# 10 us at 2 GHz: CUPTI's timestamps are exact to 32 ns.
DEVICE_PROBE_CYCLES = 20_000


@dataclass
class _Hot:
    """A graph of calls on one input, each behind a kernel that writes it from `source`."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    source: Tensor
    outputs: list[Any]  # what a graph reads and writes has to stay


def _captured(
    contestant: Contestant, inputs: Sequence[Tensor], places: int, source: Tensor | None = None
) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """A graph of calls on these in turn, each, where there is a source, behind a kernel that writes it; its outputs."""
    made = torch.cuda.CUDAGraph()
    outputs: list[Any] = [None] * places
    # Autograd runs a backward on the stream of its forward: that of this process, which cannot capture if the default.
    here = torch.cuda.current_stream()
    stream = None if here == torch.cuda.default_stream() else here
    with torch.cuda.graph(made, stream=stream):
        for i, x in enumerate(inputs):
            if source is not None:
                torch.mul(source, 1, out=x)
            outputs[i % places] = contestant.launch(x)
    made.replay()
    torch.cuda.synchronize()
    return made, outputs


def _hot(ring: Ring, contestant: Contestant) -> _Hot:
    ring.entered(contestant)
    try:
        x, source = ring.inputs[0].clone(), ring.inputs[0].clone()
        get_ready(contestant.launch, x)
        made, outputs = _captured(contestant, [x] * HOT_CALLS, HOT_CALLS, source)
        return _Hot(made, x, source, outputs)
    except Exception as error:
        raise Lost(contestant, error) from error


def _recover(contestant: Contestant, error: Exception) -> None:
    """After a failed capture the device must still work: an error that stays is the end of this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as broken:
        raise Lost(contestant, broken) from error


def _replays(events: Any) -> tuple[list[float], list[list[Kernel]]]:
    """The probes' durations in ms, and the kernels of each timed replay: what follows each second marking kernel."""
    kernels = sorted(
        (e.start_ns(), e.start_ns() + e.duration_ns(), e.name())
        for e in events
        if e.device_type() == DeviceType.CUDA and not e.is_user_annotation()
    )
    marks: list[float] = []
    spans: list[list[Kernel]] = []
    for start, end, name in kernels:
        if "spin_kernel" in name:
            marks.append((end - start) / 1e6)
            spans.append([])
        elif spans:
            spans[-1].append((name, start, end))
    return marks[::2], spans[1::2]


def call_intervals(kernels: list[Kernel], calls: int, lead: int = 0) -> list[float] | None:
    """ms from first kernel's start to last kernel's end, per call; None if the kernels are not `calls` equal runs.

    `lead`: how many kernels at the head of each run are the producer's, not the call's.
    """
    per_call, rest = divmod(len(kernels), calls)
    if rest or per_call <= lead:
        return None
    runs = [kernels[i : i + per_call] for i in range(0, len(kernels), per_call)]
    if any([name for name, _, _ in run] != [name for name, _, _ in runs[0]] for run in runs):
        return None
    return [(max(end for _, _, end in run) - run[lead][1]) / 1e6 for run in runs]


watch(__name__, "Event", "profiler", "monotonic", "graph", "device", "back_to_back", "call_intervals")
