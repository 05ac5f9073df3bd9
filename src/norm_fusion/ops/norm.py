"""What is asked of an operator besides its tensors, and the refusal of what it cannot do."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_COLS = 2**31 - 1  # columns are counted in 32 bits


class Norm(NamedTuple):
    """A normalization over the last `trailing` dimensions; what each field means, `functional` says.

    `centred`: LayerNorm, else RMSNorm. `out_dtype` and `residual_dtype`: None for the input's and the residual's own.
    """

    centred: bool
    trailing: int
    eps: float
    offset: float = 0.0
    cast_first: bool = False
    gate_first: bool = False
    out_dtype: torch.dtype | None = None
    residual_dtype: torch.dtype | None = None


class Operands(NamedTuple):
    """The tensors: x, residual and gate of one shape, weight and bias of its last dimensions."""

    x: Tensor
    residual: Tensor | None
    gate: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def check(name: str, norm: Norm, shape: tuple[int, ...], given: Operands) -> None:
    """Refuse what the operator cannot do, naming the argument, what was seen and what is allowed."""
    x = given.x
    if not isinstance(x, Tensor):
        raise TypeError(f"input is a {type(x).__name__}: {name} takes a torch.Tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"input is {x.dtype}: {name} takes {_names(DTYPES)}")
    if x.layout is not torch.strided:
        raise TypeError(f"input is {x.layout}: {name} takes {torch.strided}")
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(
            f"normalized_shape is {list(shape)}, input has shape {list(x.shape)}: "
            "it must be one or more of input's trailing dimensions"
        )
    if math.prod(shape) > MAX_COLS:
        raise ValueError(f"normalized_shape is {list(shape)}: a row has at most {MAX_COLS:,} elements")
    for label in ("residual", "gate", "weight", "bias"):
        tensor = getattr(given, label)
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{label} is a {type(tensor).__name__}: {name} takes a torch.Tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{label} is {tensor.dtype}: {name} takes {_names(DTYPES)}")
        if tensor.device != x.device:
            raise ValueError(f"{label} is on {tensor.device}, input on {x.device}: they must be on one device")
        if label in ("residual", "gate"):
            if tensor.shape != x.shape:
                raise ValueError(
                    f"{label} has shape {list(tensor.shape)}, input has shape {list(x.shape)}: they must match"
                )
        elif tensor.shape != shape and (tensor.dim() == len(shape) or tensor.shape != x.shape[-len(shape) - 1 :]):
            raise ValueError(
                f"{label} has shape {list(tensor.shape)}, normalized_shape is {list(shape)}: they must match, "
                f"or {label} has one dimension more, for the heads, and input of shape {list(x.shape)} ends with it"
            )
    if given.weight is not None and given.bias is not None and given.weight.shape != given.bias.shape:
        raise ValueError(
            f"bias has shape {list(given.bias.shape)}, weight has shape {list(given.weight.shape)}: they must match"
        )
    for label, dtype in (("out_dtype", norm.out_dtype), ("residual_dtype", norm.residual_dtype)):
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"{label} is {dtype}: {name} takes {_names(DTYPES)}")
    if norm.offset and given.weight is None:
        raise ValueError(f"offset is {norm.offset} and there is no weight to add it to")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)
