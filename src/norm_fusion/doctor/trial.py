"""The probing process: tries what a run would need, a step at a time, each a line when it begins and when it ends.

    torch, device, launch, kernels, graph, trace

Steps take seconds in all. None measures anything.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from norm_fusion.doctor.probe import Step
from norm_fusion.records import first_line

SHAPE = (4, 64)
TRACED = 3
Told = dict[str, Any]


class Failed(Exception):
    """A probe that did not raise, and did not show what it should."""


class Channel:
    """Writes steps to the file that the parent reads: what libraries print cannot come between."""

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("w")  # noqa: SIM115 - open as long as the process lives

    def step(self, name: str, probe: Callable[[], Told]) -> Step:
        self._write({"step": name})
        start = time.perf_counter()
        try:
            done = Step(True, facts=probe())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever fails here is what is looked for
            done = Step(False, str(error) if isinstance(error, Failed) else first_line(error))
        seconds = round(time.perf_counter() - start, 3)
        self._write({"step": name, "ok": done.ok, "seen": done.seen, "facts": {**done.facts, "seconds": seconds}})
        return done

    def _write(self, line: Told) -> None:
        self.file.write(json.dumps(line, default=str) + "\n")
        self.file.flush()


def main() -> None:
    channel, asked = Channel(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("ignore")
    if not channel.step("torch", _torch).ok:
        return
    device = channel.step("device", lambda: _device(asked))
    where = device.facts.get("resolved")
    if not device.ok or where is None:
        return
    channel.step("launch", lambda: _launch(where))
    channel.step("kernels", lambda: _kernels(where))
    if where != "cpu":
        # Last, because these two have hung and crashed on machines where all else works.
        channel.step("graph", lambda: _graph(where))
        channel.step("trace", lambda: _trace(where))


def _torch() -> Told:
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "threads": torch.get_num_threads(),
    }


def _device(asked: str) -> Told:
    """Which device `--device` means, and every GPU that torch sees."""
    import torch

    if asked == "cpu":
        return {"resolved": "cpu", "gpus": [], "problem": None}
    problem = None
    try:
        # Says why, where is_available() says no.
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - AssertionError, RuntimeError: it differs by version
        problem = first_line(error)
    if problem is None and not torch.cuda.is_available():
        problem = "torch.cuda.is_available() is False"
    if problem is not None:
        return {"resolved": "cpu" if asked == "auto" else None, "gpus": [], "problem": problem}
    gpus = [_gpu(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
    index = int(asked.partition(":")[2] or 0)
    if index >= len(gpus):
        return {"resolved": None, "gpus": gpus, "problem": f"there is no {asked}: PyTorch sees {len(gpus)} GPU(s)"}
    torch.cuda.set_device(index)
    return {"resolved": f"cuda:{index}", "gpus": gpus, "problem": None, "memory": torch.cuda.mem_get_info(index)}


def _gpu(properties: Any) -> Told:
    pci = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "sms": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2": getattr(properties, "L2_cache_size", None),
        "uuid": str(getattr(properties, "uuid", "")) or None,
        "bus": None if None in pci else pci,
    }


def _launch(where: str) -> Told:
    import torch

    y = torch.ones(SHAPE, device=where) + 1
    if y.sum().item() != 2 * y.numel():
        raise Failed("1 + 1 is not 2 on this device")
    return {}


def _kernels(where: str) -> Told:
    """Both fused kernels on a small input against the plain composition: compiled on a GPU, interpreted on a CPU."""
    if where == "cpu":
        os.environ["NORM_FUSION_FORCE_TRITON"] = os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import torch.nn.functional as F
    import triton

    # The package's own surface: the contestants' module imports Inductor, which takes seconds.
    import norm_fusion

    shape = SHAPE[1:]
    with torch.inference_mode():
        x = torch.linspace(-3, 3, SHAPE[0] * SHAPE[1], device=where).reshape(SHAPE).sin()
        weight = torch.linspace(0.5, 1.5, SHAPE[1], device=where)
        bias = weight.flip(0)
        for name, y, right in (
            ("rms_norm", norm_fusion.rms_norm(x, shape, weight, 1e-6), F.rms_norm(x, shape, weight, 1e-6)),
            ("layer_norm", norm_fusion.layer_norm(x, shape, weight, bias), F.layer_norm(x, shape, weight, bias)),
        ):
            if not torch.allclose(y, right, rtol=1e-4, atol=1e-5):
                raise Failed(f"{name} differs from PyTorch's by {(y - right).abs().max().item():.1e}")
    return {"resolved": f"triton {triton.__version__}"}


def _graph(where: str) -> Told:
    import torch

    graph, x = _captured(where)
    before = x.sum().item()
    graph.replay()
    torch.cuda.synchronize()
    if x.sum().item() != before + TRACED * x.numel():
        raise Failed("a replayed graph did not do its work")
    return {}


def _captured(where: str) -> tuple[Any, Any]:
    import torch

    x = torch.zeros(SHAPE, device=where)
    x.add_(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(TRACED):
            x.add_(1)
    return graph, x


def _trace(where: str) -> Told:
    """Kernels of a replayed graph in a CUPTI trace, which is how the device series is taken."""
    import torch
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    graph, _ = _captured(where)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        graph.replay()
        torch.cuda.synchronize()
    lasted = [
        e.time_range.end - e.time_range.start
        for e in trace.events() or []
        if e.device_type == DeviceType.CUDA and not e.is_user_annotation
    ]
    if len(lasted) < TRACED:
        raise Failed(f"{len(lasted)} of {TRACED} kernels are in CUPTI's trace of a CUDA graph")
    if min(lasted) <= 0:
        raise Failed("CUPTI's trace has kernels that take no time")
    return {"kernels": len(lasted)}


if __name__ == "__main__":
    main()
