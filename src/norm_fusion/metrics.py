"""Pure arithmetic on samples: percentiles, noise ratio, rates, the speedup and its interval. Ground floor: no torch.

Samples come in blocks: `blocks[r]` holds a contestant's samples of round r, in time order, in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np

Blocks = Sequence[Sequence[float]]


class Noise(StrEnum):
    """What p95/p50 says of a series. `rerun`: too noisy for a precise claim."""

    GOOD = "good"
    WARN = "warn"
    RERUN = "rerun"


# p95/p50 up to which a series is good, and from which it asks for a rerun, by whose clock it was taken. A GPU's are
# protocol step 11. Calls timed from a CPU, be it for a GPU's sake, have longer tails wherever others share it; a claim
# rests on block medians there, which a tail does not move.
GATES: Mapping[str, tuple[float, float]] = {"cuda": (1.05, 1.15), "cpu": (1.25, 2.0)}
CLOCK: Mapping[str, str] = {"device": "cuda", "graph": "cuda", "host": "cpu", "wall": "cpu"}
GOOD_UP_TO, WARN_UP_TO = GATES["cuda"]
# A timer tick is a large share of a short kernel: below this p50, a spread of the slack is always good.
SHORT_MS, SHORT_SLACK_MS = 0.010, 0.00025


def percentile(blocks: Blocks, q: float) -> float:
    """Linear percentile (0 to 100) over all pooled samples, ms."""
    return float(np.percentile(np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks]), q))


def evened(processes: Sequence[Blocks]) -> list[list[float]]:
    """The samples of processes, one block each, sorted, as many of each as the most has: none outweighs another.

    Fewer samples are read off their own linear quantiles; where all have as many these are the samples themselves.
    """
    flat = [np.sort(np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])) for blocks in processes]
    at = np.linspace(0, 1, max(len(samples) for samples in flat))
    return [np.interp(at, np.linspace(0, 1, len(samples)), samples).tolist() for samples in flat]


def noise_gate(p50_ms: float, p95_ms: float, timer: str = "device") -> Noise:
    """The label of a series' spread."""
    good, warn = GATES[CLOCK[timer]]
    if p50_ms < SHORT_MS and p95_ms - p50_ms <= SHORT_SLACK_MS:
        return Noise.GOOD
    ratio = p95_ms / p50_ms
    return Noise.GOOD if ratio <= good else Noise.WARN if ratio <= warn else Noise.RERUN


def gbps(nbytes: int, ms: float) -> float:
    """Effective GB/s (10^9 bytes) of `nbytes` compulsory bytes in `ms`."""
    return nbytes / ms / 1e6


def tflops(flops: int, ms: float) -> float:
    """Effective TFLOP/s of `flops` operations in `ms`."""
    return flops / ms / 1e9


def speedup(baseline: Blocks, mine: Blocks) -> float:
    """How many times faster `mine` is: exp of the middle, over rounds, of the log ratio of block medians.

    Rounds are paired, so what drifts from round to round cancels (protocol step 12, one process). The middle is
    Hodges and Lehmann's (1963), the median of the means of all pairs: of quiet rounds the mean, and where others share
    the processors, and a round in ten takes twice as long, half as wide. A round that either side lacks, because the
    run was interrupted, is left out.
    """
    logs = [math.log(np.median(b) / np.median(m)) for b, m in zip(baseline, mine, strict=False) if len(b) and len(m)]
    one, other = np.triu_indices(len(logs))
    return math.exp(float(np.median((np.take(logs, one) + np.take(logs, other)) / 2)))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios: exp of the mean of their logs."""
    return math.exp(float(np.mean(np.log(values))))


def interval(ratios: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Two-sided Student-t interval of the mean ratio, one independent ratio a process (Student 1908; protocol step 12).

    On logs, so that the interval of 1/ratio is that of ratio turned over: exp(m -+ t(n-1) * s / sqrt(n)).

    Raises:
        ValueError: fewer than two ratios, whose spread says nothing.
    """
    if len(ratios) < 2:
        raise ValueError(f"an interval needs 2 or more ratios, here {'is 1' if len(ratios) else 'are none'}")
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    return _around(float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs)), len(logs) - 1, level)


def welch(over: Sequence[float], under: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Ratio of two unpaired sets of times, mean of logs each, and its interval (Welch 1947): (ratio, low, high).

    d = mean(log over) - mean(log under), v = s^2 / n of each side, d -+ t(f) * sqrt(v1 + v2), with Satterthwaite's
    f = (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)): two runs need not be equally noisy, nor equally long.

    Raises:
        ValueError: fewer than two times on a side.
    """
    if min(len(over), len(under)) < 2:
        raise ValueError(f"an interval needs 2 or more times on each side, here are {len(over)} and {len(under)}")
    sides = [np.log(np.asarray(side, dtype=np.float64)) for side in (over, under)]
    centre = float(sides[0].mean() - sides[1].mean())
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = sum(parts)
    spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    # No spread at all on either side: any number of degrees gives the same interval, the point.
    freedom = total**2 / spread if spread else 1.0
    return (math.exp(centre), *_around(centre, math.sqrt(total), freedom, level))


def half_width(low: float, high: float) -> float:
    """Half of an interval of ratios, as a share: 0.01 is 1% to either side of its centre (on logs)."""
    return math.expm1(math.log(high / low) / 2)


def _around(centre: float, error: float, freedom: float, level: float) -> tuple[float, float]:
    # Imported here: --help and a page must not wait for it; scipy.stats takes three times as long.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return math.exp(centre - reach), math.exp(centre + reach)
