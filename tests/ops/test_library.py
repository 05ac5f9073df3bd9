"""The operators as compilers, modes and fake tensors see them. The kernels run, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import normal
from test_autograd import SHAPE, close, model, operands, wanting
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import norm_fusion as nf
from norm_fusion.kernels.dispatch import Dispatch, Integers

OPS = {name: getattr(torch.ops.norm_fusion, name).default for name in ("rms_norm", "layer_norm")}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def arguments(**changed: Any) -> tuple[Any, ...]:
    x, r, w, b = operands()
    given = {"input": x, "residual": r, "gate": None, "weight": w, "bias": b}
    norm = {"trailing": 1, "eps": 1e-5, "offset": 0.0, "cast_first": False, "gate_first": False}
    rest = {"out_dtype": None, "residual_dtype": None, "save": True}
    return tuple((given | norm | rest | changed).values())


ASKED = {
    "a norm": {"residual": None},
    "without vectors": {"residual": None, "weight": None, "bias": None},
    "with a residual": {"offset": 1.0},
    "to other dtypes": {"out_dtype": torch.float16, "residual_dtype": torch.float16},
    "of 16 bits": {"input": normal(5, 64).bfloat16(), "residual": normal(5, 64).bfloat16()},
    "gated": {"residual": None, "gate": normal(5, 64, seed=7), "bias": None},
    "gated first": {"residual": None, "gate": normal(5, 64, seed=7), "bias": None, "gate_first": True},
    "of heads": {"input": normal(2, 3, 5, 4, 64)[:, 1], "residual": None, "weight": normal(4, 64), "bias": None},
    "of two dimensions": {"input": normal(3, 5, 8, 8), "weight": normal(8, 8), "residual": None, "trailing": 2}
    | {"bias": None},
    "of no rows": {"input": normal(0, 64), "residual": normal(0, 64)},
    "of no columns": {"input": normal(5, 0), "residual": None, "weight": normal(0), "bias": None},
}


@pytest.mark.parametrize(
    ("name", "asked"), [(n, a) for n, a in product(OPS, ASKED) if "gated" not in a or n == "rms_norm"]
)
def test_opcheck(name: str, asked: str) -> None:
    args = [
        t.clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
        for t in arguments(**ASKED[asked])
    ]
    torch.library.opcheck(OPS[name], tuple(args))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("wanted", [(True,) * 5, (True, False, False, True, False), (False, True, False, False, True)])
def test_opcheck_of_the_backwards(name: str, wanted: tuple[bool, ...]) -> None:
    given = arguments()
    _, h, saved = OPS[name](*given)
    op = getattr(torch.ops.norm_fusion, f"{name}_backward").default
    dtypes = (torch.float32, torch.float16)
    dy, dh = normal(5, 64, seed=8), normal(5, 64, seed=9)
    torch.library.opcheck(op, (dy, dh, h, None, given[3], given[4], saved, *given[5:-1], *dtypes, list(wanted)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_without_a_break_and_bitwise_the_same(backend: str) -> None:
    compiled = torch.compile(lambda *t: model(nf, *t), fullgraph=True, backend=backend)
    dy = normal(5, 64, seed=5)
    found = []
    for run in (lambda *t: model(nf, *t), compiled, lambda *t: model(F, *t)):
        tensors = wanting()
        y = run(*tensors)
        y.backward(dy)
        found.append([y, *(t.grad for t in tensors)])
    # Sums of gradients that meet are fused and may be added in another order; what the kernels make is the same.
    assert torch.equal(found[0][0], found[1][0])
    for mine, other, torchs in zip(*found, strict=True):
        close(mine, other)
        torch.testing.assert_close(other, torchs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(compiled(*operands()), found[0][0])


def test_a_new_number_of_rows_compiles_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the graph, from the second number on, nor a kernel."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *t: model(nf, *t), fullgraph=True, backend=counter)
    kernels: set[tuple[Any, ...]] = set()
    real = Dispatch.__call__

    def spy(self: Dispatch, programs: int, pointers: Any, integers: Integers, *rest: Any) -> None:
        facts = [p is not None and (p.dtype, p.data_ptr() % 16) for p in pointers]
        kernels.add((id(self), *facts, *[i is None for i in integers.values]))
        real(self, programs, pointers, integers, *rest)

    monkeypatch.setattr(Dispatch, "__call__", spy)
    counts = []
    for rows in (5, 6, 9, 40, 41):
        x, r = normal(rows, 64).requires_grad_(), normal(rows, 64).requires_grad_()
        others = wanting()[2:]
        found, expected = (
            torch.autograd.grad(y.square().sum(), (x, r, *others))
            for y in (compiled(x, r, *others), model(F, x, r, *others))
        )
        for mine, torchs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-3, atol=1e-3)
        counts.append((counter.frame_count, len(kernels)))
    assert counts[1] == counts[-1], counts
    assert counter.frame_count <= 2


def test_kernels_that_write_zeros_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of this file: eager and compiled alike go through the kernels."""
    expected = model(nf, *operands())

    def zeros(self: Dispatch, programs: int, pointers: Any, *rest: Any) -> None:
        for pointer in pointers[5:]:
            if pointer is not None:
                pointer.zero_()

    monkeypatch.setattr(Dispatch, "__call__", zeros)
    compiled = torch.compile(lambda *t: model(nf, *t), fullgraph=True, backend="aot_eager")
    for run in (lambda *t: model(nf, *t), compiled):
        with torch.no_grad():
            assert not torch.allclose(run(*operands()), expected)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.vmap])
