"""From a kernel and a launch choice to a running kernel, at the least host time.

`kernel[grid](...)` binds, specializes and hashes its arguments at every call, about 45 us of Python. What that finds
depends on a few facts only, so it is done once for each of them; later calls go to the compiled kernel directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from norm_fusion.kernels.launch import Launch

INT32_LIMIT = 2**31


class Dispatch:
    """One kernel with its constants, for one width and set of flags; compiled variants are kept by argument facts.

    `pointers` of `__call__` are tensors in the kernel's order, `integers` its runtime integers; constants follow, and
    last PDL: programmatic dependent launch, where the GPU has it. Such a kernel is set up while its predecessor ends,
    and waits (`griddepcontrol.wait`) until that has ended and written all before it touches memory itself. RMSNorm fp16
    in a CUDA graph on an H200: 2.31 against 2.46 us a call at 512x1024, 17.9 against 18.2 at 4096x4096.
    """

    def __init__(self, kernel: Any, launch: Launch, constants: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.block_rows = launch.block_rows
        self.constants = constants
        self.options: dict[str, Any] = {"num_warps": launch.num_warps}
        if launch.maxnreg is not None:
            self.options["maxnreg"] = launch.maxnreg
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, pointers: Sequence[Any], integers: tuple[int, ...], eps: float) -> None:
        """Launch over `integers[0]` rows on the current device and stream.

        What Triton specializes a compiled kernel on: the dtype, whether each pointer is 16-byte aligned, and whether
        each integer fits 32 bits. The device is part of the key because a module is loaded on one.
        """
        key = (
            pointers[0].dtype,
            pointers[0].device.index,
            *[pointer.data_ptr() % 16 == 0 for pointer in pointers],
            *[integer < INT32_LIMIT for integer in integers],
        )
        eps = float(eps)  # Triton compiles an integer 1 in as a constant, and an integer 0 as an int32
        grid = (-(-integers[0] // self.block_rows), 1, 1)
        ready = self.compiled.get(key)
        if ready is not None:
            compiled, constants = ready
            compiled[grid](*pointers, *integers, eps, *constants)
            return
        pdl = launches_early(pointers[0].device)
        constants = (*self.constants, pdl)
        options = self.options | {"launch_pdl": True} if pdl else self.options
        made = self.kernel[grid](*pointers, *integers, eps, *constants, **options)
        if made is not None:  # the interpreter compiles nothing
            self.compiled[key] = made, constants


def launches_early(device: torch.device) -> bool:
    """Whether the GPU has programmatic dependent launch: NVIDIA's from compute capability 9.0 on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
