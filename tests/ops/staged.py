"""A backend of torch.distributed for processes that share one GPU: gloo, by way of the host's memory.

NCCL takes one process a GPU, and gloo crashes on CUDA tensors in some of its collectives (pytorch/pytorch#152645).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

# In PyTorch 2.11 and in 2.13, which renamed some of them. The first argument of each is written, and what it returns.
COLLECTIVES = (
    *("allreduce", "allreduce_coalesced", "broadcast", "scatter"),
    *("allgather", "_allgather_base", "all_gather_single"),
    *("allgather_into_tensor_coalesced", "all_gather_single_coalesced"),
    *("reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single"),
    *("reduce_scatter_tensor_coalesced", "reduce_scatter_single_coalesced"),
    *("alltoall_base", "all_to_all_single"),
)


class Staged(dist.ProcessGroup):
    """gloo's collectives, on copies in the host's memory."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        gloo, kind = dist.ProcessGroupGloo(store, rank, size, timeout), dist.ProcessGroup.BackendType.GLOO
        self.host = dist.ProcessGroup(store, rank, size)
        self.host._set_default_backend(kind)
        self.host._register_backend(torch.device("cpu"), kind, gloo)

    def getBackendName(self) -> str:  # noqa: N802, torch's own name
        return "staged"

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]


def _staged(collective: str) -> Callable[..., dist.Work]:
    def run(self: Staged, *args: Any) -> dist.Work:
        copies = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), args)
        getattr(self.host, collective)(*copies).wait()
        with torch.no_grad():
            for tensor, copy in zip(tree_leaves(args[0]), tree_leaves(copies[0]), strict=True):
                tensor.copy_(copy)
        done: Any = torch.futures.Future()
        done.set_result(args[0])
        return torch._C._distributed_c10d._create_work_from_future(done)

    return run


for name in COLLECTIVES:
    if hasattr(dist.ProcessGroup, name):
        setattr(Staged, name, _staged(name))
dist.Backend.register_backend("staged", Staged, devices=["cpu", "cuda"])
