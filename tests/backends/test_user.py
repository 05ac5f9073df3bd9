"""A user's own function: how it is called, and what is said where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from norm_fusion.backends import prepare
from norm_fusion.backends.builtin import Operands, Unavailable
from norm_fusion.spec import Op, Pass

CPU = torch.device("cpu")
RMS = Operands(Op.RMSNORM, torch.ones(3), None, 1e-6)
LAYER = Operands(Op.LAYERNORM, torch.ones(3), torch.zeros(3), 1e-5)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_it_is_called_as_torchs_own_functions_are(module: Path) -> None:
    (module / "users_kernels.py").write_text("def told(*words): return words\n")
    x = torch.zeros(2, 3)
    prepared = prepare("users_kernels:told", RMS, CPU)
    assert (prepared.resolved, prepared.timed, prepared.judged) == ("users_kernels:told", True, True)
    assert prepared.launch(x) == (x, (3,), RMS.weight, 1e-6)
    assert prepare("layernorm=users_kernels:told", LAYER, CPU).launch(x) == (x, (3,), LAYER.weight, LAYER.bias, 1e-5)


def test_a_module_within_a_package_is_found(module: Path) -> None:
    (module / "users_package").mkdir()
    (module / "users_package" / "inner.py").write_text("def told(*words): return 7\n")
    assert prepare("rmsnorm=users_package.inner:told", RMS, CPU).launch(torch.zeros(2, 3)) == 7


def test_a_module_that_is_missing_is_named_with_a_remedy(module: Path) -> None:
    (module / "users_needy.py").write_text("import what_it_needs\ndef told(*words): pass\n")
    for profile in ("users_nowhere:told", "users_nowhere.inner:told"):
        with pytest.raises(Unavailable, match="there is no module 'users_nowhere'") as said:
            prepare(profile, RMS, CPU)
        assert "PYTHONPATH" in said.value.remedy
    with pytest.raises(Unavailable, match="module 'users_needy' imports 'what_it_needs'"):
        prepare("users_needy:told", RMS, CPU)


def test_a_function_that_is_missing_is_named(module: Path) -> None:
    (module / "users_empty.py").write_text("")
    with pytest.raises(Unavailable, match="module 'users_empty' has no 'told'") as said:
        prepare("users_empty:told", RMS, CPU)
    assert "function's name" in said.value.remedy


@pytest.mark.parametrize("text", ["def told(:", "1 / 0", "raise ValueError('odd')"])
def test_a_module_that_is_broken_raises_what_it_raises(module: Path, text: str) -> None:
    (module / "users_broken.py").write_text(text)
    with pytest.raises((SyntaxError, ZeroDivisionError, ValueError)):
        prepare("users_broken:told", RMS, CPU)


def test_a_residual_follows_the_input_and_gradients_are_autograds(module: Path) -> None:
    (module / "users_sums.py").write_text(
        "def told(x, residual, shape, weight, eps): return (x + residual) * weight, x + residual\n"
    )
    x = torch.arange(12.0).view(4, 3)
    y, h = prepare("users_sums:told", replace(RMS, op=Op.ADD_RMSNORM), CPU).launch(x)
    assert torch.equal(y, x[:2] + x[2:]) and torch.equal(y, h)
    backward = replace(RMS, op=Op.ADD_RMSNORM, pass_=Pass.BACKWARD)
    x = torch.ones(8, 3)
    dx, dresidual, dw = prepare("add-rmsnorm=users_sums:told", backward, CPU).launch(x)
    assert (dx == 2).all() and (dresidual == 2).all() and (dw == 4).all()
