"""Gradients as a user of autograd meets them: leaves, accumulation, double backward, autocast, checkpointing, modes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import normal
from control import zeros
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import norm_fusion as nf
from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.ops import library, route

SHAPE = (64,)


def close(found: Tensor, expected: Tensor) -> None:
    """fp32 sums of 64 addends in another order."""
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def model(norms: object, x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Every operator in a row, ours or PyTorch's."""
    if norms is nf:
        y, h = nf.add_rms_norm(x, r, SHAPE, w, 1e-5, offset=1.0)
        y, h = nf.add_layer_norm(nf.rms_norm(y, SHAPE, w, 1e-5), h, SHAPE, w, b)
        return nf.gated_rms_norm(nf.layer_norm(y, SHAPE, w, b), h, w, 1e-5, norm_before_gate=False)
    h = x + r
    y = F.rms_norm(F.rms_norm(h, SHAPE, w + 1, 1e-5), SHAPE, w, 1e-5)
    h = y + h
    return F.rms_norm(F.layer_norm(F.layer_norm(h, SHAPE, w, b), SHAPE, w, b) * F.silu(h), SHAPE, w, 1e-5)


def operands() -> list[Tensor]:
    return [normal(5, 64, seed=1), normal(5, 64, seed=2), normal(64, seed=3), normal(64, seed=4)]


def wanting() -> list[Tensor]:
    return [t.requires_grad_() for t in operands()]


def test_a_chain_of_all_operators_trains_as_pytorchs_does() -> None:
    ours, theirs = wanting(), wanting()
    dy = normal(5, 64, seed=5)
    y, expected = model(nf, *ours), model(F, *theirs)
    close(y, expected)
    y.backward(dy)
    expected.backward(dy)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_gradients_accumulate_and_graphs_are_freed() -> None:
    x, _, w, _ = wanting()
    once = torch.autograd.grad(nf.rms_norm(x, SHAPE, w).square().sum(), (x, w))
    for _ in range(2):
        y = nf.rms_norm(x, SHAPE, w)
        y.square().sum().backward()
    assert torch.equal(x.grad, 2 * once[0]) and torch.equal(w.grad, 2 * once[1])
    with pytest.raises(RuntimeError, match="second time"):
        y.square().sum().backward()
    gone = weakref.ref(y)
    del y
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_output_changed_in_place_is_found_out(create_graph: bool) -> None:
    """The new residual is what the backward reads."""
    x, r, w, _ = wanting()
    y, h = nf.add_rms_norm(x, r, SHAPE, w)
    with torch.no_grad():
        h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x, create_graph=create_graph)


