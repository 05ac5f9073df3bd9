"""The norms of an existing model, replaced in place: `patch_model`, and `unpatch_model`, which restores them.

A module is patched by giving it another class: a subclass of its own whose forward calls `functional`. The object stays
with its parameters, buffers, hooks, name and state dict, and with what isinstance says. Which classes are known is one
table, in `known_norms`. Any other that looks like a norm is reported and left alone: what it computes is never guessed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from norm_fusion import functional
from norm_fusion.known_norms import TABLE, TORCHS, Form, is_as_known, options
from norm_fusion.modules import LayerNorm, RMSNorm
from norm_fusion.ops.norm import DTYPES

__all__ = ["Left", "Report", "patch_model", "unpatch_model"]


ORIGINAL = "_norm_fusion_original"
# "normal", as in AutoModelForNormalEstimation, is no norm; "normalize" is.
NORM = re.compile(r"norm(?!al(?!i[sz]))", re.IGNORECASE)
NORM_AT_THE_END = re.compile(r"norm(ali[sz](e|er|ation))?s?(\d+d|gated|fp\d+|zero)?$", re.IGNORECASE)
OTHER_KINDS = re.compile(r"(batch|group|instance|response|weight|spectral)_?norm", re.IGNORECASE)
FUSED: dict[type[nn.Module], type[nn.Module]] = {}  # by original class
SHOWN = 3  # module names of a class, in a report's text


class Left(NamedTuple):
    """A class that was left alone, and why."""

    cls: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `patch_model` did: names of modules, as `model.named_modules()` has them, by the full name of their class.

    `left_alone` are norms that it knows and did not replace; `unknown` are none of those, and look like norms.
    """

    replaced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_alone: Mapping[Left, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        done = sum(map(len, self.replaced.values()))
        if not (done or self.unknown or self.left_alone):
            return "no norms found, nothing replaced"
        lines = [f"{done} norm{'s' * (done != 1)} replaced"]
        lines += [_line(cls, names) for cls, names in self.replaced.items()]
        if self.unknown:
            lines.append(f"{sum(map(len, self.unknown.values()))} unknown, left untouched")
            lines += [_line(cls, names) for cls, names in self.unknown.items()]
        if self.left_alone:
            lines.append(f"{sum(map(len, self.left_alone.values()))} left alone")
            lines += [_line(f"{left.cls} ({left.reason})", names) for left, names in self.left_alone.items()]
        return "\n".join(lines)


def _line(what: str, names: tuple[str, ...]) -> str:
    shown = ", ".join(name or "the model itself" for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names):6}  {what}: {shown}{more}"


def patch_model(model: nn.Module, *, strict: bool = False) -> Report:
    """Replace the norms of a model, in place, by the fused kernels, and report what was replaced and what was not.

    What a class computes is kept: eps, offset, dtypes, and where a Llama rounds. A subclass that inherits its forward
    counts as the class it inherits it from; one that has its own is unknown. Norms in dtypes that the kernels do not
    have, float64 for one, are left alone, and inputs in such a dtype go to the original's forward. Calling this again
    replaces nothing, and says so.

    Patch what runs eagerly, and leave what goes through torch.compile: that writes a norm as fast as these, can fuse it
    with its neighbours, and calls these through PyTorch's dispatcher (measured: docs/results.md, In a model). Patch
    before what replaces forward on single modules (accelerate's hooks, Hugging Face's `kernels`): of such modules the
    class has no say, and they are left alone. `copy.deepcopy` and `torch.save` of a patched model work; to load it,
    norm_fusion must be installed, so unpatch a model before you save it whole for others. A state dict is the same
    either way.

    Args:
        model: any torch.nn.Module, a norm itself too.
        strict: raise if there is an unknown norm, before anything is replaced.

    Raises:
        TypeError: model is no torch.nn.Module.
        ValueError: strict, and there are unknown norms; the message names them.
    """
    _require_module("patch_model", model)
    replaced: dict[str, tuple[str, ...]] = {}
    unknown: dict[str, tuple[str, ...]] = {}
    left_alone: dict[Left, tuple[str, ...]] = {}
    modules = []
    for name, module in model.named_modules():
        cls = _identity(getattr(type(module), ORIGINAL, type(module)))
        if (reason := _obstacle(module)) is not None:
            left = Left(cls, reason)
            left_alone[left] = (*left_alone.get(left, ()), name)
        elif _form(type(module)) is not None:
            modules.append(module)
            replaced[cls] = (*replaced.get(cls, ()), name)
        elif _looks_like_a_norm(module):
            unknown[cls] = (*unknown.get(cls, ()), name)
    if strict and unknown:
        listed = "\n".join(_line(cls, names) for cls, names in unknown.items())
        raise ValueError(
            f"strict, and these norms are of classes that patch_model does not know:\n{listed}\n"
            "Nothing was replaced; without strict the others are"
        )
    for module in modules:
        module.__class__ = _fused(type(module))
    return Report(replaced, unknown, left_alone)


