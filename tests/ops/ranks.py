"""Two processes on this machine: on its CPU over gloo, on two GPUs over NCCL, or on its one GPU (`staged`).

The two are started once for a file of tests and run all of its checks, one after the other; each test then reads what
became of one of them. A check does everything on both ranks, and yields what it found beside what it wanted. On a CPU
the kernels run in Triton's interpreter. All is run again without them, where outputs are zeros, and then no comparison
may pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import staged  # noqa: F401, registers itself
import torch
import torch.distributed as dist
from control import zeros
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

RANKS = 2
# Seconds. At most 16 on two idle cores; three times that beside other work, where Python compiles all of torch anew.
DEADLINE = 400
# Errors are of the largest value. fp32 rounds at 6e-8, and a sum here has a few dozen terms; in training they add up.
FP32, FP32_TRAINED = 2e-6, 2e-5
OF_ZEROS = "; without kernels"
# In 2.11 a gradient that arrives at DTensor.to_local is placed as it should not be where shards of another dimension
# than the first are uneven, PyTorch's own sequence parallel layers raise there, and no gradient's gradient arrives.
RECENT = torch.__version__ >= (2, 13)


class Pair(NamedTuple):
    """What was found beside what should be."""

    name: str
    found: Tensor
    wanted: Tensor
    tolerance: float = FP32

    @property
    def error(self) -> float:
        assert self.found.shape == self.wanted.shape, f"{self.name}: {self.found.shape}, wanted {self.wanted.shape}"
        return float((self.found.detach() - self.wanted.detach()).abs().max() / self.wanted.detach().abs().max())

    @property
    def agrees(self) -> bool:
        return self.error <= self.tolerance


Check = Callable[[], Iterator[Pair]]


class Checks(dict[str, Check]):
    """By name. `uncontrolled`: names of those that are not run without kernels."""

    uncontrolled: tuple[str, ...] = ()

    def add(self, check: Check) -> Check:
        self[check.__name__] = check
        return check

    @property
    def controlled(self) -> list[str]:
        return [name for name in self if name not in self.uncontrolled]


def values(*shape: int, seed: int = 0) -> Tensor:
    """The same on every device."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), device="cpu")
    return drawn.to(torch.get_default_device())


def uneven(size: int) -> int:
    """The size of a dimension, not the first, that is sharded."""
    return size if RECENT else size + size % RANKS


def line() -> DeviceMesh:
    return grid(RANKS)


def grid(*shape: int) -> DeviceMesh:
    return init_device_mesh(torch.get_default_device().type, shape)


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def updates(model: nn.Module, own: nn.Module, before: Sequence[Tensor], tolerance: float) -> Iterator[Pair]:
    """What training has added to each parameter."""
    for (name, found), wanted, old in zip(model.named_parameters(), own.parameters(), before, strict=True):
        yield Pair(f"update of {name}", full(found.detach()) - old, full(wanted.detach()) - old, tolerance)


def problem(check: Check) -> str | None:
    wrong = [
        f"{pair.name} is off by {pair.error:.2g} of the largest, {pair.tolerance:.2g} is allowed"
        for pair in check()
        if not pair.agrees
    ]
    return "\n".join(wrong) or None


def problem_of_zeros(check: Check) -> str | None:
    with zeros():
        agreed = [pair.name for pair in check() if pair.agrees]
    return f"agreed although no kernel ran: {', '.join(agreed)}" if agreed else None


def run_rank(checks: Checks, which: str, where: str, device: str) -> None:
    """The main of a file of checks, of its three arguments."""
    rank, folder = int(which), Path(where)
    torch.set_num_threads(1)
    backend = "gloo"
    if device == "cuda":
        backend = "nccl" if torch.cuda.device_count() >= RANKS else "staged"
        index = rank if backend == "nccl" else 0
        torch.cuda.set_device(index)
        torch.set_default_device(f"cuda:{index}")
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    jobs = [(name, partial(problem, check)) for name, check in checks.items()]
    jobs += [(name + OF_ZEROS, partial(problem_of_zeros, checks[name])) for name in checks.controlled]
    with (folder / f"{rank}.jsonl").open("w") as file:
        for name, job in jobs:
            began = time.monotonic()
            try:
                found = job()
            except (Exception, pytest.fail.Exception):  # noqa: BLE001 -- the test of this name shows it
                found = traceback.format_exc()
            print(f"{time.monotonic() - began:6.2f} s  {name}", flush=True)
            file.write(json.dumps([name, found]) + "\n")
            file.flush()
            # Where one rank has failed, the other may wait for it for ever: then both end here.
            store.set(f"{name} {rank}", "done")
            store.wait([f"{name} {1 - rank}"], timedelta(seconds=60))
    dist.destroy_process_group()


def run_both(script: str, folder: Path, device: str) -> Callable[[str], str]:
    """Start a file of tests as two processes; what the ranks have to say of a check, nothing where it passed.

    They meet in a file of their own, and gloo takes the ports that the system gives it: no two runs are in each other's
    way.
    """
    here = {"OMP_NUM_THREADS": "1"}
    if device == "cpu":
        here |= {"TRITON_INTERPRET": "1", "NORM_FUSION_FORCE_TRITON": "1"}
    here["PYTHONPATH"] = os.pathsep.join(sys.path)  # with the helpers that lie beside tests
    if sys.platform == "linux":
        here["GLOO_SOCKET_IFNAME"] = "lo"  # not what the name of this machine may resolve to
    ranks, ended = [], []
    for rank in range(RANKS):
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, script, str(rank), str(folder), device]
            ranks.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | here))
    deadline = time.monotonic() + DEADLINE
    for rank in ranks:
        try:
            ended.append(f"ended with {rank.wait(max(0, deadline - time.monotonic()))}")
        except subprocess.TimeoutExpired:
            rank.kill()
            ended.append(f"was stopped after {DEADLINE} s, with {rank.wait()}")

    def of(name: str) -> str:
        said = []
        for rank in range(RANKS):
            file, log = folder / f"{rank}.jsonl", (folder / f"{rank}.log").read_text()
            found = dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {}
            if name not in found:
                said.append(f"rank {rank} {ended[rank]} before it came here. The end of its log:\n{log[-3000:]}")
            elif found[name]:
                said.append(f"rank {rank}:\n{found[name]}")
        return "\n".join(said)

    return of
