"""What is asked of an operator besides its tensors, and the refusal of what it cannot do."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EPS = torch.finfo(torch.float32).eps  # RMSNorm's, where none is given
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


def ask(
    centred: bool,
    normalized_shape: Sequence[int],
    eps: float,
    offset: float,
    cast_first: bool,
    gate_first: bool = False,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
) -> tuple[Norm, tuple[int, ...]]:
    """A Norm from a caller's arguments, whose values that are no tensors it refuses here; and normalized_shape.

    Every call comes here: what is usual is seen by its type, without a function's call.
    """
    shape = normalized_shape if type(normalized_shape) is tuple else _ints(normalized_shape)
    for size in shape:
        if type(size) is not int:
            shape = _ints(shape)
            break
    if type(eps) is not float:
        eps = _real("eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}: it must be 0 or more, and finite")
    if type(offset) is not float:
        offset = _real("offset", offset)
    if not -math.inf < offset < math.inf:
        raise ValueError(f"offset is {offset}: it must be finite")
    if type(cast_first) is not bool:
        require_bool("cast_first", cast_first)
    if type(gate_first) is not bool:
        require_bool("gate_first", gate_first)
    for label, dtype in (("out_dtype", out_dtype), ("residual_dtype", residual_dtype)):
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"{label} is {dtype}: it must be one of {_names(DTYPES)}, or None")
    return Norm(centred, len(shape), eps, offset, cast_first, gate_first, out_dtype, residual_dtype), shape


def _ints(sizes: object) -> tuple[int, ...]:
    found = [as_int(size) for size in sizes] if isinstance(sizes, Sequence) else [None]
    if None in found:
        raise TypeError(f"normalized_shape is {sizes!r}: it must be a sequence of ints, as (4096,)")
    return tuple(found)  # type: ignore[arg-type]


def as_int(value: Any) -> int | None:
    """An int, NumPy's too, or a compiler's, which stays one; None for all others, as bools and floats."""
    if isinstance(value, (int, torch.SymInt)):
        return None if isinstance(value, bool) else value  # type: ignore[return-value]
    try:
        return operator.index(value)
    except TypeError:
        return None


def require_bool(label: str, value: object) -> None:
    """NumPy's is none: it has the name, and not the identity."""
    kind = type(value)
    if kind is not bool:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(f"{label} is a {name}: it must be a bool")


def _real(label: str, value: Any) -> float:
    # Dynamo shows NumPy's numbers as tensors.
    real = isinstance(value, Real) and not isinstance(value, (bool, Tensor))
    if not (real or torch.compiler.is_compiling()):
        raise TypeError(f"{label} is a {type(value).__name__}: it must be a float")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{label} is too large an int: it must be a float") from None


def require_tensor(name: str, label: str, value: object) -> None:
    """Refuse what is no strided tensor of a dtype that the kernels have."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{label} is a {type(value).__name__}: {name} takes a torch.Tensor")
    if value.dtype not in DTYPES:
        raise TypeError(f"{label} is {value.dtype}: {name} takes {_names(DTYPES)}")
    if value.layout is not torch.strided or value.is_nested:
        seen = "nested" if value.is_nested else value.layout
        raise TypeError(f"{label} is {seen}: {name} takes {torch.strided}")


def check(name: str, norm: Norm, shape: tuple[int, ...], given: Operands) -> None:
    """Refuse tensors that the operator cannot do, naming the argument, what was seen and what is allowed."""
    x = given.x
    require_tensor(name, "input", x)
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
        require_tensor(name, label, tensor)
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
    if norm.offset and given.weight is None:
        raise ValueError(f"offset is {norm.offset} and there is no weight to add it to")


def check_call(norm: Norm, given: Operands) -> None:
    """Refuse what one who calls torch.ops.norm_fusion himself may hand it, and `functional` does not."""
    name = "layer_norm" if norm.centred else "rms_norm"
    ask(norm.centred, _row(norm, given.x), *norm[2:])
    check(name, norm, _row(norm, given.x), given)
    if given.gate is not None and norm.centred:
        raise ValueError("gate is given, and layer_norm has none: pass None")


def check_backward_call(
    norm: Norm, dy: Tensor, dh: Tensor | None, given: Operands, saved: Tensor, dtypes: Sequence[torch.dtype]
) -> None:
    """The same of a backward; `given.x` is its h."""
    check_call(norm, given)
    h, leading = given.x, given.x.dim() - norm.trailing
    for label, gradient in (("dy", dy), ("dh", dh)):
        if gradient is None:
            continue
        require_tensor("a backward", label, gradient)
        if gradient.shape != h.shape or gradient.device != h.device:
            raise ValueError(
                f"{label} has shape {list(gradient.shape)} on {gradient.device}, h {list(h.shape)} on {h.device}: "
                "they must match"
            )
    rows = math.prod(h.shape[:leading])
    shape = (2, rows) if norm.centred else (rows,)
    if saved.shape != shape or saved.dtype != torch.float32 or saved.device != h.device or not saved.is_contiguous():
        raise ValueError(
            f"saved is {saved.dtype} of shape {list(saved.shape)} on {saved.device}: it must be what the forward "
            f"saved, torch.float32 of shape {list(shape)}, contiguous, on {h.device}"
        )
    for label, dtype in zip(("input_dtype", "old_residual_dtype"), dtypes, strict=True):
        if dtype not in DTYPES:
            raise TypeError(f"{label} is {dtype}: a backward takes {_names(DTYPES)}")


def _row(norm: Norm, x: Tensor) -> tuple[int, ...]:
    if not 1 <= norm.trailing <= x.dim():
        raise ValueError(f"trailing is {norm.trailing}, input has shape {list(x.shape)}: it must be 1 to {x.dim()}")
    return x.shape[x.dim() - norm.trailing :]


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)