def test_compiled_function_transforms(transform: Callable[..., Callable[..., Tensor]], backend: str) -> None:
    """The compiler traces into a transform, and an opaque operator has no rule for it."""
    x, _, w, _ = operands()
    of = transform(lambda x: nf.rms_norm(x, SHAPE, w, 1e-5).square().sum())
    compiled = torch.compile(of, fullgraph=True, backend=backend)(x)
    close(compiled, transform(lambda x: F.rms_norm(x, SHAPE, w, 1e-5).square().sum())(x))


def test_a_tangent_is_not_lost_in_a_compiled_function() -> None:
    x, _, w, _ = operands()
    compiled = torch.compile(lambda x: nf.rms_norm(x, SHAPE, w, 1e-5), backend="eager")
    compiled(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, normal(5, 64, seed=8))
        close(*(forward_ad.unpack_dual(y).tangent for y in (compiled(dual), F.rms_norm(dual, SHAPE, w, 1e-5))))


def test_fake_and_meta_tensors_have_the_shapes_and_dtypes() -> None:
    def outputs(make: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x, r, w, b = (make(t) for t in operands())
        y, h = nf.add_rms_norm(x.bfloat16(), r, SHAPE, w, bias=b, out_dtype=torch.float16)
        return [y, h, nf.layer_norm(x, SHAPE, w, b), nf.gated_rms_norm(x, r, w)]

    real = outputs(lambda t: t)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = outputs(mode.from_tensor)
    for made in (fake, outputs(lambda t: t.to("meta"))):
        for one, other in zip(made, real, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
    assert all(t.device.type == "cpu" for t in fake)


def test_a_mode_sees_the_operator() -> None:
    """Profilers, flop counters and selective checkpointing work by this."""
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, _, w, _ = wanting()
    with Mode():
        y = nf.rms_norm(x, SHAPE, w)
        y.sum().backward()
    assert "norm_fusion.rms_norm.default" in seen and "norm_fusion.rms_norm_backward.default" in seen
    assert torch.equal(y, nf.rms_norm(x, SHAPE, w))


def test_exported_and_run_again() -> None:
    class Block(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return nf.rms_norm(x, SHAPE, w, 1e-5) * 2

    x, _, w, _ = operands()
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(Block(), (x, w), dynamic_shapes=({0: rows}, None))
    assert any("norm_fusion" in str(node.target) for node in program.graph.nodes)
    more = normal(17, 64)
    assert torch.equal(program.module()(more, w), Block()(more, w))


def test_called_without_saving_it_refuses_a_gradient() -> None:
    args = list(arguments(save=False))
    args[0] = args[0].requires_grad_()
    with pytest.raises(RuntimeError, match=r"norm_fusion::rms_norm was called with save=False, and a gradient"):
        OPS["rms_norm"](*args)
