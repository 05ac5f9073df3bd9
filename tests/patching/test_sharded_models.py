"""A Llama under FSDP2, patched before it is sharded and after: what it does unpatched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import FP32_TRAINED, OF_ZEROS, Checks, Pair, full, line, run_rank, updates
from small_models import BF16, F32, FAMILIES, batch, build, enlarged
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from norm_fusion.patching import patch_model

CHECKS = Checks()
# bf16 rounds at 4e-3. Outputs were seen the same to the bit, as norms are rounded where PyTorch's are; of updates, in
# which more roundings follow each other, the largest difference seen was 1.3e-2.
BF16_OUTPUTS, BF16_TRAINED = 4e-3, 3e-2


def sharded(dtype: torch.dtype, patch: str) -> Any:
    """As torchtitan shards: the last norm is in a group with the head, and gets a class of FSDP's own."""
    model = enlarged(build("Llama").train())
    patched = [patch_model(model)] if patch == "before" else []
    policy = MixedPrecisionPolicy() if dtype == F32 else MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=F32)
    for modules in (*model.model.layers, [model.model.norm, model.lm_head], model):
        fully_shard(modules, mesh=line(), mp_policy=policy)
    patched += [patch_model(model)] if patch == "after" else []
    for report in patched:
        assert sum(map(len, report.replaced.values())) == FAMILIES["Llama"][2] and not report.left_alone
    return model


def training_step(dtype: torch.dtype, patch: str) -> Iterator[Pair]:
    own, model = sharded(dtype, "never"), sharded(dtype, patch)
    before = [full(parameter.detach()).clone() for parameter in own.parameters()]
    outputs = []
    for each in (own, model):
        output = each(**batch("Llama", seed=dist.get_rank()))
        output.loss.backward()
        torch.optim.SGD(each.parameters(), lr=0.1).step()
        outputs.append(output)
    of_outputs, of_updates = (FP32_TRAINED, FP32_TRAINED) if dtype == F32 else (BF16_OUTPUTS, BF16_TRAINED)
    wanted, found = outputs
    assert found.logits.dtype == wanted.logits.dtype == dtype
    yield Pair("logits", found.logits, wanted.logits, of_outputs)
    yield Pair("loss", found.loss, wanted.loss, of_outputs)
    yield from updates(model, own, before, of_updates)


for dtype in (F32, BF16):
    for patch in ("before", "after"):
        CHECKS[f"patched {patch}, {str(dtype)[6:]}"] = partial(training_step, dtype, patch)


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks_train_as_without_the_patch(name: str, passes: Callable[[str], None]) -> None:
    passes(name)


@pytest.mark.parametrize("name", CHECKS.controlled)
def test_without_kernels_every_comparison_fails(name: str, passes: Callable[[str], None]) -> None:
    passes(name + OF_ZEROS)


if __name__ == "__main__":
    run_rank(CHECKS, *sys.argv[1:])
