"""Which implementation runs: the kernels at once, through PyTorch's dispatcher, or PyTorch's own operators.

A call is checked, and its kernel chosen, where none that looks like it came before (`CALLS`); else it takes about as
long as one of PyTorch's, and most of what it takes is the launch.

Tensors go to the kernels where `uses_triton` says so, and others, as all inside torch.func's transforms and
forward-mode differentiation, to PyTorch's operators.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from norm_fusion.ops.autograd import holds_its_values, normalize_with_gradient
from norm_fusion.ops.composition import composition
from norm_fusion.ops.distributed import any_distributed, on_shards
from norm_fusion.ops.forward import Forward, prepared
from norm_fusion.ops.library import through_dispatcher
from norm_fusion.ops.norm import Norm, Operands, check
from norm_fusion.ops.rows import KEPT, look
from norm_fusion.ops.where import HAS_TRITON, uses_triton

# A fact of the installation, looked up once: torch.compile reads it as a constant.
AUTOCAST_TO_FP32 = {
    (centred, device)
    for centred, name in ((False, "aten::rms_norm"), (True, "aten::layer_norm"))
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"))
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
}


class Call:
    """A call that goes to the kernels at once, and all that look like it."""

    __slots__ = ("forward", "norm", "saving")

    def __init__(self, norm: Norm, given: Operands) -> None:
        looks = tuple(map(look, given))
        self.norm = norm
        self.forward: Forward = prepared(norm, False, *looks)
        wants_gradient = any(t is not None and t.requires_grad for t in given)
        self.saving: Forward | None = prepared(norm, True, *looks) if wants_gradient else None

    def __call__(self, given: Operands) -> tuple[Tensor, Tensor | None]:
        if self.saving is not None and torch.is_grad_enabled():
            return normalize_with_gradient(self.norm, self.saving, given)
        y, h, _ = self.forward(given)
        return y, h


CALLS: dict[tuple[Any, ...], Call] = {}


def normalize(name: str, norm: Norm, shape: tuple[int, ...], given: Operands) -> tuple[Tensor, Tensor | None]:
    """y, and the new residual where one was given. `name` is the function's that was called, for what is refused."""
    alike = _alike(norm, shape, given)
    call = None if alike is None else CALLS.get(alike)
    if call is not None:
        return call(given)
    check(name, norm, shape, given)
    norm = _autocast(norm, given.x)
    if any_distributed(given):
        return on_shards(norm, given, _run)
    if alike is None:
        return _run(norm, given)
    if len(CALLS) >= KEPT:
        CALLS.clear()
    CALLS[alike] = call = Call(norm, given)
    return call(given)


def _alike(norm: Norm, shape: tuple[int, ...], given: Operands) -> tuple[Any, ...] | None:
    """What decides how a call is done, but for values, addresses and the grad mode; None: not by the kernels at once.

    Tensors hold their values themselves, no mode and no transform wants to see the call.
    """
    x = given.x
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):  # no tensor is refused, by `check`
        return None
    for size in shape:
        if type(size) is not int:  # a compiler's, which has no hash
            return None
    if forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack() or _transformed():
        return None
    if not (HAS_TRITON if x.is_cuda else uses_triton(x.device.type)):
        return None
    # CUDA's, without an argument: "cuda" makes 0.1 us 0.5.
    autocast = torch.is_autocast_enabled() if x.is_cuda else torch.is_autocast_enabled(x.device.type)
    seen = [None if t is None else _seen(t) for t in given]
    return None if False in seen else (norm, shape, autocast, *seen)


def _seen(tensor: Tensor) -> Literal[False] | tuple[Any, ...]:
    if not holds_its_values(tensor):
        return False
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _run(norm: Norm, given: Operands) -> tuple[Tensor, Tensor | None]:
    """What was checked, in whatever way it must take."""
    if not uses_triton(given.x.device.type) or forward_ad._current_level >= 0 or _transformed():
        return composition(norm, given)
    if _alike(norm, (), given) is not None:
        return Call(norm, given)(given)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return through_dispatcher(norm, given, wants_gradient)


def _transformed() -> bool:
    """Inside torch.func's transforms, which an opaque kernel has no rule for?"""
    return torch._C._functorch.peek_interpreter_stack() is not None


# torch.compile calls it, and compiles anew for other transforms. (torch.compiler.assume_constant_result, which says so,
# imports the compiler, and that Triton.)
_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _autocast(norm: Norm, x: Tensor) -> Norm:
    """Under autocast the output is of the dtype that torch.nn.functional's has in the installed torch."""
    device = x.device.type
    if norm.out_dtype is None and (norm.centred, device) in AUTOCAST_TO_FP32 and torch.is_autocast_enabled(device):
        return norm._replace(out_dtype=torch.float32)
    return norm
