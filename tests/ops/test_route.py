"""Dispatch: which layouts reach a kernel and how, and what runs where there is no GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, NORMS, Operands, draw, errors, run, without_memory
from aot import Job
from hypothesis import strategies as st
from torch import Tensor

from norm_fusion import functional, kernels
from norm_fusion.kernels import layer_norm, rms_norm
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
NAMES = {Op.RMSNORM: "rms_norm", Op.LAYERNORM: "layer_norm"}
TRITON_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def check(given: Operands, trailing: int = 1) -> None:
    """Run over the last `trailing` dimensions of x, and compare as rows of one dimension."""
    shape = given.x.shape[given.x.dim() - trailing :]
    vectors = [v if v is None else v.reshape(shape) for v in (given.weight, given.bias)]
    y = run(replace(given, weight=vectors[0], bias=vectors[1]), shape)
    cols = math.prod(shape)
    flat = replace(given, x=given.x.reshape(-1, cols))
    found = errors(y.view(-1, cols), flat)
    assert found.ok, found


def given_for(op: Op, x: Tensor, trailing: int = 1) -> Operands:
    drawn = draw(op, 1, math.prod(x.shape[x.dim() - trailing :]), x.dtype)
    return replace(drawn, x=x)


def values(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


class Recorder:
    """Stands in for a kernel: remembers what it was launched with, and launches it."""

    def __init__(self, name: str, kernel: Any) -> None:
        self.name, self.kernel = name, kernel
        self.grid: tuple[int, ...] = ()
        self.args: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.grid, self.args, self.options = grid, dict(zip(self.kernel.arg_names, args, strict=True)), options
            self.kernel[grid](*args, **options)

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Recorder]:
    """The one launch that was made."""
    recorders = []
    without_memory(monkeypatch)
    for op, module in (("rms_norm", rms_norm), ("layer_norm", layer_norm)):
        for name in (f"{op}_rows", f"{op}_wide"):
            recorders.append(Recorder(name, getattr(module, name)))
            monkeypatch.setattr(module, name, recorders[-1])

    def only() -> Recorder:
        made = [recorder for recorder in recorders if recorder.grid]
        assert len(made) == 1
        return made[0]

    return only


# x, and whether its rows can be read where they are.
LAYOUTS: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "one row": (lambda: values(72), True),
    "a batch": (lambda: values(2, 3, 2, 2, 72), True),
    "columns of a wider tensor": (lambda: values(5, 100)[:, :72], True),
    "columns from an odd offset": (lambda: values(5, 100)[:, 3:75], True),
    "an odd distance between rows": (lambda: values(5, 101)[:, :72], True),
    "every other row": (lambda: values(9, 72)[::2], True),
    "from the second element": (lambda: values(5 * 72 + 1)[1:].view(5, 72), True),
    "one row repeated": (lambda: values(1, 72).expand(4, 72), True),
    "a head of several": (lambda: values(2, 3, 4, 72)[:, :, 1], True),
    "one of a batch, a slice": (lambda: values(3, 5, 100)[::3, :, :72], True),
    "a head, its dimension kept": (lambda: values(5, 3, 72)[:, 1:2], True),
    "one column, spaced": (lambda: values(7, 30)[:, 4:5], True),
    "transposed": (lambda: values(72, 5).t(), False),
    "every other column": (lambda: values(5, 144)[:, ::2], False),
    "heads before tokens": (lambda: values(2, 3, 4, 72).transpose(1, 2), True),
    "heads of a fused qkv": (lambda: values(2, 5, 3, 4, 72)[:, :, 1], True),
    "heads of a fused qkv, before tokens": (lambda: values(2, 5, 3, 4, 72)[:, :, 1].transpose(1, 2), True),
    "a slice in each of two batches": (lambda: values(2, 5, 72)[:, :3], True),
    "more than three strides": (lambda: values(2, 3, 2, 3, 72).permute(3, 2, 1, 0, 4), False),
    "one element a row": (lambda: values(5, 1).expand(5, 72), False),
}


@EACH_OP
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_read_in_place_where_they_can_be(op: Op, layout: str, launches: Callable[[], Recorder]) -> None:
    make, in_place = LAYOUTS[layout]
    x = make()
    check(given_for(op, x))
    assert (launches().args["x_ptr"].data_ptr() == x.data_ptr()) is in_place


@EACH_OP
@pytest.mark.parametrize("trailing", [1, 2, 3, 4, 5])
def test_several_normalized_dimensions(op: Op, trailing: int) -> None:
    check(given_for(op, values(2, 3, 2, 5, 4), trailing), trailing)


@EACH_OP
@pytest.mark.parametrize(
    "x",
    [values(4, 3, 6, 5)[:, 1], values(4, 6, 10)[:, :, :5], values(4, 5, 6).transpose(1, 2), values(4, 1, 6, 1)[::3]],
    ids=["in place", "sliced inside", "transposed inside", "of size one"],
)
def test_several_normalized_dimensions_of_a_view(op: Op, x: Tensor) -> None:
    check(given_for(op, x, 2), 2)


@EACH_OP
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_any_view_is_normalized_as_its_copy_is(op: Op, data: st.DataObject) -> None:
    """A view cut, stepped, permuted and expanded at random, over any number of trailing dimensions."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    x = values(*(3 * size for size in sizes), dtype=data.draw(st.sampled_from(DTYPES)))
    for dim, size in enumerate(sizes):
        start, step = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3))
        x = x.narrow(dim, start, 3 * size - start)
        x = x[(slice(None),) * dim + (slice(0, size * step, step),)]
    x = x.permute(data.draw(st.permutations(range(x.dim()))))
    if data.draw(st.booleans()):
        x = x.unsqueeze(0).expand(2, *x.shape)
    trailing = data.draw(st.integers(1, x.dim()))
    given = given_for(op, x, trailing)
    check(given, trailing)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("vectors", ["weight", "bias", "neither"])
