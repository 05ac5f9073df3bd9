"""Training under FSDP2 and with sequence parallel, beside PyTorch's own operators in one process."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from by_name import COLS, EPS, ours, torchs
from ranks import FP32_TRAINED, OF_ZEROS, RANKS, Checks, Pair, line, run_rank, uneven, updates, values
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import norm_fusion

CHECKS = Checks()
STEPS = 2
# bf16 rounds at 4e-3, after each of a few layers, and each rank's part of a gradient once more.
BF16_TRAINED = 3e-2


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


@CHECKS.add
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
    x, target = (values(2, uneven(5), COLS, seed=i) for i in range(2))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (own, model)]
    for step in range(STEPS):
        wanted = F.mse_loss(own(x), target)
        wanted.backward()
        y = model(distribute_tensor(x, mesh, [Shard(1)]))
        found = F.mse_loss(y.full_tensor(), target)
        found.backward()
        assert y.placements == (Shard(1),) and model.before.bias.grad.placements == (Partial(),)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield Pair(f"loss of step {step}", found, wanted, FP32_TRAINED)
    yield from updates(model, own, before, FP32_TRAINED)


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks_do_what_pytorch_does(name: str, passes: Callable[[str], None]) -> None:
    passes(name)


@pytest.mark.parametrize("name", CHECKS.controlled)
def test_without_kernels_every_comparison_fails(name: str, passes: Callable[[str], None]) -> None:
    passes(name + OF_ZEROS)


if __name__ == "__main__":
    run_rank(CHECKS, *sys.argv[1:])
