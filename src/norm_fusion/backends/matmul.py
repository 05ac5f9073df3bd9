"""The contestants of a matrix product, which is profiled beside the normalizations and never timed.

No torch here until one is prepared, so that their names can be asked for anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from norm_fusion.spec import Matmul, SpecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Product = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Ready:
    """A product ready to run: `launch` makes it anew, shape (m, n); `resolved` names what really runs."""

    launch: Callable[[], Tensor]
    resolved: str


def draw(case: Matmul, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """A (m, k) and B (k, n): normal, B so small that C is as large as A."""
    import torch

    kind: torch.dtype = getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    a = torch.randn(case.m, case.k, generator=generator, device=device)
    b = torch.randn(case.k, case.n, generator=generator, device=device)
    return a.to(kind), (b * case.k**-0.5).to(kind)


def prepare(profile: str, case: Matmul, device: torch.device, seed: int) -> Ready:
    """Draw the inputs and set a contestant up for them. What it compiles, it compiles at the first launch.

    Raises:
        SpecError: there is no such contestant.
        Unavailable: something that it needs is missing on this machine.
    """
    if profile not in CONTESTANTS:
        raise SpecError(f"profile {profile!r} of {case.name} is unknown: choose from {', '.join(CONTESTANTS)}")
    product, resolved = CONTESTANTS[profile]()
    a, b = draw(case, device, seed)
    return Ready(lambda: product(a, b), resolved)


def _torch() -> tuple[Product, str]:
    import torch

    return torch.matmul, "torch.matmul"


def _triton() -> tuple[Product, str]:
    from norm_fusion.backends.builtin import Unavailable

    try:
        import triton
    except ModuleNotFoundError:
        raise Unavailable("Triton is not installed", "on Linux: pip install 'triton>=3.6'") from None
    from norm_fusion.kernels.matmul import matmul

    return matmul, f"triton {triton.__version__} tl.dot"


CONTESTANTS: Mapping[str, Callable[[], tuple[Product, str]]] = {"torch-matmul": _torch, "triton-matmul": _triton}
