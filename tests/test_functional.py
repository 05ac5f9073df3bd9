"""The public functions: signatures, defaults and documented behaviour, as a caller sees them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, draw, errors, poisoned
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

import norm_fusion
from norm_fusion.spec import Op

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_a_call_to_torchs_function_is_a_call_to_ours(name: str) -> None:
    """Names, order and defaults; layer_norm's cudnn_enable aside. What is ours alone goes by keyword."""
    ours = inspect.signature(getattr(norm_fusion, name)).parameters
    torchs = inspect.signature(inspect.unwrap(getattr(F, name))).parameters
    assert [(p.name, p.default) for p in ours.values() if p.kind is not p.KEYWORD_ONLY] == [
        (p.name, p.default) for p in torchs.values() if p.name != "cudnn_enable"
    ]


@EACH_DTYPE
def test_rms_norms_default_eps_is_fp32s_whatever_the_dtype(dtype: torch.dtype) -> None:
    """Rows so small that eps decides: fp16's epsilon is 8192 times fp32's."""
    given = draw(Op.RMSNORM, 3, 100, dtype, eps=2.0**-23)
    x = given.x * 3e-4
    with poisoned():
        y = norm_fusion.rms_norm(x, [100], given.weight)
        assert torch.equal(y, norm_fusion.rms_norm(x, [100], given.weight, 2.0**-23))
        assert not torch.equal(y, norm_fusion.rms_norm(x, [100], given.weight, 2.0**-22))


def test_layer_norms_default_eps() -> None:
    given = draw(Op.LAYERNORM, 3, 100, torch.float32)
    x = given.x * 3e-3
    y = norm_fusion.layer_norm(x, [100], given.weight, given.bias)
    assert torch.equal(y, norm_fusion.layer_norm(x, [100], given.weight, given.bias, 1e-5))
    assert not torch.equal(y, norm_fusion.layer_norm(x, [100], given.weight, given.bias, 1e-6))


def a_compilers_700() -> torch.SymInt:
    shapes = ShapeEnv()
    symbol = shapes.create_symbol(700, source=ConstantSource("cols"), dynamic_dim=DimDynamic.DYNAMIC)
    return shapes.create_symintnode(symbol, hint=700)


SHAPES = {
    "list": [700],
    "tuple": (700,),
    "size": torch.Size([700]),
    "NumPy's": (np.int64(700),),
    "a tensor": (torch.tensor(700),),
    "a compiler's": (a_compilers_700(),),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_normalized_shape_is_any_sequence(shape: object) -> None:
    given = draw(Op.LAYERNORM, 3, 700, torch.float16)
    with poisoned():
        y = norm_fusion.layer_norm(given.x, shape, given.weight, given.bias)
        assert errors(y, given).ok
        y = norm_fusion.rms_norm(input=given.x, normalized_shape=shape, weight=given.weight, eps=1e-5)
    assert errors(y, draw(Op.RMSNORM, 3, 700, torch.float16)).ok


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_numpys_numbers_do_as_well(compiled: bool) -> None:
    """As they do for torch.nn's modules, which keep them."""
    x = torch.randn(5, 64)
    for ours, torchs in ((norm_fusion.RMSNorm, torch.nn.RMSNorm), (norm_fusion.LayerNorm, torch.nn.LayerNorm)):
        torch._dynamo.reset()
        norm = ours(np.int64(64) if not compiled else 64, eps=np.float64(1e-5))
        run = torch.compile(norm, backend="eager", fullgraph=True) if compiled else norm
        torch.testing.assert_close(run(x), torchs(64, eps=1e-5)(x))
    gated = norm_fusion.gated_rms_norm
    assert torch.equal(gated(x, x, group_size=np.int64(16)), gated(x, x, group_size=16))


@pytest.mark.parametrize("eps", [0, 1])
def test_eps_may_be_an_integer(eps: int) -> None:
    """Triton makes an integer argument of 1 a constant: a kernel of its own, and the same bits."""
    given = draw(Op.LAYERNORM, 3, 700, torch.float32)
    for norm in (norm_fusion.rms_norm, norm_fusion.layer_norm):
        assert torch.equal(norm(given.x, (700,), eps=eps), norm(given.x, (700,), eps=float(eps)))


@pytest.mark.parametrize(
    "x",
    [torch.randn(9, 64)[::2, :60], torch.randn(60, 5).t(), torch.randn(2, 4, 60, 3).permute(0, 3, 1, 2)],
    ids=["sliced", "transposed", "channels last"],
)
@pytest.mark.parametrize("forced", ["0", "1"])
def test_the_output_is_new_and_contiguous(x: torch.Tensor, forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORM_FUSION_FORCE_TRITON", forced)
    outputs = [norm(x, (60,)) for norm in (norm_fusion.rms_norm, norm_fusion.layer_norm)]
    outputs += [*norm_fusion.add_rms_norm(x, x, (60,)), norm_fusion.gated_rms_norm(x, x)]
    assert all(y.is_contiguous() and y.data_ptr() != x.data_ptr() for y in outputs)


def test_the_package_exports_what_it_says() -> None:
    assert {"layer_norm", "rms_norm", "add_rms_norm", "gated_rms_norm"} <= set(norm_fusion.__all__)
    assert {*norm_fusion.__all__, "__version__"} <= set(dir(norm_fusion))
    with pytest.raises(AttributeError, match="no attribute 'rmsnorm'"):
        norm_fusion.rmsnorm  # noqa: B018
