"""Negative controls: wrong outputs and wrong kernels that the checks of test_interpreted must reject."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accuracy import (
    DTYPES,
    NORMS,
    Operands,
    composition,
    draw,
    error_in_roundoffs,
    errors,
    far_from_zero,
    run,
    without_memory,
)
from torch import Tensor

from norm_fusion import kernels
from norm_fusion.kernels.launch import Launch, pick_layer_norm
from norm_fusion.ops import forward
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
NAMES = {Op.RMSNORM: "rms_norm", Op.LAYERNORM: "layer_norm"}
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def changed(y: Tensor, column: int, factor: float) -> Tensor:
    y = y.clone()
    y[-1, column] *= factor
    return y


WRONG: dict[str, Callable[[Tensor, Operands], Tensor]] = {
    "weight off by one": lambda y, given: composition(replace(given, weight=given.weight.roll(1))),
    "weight ignored": lambda y, given: composition(replace(given, weight=None)),
    "eps twice too large": lambda y, given: composition(replace(given, eps=2 * given.eps)),
    "rows exchanged": lambda y, given: y.roll(1, 0),
    "last element not written": lambda y, given: changed(y, -1, torch.nan),
    "last element zero": lambda y, given: changed(y, -1, 0.0),
    "last element infinite": lambda y, given: changed(y, -1, torch.inf),
    "largest element 4% off": lambda y, given: changed(y, int(y[-1].abs().argmax()), 1.04),
    "nothing written": lambda y, given: torch.full_like(y, torch.nan),
}


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_output_is_rejected(op: Op, dtype: torch.dtype, wrong: Callable[[Tensor, Operands], Tensor]) -> None:
    given = draw(op, 4, 700, dtype, eps=0.1)
    given = replace(given, x=given.x * 0.1)
    right = composition(given)
    assert errors(right, given).ok
    assert not errors(wrong(right, given), given).ok


def test_twice_the_error_of_the_composition_is_rejected_within_the_tolerance() -> None:
    given = draw(Op.RMSNORM, 4, 700, torch.float32)
    found = errors(composition(given) * (1 + 24 * 2.0**-24), given)
    assert found.worst < found.tolerance and not found.ok


def test_a_variance_that_cancels_is_rejected() -> None:
    given = draw(Op.LAYERNORM, 4, 700, torch.float32)
    given = replace(given, x=given.x + 1e4)
    assert errors(composition(given), given).ok
    mean = given.x.mean(-1, keepdim=True)
    variance = (given.x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
    cancelled = (given.x - mean) * torch.rsqrt(variance + given.eps) * given.weight + given.bias
    assert not errors(cancelled, given).ok


def mutant(name: str, old: str, new: str, directory: Path) -> ModuleType:
    """The module of kernels `name`, a piece replaced of its source, or of the source of `rows` that it imports."""
    sources = {file: Path(str(find_spec(f"norm_fusion.kernels.{file}").origin)).read_text() for file in ("rows", name)}
    assert any(re.search(old, source) for source in sources.values()), f"{old!r} is gone: say what took its place"
    made = {}
    for file, source in sources.items():
        source = source.replace("norm_fusion.kernels.rows", "mutant_rows")
        path = directory / f"mutant_{file}.py"
        path.write_text(re.sub(old, new, source))
        spec = spec_from_file_location(path.stem, path)
        made[file] = sys.modules[path.stem] = module_from_spec(spec)
        spec.loader.exec_module(made[file])
    del sys.modules["mutant_rows"], sys.modules[f"mutant_{name}"]
    return made[name]


def install(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next call launch this module's kernels."""
    without_memory(monkeypatch)
    monkeypatch.setattr(kernels, name, module)


# What goes wrong, the regular expression of the source that goes, and what comes in its place.
MUTANTS = {
    "eps dropped": (r" \+ eps\b", ""),
    "mean over a column too many": (r"/ COLS\b", "/ (COLS + 1)"),
    "last column left out": (r"< COLS", "< COLS - 1"),
    "weight not applied": (r"y \*= w\b", "pass"),
    "every row reads the first": (r"row \* stride", "row * 0 * stride"),
    "every row writes the first": (r"y_at = row \*", "y_at = row * 0 *"),
}
LAYER_NORM_MUTANTS = {
    "bias not applied": (r"y \+= widen\(b\)", "pass"),
    "idle lanes centred": (r"tl\.where\((?:in_row|in_tail|mask), (.*), 0\.0\)", r"(\1)"),
    "lanes merged without their distance": (r" \+ count \* apart \* apart", ""),
}
# What 16 bits round away.
FINE = {"mean over a column too many", "idle lanes centred"}
EACH_MUTANT = [
    (op, cols, what, dtype)
    for op in NORMS
    for dtype in (torch.float16, torch.float32)
    for cols in (60, 700, 20_001, 70_001)
    for what in (MUTANTS if op is Op.RMSNORM else MUTANTS | LAYER_NORM_MUTANTS)
    if ("merged" not in what or pick_layer_norm(cols, dtype.itemsize).wide)
    and (dtype == torch.float32 or what not in FINE)
]


@pytest.mark.parametrize(("op", "cols", "what", "dtype"), EACH_MUTANT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_kernel_is_rejected(
    op: Op, cols: int, what: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = draw(op, 3, cols, dtype, eps=0.1)
    given = replace(given, x=given.x + 1)
    assert errors(run(given), given).ok
    install(NAMES[op], mutant(NAMES[op], *(MUTANTS | LAYER_NORM_MUTANTS)[what], tmp_path), monkeypatch)
    assert not errors(run(given), given).ok


@pytest.mark.parametrize("bound", ["mean == mean", "mean * mean <= 1e5 * var"])
@pytest.mark.parametrize("cols", [700, 4000])
def test_a_variance_that_cancels_in_16_bit_rows_is_rejected(
    cols: int, bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = far_from_zero(cols, 2000 if bound == "mean == mean" else 250)
    assert error_in_roundoffs(run(given), given) < 4
    install("layer_norm", mutant("layer_norm", r"\(mean \* mean <= var\)", f"({bound})", tmp_path), monkeypatch)
    assert not error_in_roundoffs(run(given), given) <= 4  # nan, where the variance came out negative


@EACH_OP
@pytest.mark.parametrize("launch", [Launch(2, 512, 0, 4), Launch(1, 512, 64, 4)], ids=["body", "tail"])
def test_a_launch_that_leaves_columns_out_is_rejected(op: Op, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    given = draw(op, 4, 700, torch.float16)
    without_memory(monkeypatch)
    monkeypatch.setattr(forward, f"pick_{NAMES[op]}", lambda cols, itemsize: launch)
    assert not errors(run(given), given).ok