def unpatch_model(model: nn.Module) -> int:
    """Give the norms that `patch_model` replaced their own classes back; how many there were.

    Of a norm to which something else has given a class (fully_shard, parametrize) or a forward (accelerate's hooks) of
    its own since, it warns: unpatch before those.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    _require_module("unpatch_model", model)
    patched = {name: module for name, module in model.named_modules() if hasattr(type(module), ORIGINAL)}
    changed = tuple(
        name
        for name, module in patched.items()
        if ORIGINAL not in vars(type(module)) or "forward" in vars(module)  # which has the patched one inside
    )
    for name, module in patched.items():
        if name not in changed:
            module.__class__ = getattr(type(module), ORIGINAL)
    if changed:
        listed = _line("stay patched, as their class or forward was changed again since", changed)
        warnings.warn(f"unpatch_model: {listed.strip()}", stacklevel=2)
    return len(patched) - len(changed)


def _require_module(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: {name} takes a torch.nn.Module")


def _identity(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _form(cls: type) -> Form | None:
    """The form of the class that `cls` has its forward from; None if TABLE has it not, or `cls` has its own _norm."""
    for base in cls.__mro__:
        if "forward" in vars(base):
            return TABLE.get(_identity(base))
        if not vars(base).keys().isdisjoint(("_norm", "__call__")):
            return None
    return None


def _obstacle(module: nn.Module) -> str | None:
    """Why a norm that is no unknown is not replaced; None if nothing speaks against it, or it is no norm."""
    cls = type(module)
    if hasattr(cls, ORIGINAL):
        return "patched already"
    if isinstance(module, (RMSNorm, LayerNorm)):
        return "norm_fusion's own"
    form = _form(cls)
    if form is None:
        other = _looks_like_a_norm(module) and any(OTHER_KINDS.search(base.__name__) for base in cls.__mro__)
        return "another kind of normalization" if other else None
    if "forward" in vars(module):
        return "its forward was replaced on the module itself"
    if parametrize.is_parametrized(module):
        return "parametrized"
    if not hasattr(module, form.eps):
        return f"it has no {form.eps}"
    eps = getattr(module, form.eps)
    default = eps is None and form.kind == "torch's rms"
    if not default and not (isinstance(eps, (int, float)) and eps >= 0):
        return f"its {form.eps} is {eps}: the kernels take a number of 0 or more"
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    for label, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in DTYPES:
            return f"{label} is {tensor.dtype}: the kernels have {', '.join(map(str, DTYPES))}"
    if form.kind not in TORCHS and (weight is None or weight.dim() != 1):
        return "its weight is no vector"
    if form.kind == "gated rms" and getattr(module, "activation", "silu") not in ("silu", "swish"):
        return f"its gate is {module.activation}: the kernels have silu"
    if not is_as_known(module, form):
        known = "torch.nn" if form.kind in TORCHS else "transformers 5.23"
        return f"it computes something else than in {known}, for which it is known"
    return None


def _looks_like_a_norm(module: nn.Module) -> bool:
    """By the names of its class and of those it inherits from.

    With modules inside such a name must end so: LayerNormConvLayer has a norm, and is none.
    """
    name = NORM if next(module.children(), None) is None else NORM_AT_THE_END
    return any(name.search(base.__name__) for base in type(module).__mro__)


def _fused(original: type[nn.Module]) -> type[nn.Module]:
    """The subclass that modules of class `original` are given, always the same one."""
    if original in FUSED:
        return FUSED[original]
    form = _form(original)
    if form is None:
        raise TypeError(
            f"{_identity(original)} is not in norm_fusion's table of norms: it was patched by another version of "
            "norm_fusion or transformers; load the model by its state dict"
        )
    # Its name holds the original's: Hugging Face initializes what has "RMSNorm" or "LayerNorm" in its name.
    members = {
        "forward": _forward(form, original),
        "__reduce_ex__": _reduce_ex,
        "__module__": __name__,
        ORIGINAL: original,
    }
    FUSED[original] = type(f"Fused{original.__name__}", (original,), members)
    return FUSED[original]


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """For copy and pickle, which cannot find the made class by its name: the original, from which to make it again."""
    return _blank, (getattr(type(self), ORIGINAL),), self.__getstate__()  # type: ignore[no-untyped-call]


def _blank(original: type[nn.Module]) -> nn.Module:
    cls = _fused(original)
    return cls.__new__(cls)


def _forward(form: Form, original: type[nn.Module]) -> Callable[..., Tensor]:
    """A forward with the argument names of the original's, which takes what the kernels do not."""

    def run(module: Any, x: Tensor) -> Tensor:
        if x.dtype not in DTYPES:
            y: Tensor = original.forward(module, x)
            return y
        if form.kind == "torch's rms":
            return RMSNorm.forward(module, x)
        if form.kind == "torch's layer":
            return LayerNorm.forward(module, x)
        return functional.rms_norm(x, module.weight.shape, **options(form, module, x))

    def of_hidden_states(self: Any, hidden_states: Tensor) -> Tensor:
        return run(self, hidden_states)

    def of_x(self: Any, x: Tensor) -> Tensor:
        return run(self, x)

    def of_input(self: Any, input: Tensor) -> Tensor:  # noqa: A002, torch's own argument name
        return run(self, input)

    def gated(self: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
        if gate is None:
            raise TypeError(f"gate is None: {type(self).__name__} takes a torch.Tensor")
        if hidden_states.dtype not in DTYPES:
            y: Tensor = original.forward(self, hidden_states, gate)
            return y
        return functional.gated_rms_norm(hidden_states, gate, **options(form, self, hidden_states))

    if form.kind == "gated rms":
        return gated
    return {"hidden_states": of_hidden_states, "x": of_x, "input": of_input}[form.takes]
