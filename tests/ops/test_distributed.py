"""DTensors that our operators are given, beside PyTorch's own operators of the whole tensors in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from by_name import COLS, EPS, NAMES, ours, torchs
from ranks import FP32, OF_ZEROS, RANKS, RECENT, Checks, Pair, full, grid, line, run_rank, uneven, values
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import norm_fusion

Placed = tuple[Placement, ...]
ROWS, KEPT, SUM = (Shard(0),), (Replicate(),), (Partial(),)
CHECKS = Checks()
CHECKS.uncontrolled = ("refusals", "second_gradients")  # the one compares nothing, the other what no kernel has made


def leaf(tensor: Tensor, mesh: DeviceMesh, placements: Placed = ROWS) -> Any:
    return distribute_tensor(tensor, mesh, placements).requires_grad_()


class Given(NamedTuple):
    """A tensor, where it lies, and where its gradient is to lie: None for there too."""

    tensor: Tensor
    placements: Placed
    gradient: Placed | None = None


def pairs(
    label: str,
    mesh: DeviceMesh,
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    own: Callable[..., Tensor | tuple[Tensor, ...]],
    given: Sequence[Given],
    incoming: Placed | None = None,
) -> Iterator[Pair]:
    """Outputs and gradients of a function of DTensors, and of PyTorch's own of the whole tensors.

    The outputs are to lie as the first tensor does. `incoming`: where their gradients lie, None for there too.
    """
    whole = [t.tensor.clone().requires_grad_() for t in given]
    placed = [leaf(t.tensor, mesh, t.placements) for t in given]
    found, wanted = (y if isinstance(y, tuple) else (y,) for y in (function(*placed), own(*whole)))
    gradients = [values(*y.shape, seed=9 + i) for i, y in enumerate(wanted)]
    torch.autograd.backward(wanted, gradients)
    arriving = given[0].placements if incoming is None else incoming
    if arriving == SUM:
        share = (dist.get_rank() + 1) / sum(range(1, RANKS + 1))
        torch.autograd.backward(found, [DTensor.from_local(dy * share, mesh, arriving) for dy in gradients])
    else:
        torch.autograd.backward(found, [distribute_tensor(dy, mesh, arriving) for dy in gradients])
    for i, (y, y_wanted) in enumerate(zip(found, wanted, strict=True)):
        assert y.shape == y_wanted.shape and y.stride() == y_wanted.stride() and y.dtype == y_wanted.dtype
        if y.dim() == given[0].tensor.dim():
            assert y.placements == given[0].placements, f"{label}: output {i} is {y.placements}"
        yield Pair(f"{label}: output {i}", full(y), y_wanted)
    for i, (p, q, t) in enumerate(zip(placed, whole, given, strict=True)):
        assert p.grad.placements == (t.gradient or t.placements), f"{label}: gradient {i} is {p.grad.placements}"
        yield Pair(f"{label}: gradient {i}", full(p.grad), q.grad)


def operands(name: str, shape: tuple[int, ...], rows: Placed, kept: Placed, summed: Placed) -> list[Given]:
    vectors = [values(COLS, seed=2 + i) for i in range(1 if "gated" in name else 2)]
    both = [values(*shape, seed=i) for i in range(1 if name in ("rms_norm", "layer_norm") else 2)]
    return [*[Given(t, rows) for t in both], *[Given(t, kept, summed) for t in vectors]]


def even_uneven_and_empty(name: str) -> Iterator[Pair]:
    mesh = line()
    for shape, rows in (
        ((4, 3, COLS), ROWS),
        ((3, 3, COLS), ROWS),
        ((1, 3, COLS), ROWS),
        ((2, uneven(5), COLS), (Shard(1),)),
        ((2, 3, COLS), KEPT),
    ):
        given = operands(name, shape, rows, KEPT, KEPT if rows == KEPT else SUM)
        yield from pairs(f"{shape} {rows}", mesh, partial(ours, name), partial(torchs, name), given)


for each in NAMES:
    CHECKS[f"{each}, shards even, uneven and empty"] = partial(even_uneven_and_empty, each)


@CHECKS.add
def meshes_of_two_dimensions() -> Iterator[Pair]:
    for shape in ((RANKS, 1), (1, RANKS)):
        mesh = grid(*shape)
        for rows, summed in (((*ROWS, Shard(1)), (*SUM, *SUM)), ((*ROWS, *KEPT), (*SUM, *KEPT))):
            given = operands("add_layer_norm", (3, uneven(3), COLS), rows, (*KEPT, *KEPT), summed)
            own = partial(torchs, "add_layer_norm")
            yield from pairs(f"{shape} {rows}", mesh, partial(ours, "add_layer_norm"), own, given)


@CHECKS.add
def an_empty_shard_has_gradients_of_zeros() -> Iterator[Pair]:
    x, w = leaf(values(1, COLS), line()), leaf(values(COLS), line(), KEPT)
    norm_fusion.rms_norm(x, (COLS,), w, EPS).sum().backward()
    own = values(COLS).requires_grad_()
    F.rms_norm(values(1, COLS), (COLS,), own, EPS).sum().backward()
    if dist.get_rank() == 0:
        yield Pair("dw", w.grad.to_local(), own.grad)
    else:
        assert torch.equal(w.grad.to_local(), torch.zeros(COLS)) and x.grad.to_local().shape == (0, COLS)


@CHECKS.add
def groups_of_columns_that_are_sharded() -> Iterator[Pair]:
    """As tensor parallel Mamba2 has them: whole groups on each rank, and the weight with them."""
    columns = (Shard(2),)
    given = [Given(values(2, 3, COLS, seed=i), columns) for i in range(2)] + [Given(values(COLS), ROWS)]
    name = "gated_rms_norm of groups"
    yield from pairs("groups", line(), partial(ours, name), partial(torchs, name), given)


@CHECKS.add
def weights_of_heads() -> Iterator[Pair]:
    each_head = (Shard(1),)
    for heads, rows, kept, summed in (
        (3, ROWS, KEPT, SUM),
        (4, each_head, ROWS, ROWS),
        (uneven(3), each_head, ROWS, ROWS),
        (uneven(1), each_head, ROWS, ROWS),
        (3, KEPT, KEPT, KEPT),
    ):
        vectors = [Given(values(heads, COLS, seed=i), kept, summed) for i in range(2)]
        given = [Given(values(3, heads, COLS, seed=2), rows), *vectors]
        for function, own in ((norm_fusion.rms_norm, F.rms_norm), (norm_fusion.layer_norm, F.layer_norm)):
            yield from pairs(
                f"{function.__name__} {heads} {rows}",
                line(),
                lambda x, w, b, function=function: function(x, (COLS,), w, bias=b, eps=EPS),
                lambda x, w, b, own=own: own(x, (COLS,), eps=EPS) * w + b,
                given,
            )


@CHECKS.add
def gradients_that_come_in_placed_otherwise() -> Iterator[Pair]:
    own, function = partial(torchs, "layer_norm"), partial(ours, "layer_norm")
    for rows, summed in ((ROWS, SUM), ((Shard(1),), SUM), (KEPT, KEPT)):
        given = operands("layer_norm", (3, 4, COLS), rows, KEPT, summed)
        for incoming in (*ROWS, Shard(1), Shard(2), *KEPT, *SUM):
            yield from pairs(f"{rows} from {incoming}", line(), function, own, given, (incoming,))


def rows_of_a_view_that_flattened_sharded_dimensions() -> Iterator[Pair]:
    """torch places them _StridedShard, which is no Shard."""
    given = operands("rms_norm", (3, 4, COLS), (Shard(1),), KEPT, SUM)
    yield from pairs(
        "flattened",
        line(),
        lambda x, *vectors: ours("rms_norm", x.flatten(0, 1), *vectors),
        lambda x, *vectors: torchs("rms_norm", x.flatten(0, 1), *vectors),
        given,
        KEPT,
    )


@CHECKS.add
def one_of_two_outputs_unused() -> Iterator[Pair]:
    given = operands("add_rms_norm", (3, COLS), ROWS, KEPT, SUM)
    weight, bias = (t.tensor for t in given[2:])
    for used in (0, 1):
        vectors = [leaf(v, line(), KEPT) for v in (weight, bias)]
        yield from pairs(
            f"output {used} used",
            line(),
            lambda x, r, used=used, vectors=vectors: ours("add_rms_norm", x, r, *vectors)[used].square(),
            lambda x, r, used=used: torchs("add_rms_norm", x, r, weight, bias)[used].square(),
            given[:2],
        )
        if RECENT:  # in 2.11 to_local makes zeros of it
            assert all((v.grad is None) is (used == 1) for v in vectors)


def second_gradients() -> Iterator[Pair]:
    """Of the input, and of the incoming gradient, which is redistributed on its way."""
    given = (values(3, COLS), values(COLS), values(3, COLS, seed=1))

    def of(x: Tensor, w: Tensor, dy: Tensor, normalize: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        dx, dw = torch.autograd.grad(normalize(x, (COLS,), w, 1e-3), (x, w), dy, create_graph=True)
        return (dx, dw, *torch.autograd.grad(dx.pow(2).sum() + dw.pow(3).sum(), (x, w, dy)))

    wanted = of(*[t.clone().requires_grad_() for t in given], F.rms_norm)
    for incoming in (ROWS, (Shard(1),), KEPT):
        placed = [leaf(t, line(), placements) for t, placements in zip(given, (ROWS, KEPT, incoming), strict=True)]
        found = of(*placed, norm_fusion.rms_norm)
        for which, p, q in zip(("dx", "dw", "ddx", "ddw", "ddy"), found, wanted, strict=True):
            yield Pair(f"{which} from {incoming}", full(p), q, 10 * FP32)


if RECENT:
    CHECKS.add(rows_of_a_view_that_flattened_sharded_dimensions)  # in 2.11 there is no such view
    CHECKS.add(second_gradients)


@CHECKS.add
def nothing_is_sent() -> Iterator[Pair]:
    mesh, mine = line(), [slice(0, 2), slice(2, 3)][dist.get_rank()]
    x, w = leaf(values(3, COLS), mesh), leaf(values(COLS), mesh, KEPT)
    dy = distribute_tensor(values(3, COLS, seed=1), mesh, ROWS)
    with CommDebugMode() as sent:
        y, h = norm_fusion.add_rms_norm(x, x, (COLS,), w, EPS)
        torch.autograd.backward((y, h), (dy, dy))
    assert sent.get_total_counts() == 0
    yield Pair("y", y.to_local(), F.rms_norm(2 * values(3, COLS), (COLS,), values(COLS), EPS)[mine])


@CHECKS.add
def without_gradients() -> Iterator[Pair]:
    x, w = leaf(values(3, COLS), line()), leaf(values(COLS), line(), KEPT)
    whole = values(3, COLS).requires_grad_()
    wanted = F.rms_norm(whole, (COLS,), values(COLS), EPS)
    with torch.no_grad():
        y = norm_fusion.rms_norm(x, (COLS,), w, EPS)
    assert not y.requires_grad and y.placements == ROWS
    yield Pair("under no_grad", full(y), wanted)
    assert not norm_fusion.rms_norm(x.detach(), (COLS,), w.detach(), EPS).requires_grad
    wanted.sum().backward()
    norm_fusion.rms_norm(x, (COLS,), w.detach(), EPS).sum().backward()
    yield Pair("dx with a frozen weight", full(x.grad), whole.grad)
    yield Pair("no weight", full(norm_fusion.rms_norm(x, (COLS,), eps=EPS)), F.rms_norm(whole, (COLS,), eps=EPS))


@CHECKS.add
def compiled_whole() -> Iterator[Pair]:
    for name in ("add_layer_norm", "gated_rms_norm of groups"):
        torch._dynamo.reset()
        compiled = torch.compile(partial(ours, name), backend="aot_eager", fullgraph=True)
        given = operands(name, (3, 3, COLS), ROWS, KEPT, SUM)
        for incoming in (ROWS, SUM):
            yield from pairs(f"{name} from {incoming}", line(), compiled, partial(torchs, name), given, incoming)


@CHECKS.add
def refusals() -> Iterator[Pair]:
    mesh, other = line(), grid(1, RANKS)

    def on(which: DeviceMesh, *placements: Placement, shape: tuple[int, ...] = (2, COLS)) -> DTensor:
        return DTensor.from_local(values(*shape), which, placements)

    vector, wide = (COLS,), (RANKS * COLS,)
    x, w = on(mesh, Shard(0)), on(mesh, Replicate(), shape=vector)
    rms, add = norm_fusion.rms_norm, norm_fusion.add_rms_norm
    whole = "redistribute(placements=[Replicate()])"
    refused: list[tuple[type[Exception], str, Callable[..., Any], tuple[Any, ...]]] = [
        (ValueError, "input is placed [Shard(1)]", rms, (on(mesh, Shard(1)), wide)),
        (ValueError, f"input.{whole}", rms, (on(mesh, Shard(1)), wide)),
        (ValueError, 'input is placed [Partial("sum")]', rms, (on(mesh, Partial()), vector)),
        (ValueError, "of its 2 dimensions the last 2 are normalized", rms, (x, (4, COLS))),
        (ValueError, "placements=[Replicate(), Replicate()])", rms, (on(other, Replicate(), Shard(1)), wide)),
        (ValueError, "input.redistribute(placements=[Shard(0), Repl", rms, (on(other, Shard(0), Partial()), vector)),
        (ValueError, "as after residual.redistribute", add, (on(mesh, Replicate()), on(mesh, Partial()), vector)),
        (ValueError, "gate is on DeviceMesh((1, 2)", norm_fusion.gated_rms_norm, (x, on(other, *KEPT, *ROWS), w)),
        (ValueError, f"weight.{whole}", rms, (x, vector, on(mesh, Shard(0), shape=(COLS // 2,)))),
        (ValueError, 'weight is placed [Partial("sum")]', rms, (x, vector, on(mesh, Partial(), shape=vector))),
        (ValueError, "weight.redistribute(placements=[Shard(0)])", rms, (x, vector, on(mesh, *KEPT, shape=(4, COLS)))),
        (TypeError, "distribute_tensor(weight, input.device_mesh, [Replicate()] *", rms, (x, vector, values(COLS))),
        (TypeError, "DTensor.from_local(residual, input.device_mesh, input", add, (x, values(4, COLS), vector)),
        (TypeError, "DTensor.from_local(input, weight.device_mesh", rms, (values(2, COLS), vector, w)),
        (TypeError, "residual is a DTensor and input is not", add, (values(4, COLS), x, vector)),
    ]
    for kind, message, function, given in refused:
        with pytest.raises(kind, match=re.escape(message)):
            function(*given)
    yield from ()


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks_do_what_pytorch_does(name: str, passes: Callable[[str], None]) -> None:
    passes(name)


@pytest.mark.parametrize("name", CHECKS.controlled)
def test_without_kernels_every_comparison_fails(name: str, passes: Callable[[str], None]) -> None:
    passes(name + OF_ZEROS)


def test_ordinary_tensors_import_no_torch_distributed_tensor() -> None:
    code = """
import sys, torch, norm_fusion
x = torch.randn(2, 16, requires_grad=True)
norm_fusion.add_rms_norm(x, x, (16,), torch.nn.Parameter(x[0].detach()))[0].sum().backward()
assert "torch.distributed.tensor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    run_rank(CHECKS, *sys.argv[1:])
