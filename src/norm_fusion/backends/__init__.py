"""The registry: every implementation under test, by name. No torch here; a backend's code is imported when it runs.

`prepare(profile, operands, device)` does all the set-up, compiling included, and returns the launch: a function of the
input alone that allocates and returns the output. Every contestant enters at that same depth.

builtin.py  PyTorch's and our own      user.py  a user's function, module:function
matmul.py   products of matrices, profiled only
known.py    known answers and saboteurs, for `norm-fusion check-harness`      roof.py  copy, read and write
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from norm_fusion.spec import BASELINE, BASELINE_OF, USERS, Op, Pass, Profile, SpecError, is_users

if TYPE_CHECKING:
    import torch

    from norm_fusion.backends.builtin import Operands, Prepared

EVERY = tuple(Op)
# What the harness's own know, forward.
BOTH = (Op.RMSNORM, Op.LAYERNORM)
RMS, LAYER = (Op.RMSNORM, Op.ADD_RMSNORM), (Op.LAYERNORM, Op.ADD_LAYERNORM)

# Libraries by others that are measured beside ours, or that change what PyTorch's own operator is: with both of CUTE
# installed, torch 2.13 and later put a QuACK kernel in its place.
PEERS = ("liger-kernel", "quack-kernels", "flash-attn", "transformer-engine")
CUTE = ("nvidia-cutlass-dsl", "apache-tvm-ffi")

# Microseconds that known answers take, and the ratios between them.
SPIN_US = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
SPIN_RATIOS = ("1.00", "1.02", "1.05", "1.50")

PROFILES: tuple[Profile, ...] = (
    Profile("torch-eager", "torch", EVERY, "unfused PyTorch composition in fp32, as Hugging Face's Llama writes it"),
    Profile("torch-native", "torch", EVERY, "torch.nn.functional.rms_norm / layer_norm"),
    Profile("torch-compile", "torch", EVERY, "the native call compiled with torch.compile, static shapes"),
    Profile("torch-compile-max", "torch", EVERY, "the same, mode max-autotune-no-cudagraphs"),
    Profile("triton-fused-rmsnorm", "triton", RMS, "norm_fusion.rms_norm: one fused Triton kernel"),
    Profile("triton-fused-layernorm", "triton", LAYER, "norm_fusion.layer_norm: one fused Triton kernel"),
    # The harness's own, never part of "all": what they do is in known.py.
    Profile("known-norm", "check", BOTH, "one kernel"),
    Profile("known-norm-again", "check", BOTH, "the same kernel under another name"),
    Profile("known-base", "check", BOTH, "the kernel and a spin"),
    Profile("known-slower-3", "check", BOTH, "that, and 3% longer"),
    Profile("known-slower-5", "check", BOTH, "that, and 5% longer"),
    Profile("known-slower-25", "check", BOTH, "that, and 25% longer"),
    Profile("known-noisy", "check", BOTH, "the kernel, disturbed at random"),
    Profile("known-drifting", "check", BOTH, "the kernel, slower from call to call"),
    Profile("known-empty", "check", BOTH, "nothing at all", judged=False),
    *(
        Profile(f"known-spin-{us}-{ratio}", "check", BOTH, "a spin of known duration", judged=False)
        for us in SPIN_US
        for ratio in SPIN_RATIOS
    ),
)

BY_NAME = {profile.name: profile for profile in PROFILES}
FAMILIES = ("all", "torch", "triton")


def select(names: Sequence[str], ops: Iterable[Op]) -> tuple[str, ...]:
    """The profiles that `--backend` names mean for these operators, in the registry's order, each once.

    Raises:
        SpecError: a name is neither a family, nor the alias torch-baseline, nor a profile; or none serves the ops.
    """
    wanted = set(ops)
    chosen: set[str] = set()
    for name in names:
        if name in FAMILIES:
            chosen |= {p.name for p in PROFILES if p.family in FAMILIES and name in ("all", p.family)}
        elif name == BASELINE:
            chosen |= {BASELINE_OF[op] for op in wanted}
        elif name in BY_NAME:
            chosen.add(name)
        else:
            known = ", ".join([*FAMILIES, BASELINE, *(p.name for p in PROFILES if p.family in FAMILIES)])
            raise SpecError(f"backend {name!r} is unknown: choose from {known}")
    serving = tuple(p.name for p in PROFILES if p.name in chosen and wanted & set(p.ops))
    if not serving:
        raise SpecError(f"{', '.join(names)} does not implement {', '.join(wanted)}: add a backend that does")
    return serving


def contestant(text: str, ops: Collection[Op]) -> str:
    """The profile that `--contestant` means: `module:function`, or `rmsnorm=module:function` for one operator only.

    Raises:
        SpecError: it is neither, or for an operator that is not among `ops`.
    """
    if not is_users(text):
        raise SpecError(
            f"contestant {text[:80]!r} is not module:function: write it like mykernels:rms_norm, "
            "or rmsnorm=mykernels:rms_norm for one operator only"
        )
    if not any(serves(text, op) for op in ops):
        raise SpecError(f"contestant {text!r} has no case: this run is of {', '.join(ops)} alone")
    return text


def serves(name: str, op: Op, pass_: Pass = Pass.FORWARD) -> bool:
    """Does this profile implement this operator, this way through it?"""
    users = USERS.fullmatch(name)
    if users is not None:
        return users["op"] is None or users["op"] == op
    return op in BY_NAME[name].ops and (pass_ is Pass.FORWARD or BY_NAME[name].family != "check")


def judged(name: str) -> bool:
    """Are this profile's outputs a normalization, and examined?"""
    return name not in BY_NAME or BY_NAME[name].judged


def controlled(names: Sequence[str], device: str) -> str:
    """Which of a case's profiles runs a second time, as A/A control: the one that the claims are about.

    On a CPU it is PyTorch's own operator, since our kernels cannot be timed there.
    """
    others = [name for name in names if not name.startswith("torch-")]
    if device == "cpu":
        others = [name for name in others if not name.startswith("triton-")] + ["torch-native", "torch-eager"]
    return next((name for name in others if name in names), names[0])


def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
    """Set a profile up for these operands. Compiling happens at the first launch, which warm-up makes.

    Raises:
        Unavailable: something that the profile needs is missing on this machine.
    """
    if is_users(profile):
        from norm_fusion.backends import user

        return user.prepare(profile, operands)
    if BY_NAME[profile].family == "check":
        from norm_fusion.backends import known

        return known.prepare(profile, operands, device)
    from norm_fusion.backends import builtin

    return builtin.prepare(profile, operands, device)
