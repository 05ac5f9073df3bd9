"""Which implementation runs: the kernels at once, through PyTorch's dispatcher, or PyTorch's own operators.

A CUDA tensor goes to the Triton kernels, any other to PyTorch's operators, as does a CUDA tensor where Triton is not
installed, and any inside torch.func's transforms and forward-mode differentiation. NORM_FUSION_FORCE_TRITON=1 sends CPU
tensors through the kernels too, in Triton's interpreter: for tests.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad

from norm_fusion.ops.autograd import Normalize, holds_its_values
from norm_fusion.ops.composition import composition
from norm_fusion.ops.distributed import any_distributed, on_shards
from norm_fusion.ops.forward import forward
from norm_fusion.ops.library import through_dispatcher
from norm_fusion.ops.norm import Norm, Operands, check

FORCE_TRITON = "NORM_FUSION_FORCE_TRITON"
# Facts of the installation, looked up once: torch.compile reads them as constants.
HAS_TRITON = importlib.util.find_spec("triton") is not None
AUTOCAST_TO_FP32 = {
    (centred, device)
    for centred, name in ((False, "aten::rms_norm"), (True, "aten::layer_norm"))
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"))
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
}


def normalize(name: str, norm: Norm, shape: tuple[int, ...], given: Operands) -> tuple[Tensor, Tensor | None]:
    """y, and the new residual where one was given. `name` is the function's that was called, for what is refused."""
    check(name, norm, shape, given)
    norm = _autocast(norm, given.x)
    return on_shards(norm, given, _run) if any_distributed(given) else _run(norm, given)


def _run(norm: Norm, given: Operands) -> tuple[Tensor, Tensor | None]:
    if not uses_triton(given.x.device.type) or forward_ad._current_level >= 0 or _transformed():
        return composition(norm, given)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    if torch.compiler.is_compiling() or not _plain(given):
        return through_dispatcher(norm, given, wants_gradient)
    if wants_gradient:
        y, h = Normalize.apply(norm, *given)  # type: ignore[no-untyped-call]
        return y, h
    y, h, _ = forward(norm, given, save=False)
    return y, h


def _transformed() -> bool:
    """Inside torch.func's transforms, which an opaque kernel has no rule for?"""
    return torch._C._functorch.peek_interpreter_stack() is not None


# torch.compile calls it, and compiles anew for other transforms. (torch.compiler.assume_constant_result, which says so,
# imports the compiler, and that Triton.)
_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _plain(given: Operands) -> bool:
    """Tensors that hold their values themselves, and no mode that wants to see the call?"""
    return torch._C._len_torch_dispatch_stack() == 0 and all(map(holds_its_values, given))


def _autocast(norm: Norm, x: Tensor) -> Norm:
    """Under autocast the output is of the dtype that torch.nn.functional's has in the installed torch."""
    device = x.device.type
    if norm.out_dtype is None and (norm.centred, device) in AUTOCAST_TO_FP32 and torch.is_autocast_enabled(device):
        return norm._replace(out_dtype=torch.float32)
    return norm


def uses_triton(device: str) -> bool:
    """Do tensors on devices of this type go to the Triton kernels?"""
    if device == "cuda":
        return HAS_TRITON
    forced = device == "cpu" and os.environ.get(FORCE_TRITON) == "1"
    if forced and not torch.compiler.is_compiling():
        _require_interpreter()
    return forced


def _require_interpreter() -> None:
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    import triton

    # Triton's own functions are made at its import: the variable set later is seen, and does not reach them.
    if not triton.knobs.runtime.interpret or isinstance(triton.language.sum, triton.JITFunction):
        raise RuntimeError(
            f"{FORCE_TRITON}=1 needs Triton's interpreter: set TRITON_INTERPRET=1 before importing triton"
        )
