"""The one way from tensors to a normalization: `normalize` checks what is asked and chooses the route.

norm.py          what is asked, and the refusal of what cannot be done
rows.py          how the rows of some tensors lie in memory
forward.py, backward.py     the kernels, launched
composition.py   the same in PyTorch's own steps
autograd.py      gradients        library.py   torch.ops.norm_fusion: compilers, modes and tensor subclasses see these
where.py         whether Triton does       route.py         which of them runs
"""

from norm_fusion.ops.norm import EPS, Norm, Operands, ask, check, is_int, require_tensor
from norm_fusion.ops.route import normalize

__all__ = ["EPS", "Norm", "Operands", "ask", "check", "is_int", "normalize", "require_tensor"]
