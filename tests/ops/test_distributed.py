"""DTensors, FSDP2 and sequence parallel, with two processes over gloo on this machine.

The two are started once and run all of CHECKS, one after the other; each test then reads what became of one of them.
A check does everything on both ranks, and yields what it found beside what PyTorch's own operators give for the whole
tensors in one process. The kernels run in Triton's interpreter. All is run again without them, where outputs are zeros,
and then no comparison may pass.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import norm_fusion
from norm_fusion.kernels.dispatch import Dispatch

RANKS = 2
# Seconds. About 40 on two idle cores; three times that beside other work, where Python compiles all of torch anew.
DEADLINE = 400
COLS, EPS = 24, 1e-5
# Errors are of the largest value. fp32 rounds at 6e-8, and a sum here has a few dozen terms; in training they add up.
FP32, FP32_TRAINED = 2e-6, 2e-5
# bf16 rounds at 4e-3, after each of a few layers, and each rank's part of a gradient once more.
BF16_TRAINED = 3e-2


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
Placed = tuple[Placement, ...]
CHECKS: dict[str, Check] = {}
ROWS, KEPT, SUM = (Shard(0),), (Replicate(),), (Partial(),)


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (RANKS,))


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


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


NAMES = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", "gated_rms_norm", "gated_rms_norm of groups")


def ours(name: str, *given: Any) -> tuple[Tensor, ...]:
    """One of NAMES of input, residual or gate if it has one, weight and bias."""
    if name == "gated_rms_norm":
        return (norm_fusion.gated_rms_norm(*given, EPS),)
    if name == "gated_rms_norm of groups":
        return (norm_fusion.gated_rms_norm(*given, EPS, group_size=COLS // 4, norm_before_gate=False),)
    *rows, weight, bias = given
    found = getattr(norm_fusion, name)(*rows, (COLS,), weight, bias=bias, eps=EPS)
    return found if isinstance(found, tuple) else (found,)


def torchs(name: str, x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    if name == "gated_rms_norm":
        return (F.rms_norm(x, (COLS,), given[1], EPS) * F.silu(given[0]),)
    if name == "gated_rms_norm of groups":
        groups = (x * F.silu(given[0])).unflatten(-1, (4, COLS // 4))
        return (F.rms_norm(groups, (COLS // 4,), None, EPS).flatten(-2) * given[1],)
    weight, bias = given[-2:]
    x = x + given[0] if "add" in name else x
    y = F.layer_norm(x, (COLS,), weight, bias, EPS) if "layer" in name else F.rms_norm(x, (COLS,), weight, EPS) + bias
    return (y, x) if "add" in name else (y,)


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
        ((2, 5, COLS), (Shard(1),)),
        ((2, 3, COLS), KEPT),
    ):
        given = operands(name, shape, rows, KEPT, KEPT if rows == KEPT else SUM)
        yield from pairs(f"{shape} {rows}", mesh, partial(ours, name), partial(torchs, name), given)


for each in NAMES:
    CHECKS[f"{each}, shards even, uneven and empty"] = partial(even_uneven_and_empty, each)


@check
def meshes_of_two_dimensions() -> Iterator[Pair]:
    for shape in ((RANKS, 1), (1, RANKS)):
        mesh = init_device_mesh("cpu", shape)
        for rows, summed in (((*ROWS, Shard(1)), (*SUM, *SUM)), ((*ROWS, *KEPT), (*SUM, *KEPT))):
            given = operands("add_layer_norm", (3, 3, COLS), rows, (*KEPT, *KEPT), summed)
            own = partial(torchs, "add_layer_norm")
            yield from pairs(f"{shape} {rows}", mesh, partial(ours, "add_layer_norm"), own, given)


@check
def an_empty_shard_has_gradients_of_zeros() -> Iterator[Pair]:
    x, w = leaf(values(1, COLS), line()), leaf(values(COLS), line(), KEPT)
    norm_fusion.rms_norm(x, (COLS,), w, EPS).sum().backward()
    own = values(COLS).requires_grad_()
    F.rms_norm(values(1, COLS), (COLS,), own, EPS).sum().backward()
    if dist.get_rank() == 0:
        yield Pair("dw", w.grad.to_local(), own.grad)
    else:
        assert torch.equal(w.grad.to_local(), torch.zeros(COLS)) and x.grad.to_local().shape == (0, COLS)


@check
def groups_of_columns_that_are_sharded() -> Iterator[Pair]:
    """As tensor parallel Mamba2 has them: whole groups on each rank, and the weight with them."""
    columns = (Shard(2),)
    given = [Given(values(2, 3, COLS, seed=i), columns) for i in range(2)] + [Given(values(COLS), ROWS)]
    name = "gated_rms_norm of groups"
    yield from pairs("groups", line(), partial(ours, name), partial(torchs, name), given)


@check
def weights_of_heads() -> Iterator[Pair]:
    each_head = (Shard(1),)
    for heads, rows, kept, summed in (
        (3, ROWS, KEPT, SUM),
        (4, each_head, ROWS, ROWS),
        (3, each_head, ROWS, ROWS),
        (1, each_head, ROWS, ROWS),
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


@check
def gradients_that_come_in_placed_otherwise() -> Iterator[Pair]:
    own, function = partial(torchs, "layer_norm"), partial(ours, "layer_norm")
    for rows, summed in ((ROWS, SUM), ((Shard(1),), SUM), (KEPT, KEPT)):
        given = operands("layer_norm", (3, 4, COLS), rows, KEPT, summed)
        for incoming in (*ROWS, Shard(1), Shard(2), *KEPT, *SUM):
            yield from pairs(f"{rows} from {incoming}", line(), function, own, given, (incoming,))


@check
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


@check
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
        assert all((v.grad is None) is (used == 1) for v in vectors)


@check
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


@check
def nothing_is_sent() -> Iterator[Pair]:
    mesh, mine = line(), [slice(0, 2), slice(2, 3)][dist.get_rank()]
    x, w = leaf(values(3, COLS), mesh), leaf(values(COLS), mesh, KEPT)
    dy = distribute_tensor(values(3, COLS, seed=1), mesh, ROWS)
    with CommDebugMode() as sent:
        y, h = norm_fusion.add_rms_norm(x, x, (COLS,), w, EPS)
        torch.autograd.backward((y, h), (dy, dy))
    assert sent.get_total_counts() == 0
    yield Pair("y", y.to_local(), F.rms_norm(2 * values(3, COLS), (COLS,), values(COLS), EPS)[mine])


@check
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


@check
def compiled_whole() -> Iterator[Pair]:
    for name in ("add_layer_norm", "gated_rms_norm of groups"):
        torch._dynamo.reset()
        compiled = torch.compile(partial(ours, name), backend="aot_eager", fullgraph=True)
        given = operands(name, (3, 3, COLS), ROWS, KEPT, SUM)
        for incoming in (ROWS, SUM):
            yield from pairs(f"{name} from {incoming}", line(), compiled, partial(torchs, name), given, incoming)


@check
def refusals() -> Iterator[Pair]:
    mesh, other = line(), init_device_mesh("cpu", (1, RANKS))

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


STEPS = 2


class Norm(nn.Module):
    """One of NAMES with its parameters, ours or PyTorch's own."""

    def __init__(self, name: str, mine: bool) -> None:
        super().__init__()
        self.function = partial(ours if mine else torchs, name)
        self.weight, self.bias = nn.Parameter(1 + values(COLS) / 4), nn.Parameter(values(COLS, seed=1) / 4)

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return self.function(*rows, self.weight, self.bias)


