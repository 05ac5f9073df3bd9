"""The patched module is the same object, and can be copied, stored and compiled."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import COLS, EACH_FORM, F32, FAMILIES, FORMS, LOGITS, arguments, build, difference, logits, norm_of
from torch import nn

from norm_fusion.patching import patch_model, unpatch_model


@EACH_FORM
def test_parameters_hooks_and_isinstance_stay(form: str) -> None:
    norm, given = norm_of(FORMS[form]), arguments(FORMS[form], F32)
    seen: list[str] = []
    norm.register_forward_pre_hook(lambda *_: seen.append("before"))
    norm.register_forward_hook(lambda *_: seen.append("after"))
    norm.register_full_backward_hook(lambda *_: seen.append("backward"))
    before, text, cls = dict(norm.state_dict(keep_vars=True)), norm.extra_repr(), type(norm)
    patch_model(norm)
    norm(*(tensor.requires_grad_() for tensor in given)).sum().backward()
    assert seen == ["before", "after", "backward"]
    after = norm.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert isinstance(norm, cls) and norm.extra_repr() == text and cls.__name__ in repr(norm)
    norm_of(FORMS[form]).load_state_dict(norm.state_dict())


def saved(model: nn.Module) -> bytes:
    torch.save(model, file := io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize("family", ["Qwen3-Next", "BERT"])
@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_copies_are_patched_and_independent(family: str, how: str) -> None:
    model = build(family)
    patch_model(model)
    expected = logits(model, family)
    copied = copy.deepcopy(model) if how == "deepcopy" else torch.load(io.BytesIO(saved(model)), weights_only=False)
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]
    assert unpatch_model(copied) == FAMILIES[family][2]
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(model, family), expected)


def test_a_saved_model_is_patched_in_another_process_and_transformers_is_not_imported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
    patch_model(model)
    (tmp_path / "model.pt").write_bytes(saved(model))
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False); import norm_fusion.patching as p; "
        "print(m(torch.ones(1, 8)).shape, p.unpatch_model(m), m, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("torch.Size([1, 8]) 2 Sequential(\n  (0): LayerNorm(("), done.stderr
    assert done.stdout.endswith(" False\n")


def test_patched_norms_compile_into_one_graph() -> None:
    torch._dynamo.reset()
    norms_of_all = [norm_of(FORMS[form]) for form in ("Llama", "Gemma", "OLMo2", "T5", "torch LayerNorm")]
    model = nn.Sequential(*norms_of_all)
    x = torch.randn(4, COLS, generator=torch.Generator().manual_seed(4)).requires_grad_()
    expected = model(x)
    (dx,) = torch.autograd.grad(expected.pow(3).sum(), x)
    patch_model(model)
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    y.pow(3).sum().backward()
    assert difference(y.detach(), expected.detach()) < LOGITS
    torch.testing.assert_close(x.grad, dx, rtol=1e-3, atol=1e-4)
