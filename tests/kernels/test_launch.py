"""The launch choice, a pure function: no Triton, no torch, no GPU."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from norm_fusion.kernels.launch import Launch, next_power_of_2, pick_layer_norm, pick_rms_norm, split

# Every power of two, three halves of it, their neighbours, and hidden sizes of known models.
AROUND = {n for k in range(31) for p in (2**k, 3 * 2**k // 2) for n in (p - 1, p, p + 1)}
MODELS = {80, 576, 896, 2304, 2560, 2880, 3584, 5120, 5376, 7168, 7680, 9216, 12288, 18432}
COLS = sorted(AROUND | MODELS | {2**31 - 1} - {0})

REGISTERS, THREADS = 65536, 1024  # of one SM, and of one program: compute capability 8.0 to 10.0
Pick = Callable[[int, int], Launch]

EACH_PICK = pytest.mark.parametrize("pick", [pick_rms_norm, pick_layer_norm], ids=["rms_norm", "layer_norm"])
BOTH_SIZES = pytest.mark.parametrize("itemsize", [2, 4])


def is_power_of_2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@EACH_PICK
@BOTH_SIZES
def test_no_column_is_left_out(pick: Pick, itemsize: int) -> None:
    for cols in COLS:
        launch = pick(cols, itemsize)
        assert launch.wide or launch.body + launch.tail >= cols, (cols, launch)


@EACH_PICK
@BOTH_SIZES
def test_triton_takes_every_size(pick: Pick, itemsize: int) -> None:
    """`tl.arange` and num_warps want powers of two, a tensor at most 2^20 elements, CUDA at most 1,024 threads."""
    for cols in COLS:
        launch = pick(cols, itemsize)
        sizes = (launch.block_rows, launch.body, launch.num_warps, launch.tail or 1)
        assert all(is_power_of_2(size) for size in sizes), (cols, launch)
        assert launch.block_rows * launch.body <= 2**20 and 32 * launch.num_warps <= THREADS, (cols, launch)


@EACH_PICK
@BOTH_SIZES
def test_few_lanes_idle(pick: Pick, itemsize: int) -> None:
    """At most a quarter of them in a row with body and tail, less than half in any row of 16 columns or more."""
    for cols in COLS:
        launch = pick(cols, itemsize)
        lanes = -(-cols // launch.body) * launch.body if launch.wide else launch.body + launch.tail
        assert lanes < 2 * max(cols, 16), (cols, launch)
        if launch.tail:
            assert lanes <= 4 / 3 * cols, (cols, launch)


@EACH_PICK
@BOTH_SIZES
def test_registers_hold_the_row_and_as_much_again(pick: Pick, itemsize: int) -> None:
    for cols in COLS:
        launch = pick(cols, itemsize)
        threads = 32 * launch.num_warps
        allowed = min(255, REGISTERS // threads, launch.maxnreg or 255)
        elements = launch.block_rows * (launch.body + launch.tail) / threads
        assert elements * (1 / 2 if launch.lean else 1) <= allowed / 2, (cols, launch)


@EACH_PICK
@BOTH_SIZES
def test_every_thread_has_a_whole_16_byte_access(pick: Pick, itemsize: int) -> None:
    for cols in COLS:
        launch = pick(cols, itemsize)
        assert launch.block_rows * launch.body * itemsize >= 16 * 32 * launch.num_warps, (cols, launch)


@EACH_PICK
@BOTH_SIZES
def test_rows_that_no_registers_hold_are_walked(pick: Pick, itemsize: int) -> None:
    """Short rows never, and always those that no registers hold: an SM has 256 KiB of them, for the weight too."""
    for cols in COLS:
        launch = pick(cols, itemsize)
        if launch.wide:
            assert cols * itemsize > 2**15 and launch.body < cols and not launch.tail, cols
        else:
            assert cols * itemsize <= 2**17, cols


@EACH_PICK
@BOTH_SIZES
def test_lean_is_for_long_rows(pick: Pick, itemsize: int) -> None:
    """One row a program: with several each would load the weight for itself. Needless where the row is short."""
    for cols in COLS:
        launch = pick(cols, itemsize)
        assert not launch.lean or (cols > 6144 and launch.block_rows == 1 and not launch.wide), cols


@EACH_PICK
def test_the_row_count_does_not_enter(pick: Pick) -> None:
    """A row's bits must not change with the batch that it stands in: what cannot be seen cannot matter."""
    assert list(inspect.signature(pick).parameters) == ["cols", "itemsize"]


def test_a_launch_cannot_be_changed() -> None:
    """It is kept and handed to every caller."""
    launch = pick_rms_norm(4096, 2)
    with pytest.raises(FrozenInstanceError):
        launch.num_warps = 1  # type: ignore[misc]
    assert {launch: 1}[Launch(**vars(launch))] == 1


def test_choosing_imports_no_gpu_stack() -> None:
    code = (
        "import sys; from norm_fusion.kernels.launch import pick_rms_norm; pick_rms_norm(4096, 2); "
        "print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize(
    ("cols", "expected"),
    [
        (1, (1, 0)),
        (3, (2, 1)),
        (4096, (4096, 0)),
        (4097, (4096, 1)),
        (5120, (4096, 1024)),
        (6144, (4096, 2048)),
        (6145, (8192, 0)),
        (7168, (8192, 0)),
        (2**31 - 1, (2**31, 0)),
    ],
)
def test_split_body_and_tail(cols: int, expected: tuple[int, int]) -> None:
    assert split(cols) == expected


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192), (2**31 - 1, 2**31)])
def test_next_power_of_2(n: int, expected: int) -> None:
    assert next_power_of_2(n) == expected
