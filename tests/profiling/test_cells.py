"""The profiled process, on a CPU: its calls, what lies inside a range, what an error costs, and what a trace shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from norm_fusion.measure.correctness import check
from norm_fusion.measure.inputs import draw_input, draw_operands
from norm_fusion.profiling import cells, traced
from norm_fusion.profiling.traced import CALLS, NotTraced, counted
from norm_fusion.spec import Case, Matmul, Op, Pass

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("name", ["torch-native", "fused"])
def test_a_call_is_the_contestants_on_the_inputs_that_are_measured(op: Op, name: str) -> None:
    case = Case(op, 4, 64, "float32")
    profile = name if name != "fused" else f"triton-fused-{'layernorm' if op.centred else 'rmsnorm'}"
    with cells._gradients(case):
        ((_, call),) = cells.calls_of(case, profile, CPU, seed=3).items()
        found = call()
    right = check(found, draw_input(case, CPU, 4), draw_operands(case, CPU, 3), case)
    assert right.wrong is None and right.rows == case.rows
    other = check(found, draw_input(case, CPU, 3), draw_operands(case, CPU, 3), case)
    assert other.wrong is not None


def test_a_backward_is_all_gradients_and_in_one_thread() -> None:
    case = Case(Op.ADD_LAYERNORM, 4, 64, "float32", Pass.BACKWARD)
    with cells._gradients(case):
        assert not torch._C._is_multithreading_enabled()
        ((_, call),) = cells.calls_of(case, "torch-native", CPU, seed=0).items()
        assert [tuple(gradient.shape) for gradient in call()] == list(case.outputs)
    assert torch._C._is_multithreading_enabled()


def test_the_roof_copies_the_bytes_that_a_case_moves() -> None:
    case = Case(Op.RMSNORM, 4, 64, "float16", Pass.BACKWARD)
    with cells._gradients(case):
        for call in cells.calls_of(case, "copy", CPU, seed=0).values():
            made = call()
            assert made.numel() * made.element_size() * 2 == case.moved_bytes
            assert torch.equal(made, draw_input(case, CPU, 1).view(-1)[: made.numel()])


def test_a_product_is_one_call() -> None:
    case = Matmul(3, 5, 7, "float32")
    ((name, call),) = cells.calls_of(case, "torch-matmul", CPU, seed=0).items()
    assert (name, call().shape) == ("torch.matmul", (3, 5))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens around ranges, where there is no GPU to synchronize with."""
    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: happened.append("synchronize"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda text: happened.append(f"push {text}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: happened.append("pop"))
    return happened


@pytest.fixture
def contestant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's own function that tells when it runs, and one that raises."""
    (tmp_path / "their_norm.py").write_text(
        "import torch\nhappened = []\n"
        "def fine(x, shape, weight, eps):\n    happened.append('call')\n    return x * weight\n"
        "def bad(x, shape, weight, eps):\n    if len(happened) == 2:\n        raise ValueError('no more')\n"
        "    happened.append('call')\n    return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_norm"
    sys.modules.pop("their_norm", None)


def work(*named: tuple[str, str], trace: bool = False) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    job = {"device": "cpu", "seed": 0, "trace": trace, "cells": [[i, *cell] for i, cell in enumerate(named)]}
    code = cells._work(job, lambda event, **data: said.append(json.loads(json.dumps({"event": event, **data}))))
    assert code == 0
    return said


NAME = "rmsnorm-4x16-float32"


def test_one_call_lies_in_a_range_and_those_that_warm_up_do_not(quiet: list[str], contestant: str) -> None:
    import importlib

    module = importlib.import_module(contestant)
    module.happened = quiet
    work((NAME, f"{contestant}:fine"))
    first = quiet.index(f"push cell:{NAME}|{contestant}:fine")
    assert quiet[:first] == ["call"] * cells.WARM_UP + ["synchronize"]
    assert quiet[first + 1 :] == ["call", "synchronize", "pop"]


def test_each_of_the_copies_has_a_range_of_its_own(quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"one": lambda: None, "two": lambda: None}
    monkeypatch.setattr(cells, "calls_of", lambda *given: calls)
    (_, _, done, _) = work((NAME, "copy"))
    assert done["resolved"] == ["one", "two"]
    assert [what for what in quiet if what.startswith("push")] == [f"push cell:{NAME}|copy", f"push cell:{NAME}|copy|1"]


def test_one_that_raises_costs_its_own_cell_and_leaves_no_range_open(quiet: list[str], contestant: str) -> None:
    said = work(
        (NAME, f"{contestant}:bad"),
        (NAME, f"{contestant}:missing"),
        (NAME, "torch-native"),
        ("matmul-2x2x2-float32", "no"),
    )
    assert [(event["event"], event.get("cell")) for event in said] == [
        ("ready", None),
        *[(what, cell) for cell, end in enumerate(("failed", "failed", "done", "failed")) for what in ("begin", end)],
        ("finished", None),
    ]
    raised, absent, unknown = (event for event in said if event["event"] == "failed")
    assert (raised["status"], raised["reason"]) == ("failed", "ValueError: no more")
    assert (absent["status"], absent["remedy"]) == ("unavailable", "give a function's name after the colon")
    assert "choose from torch-matmul, triton-matmul" in unknown["reason"]
    assert sum(what.startswith("push") for what in quiet) == quiet.count("pop")


def test_one_that_raises_inside_its_range_leaves_it(quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([None] * cells.WARM_UP)
    monkeypatch.setattr(cells, "calls_of", lambda *given: {"one": lambda: next(left)})
    work((NAME, "torch-native"))
    assert quiet[-1] == "pop"


def test_a_traced_cell_says_what_the_fastest_of_its_calls_does(
    quiet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"slow": (1, 9.0), "quick": (2, 3.0)}
    monkeypatch.setattr(cells, "calls_of", lambda *given: {name: (lambda name=name: name) for name in found})
    monkeypatch.setattr(traced, "trace", lambda call, device: found[call()])
    (_, _, done, _) = work((NAME, "copy"), trace=True)
    assert (done["kernels"], done["ms"]) == (2, 3.0)
    assert not [what for what in quiet if what.startswith("push")]


def test_a_cell_that_cannot_be_traced_says_why(quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(call: Callable[[], object], device: torch.device) -> tuple[int, float]:
        raise NotTraced("CUPTI traced no kernels here")

    monkeypatch.setattr(traced, "trace", trace)
    (_, _, failed, _) = work((NAME, "torch-native"), trace=True)
    assert failed["reason"] == "CUPTI traced no kernels here" and "detach other profilers" in failed["remedy"]


def test_an_unusable_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert cells._broken(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not cells._broken(torch.device("cuda"))


def test_a_missing_gpu_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code = cells._work({"device": "cuda:0", "seed": 0, "cells": []}, lambda event, **data: said.append((event, data)))
    ((event, data),) = said
    assert (code, event) == (2, "refused") and "sees no GPU here" in data["message"]


@dataclass(frozen=True)
class Event:
    """Something that the device did, as Kineto tells it."""

    its: str
    start: int
    lasted: int
    kind: Any = DeviceType.CUDA
    annotation: bool = False

    def name(self) -> str:
        return self.its

    def start_ns(self) -> int:
        return self.start

    def duration_ns(self) -> int:
        return self.lasted

    def device_type(self) -> Any:
        return self.kind

    def is_user_annotation(self) -> bool:
        return self.annotation


def session(calls: list[list[tuple[str, int]]]) -> list[Event]:
    """A trace of calls: a mark, what empties the cache, a mark, the call's kernels; not in the order of time."""
    done: list[tuple[str, int]] = []
    for call in calls:
        done += [("spin_kernel(long)", 1), ("reduce_kernel", 40_000), ("spin_kernel(long)", 1), *call]
    events = [Event(name, 100_000 * i, lasted) for i, (name, lasted) in enumerate(done)]
    others = [Event("cudaLaunchKernel", 350_000, 9, DeviceType.CPU), Event("ours", 350_001, 9**9, annotation=True)]
    return [*others, *events[::-1]]


def test_a_trace_is_cut_into_calls() -> None:
    calls = [[("a", 1000 * (i + 1)), ("Memset (Device)", 500), ("b", 2000)] for i in range(CALLS)]
    kernels, ms = counted(session(calls))
    assert kernels == 2
    assert ms == pytest.approx((1000 * (CALLS + 1) / 2 + 2500) / 1e6)


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([[("a", 1)]] * (CALLS - 1), f"CUPTI traced {2 * CALLS - 2} of {2 * CALLS} marks"),
        ([[("a", 1)]] * (CALLS - 1) + [[]], "no kernels of some calls"),
        ([[("a", 1)]] * (CALLS - 1) + [[("a", 1)] * 3], "do not repeat from call to call: 1 to 3"),
    ],
)
def test_a_trace_that_is_not_of_its_calls_is_none(calls: list[list[tuple[str, int]]], said: str) -> None:
    with pytest.raises(NotTraced, match=said):
        counted(session(calls))


def test_an_empty_trace_is_none() -> None:
    with pytest.raises(NotTraced, match="CUPTI traced no kernels here"):
        counted([])


@pytest.mark.parametrize("callers", ["/somewhere", ""], ids=["its own", "the usual"])
def test_temporary_files_are_where_the_callers_are(callers: str) -> None:
    """A process that is told that Nsight Compute, and not it, has a folder of its own."""
    script = (
        "import os, tempfile; tempfile.gettempdir(); from norm_fusion.profiling import cells; cells._own_folder();"
        "print(os.environ.get('TMPDIR'), 'NORM_FUSION_TMPDIR' in os.environ, tempfile.tempdir)"
    )
    told = os.environ | {"TMPDIR": "/ncus", "NORM_FUSION_TMPDIR": callers}
    done = subprocess.run([sys.executable, "-c", script], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [callers or "None", "False", "None"]
