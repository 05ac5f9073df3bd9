"""A user's own function as a contestant: `module:function`, found on the import path, the current folder included."""

from __future__ import annotations

from importlib import import_module

from norm_fusion.backends.builtin import Operands, Prepared, Unavailable, bound
from norm_fusion.backends.passes import differentiable, through
from norm_fusion.spec import USERS


def prepare(profile: str, p: Operands) -> Prepared:
    """The function, called as torch.nn.functional's: (x, shape, weight, eps), with bias before eps for LayerNorm.

    Where a residual is added it comes after x, and the function returns the output and the sum. For a backward it is
    autograd's of the function.

    Raises:
        Unavailable: there is no such module or function.
    """
    p = differentiable(p)
    named = USERS.fullmatch(profile)
    assert named is not None
    try:
        module = import_module(named["module"])
    except ModuleNotFoundError as missing:
        if not f"{named['module']}.".startswith(f"{missing.name}."):
            raise Unavailable(f"module {named['module']!r} imports {missing.name!r}", "install that") from None
        raise Unavailable(f"there is no module {missing.name!r}", "put its folder on PYTHONPATH") from None
    function = getattr(module, named["function"], None)
    if function is None:
        reason = f"module {named['module']!r} has no {named['function']!r}"
        raise Unavailable(reason, "give a function's name after the colon")

    return Prepared(through(bound(function, p), p), profile)
