"""PyTorch's own implementations and our Triton kernels, as functions of the activations."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.backends.passes import Forward, Launch, differentiable, through
from norm_fusion.functional import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from norm_fusion.spec import Op, Pass

# Ours, one for each operator of the lab.
FUSED: Mapping[Op, Callable[..., Any]] = {
    Op.RMSNORM: rms_norm,
    Op.LAYERNORM: layer_norm,
    Op.ADD_RMSNORM: add_rms_norm,
    Op.ADD_LAYERNORM: add_layer_norm,
}


class Unavailable(Exception):
    """This implementation cannot run here: `reason` and `remedy`, a sentence each."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Operands:
    """What every contestant of a case is given besides its input: the parameters, shape (cols,), and eps."""

    op: Op
    weight: Tensor
    bias: Tensor | None
    eps: float
    pass_: Pass = Pass.FORWARD

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
    operands = differentiable(operands)
    if profile == "torch-eager":
        return Prepared(through(_eager(operands), operands), "torch composition")
    if profile == "torch-native":
        name = "layer_norm" if operands.op.centred else "rms_norm"
        return Prepared(through(_native(operands), operands), f"torch.nn.functional.{name}")
    if profile == "torch-compile":
        forward = _compiled(operands, device, mode=None)
        return Prepared(through(forward, operands), "torch.compile(dynamic=False)")
    if profile == "torch-compile-max":
        mode = "max-autotune-no-cudagraphs"
        forward = _compiled(operands, device, mode)
        return Prepared(through(forward, operands), f"torch.compile(dynamic=False, mode={mode!r})")
    return _fused(operands, device)


def missing_program(error: BaseException | None) -> str | None:
    """The program whose absence is behind an exception: a compiler, say, or what a compiler's driver calls."""
    while error is not None:
        if isinstance(error, FileNotFoundError) and error.filename and os.sep not in str(error.filename):
            return str(error.filename)
        error = error.__cause__ or error.__context__
    return None


def _eager(p: Operands) -> Forward:
    def rmsnorm(x: Tensor) -> Tensor:
        h = x.float()
        return p.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + p.eps)).to(x.dtype)

    def layernorm(x: Tensor) -> Tensor:
        h = x.float()
        h = h - h.mean(-1, keepdim=True)
        y = p.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + p.eps)).to(x.dtype)
        return y if p.bias is None else y + p.bias

    return _after_adding(layernorm if p.op.centred else rmsnorm, p)


def _native(p: Operands) -> Forward:
    return _after_adding(bound(F.layer_norm if p.op.centred else F.rms_norm, p), p)


def _after_adding(norm: Callable[[Tensor], Tensor], p: Operands) -> Forward:
    """The norm, where the operator has a residual of its sum with that, which is returned too."""
    if not p.op.added:
        return norm

    def added(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        h = x + residual
        return norm(h), h

    return added


def _require(what: str, language: str, variable: str, names: Sequence[str]) -> None:
    """Raise Unavailable if neither the environment variable nor PATH has a compiler that `what` needs."""
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names)):
        raise Unavailable(
            f"{what} needs a {language} compiler, and none is on PATH",
            f"install one (Debian: apt-get install {names[0]}) or name it in {variable}",
        )


def _compiled(p: Operands, device: torch.device, mode: str | None) -> Forward:
    if device.type == "cpu":
        _require("torch.compile", "C++", "CXX", ("g++", "clang++"))
    else:
        _require("torch.compile", "C", "CC", ("gcc", "clang"))
    # Bound as arguments, not closed over: what is compiled is the native call, and the addition, and nothing else.
    functions: dict[Op, Callable[..., Any]] = {
        Op.RMSNORM: F.rms_norm,
        Op.LAYERNORM: F.layer_norm,
        Op.ADD_RMSNORM: _add_then_rms_norm,
        Op.ADD_LAYERNORM: _add_then_layer_norm,
    }
    compiled: Callable[..., Any] = torch.compile(functions[p.op], dynamic=False, mode=mode, fullgraph=True)
    return bound(compiled, p)


def _add_then_rms_norm(
    x: Tensor, residual: Tensor, shape: Sequence[int], weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    h = x + residual
    return F.rms_norm(h, shape, weight, eps), h


def _add_then_layer_norm(
    x: Tensor, residual: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    h = x + residual
    return F.layer_norm(h, shape, weight, bias, eps), h


def bound(function: Callable[..., Any], p: Operands) -> Forward:
    """A function of torch.nn.functional's arguments, after the activations, as one of the activations."""
    if p.op.centred:
        return lambda *x: function(*x, p.shape, p.weight, p.bias, p.eps)
    return lambda *x: function(*x, p.shape, p.weight, p.eps)


def _fused(p: Operands, device: torch.device) -> Prepared:
    try:
        import triton
    except ModuleNotFoundError:
        raise Unavailable("Triton is not installed", "on Linux: pip install 'triton>=3.6'") from None
    interpreted = device.type == "cpu"
    if not interpreted:
        _require("Triton's launcher", "C", "CC", ("gcc", "clang"))
    where = "interpreter" if interpreted else "compiled"
    launch = through(bound(FUSED[p.op], p), p)
    return Prepared(launch, f"triton {triton.__version__} {where}", timed=not interpreted)
