"""PyTorch's own implementations and our Triton kernels, each prepared as a function of the input alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.functional import layer_norm, rms_norm
from norm_fusion.spec import Op

Launch = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """This implementation cannot run here: `reason` and `remedy`, a sentence each."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Operands:
    """What every contestant of a case is given besides x: the parameters, shape (cols,), and eps."""

    op: Op
    weight: Tensor
    bias: Tensor | None
    eps: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)


@dataclass(frozen=True)
class Prepared:
    """A contestant ready to run.

    `resolved` names what really runs; `timed` is False in Triton's interpreter; `judged` is False for what computes no
    normalization: the harness's known answers.
    """

    launch: Launch
    resolved: str
    timed: bool = True
    judged: bool = True


def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
    """Set a profile up for these operands. Compiling happens at the first launch, which warm-up makes.

    Raises:
        Unavailable: something that the profile needs is missing on this machine.
    """
    if profile == "torch-eager":
        return Prepared(_eager(operands), "torch composition")
    if profile == "torch-native":
        name = "rms_norm" if operands.op is Op.RMSNORM else "layer_norm"
        return Prepared(_native(operands), f"torch.nn.functional.{name}")
    if profile == "torch-compile":
        return Prepared(_compiled(operands, device, mode=None), "torch.compile(dynamic=False)")
    if profile == "torch-compile-max":
        mode = "max-autotune-no-cudagraphs"
        return Prepared(_compiled(operands, device, mode), f"torch.compile(dynamic=False, mode={mode!r})")
    return _fused(operands, device)


def missing_program(error: BaseException | None) -> str | None:
    """The program whose absence is behind an exception: a compiler, say, or what a compiler's driver calls."""
    while error is not None:
        if isinstance(error, FileNotFoundError) and error.filename and os.sep not in str(error.filename):
            return str(error.filename)
        error = error.__cause__ or error.__context__
    return None


def _eager(p: Operands) -> Launch:
    def rmsnorm(x: Tensor) -> Tensor:
        h = x.float()
        return p.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + p.eps)).to(x.dtype)

    def layernorm(x: Tensor) -> Tensor:
        h = x.float()
        h = h - h.mean(-1, keepdim=True)
        y = p.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + p.eps)).to(x.dtype)
        return y if p.bias is None else y + p.bias

    return rmsnorm if p.op is Op.RMSNORM else layernorm


def _native(p: Operands) -> Launch:
    if p.op is Op.RMSNORM:
        return lambda x: F.rms_norm(x, p.shape, p.weight, p.eps)
    return lambda x: F.layer_norm(x, p.shape, p.weight, p.bias, p.eps)


def _require(what: str, language: str, variable: str, names: Sequence[str]) -> None:
    """Raise Unavailable if neither the environment variable nor PATH has a compiler that `what` needs."""
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names)):
        raise Unavailable(
            f"{what} needs a {language} compiler, and none is on PATH",
            f"install one (Debian: apt-get install {names[0]}) or name it in {variable}",
        )


def _compiled(p: Operands, device: torch.device, mode: str | None) -> Launch:
    if device.type == "cpu":
        _require("torch.compile", "C++", "CXX", ("g++", "clang++"))
    else:
        _require("torch.compile", "C", "CC", ("gcc", "clang"))
    # Bound as arguments, not closed over: what is compiled is the native call and nothing else.
    if p.op is Op.RMSNORM:
        rms = torch.compile(F.rms_norm, dynamic=False, mode=mode, fullgraph=True)
        return lambda x: rms(x, p.shape, p.weight, p.eps)
    layer = torch.compile(F.layer_norm, dynamic=False, mode=mode, fullgraph=True)
    return lambda x: layer(x, p.shape, p.weight, p.bias, p.eps)


def _fused(p: Operands, device: torch.device) -> Prepared:
    try:
        import triton
    except ModuleNotFoundError:
        raise Unavailable("Triton is not installed", "on Linux: pip install 'triton>=3.6'") from None
    interpreted = device.type == "cpu"
    if not interpreted:
        _require("Triton's launcher", "C", "CC", ("gcc", "clang"))
    where = "interpreter" if interpreted else "compiled"
    resolved = f"triton {triton.__version__} {where}"
    if p.op is Op.RMSNORM:
        return Prepared(lambda x: rms_norm(x, p.shape, p.weight, p.eps), resolved, timed=not interpreted)
    return Prepared(lambda x: layer_norm(x, p.shape, p.weight, p.bias, p.eps), resolved, timed=not interpreted)