def test_weight_and_bias_are_optional(op: Op, dtype: torch.dtype, vectors: str) -> None:
    given = draw(op, 3, 700, dtype)
    weight, bias = (given.weight if vectors == "weight" else None), (given.bias if vectors == "bias" else None)
    check(replace(given, weight=weight, bias=bias))


@EACH_OP
def test_vectors_of_any_stride_and_offset(op: Op) -> None:
    given = draw(op, 3, 700, torch.float16)
    bias = None if given.bias is None else values(701)[1:]
    check(replace(given, weight=values(1400)[::2], bias=bias))


@EACH_OP
@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0), (2, 0, 64)])
def test_nothing_in_nothing_out(op: Op, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    vectors = [torch.empty(shape[-1])] * (1 if op is Op.RMSNORM else 2)
    y = getattr(functional, NAMES[op])(x, shape[-1:], *vectors, 1e-5)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [128, 768, 4096, 5120, 8192, 16384, 32768, 65536, 131072])
def test_what_is_launched_is_what_test_compiled_compiles(
    op: Op, dtype: torch.dtype, cols: int, launches: Callable[[], Recorder]
) -> None:
    given = draw(op, 1, cols, dtype)
    run(given)
    made, job = launches(), Job(NAMES[op], cols, TRITON_DTYPES[dtype], cc=80)  # nor has a CPU PDL
    assert made.name == job.kernel
    assert {name: made.args.get(name, value) for name, value in job.constexprs.items()} == job.constexprs
    assert {name for name in made.args if name.isupper()} <= set(job.constexprs)
    assert {name for name, value in made.args.items() if name.endswith("_ptr") and value is not None} == job.pointers
    assert {name: value for name, value in made.options.items() if value is not None} == job.options


@EACH_OP
@pytest.mark.parametrize("cols", [16, 512, 700, 70_000])
def test_the_grid_covers_the_rows_and_no_more(op: Op, cols: int, launches: Callable[[], Recorder]) -> None:
    run(draw(op, 3, cols, torch.float32))
    made = launches()
    block = made.args.get("BLOCK_ROWS", 1)
    assert made.args["rows"] == 3 and made.grid == (-(-3 // block), 1, 1)


@EACH_OP
@pytest.mark.parametrize(
    ("x", "vec"),
    [
        (values(4, 4096), 8),
        (values(4, 4096, dtype=torch.float32), 4),
        (values(4, 4100), 4),
        (values(4, 4098), 2),
        (values(4, 4097), 1),
        (values(4, 4100)[:, :4096], 4),
        (values(4, 4097)[:, :4096], 1),
        (values(8, 4096)[::2], 8),
        (values(1, 4096).expand(4, 4096), 8),
    ],
)
def test_accesses_are_as_wide_as_row_and_stride_allow(
    op: Op, x: Tensor, vec: int, launches: Callable[[], Recorder]
) -> None:
    """Wider faults on a GPU, narrower is slow; the kernel gets strides in units of `vec`."""
    run(given_for(op, x))
    made = launches().args
    assert made["VEC"] == vec
    assert made["x_stride"] * vec == x.stride(0) and made["inner"] is None


# Without FORCE, and FORCE gone wrong: the process decides, so each has its own.


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("forced", [None, "0", ""])
def test_a_cpu_tensor_gets_torchs_own_operator(
    op: Op, dtype: torch.dtype, forced: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced is None:
        monkeypatch.delenv("NORM_FUSION_FORCE_TRITON")
    else:
        monkeypatch.setenv("NORM_FUSION_FORCE_TRITON", forced)
    monkeypatch.setattr(kernels, NAMES[op], None)
    given = draw(op, 5, 700, dtype)
    x = given.x[:, 1:]
    vectors = [v[1:] for v in (given.weight, given.bias) if v is not None]
    expected = getattr(F, NAMES[op])(x, (699,), *vectors, given.eps)
    assert torch.equal(getattr(functional, NAMES[op])(x, (699,), *vectors, given.eps), expected)


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "NORM_FUSION_FORCE_TRITON")}
    return subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True, check=False)


NORM = "import torch, norm_fusion; norm_fusion.rms_norm(torch.randn(4, 64), (64,)); "


def test_a_cpu_tensor_needs_no_triton() -> None:
    done = python(NORM + "import sys; print('triton' in sys.modules)")
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_force_alone_turns_the_interpreter_on() -> None:
    done = python(NORM + "import triton; print(triton.knobs.runtime.interpret)", NORM_FUSION_FORCE_TRITON="1")
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


@pytest.mark.parametrize("late", ["", "import os; os.environ['TRITON_INTERPRET'] = '1'; "], ids=["unset", "set late"])
def test_force_after_a_compiling_triton_is_an_error(late: str) -> None:
    """Set after Triton's import the variable reads as on, but Triton's own functions were made for the compiler."""
    done = python("import triton; " + late + NORM, NORM_FUSION_FORCE_TRITON="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: ") and "TRITON_INTERPRET=1 before importing triton" in last, done.stderr
