"""Fused RMSNorm and LayerNorm kernels in Triton, and the lab that measures what they are worth.

    rms_norm, layer_norm                                the operators, signatures as torch.nn.functional's
    add_rms_norm, add_layer_norm, gated_rms_norm        with a residual, with a silu gate
    RMSNorm, LayerNorm                                  modules in place of torch.nn's
    patch_model, unpatch_model                          the norms of a model that exists

The house, two towers on one ground floor; only records pass between them:

    spec, records, metrics          ground floor: what is asked, what is stored, the arithmetic. No torch.
    nvml, machine, lifeline         ground floor too: what the driver and the kernel say of this machine
    kernels, ops, functional        the kernels and the way to them
    modules, patching               what puts them into a model
    backends, measure, doctor       the contestants, the process that measures them, what a machine can measure
    profiling                       hardware counters and traces, in processes apart from all timing
    runs, evidence, report, site    paper tower: runs on disk, what follows from them, tables, pages, a site. No torch.
    engine, harness, cli            the roof: runs a plan, here or on a cluster, tries the lab itself, and the commands
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from norm_fusion.functional import add_layer_norm, add_rms_norm, gated_rms_norm, layer_norm, rms_norm
    from norm_fusion.modules import LayerNorm, RMSNorm
    from norm_fusion.patching import patch_model, unpatch_model

__all__ = [
    "LayerNorm",
    "RMSNorm",
    "add_layer_norm",
    "add_rms_norm",
    "gated_rms_norm",
    "layer_norm",
    "patch_model",
    "rms_norm",
    "unpatch_model",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that the commands' --help and the paper tower need no torch.
    if name in __all__:
        home = "modules" if name in ("LayerNorm", "RMSNorm") else "functional"
        home = "patching" if name.endswith("patch_model") else home
        value = globals()[name] = getattr(import_module(f"norm_fusion.{home}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
