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
from norm_fusion.kernels.dispatch import Dispatch, Integers
from norm_fusion.kernels.rms_norm import rms_norm_rows

# x, residual, gate, weight, bias, y, h, rstd; of which a plain RMSNorm has three.
CONSTANTS = (64, 8, 1, 0.0, None, None, False, 4, 64, 0, False)


def operands(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
    return (x, None, None, w, None, y, None, None)


def sizes(rows: int, stride: int) -> Integers:
    return Integers.of(rows, None, None, stride, *[None] * 8)


CPU = torch.device("cpu")
STREAM = 77


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "current_stream", lambda device: STREAM)


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
        self.addresses: list[tuple[int | None, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def compile_and_launch(*args: Any, **options: Any) -> Compiled:
            self.compiles += 1
            self.grids.append(grid)
            return Compiled(self, self.facts(*args))

        return compile_and_launch


class Compiled:
    """Launched directly, or Triton's way, with the tensors themselves."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, kernel: Kernel, compiled_for: list[Any]) -> None:
        self.kernel, self.compiled_for = kernel, compiled_for

    def run(self, *args: Any) -> None:
        *grid, stream, function, metadata, _, _, _ = args[:9]
        assert (stream, function, metadata) == (STREAM, "function", "metadata")
        self.kernel.launches += 1
        self.kernel.grids.append(tuple(grid))
        self.kernel.addresses.append(args[9:17])

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any) -> None:
            self.kernel.launches += 1
            self.kernel.grids.append(grid)
            assert self.kernel.facts(*args) == self.compiled_for

        return launch


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody watches Triton's launches."""
    monkeypatch.setattr(dispatch, "_watched", lambda: True)


def pointers(dtype: torch.dtype, aligned: tuple[bool, ...]) -> list[Tensor]:
    tensors = [torch.empty(32, dtype=dtype)[0 if whole else 1 :] for whole in aligned]
    assert [t.data_ptr() % 16 == 0 for t in tensors] == list(aligned)
    return tensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_is_used_only_for_arguments_it_was_compiled_for(
    dtype: torch.dtype, facts: Callable[..., list[Any]], hooked: None
) -> None:
    """Every mix of alignments, strides and row counts past 32 bits."""
    kernel = Kernel(facts)
    dispatch = Dispatch(kernel, CONSTANTS, 4, None, CPU)
    extents = (1, 16, 2**31 - 1, 2**31)
    calls = [
        (1, operands(*pointers(dtype, aligned)), sizes(rows, stride), (eps,))
        for aligned in product((True, False), repeat=3)
        for rows, stride in product(extents, extents)
        for eps in (1e-5, 0.0, 1.0)
    ]
    for call in calls + calls[::-1]:
        dispatch(*call)
    assert kernel.compiles == 2**3 * 2 * 2
    assert kernel.compiles + kernel.launches == 2 * len(calls)


def test_where_nobody_watches_addresses_go_to_the_driver_directly(facts: Callable[..., list[Any]]) -> None:
    kernel = Kernel(facts)
    dispatch = Dispatch(kernel, CONSTANTS, 4, None, CPU)
    given = operands(*pointers(torch.float16, (True, True, True)))
    for _ in range(3):
        dispatch(5, given, sizes(8, 8), (1e-5,))
    assert (kernel.compiles, kernel.launches) == (1, 2)
    assert set(kernel.grids) == {(5, 1, 1)}
    assert set(kernel.addresses) == {tuple(None if t is None else t.data_ptr() for t in given)}


def test_a_hook_on_launches_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not dispatch._watched()
    triton.knobs.runtime.launch_exit_hook.add(print)
    try:
        assert dispatch._watched()
    finally:
        triton.knobs.runtime.launch_exit_hook.remove(print)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert dispatch._watched()


@pytest.mark.parametrize("pdl", [False, True])
def test_an_early_launch_and_the_wait_for_the_predecessor_go_together(
    pdl: bool, monkeypatch: pytest.MonkeyPatch, hooked: None
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
    run = Dispatch(Recorder(), CONSTANTS, 4, None, CPU)
    for _ in range(2):
        run(2, operands(*pointers(torch.float16, (True, True, True))), sizes(8, 8), (1e-5,))
    (first, options), (second, _) = launched
    assert options.get("launch_pdl", False) is pdl
    assert first[-1] is pdl and second[8:] == first[8:]


@pytest.mark.parametrize(("capability", "early"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_gpus_before_hopper_launch_nothing_early(
    capability: tuple[int, int], early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dispatch.launches_early(torch.device("cuda", 0)) is early
    assert not dispatch.launches_early(torch.device("cpu"))
