"""The one way from tensors to a normalization: `normalize` checks what is asked and chooses the route.

norm.py          what is asked, and the refusal of what cannot be done
route.py         which of the following runs, found once for calls that look alike
forward.py, backward.py     the kernels, launched; rows.py   how rows lie in memory; where.py   whether kernels run
composition.py   the same in PyTorch's own steps
autograd.py      gradients
library.py       torch.ops.norm_fusion: compilers, modes and tensor subclasses see these
distributed.py   DTensors
"""

from norm_fusion.ops.norm import EPS, Norm, Operands, as_int, ask, check, require_bool, require_tensor
from norm_fusion.ops.route import normalize

__all__ = ["EPS", "Norm", "Operands", "as_int", "ask", "check", "normalize", "require_bool", "require_tensor"]
