"""Series by the host's clock: one call at a time.

wall  one call, synchronized end to end; on a CPU the only one
host  time until the call returns: what it costs to enqueue it
"""

from __future__ import annotations

from typing import Any

import torch

from norm_fusion.measure.clocks import perf_counter_ns, watch
from norm_fusion.measure.correctness import cloned
from norm_fusion.measure.ring import Contestant, Ring
from norm_fusion.records import Cache, Timer


def wall(ring: Ring, timer: Timer = "wall", cache: Cache = "cold") -> None:
    """Sample every contestant's calls, cold by rotation; or hot: on one input, written anew before each call."""
    synchronize = torch.cuda.synchronize if ring.cuda else _nothing
    after = _nothing if timer == "host" else synchronize
    source = ring.inputs[0].clone() if cache == "hot" else None
    inputs = ring.inputs if source is None else ring.inputs[:1]

    def block(contestant: Contestant, sink: list[float], size: int, picked: int | None) -> Any:
        ring.probe.enqueue()
        ring.scrub()
        synchronize()
        out = None
        for _ in range(size):
            if source is not None:
                inputs[0].copy_(source)
            start = perf_counter_ns()
            out = contestant.call(inputs)
            after()
            sink.append((perf_counter_ns() - start) / 1e6)
        # At once, as a caller would go on with it: what is still being computed elsewhere is not in it yet.
        found = out if picked is None else cloned(out)
        synchronize()
        return found

    if ring.settled is None:
        ring.warm_up(ring.contestants, block)
    elif cache == "cold":
        # Captured graphs are warm, and eager calls are not: the first one for an output's place allocates it.
        for contestant in ring.contestants:
            ring.run(block, contestant, [], len(ring.inputs))
    ring.rounds(timer, cache, ring.contestants, block)


def back_to_back(ring: Ring, contestant: Contestant, calls: int) -> tuple[int, float]:
    """So many synchronized calls and nothing else, for a clock outside this process; how many, and ms by our own."""
    start = perf_counter_ns()
    for _ in range(calls):
        contestant.call(ring.inputs)
        if ring.cuda:
            torch.cuda.synchronize()
    return calls, (perf_counter_ns() - start) / 1e6


def _nothing() -> None:
    pass


watch(__name__, "perf_counter_ns", "wall", "back_to_back")