def test_gradients_of_gradients_are_pytorchs() -> None:
    def second(norms: object, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        y = model(norms, *tensors)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    for mine, other in zip(second(nf, wanting()), second(F, wanting()), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_rounding_is_no_step_of_the_gradients_that_can_be_differentiated() -> None:
    """Its gradient is 1. As a step, the gradient that passes it is rounded as well."""
    x, w, dy = (normal(*shape, seed=i).half().requires_grad_() for i, shape in enumerate([(5, 64), (64,), (5, 64)]))
    first, second = (
        torch.autograd.grad(nf.rms_norm(x, (64,), w, 1e-5, cast_first=cast_first), (x, w), dy, create_graph=True)
        for cast_first in (True, False)
    )
    for cast, plain in zip(first, second, strict=True):
        assert torch.equal(cast, plain)


def test_a_gate_made_from_the_input_has_its_second_derivative_too() -> None:
    """What leads from the input to the gate is not the norm's to differentiate: counted twice, it would show."""

    def second(gated: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        x = normal(3, 16, seed=6).requires_grad_()
        (first,) = torch.autograd.grad(gated(x, x.tanh()).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    ours = second(lambda x, z: nf.gated_rms_norm(x, z, None, 1e-5))
    close(ours, second(lambda x, z: F.rms_norm(x, (16,), None, 1e-5) * F.silu(z)))


def test_a_frozen_weight_costs_no_sum_and_no_grad_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    real = Dispatch.__call__

    def spy(self: Dispatch, programs: int, pointers: tuple[Tensor | None, ...], *rest: Any) -> None:
        saves = len(pointers) == 8 and pointers[7] is not None
        launched.append(self.kernel.__name__ + " that saves" * saves)
        real(self, programs, pointers, *rest)

    monkeypatch.setattr(Dispatch, "__call__", spy)
    x, _, w, _ = operands()
    nf.rms_norm(x, SHAPE, w)
    with torch.no_grad():
        nf.rms_norm(x.requires_grad_(), SHAPE, w)
    assert launched == ["rms_norm_rows"] * 2
    y = nf.rms_norm(x, SHAPE, w)
    kept = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert [tuple(t.shape) for t in kept] == [(5, 64), (64,), (5,)]
    assert kept[0].data_ptr() == x.data_ptr(), "the input was copied"
    y.sum().backward()
    assert launched[2:] == ["rms_norm_rows that saves", "norm_backward"]
    nf.rms_norm(x, SHAPE, w.requires_grad_()).sum().backward()
    assert launched[4:] == ["rms_norm_rows that saves", "norm_backward", "column_sums"]


def test_inference_mode_and_detached_inputs() -> None:
    x, r, w, _ = wanting()
    with torch.inference_mode():
        y, h = nf.add_rms_norm(x, r, SHAPE, w)
    assert not y.requires_grad and y.is_inference()
    y, h = nf.add_rms_norm(x.detach(), r.detach(), SHAPE, w.detach())
    assert not y.requires_grad and not h.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    def grads(run: Callable[..., Tensor]) -> list[Tensor]:
        tensors = wanting()
        run(*tensors).square().sum().backward()
        return [t.grad for t in tensors]

    plain = grads(lambda *t: model(nf, *t))
    again = grads(lambda *t: checkpoint(model, nf, *t, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


OURS = [torch.ops.norm_fusion.rms_norm.default, torch.ops.norm_fusion.layer_norm.default]


@pytest.mark.parametrize(("saved", "runs"), [(OURS, 5), (OURS[:1], 7), (OURS[1:], 8), ([], 10)])
def test_selective_checkpointing_runs_anew_what_it_was_not_told_to_save(
    saved: list[torch._ops.OpOverload], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three RMSNorms and two LayerNorms; the other operators are run anew, and then they are saved."""

    def policy(rest: CheckpointPolicy, _: object, op: object, *__: object, **___: object) -> CheckpointPolicy:
        if op in OURS:
            return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.MUST_RECOMPUTE
        return rest

    def grads(**selective: object) -> list[Tensor]:
        tensors = wanting()
        run = partial(checkpoint, model, use_reentrant=False, **selective) if selective else model
        run(nf, *tensors).square().sum().backward()
        return [t.grad for t in tensors]

    plain, launched = grads(), []
    real = library.forward
    monkeypatch.setattr(library, "forward", lambda *given: launched.append(given) or real(*given))
    for rest in (CheckpointPolicy.PREFER_RECOMPUTE, CheckpointPolicy.MUST_SAVE):
        contexts = partial(create_selective_checkpoint_contexts, partial(policy, rest))
        found = grads(context_fn=contexts)
        assert len(launched) == runs and all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        launched.clear()
        with zeros():
            found = grads(context_fn=contexts)
        assert not any(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        launched.clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_autocast_does_what_torchs_function_does(name: str, dtype: torch.dtype) -> None:
    x, _, w, _ = operands()
    with torch.autocast("cpu", dtype=dtype):
        for given in (x.to(dtype), x):
            theirs = getattr(F, name)(given, SHAPE, w.to(given.dtype))
            assert getattr(nf, name)(given, SHAPE, w.to(given.dtype)).dtype == theirs.dtype
    fp32 = {(False, "cpu"), (True, "cpu")}
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=dtype):
        patch.setattr(route, "AUTOCAST_TO_FP32", fp32)  # as on CUDA
        xr = x.to(dtype).requires_grad_()
        y = getattr(nf, name)(xr, SHAPE, w)
        assert y.dtype == torch.float32
        close(y, getattr(F, name)(xr.float(), SHAPE, w))
        assert getattr(nf, name)(xr, SHAPE, w, out_dtype=dtype).dtype == dtype
        y.sum().backward()
        assert xr.grad.dtype == dtype


def test_a_tangent_is_not_lost() -> None:
    """A dual tensor looks like any other."""
    x, _, w, _ = operands()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, normal(5, 64, seed=8))
        ours, theirs = (
            forward_ad.unpack_dual(norm(dual, SHAPE, w, 1e-5)).tangent for norm in (nf.rms_norm, F.rms_norm)
        )
    close(ours, theirs)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.vmap])
def test_function_transforms(transform: Callable[..., Callable[..., Tensor]]) -> None:
    x, _, w, _ = operands()
    ours, theirs = (
        transform(lambda x, norm=norm: norm(x, SHAPE, w, 1e-5).square().sum())(x) for norm in (nf.rms_norm, F.rms_norm)
    )
    close(ours, theirs)


def test_gradients_of_many_outputs_at_once() -> None:
    """Batched tensors look like any other, too."""
    x, r, w, _ = operands()
    pairs = [
        (lambda x: nf.rms_norm(x, SHAPE, w, 1e-5), lambda x: F.rms_norm(x, SHAPE, w, 1e-5)),
        (lambda x: sum(nf.add_layer_norm(x, r, SHAPE, w)), lambda x: F.layer_norm(x + r, SHAPE, w) + x + r),
    ]
    for pair in pairs:
        ours, theirs = (torch.autograd.functional.jacobian(lambda x, f=f: f(x)[:2], x, vectorize=True) for f in pair)
        close(ours, theirs)


class Ones(torch.autograd.Function):
    """Its gradient is the same for each of many outputs, and no batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return torch.ones(5, 64)


def test_a_batch_of_gradients_of_the_sum_alone() -> None:
    x, r, w, _ = wanting()
    batch = normal(3, 5, 64, seed=8)
    pairs = nf.add_rms_norm(x, r, SHAPE, w, 1e-5), (F.rms_norm(x + r, SHAPE, w, 1e-5), x + r)
    ours, theirs = (
        torch.autograd.grad((Ones.apply(y), h), (x, w), (batch, batch), is_grads_batched=True) for y, h in pairs
    )
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other)


@pytest.mark.parametrize("way", ["eager", "dispatched", "compiled"])
@pytest.mark.parametrize("wanted", ["x", "residual", "weight"])
def test_the_sum_has_a_gradient_where_what_is_added_has(way: str, wanted: str) -> None:
    """A weight's is none of the sum's."""
    x, r, w, _ = operands()
    {"x": x, "residual": r, "weight": w}[wanted].requires_grad_()
    add: Any = nf.add_rms_norm
    if way == "compiled":
        torch._dynamo.reset()
        add = torch.compile(add, backend="aot_eager", fullgraph=True)
    with FlopCounterMode(display=False) if way == "dispatched" else nullcontext():
        y, h = add(x, r, SHAPE, w)
    assert y.requires_grad and h.requires_grad == (wanted != "weight")


def test_calls_that_look_alike_differ_in_what_they_are_asked() -> None:
    """Each is remembered as itself: by gradients wanted, by strides, by dtypes and by every argument."""
    x, _, w, _ = operands()
    for _ in range(2):
        with torch.no_grad():
            plain = nf.rms_norm(x, SHAPE, w, 1e-5)
        assert not plain.requires_grad
        assert nf.rms_norm(x, SHAPE, w.clone().requires_grad_(), 1e-5).requires_grad
        close(nf.rms_norm(x, SHAPE, w, 1.0), F.rms_norm(x, SHAPE, w, 1.0))
        close(nf.rms_norm(x.t().contiguous().t(), SHAPE, w, 1e-5), plain)
        close(nf.rms_norm(x, SHAPE, w, 1e-5, offset=1.0), F.rms_norm(x, SHAPE, w + 1, 1e-5))
        close(nf.rms_norm(x, SHAPE, w[:1].expand(64), 1e-5), F.rms_norm(x, SHAPE, w[:1].expand(64), 1e-5))
        assert nf.rms_norm(x.half(), SHAPE, w, 1e-5).dtype == torch.half
        assert nf.rms_norm(x, SHAPE, w, 1e-5, out_dtype=torch.half).dtype == torch.half
        with pytest.raises(ValueError, match="weight has shape"):
            nf.rms_norm(x, SHAPE, w[1:], 1e-5)


def test_no_more_calls_are_remembered_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "KEPT", 3)
    for rows in range(1, 10):
        x = normal(rows, 64)
        close(nf.rms_norm(x, SHAPE), F.rms_norm(x, SHAPE, eps=torch.finfo(torch.float32).eps))
        assert len(route.CALLS) <= 3


def test_hooks_and_retained_gradients() -> None:
    x, r, w, _ = wanting()
    y, h = nf.add_rms_norm(x, r, SHAPE, w)
    seen: list[Tensor] = []
    y.register_hook(seen.append)
    h.retain_grad()
    (y.sum() + h.sum()).backward()
    assert torch.equal(seen[0], torch.ones(5, 64)) and h.grad is not None
    close(x.grad, r.grad)
