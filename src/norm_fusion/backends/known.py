"""Contestants whose answer is known beforehand: what the harness measures to find out whether it can be trusted.

known-norm, known-norm-again   the same kernel under two names: their ratio is 1
known-base, known-slower-N     the kernel and a spin behind it, and the same with a spin longer by N% of the whole,
                               which is measured at the first call
known-spin-US-RATIO            a spin of US x RATIO microseconds and nothing else
known-empty                    a kernel that does nothing: what a launch costs
known-noisy, known-drifting    on a CPU: the kernel, disturbed at random; the kernel, slower from call to call

Spins are held by the device's clock (globaltimer, ns), on a CPU by the process's: not by the clocks under test.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.backends.builtin import Operands, Prepared
from norm_fusion.functional import layer_norm, rms_norm
from norm_fusion.spec import Op

Launch = Callable[[Tensor], Tensor]

# The spin behind a planted effect's kernel is there for both; its length hardly matters.
BASE_SPIN_US = 3.0
CALIBRATIONS = 9
CPU_COLD_BYTES = 2**27


def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
    """Set a known contestant up."""
    norm = _norm(operands, device)
    kind, _, rest = profile.removeprefix("known-").partition("-")
    if kind == "spin":
        us, ratio = (float(word) for word in rest.split("-"))
        return Prepared(_spinning(us * ratio, device), f"spin of {us * ratio:g} us", judged=False)
    if kind == "empty":
        return Prepared(_spinning(0.0, device), "spin of 0 us", judged=False)
    if kind == "norm":
        return Prepared(norm, "norm")
    if kind == "noisy":
        return Prepared(_noisy(norm), "norm, one call in three disturbed")
    if kind == "drifting":
        return Prepared(_drifting(norm), "norm, slower from call to call")
    share = float(rest) / 100 if kind == "slower" else 0.0
    return Prepared(_slower(norm, share, device), f"norm and spin, {share:+.0%}")


def _norm(p: Operands, device: torch.device) -> Launch:
    """The fused kernel on a GPU, PyTorch's own on a CPU."""
    rms, layer = (rms_norm, layer_norm) if device.type == "cuda" else (F.rms_norm, F.layer_norm)
    if p.op is Op.RMSNORM:
        return lambda x: rms(x, p.shape, p.weight, p.eps)
    return lambda x: layer(x, p.shape, p.weight, p.bias, p.eps)


def _spinning(us: float, device: torch.device) -> Launch:
    spin = _gpu_spin(us) if device.type == "cuda" else _cpu_spin(us)

    def launch(x: Tensor) -> Tensor:
        spin(x)
        return x

    return launch


def _slower(norm: Launch, share: float, device: torch.device) -> Launch:
    """The norm and a spin; with a share, the spin is longer by that share of the whole, measured at the first call."""
    spin_of, us_a_call = (_gpu_spin, _gpu_us) if device.type == "cuda" else (_cpu_spin, _cpu_us)
    spin = spin_of(BASE_SPIN_US)
    planted = share == 0.0

    def launch(x: Tensor) -> Tensor:
        nonlocal spin, planted
        if not planted:
            planted = True
            spin = spin_of(BASE_SPIN_US + share * us_a_call(_slower(norm, 0.0, device), x))
        y = norm(x)
        spin(x)
        return y

    return launch


def _gpu_spin(us: float) -> Callable[[Tensor], None]:
    from norm_fusion.kernels.spin import spin

    def launch(x: Tensor) -> None:
        spin[(1,)](x, round(us * 1e3), num_warps=1)

    return launch


def _cpu_spin(us: float) -> Callable[[Tensor], None]:
    clock, ns = time.perf_counter_ns, round(us * 1e3)

    def launch(x: Tensor) -> None:
        end = clock() + ns
        while clock() < end:
            pass

    return launch


def _noisy(norm: Launch) -> Launch:
    rng = random.Random(0)

    def launch(x: Tensor) -> Tensor:
        for _ in range(rng.choice((1, 1, 4))):
            y = norm(x)
        return y

    return launch


def _drifting(norm: Launch) -> Launch:
    calls = 0

    def launch(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        for _ in range(1 + calls // 40):
            y = norm(x)
        return y

    return launch


def _cpu_us(launch: Launch, x: Tensor) -> float:
    """How long a call takes on cold inputs: the median of calls in turn over more than a cache holds."""
    inputs = [x.clone() for _ in range(max(8, min(64, CPU_COLD_BYTES // (2 * x.nbytes))))]
    took = []
    for each in inputs * 2:
        start = time.perf_counter_ns()
        launch(each)
        took.append((time.perf_counter_ns() - start) / 1e3)
    return sorted(took)[len(took) // 2]


def _gpu_us(launch: Launch, x: Tensor) -> float:
    """How long a call takes on cold inputs, from events around a graph of calls: exact to a percent or so."""
    cache_bytes = torch.cuda.get_device_properties(x.device).L2_cache_size
    inputs = [x.clone() for _ in range(max(8, min(64, 4 * cache_bytes // (2 * x.nbytes))))]
    launch(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [launch(each) for each in inputs]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    took = []
    for _ in range(CALIBRATIONS):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end) * 1e3 / len(inputs))
    del kept
    return float(sorted(took)[len(took) // 2])
