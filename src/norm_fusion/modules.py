"""torch.nn's norms, computed by `functional`: same constructors, same state dict, same text, and instances of torch's.

Inputs of a dtype that the kernels do not have, float64 for one, go to torch.nn's own forward. Weights may be of another
dtype than the input, which torch.nn.LayerNorm refuses for most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from norm_fusion import functional
from norm_fusion.ops.norm import DTYPES

__all__ = ["LayerNorm", "RMSNorm"]


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm by `functional.rms_norm`. An eps of None is float32's machine epsilon."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.dtype not in DTYPES:
            return torch.nn.RMSNorm.forward(self, x)
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm by `functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch's own argument name
        if isinstance(input, Tensor) and input.dtype not in DTYPES:
            return torch.nn.LayerNorm.forward(self, input)
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