class Block(nn.Module):
    """`reentrant`: how its activations are checkpointed, None for not."""

    def __init__(self, name: str, mine: bool, reentrant: bool | None) -> None:
        super().__init__()
        self.before, self.linear, self.after = Norm(name, mine), nn.Linear(COLS, COLS), Norm("add_" + name, mine)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)

    def block(self, x: Tensor) -> Tensor:
        y, h = self.after(F.gelu(self.linear(self.before(x)[0])), x)
        return y + h / 2


def blocks(mine: bool, reentrant: bool | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    inner = [Block(name, mine, reentrant) for name in ("rms_norm", "layer_norm")]
    return nn.Sequential(nn.Linear(8, COLS), *inner, nn.Linear(COLS, 2))


def updates(model: nn.Module, own: nn.Module, before: Sequence[Tensor], tolerance: float) -> Iterator[Pair]:
    """What training has added to each parameter."""
    for (name, found), wanted, old in zip(model.named_parameters(), own.parameters(), before, strict=True):
        yield Pair(f"update of {name}", full(found.detach()) - old, wanted.detach() - old, tolerance)


def fully_sharded(reentrant: bool | None, dtype: torch.dtype) -> Iterator[Pair]:
    own, model = blocks(mine=False), blocks(True, reentrant)
    before = [parameter.detach().clone() for parameter in own.parameters()]
    exact = dtype == torch.float32
    policy = MixedPrecisionPolicy() if exact else MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*model[1:3], model):
        fully_shard(module, mesh=line(), mp_policy=policy)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (own, model)]
    x, target = values(6, 3, 8), values(6, 3, 2) + 2  # far off: gradients are no small differences of large ones
    mine = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3)
    tolerance = FP32_TRAINED if exact else BF16_TRAINED
    for step in range(STEPS):
        lowered = copy.deepcopy(own).to(dtype)
        wanted = F.mse_loss(lowered(x.to(dtype)).float(), target)
        wanted.backward()
        for parameter, low in zip(own.parameters(), lowered.parameters(), strict=True):
            parameter.grad = low.grad.float()
        found = F.mse_loss(model(x[mine]).float(), target[mine])
        found.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mean = found.detach() / RANKS
        dist.all_reduce(mean)
        yield Pair(f"loss of step {step}", mean, wanted, tolerance)
    yield from updates(model, own, before, tolerance)


