"""Whether Triton's kernels run: for CUDA tensors, where Triton is installed; for all others PyTorch's operators do.

NORM_FUSION_FORCE_TRITON=1 sends CPU tensors through the kernels too, in Triton's interpreter: for tests.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch

FORCE_TRITON = "NORM_FUSION_FORCE_TRITON"
# A fact of the installation, looked up once: torch.compile reads it as a constant.
HAS_TRITON = importlib.util.find_spec("triton") is not None


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
