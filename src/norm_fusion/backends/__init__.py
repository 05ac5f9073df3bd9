"""The registry: every implementation under test, by name. No torch here; a backend's code is imported when it runs.

`prepare(profile, inputs)` of the module does all the set-up, compiling included, and returns the launch: a function
of the input alone that allocates and returns the output. Every contestant enters at that same depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from norm_fusion.spec import BASELINE, BASELINE_OF, Op, Profile, SpecError

BOTH = (Op.RMSNORM, Op.LAYERNORM)

PROFILES: tuple[Profile, ...] = (
    Profile("torch-eager", "torch", BOTH, "unfused PyTorch composition in fp32, as Hugging Face's Llama writes it"),
    Profile("torch-native", "torch", BOTH, "torch.nn.functional.rms_norm / layer_norm"),
    Profile("torch-compile", "torch", BOTH, "the native call compiled with torch.compile, static shapes"),
    Profile("torch-compile-max", "torch", BOTH, "the same, mode max-autotune-no-cudagraphs"),
    Profile("triton-fused-rmsnorm", "triton", (Op.RMSNORM,), "norm_fusion.rms_norm: one fused Triton kernel"),
    Profile("triton-fused-layernorm", "triton", (Op.LAYERNORM,), "norm_fusion.layer_norm: one fused Triton kernel"),
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
            chosen |= {p.name for p in PROFILES if name in ("all", p.family)}
        elif name == BASELINE:
            chosen |= {BASELINE_OF[op] for op in wanted}
        elif name in BY_NAME:
            chosen.add(name)
        else:
            known = ", ".join([*FAMILIES, BASELINE, *BY_NAME])
            raise SpecError(f"backend {name!r} is unknown: choose from {known}")
    serving = tuple(p.name for p in PROFILES if p.name in chosen and wanted & set(p.ops))
    if not serving:
        raise SpecError(f"{', '.join(names)} does not implement {', '.join(wanted)}: add a backend that does")
    return serving


def serves(name: str, op: Op) -> bool:
    """Does this profile implement this operator?"""
    return op in BY_NAME[name].ops
