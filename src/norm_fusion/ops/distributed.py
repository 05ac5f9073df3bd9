"""DTensors: each rank normalizes the rows of its own shard, and nothing is sent.

A row must lie whole on one rank: input, residual and gate are Replicate, or Shard on a dimension that is not
normalized, all three alike, and so are the outputs. weight and bias are Replicate; where they have a row for each head
and the input is sharded on its heads, they are Shard(0), so that a rank has those of its own heads. Anything else is
refused: to redistribute it takes communication, and that is for the caller to decide.

The gradients of input, residual and gate are placed as these. That of a replicated weight or bias is a sum over the
rows of all ranks: Partial("sum") on mesh dimensions where the input is sharded, left to its reader to reduce, and
Replicate where the input is. An incoming gradient is first redistributed to the placements of the outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from norm_fusion.ops.norm import Norm, Operands

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement

Run = Callable[[Norm, Operands], tuple[Tensor, Tensor | None]]
LABELS = ("input", "residual", "gate", "weight", "bias")


def any_distributed(given: Operands) -> bool:
    """Is one of these a DTensor? Without a generator it takes 0.45 us a call, and not 1.4."""
    for tensor in given:
        kind = type(tensor)
        if tensor is None or kind is Tensor or kind is torch.nn.Parameter:
            continue
        if is_distributed(tensor):
            return True
    return False


def is_distributed(tensor: Tensor) -> bool:
    """Is it a DTensor? While torch.distributed.tensor is not imported, which takes a second, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def on_shards(norm: Norm, given: Operands, run: Run) -> tuple[Tensor, Tensor | None]:
    """What `run` makes of this rank's shards, as DTensors of the input's shape and placements.

    Raises:
        TypeError: some of the tensors are DTensors and others are not.
        ValueError: they are on different meshes, or placed as the above does not allow.
    """
    _check_kinds(given)
    x: Any = given.x  # Any: a DTensor has more than a Tensor
    leading = x.dim() - norm.trailing
    _check_rows(x, leading)
    shards: list[Any] = []
    for label, tensor in zip(LABELS, given, strict=True):
        held: Any = tensor
        if held is None:
            shards.append(None)
            continue
        vector = label in ("weight", "bias")
        placements = _of_vectors_gradient(label, held, x, leading) if vector else _of_rows_gradient(label, held, x)
        shards.append(held.to_local(grad_placements=placements))
    y, h = run(norm, Operands(*shards))
    return _whole(y, x), None if h is None else _whole(h, x)


def _whole(shard: Tensor, x: Any) -> Tensor:
    """The DTensor of x's shape and placements that this rank has a contiguous shard of."""
    from torch.distributed.tensor import DTensor

    stride: list[int] = []
    step = 1
    for size in reversed(x.shape):
        stride.insert(0, step)
        step *= max(size, 1)
    whole = DTensor.from_local(shard, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=tuple(stride))
    if whole.requires_grad and not torch.compiler.is_compiling():
        whole.register_hook(partial(_placed, x.placements))  # type: ignore[no-untyped-call]
    return whole


def _placed(placements: Sequence[Placement], gradient: Any) -> Any:
    """`from_local` would do the same next; but it is not differentiable, and second gradients would lack a part."""
    return None if gradient.placements == placements else gradient.redistribute(placements=placements)


def _check_kinds(given: Operands) -> None:
    """All are DTensors, on one mesh."""
    x: Any = given.x
    for label, tensor in zip(LABELS[1:], given[1:], strict=True):
        held: Any = tensor
        if held is None:
            continue
        if not is_distributed(x):
            if is_distributed(held):
                raise TypeError(
                    f"{label} is a DTensor and input is not: make input one, by DTensor.from_local(input, "
                    f"{label}.device_mesh, placements). A parameter under fully_shard is an ordinary tensor while its "
                    "module's forward runs: there, call the module"
                )
        elif not is_distributed(held):
            how = (
                f"distribute_tensor({label}, input.device_mesh, [Replicate()] * input.device_mesh.ndim), or a module's "
                "parameters by parallelize_module"
            )
            if label in ("residual", "gate"):
                how = f"DTensor.from_local({label}, input.device_mesh, input.placements) of each rank's part"
            raise TypeError(f"input is a DTensor and {label} is not: make {label} one, by {how}")
        elif held.device_mesh != x.device_mesh:
            raise ValueError(f"{label} is on {held.device_mesh}, input on {x.device_mesh}: they must be on one mesh")


def _check_rows(x: Any, leading: int) -> None:
    """Each row lies whole on one rank."""
    from torch.distributed.tensor import Replicate

    whole = [p if p.is_replicate() or (_is_shard(p) and p.dim < leading) else Replicate() for p in x.placements]
    if whole != list(x.placements):
        raise ValueError(
            f"input is placed {_show(x.placements)}, and of its {x.dim()} dimensions the last {x.dim() - leading} are "
            "normalized: it must be Replicate(), or Shard() on another dimension. Redistribute it, as by "
            f"input.redistribute(placements={_show(whole)})"
        )


def _of_rows_gradient(label: str, held: Any, x: Any) -> Sequence[Placement]:
    """The placements of the gradient of input, residual or gate."""
    if held.placements != x.placements:
        raise ValueError(
            f"{label} is placed {_show(held.placements)}, input {_show(x.placements)}: they must be placed alike, as "
            f"after {label}.redistribute(placements=input.placements)"
        )
    placements: Sequence[Placement] = x.placements
    return placements


def _of_vectors_gradient(label: str, held: Any, x: Any, leading: int) -> Sequence[Placement]:
    """The placements of the gradient of weight or bias."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    heads = leading - 1 if held.dim() > x.dim() - leading else None
    asked: list[Placement] = []
    gradient: list[Placement] = []
    for rows in x.placements:
        if _is_shard(rows) and rows.dim == heads:
            if type(rows) is not Shard:
                raise ValueError(
                    f"input is placed {_show(x.placements)}, and {label} has a row for each head: to say which heads a "
                    f"rank has, it must be Shard({heads}) there. Call the norm before the view that flattens input"
                )
            asked.append(Shard(0))
            gradient.append(Shard(0))
        else:
            asked.append(Replicate())
            gradient.append(Replicate() if rows.is_replicate() else Partial("sum"))
    if list(held.placements) != asked:
        raise ValueError(
            f"{label} is placed {_show(held.placements)}, input {_show(x.placements)}: with such an input it must be "
            f"{_show(asked)}, as after {label}.redistribute(placements={_show(asked)})"
        )
    return gradient


def _is_shard(placement: Placement) -> bool:
    """Shard, or what torch makes of it where a view flattens dimensions before it: _StridedShard, which is no Shard."""
    return not placement.is_replicate() and not placement.is_partial()


def _show(placements: Sequence[Any]) -> str:
    """As one would write them. torch.compile follows this, and not their repr."""
    shown: list[str] = []
    for placement in placements:
        if _is_shard(placement):
            shown.append(f"{type(placement).__name__}({placement.dim})")
        else:
            shown.append("Replicate()" if placement.is_replicate() else f'Partial("{placement.reduce_op}")')
    return f"[{', '.join(shown)}]"
