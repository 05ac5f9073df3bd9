"""Pure arithmetic on samples: percentiles, noise ratio, rates and the speedup. Ground floor: no torch.

Samples come in blocks: `blocks[r]` holds a contestant's samples of round r, in time order, in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

Blocks = Sequence[Sequence[float]]


class Noise(StrEnum):
    """What p95/p50 says of a series. `rerun`: too noisy for a precise claim."""

    GOOD = "good"
    WARN = "warn"
    RERUN = "rerun"


# p95/p50 up to which a series is good, and from which it asks for a rerun (protocol step 11).
GOOD_UP_TO, WARN_UP_TO = 1.05, 1.15
# A timer tick is a large share of a short kernel: below this p50, a spread of the slack is always good.
SHORT_MS, SHORT_SLACK_MS = 0.010, 0.00025


def percentile(blocks: Blocks, q: float) -> float:
    """Linear percentile (0 to 100) over all pooled samples, ms."""
    return float(np.percentile(np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks]), q))


def noise_gate(p50_ms: float, p95_ms: float) -> Noise:
    """The label of a series' spread."""
    if p50_ms < SHORT_MS and p95_ms - p50_ms <= SHORT_SLACK_MS:
        return Noise.GOOD
    ratio = p95_ms / p50_ms
    return Noise.GOOD if ratio <= GOOD_UP_TO else Noise.WARN if ratio <= WARN_UP_TO else Noise.RERUN


def gbps(nbytes: int, ms: float) -> float:
    """Effective GB/s (10^9 bytes) of `nbytes` compulsory bytes in `ms`."""
    return nbytes / ms / 1e6


def tflops(flops: int, ms: float) -> float:
    """Effective TFLOP/s of `flops` operations in `ms`."""
    return flops / ms / 1e9


def speedup(baseline: Blocks, mine: Blocks) -> float:
    """How many times faster `mine` is: exp of the mean over rounds of the log ratio of block medians.

    Rounds are paired, so what drifts from round to round cancels (protocol step 12, one process). A round that
    either side lacks, because the run was interrupted, is left out.
    """
    logs = [math.log(np.median(b) / np.median(m)) for b, m in zip(baseline, mine, strict=False) if len(b) and len(m)]
    return math.exp(float(np.mean(logs)))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(float(np.mean(np.log(values))))
