"""The short way to a compiled kernel: taken only where Triton itself would have used that kernel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import triton
from accuracy import DTYPES
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from norm_fusion.kernels import dispatch
from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.kernels.launch import Launch
from norm_fusion.kernels.rms_norm import rms_norm_rows

CONSTANTS = (64, 8, True, 4, 64, 0, False)


@pytest.fixture(scope="module")
def facts() -> Callable[..., list[Any]]:
    """What Triton compiles a kernel for, given its arguments."""
    kernel = triton.JITFunction(rms_norm_rows.fn, **rms_norm_rows.kwargs)
    bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    return lambda *args: bind(*args)[1]


class Kernel:
    """A kernel that compiles to what remembers the facts it was compiled for, and refuses any other."""

    def __init__(self, facts: Callable[..., list[Any]]) -> None:
        self.facts, self.compiles, self.launches = facts, 0, 0
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def compile_and_launch(*args: Any, **options: Any) -> Compiled:
            self.compiles += 1
            self.grids.append(grid)
            return Compiled(self, self.facts(*args))

        return compile_and_launch


class Compiled:
    def __init__(self, kernel: Kernel, compiled_for: list[Any]) -> None:
        self.kernel, self.compiled_for = kernel, compiled_for

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any) -> None:
            self.kernel.launches += 1
            self.kernel.grids.append(grid)
            assert self.kernel.facts(*args) == self.compiled_for

        return launch


def pointers(dtype: torch.dtype, aligned: tuple[bool, ...]) -> list[Tensor]:
    tensors = [torch.empty(32, dtype=dtype)[0 if whole else 1 :] for whole in aligned]
    assert [t.data_ptr() % 16 == 0 for t in tensors] == list(aligned)
    return tensors


def test_a_kernel_is_used_only_for_arguments_it_was_compiled_for(facts: Callable[..., list[Any]]) -> None:
    """Every mix of dtypes, alignments, strides and row counts past 32 bits, and an eps given as an integer."""
    kernel = Kernel(facts)
    dispatch = Dispatch(kernel, Launch(4, 64, 0, 4), CONSTANTS)
    sizes = (1, 16, 2**31 - 1, 2**31)
    calls = [
        (pointers(dtype, aligned), (rows, stride, 8), eps)
        for dtype in DTYPES
        for aligned in product((True, False), repeat=3)
        for rows, stride in product(sizes, sizes)
        for eps in (1, 1e-5, 0, 1.0)
    ]
    for call in calls + calls[::-1]:
        dispatch(*call)
    assert kernel.compiles == 3 * 2**3 * 2 * 2
    assert kernel.compiles + kernel.launches == 2 * len(calls)


def test_every_row_has_its_program_the_first_time_and_later(facts: Callable[..., list[Any]]) -> None:
    kernel = Kernel(facts)
    dispatch = Dispatch(kernel, Launch(4, 64, 0, 4), CONSTANTS)
    for rows in (1, 4, 5, 8, 9):
        dispatch(pointers(torch.float16, (True, True, True)), (rows, 8, 8), 1e-5)
    assert kernel.compiles == 1
    assert kernel.grids == [(1, 1, 1), (1, 1, 1), (2, 1, 1), (2, 1, 1), (3, 1, 1)]


@pytest.mark.parametrize("pdl", [False, True])
def test_an_early_launch_and_the_wait_for_the_predecessor_go_together(
    pdl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one without the other reads what the predecessor has not written yet, or waits for nothing."""
    launched: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
            def launch(*args: Any, **options: Any) -> Any:
                launched.append((args, options))
                return self

            return launch

    monkeypatch.setattr(dispatch, "launches_early", lambda device: pdl)
    run = Dispatch(Recorder(), Launch(4, 64, 0, 4), CONSTANTS)
    for _ in range(2):
        run(pointers(torch.float16, (True, True, True)), (8, 8, 8), 1e-5)
    (first, options), (second, _) = launched
    assert options.get("launch_pdl", False) is pdl
    assert first[-1] is pdl and second[3:] == first[3:]


@pytest.mark.parametrize(("capability", "early"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_gpus_before_hopper_launch_nothing_early(
    capability: tuple[int, int], early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dispatch.launches_early(torch.device("cuda", 0)) is early
    assert not dispatch.launches_early(torch.device("cpu"))