for label, how in (("", None), (", checkpointed", False), (", checkpointed reentrantly", True)):
    CHECKS[f"fully_shard in fp32{label}"] = partial(fully_sharded, how, torch.float32)
    CHECKS[f"fully_shard in bf16{label}"] = partial(fully_sharded, how, torch.bfloat16)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return norm_fusion.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return norm_fusion.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class Mlp(nn.Module):
    def __init__(self, before: type[nn.LayerNorm], after: type[nn.RMSNorm]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = before(COLS), after(COLS, EPS)
        self.up, self.down = nn.Linear(COLS, 2 * COLS), nn.Linear(2 * COLS, COLS)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.down(F.gelu(self.up(self.before(x)))))


@check
def sequence_parallel() -> Iterator[Pair]:
    """Around linear layers that are sharded by columns and by rows. The gradient of `before` is still being sent when
    its backward is called; the norms' own are partial sums, which the optimizer adds up."""
    mesh, own = line(), Mlp(nn.LayerNorm, nn.RMSNorm)
    before = [parameter.detach().clone() for parameter in own.parameters()]
    plan = {
        "before": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "after": SequenceParallel(),
    }
    model = parallelize_module(Mlp(LayerNorm, RMSNorm), mesh, plan)
    x, target = values(2, 5, COLS), values(2, 5, COLS, seed=1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (own, model)]
    for step in range(STEPS):
        wanted = F.mse_loss(own(x), target)
        wanted.backward()
        y = model(distribute_tensor(x, mesh, [Shard(1)]))
        found = F.mse_loss(y.full_tensor(), target)
        found.backward()
        assert y.placements == (Shard(1),) and model.before.bias.grad.placements == SUM
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield Pair(f"loss of step {step}", found, wanted, FP32_TRAINED)
    yield from updates(model, own, before, FP32_TRAINED)


UNCONTROLLED = ("refusals", "second_gradients")  # the one compares nothing, the other what no kernel has made
OF_ZEROS = "; without kernels"


@contextmanager
def zeros() -> Iterator[None]:
    """Kernels write nothing, and memory is zeros where it is allocated."""
    with (
        mock.patch.object(Dispatch, "__call__", return_value=None),
        mock.patch.object(torch, "empty", torch.zeros),
        mock.patch.object(torch, "empty_like", torch.zeros_like),
    ):
        yield


def problem(name: str) -> str | None:
    wrong = [
        f"{pair.name} is off by {pair.error:.2g} of the largest, {pair.tolerance:.2g} is allowed"
        for pair in CHECKS[name]()
        if not pair.agrees
    ]
    return "\n".join(wrong) or None


def problem_of_zeros(name: str) -> str | None:
    with zeros():
        agreed = [pair.name for pair in CHECKS[name]() if pair.agrees]
    return f"agreed although no kernel ran: {', '.join(agreed)}" if agreed else None


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    jobs = [(name, partial(problem, name)) for name in CHECKS]
    jobs += [(name + OF_ZEROS, partial(problem_of_zeros, name)) for name in CHECKS if name not in UNCONTROLLED]
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


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What the ranks have to say of a check, nothing where it passed.

    They meet in a file of their own, and gloo takes the ports that the system gives it: no two runs are in each other's
    way.
    """
    folder = tmp_path_factory.mktemp("ranks")
    here = {"TRITON_INTERPRET": "1", "NORM_FUSION_FORCE_TRITON": "1", "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        here["GLOO_SOCKET_IFNAME"] = "lo"  # not what the name of this machine may resolve to
    ranks, ended = [], []
    for rank in range(RANKS):
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, __file__, str(rank), str(folder)]
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


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks_do_what_pytorch_does(name: str, complaints: Callable[[str], str]) -> None:
    if said := complaints(name):
        pytest.fail(said, pytrace=False)


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in UNCONTROLLED])
def test_without_kernels_every_comparison_fails(name: str, complaints: Callable[[str], str]) -> None:
    if said := complaints(name + OF_ZEROS):
        pytest.fail(said, pytrace=False)


def test_ordinary_tensors_import_no_torch_distributed_tensor() -> None:
    code = """
import sys, torch, norm_fusion
x = torch.randn(2, 16, requires_grad=True)
norm_fusion.add_rms_norm(x, x, (16,), torch.nn.Parameter(x[0].detach()))[0].sum().backward()
assert "torch.distributed.tensor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
