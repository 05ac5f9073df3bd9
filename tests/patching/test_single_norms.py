"""Single norms patched: dtypes, roundings, arguments."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import BF16, COLS, EACH_FORM, F16, F32, FORMS, arguments, norm_of
from torch import Tensor, nn

from norm_fusion.known_norms import TABLE
from norm_fusion.ops import route
from norm_fusion.patching import patch_model


def ulps(found: Tensor, expected: Tensor) -> Tensor:
    """How many numbers of their dtype lie between them."""
    integers = []
    for tensor in (found, expected):
        bits = tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.itemsize]).long()
        integers.append(torch.where(bits < 0, -(bits & (2 ** (8 * tensor.itemsize - 1) - 1)), bits))
    return (integers[0] - integers[1]).abs()


def check_bits(identity: str, dtype: torch.dtype, weight: torch.dtype, rows: int, differ: float) -> None:
    """At most a fraction `differ` of 16-bit elements differs, and by one ulp."""
    norm, given = norm_of(identity, weight), arguments(identity, dtype, rows)
    expected = norm(*given)
    assert sum(map(len, patch_model(norm).replaced.values())) == 1
    found = norm(*given)
    assert found.dtype == expected.dtype
    if found.dtype == F32:  # no roundings to agree on; LayerNorm's difference from the mean may cancel
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-5)
    else:
        off = ulps(found, expected)
        assert off.max() <= 1 and (off > 0).double().mean() <= differ


@pytest.mark.parametrize("identity", TABLE, ids=lambda identity: identity.rsplit(".", 1)[1])
@pytest.mark.parametrize("weight", [F16, F32], ids=["weight float16", "weight float32"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_each_class_of_the_table_is_what_the_installed_one_computes(identity: str, weight: torch.dtype) -> None:
    """float16, where rounding the normalized row or not is seen in a quarter of all elements."""
    check_bits(identity, F16, weight, rows=8, differ=0.01)


# All but what torch's LayerNorm refuses, and T5's mixtures, which are the next test's.
MIXTURES = [
    pytest.param(form, dtype, weight, id=f"{form}, {str(dtype)[6:]}, weight {str(weight)[6:]}")
    for form in FORMS
    for dtype in (F16, BF16, F32)
    for weight in (F16, BF16, F32)
    if form not in ("T5", "torch LayerNorm") or weight in (dtype, F32)
]


@pytest.mark.parametrize(("form", "dtype", "weight"), MIXTURES)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_dtypes_and_roundings_are_the_originals(form: str, dtype: torch.dtype, weight: torch.dtype) -> None:
    check_bits(FORMS[form], dtype, weight, rows=64, differ=0.001)


@pytest.mark.parametrize(("dtype", "weight"), [(F32, F16), (BF16, F16), (F32, BF16), (F16, BF16)])
def test_t5s_norm_of_an_input_in_another_dtype_is_nearer_to_the_exact_one(
    dtype: torch.dtype, weight: torch.dtype
) -> None:
    """T5 rounds the normalized row to the weight's dtype and then the product; the kernel the product alone."""
    norm, given = norm_of(FORMS["T5"], weight), arguments(FORMS["T5"], dtype)[0]
    exact = copy.deepcopy(norm).double()(given.double())
    expected = norm(given)
    patch_model(norm)
    found = norm(given)
    assert found.dtype == expected.dtype == weight
    assert ulps(found, expected).max() <= 2
    assert (found - exact).abs().mean() < (expected - exact).abs().mean()


@EACH_FORM
def test_where_triton_does_not_run_the_outputs_are_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORM_FUSION_FORCE_TRITON")
    check_bits(FORMS[form], F16, F16, rows=64, differ=0.001)


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("torch")])
def test_autocast_changes_no_dtype_that_it_did_not_change_before(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA autocast makes torch.nn.functional's norms return fp32; Hugging Face's norms do not call those."""
    monkeypatch.setattr(route, "AUTOCAST_TO_FP32", {(False, "cpu")})
    norm, given = norm_of(FORMS[form]), arguments(FORMS[form], BF16)
    with torch.autocast("cpu", BF16):
        expected = norm(*given)
        patch_model(norm)
        assert norm(*given).dtype == expected.dtype


@EACH_FORM
def test_arguments_keep_their_names(form: str) -> None:
    norm, given = norm_of(FORMS[form]), arguments(FORMS[form], F32)
    names = norm.forward.__code__.co_varnames[1 : 1 + len(given)]
    patch_model(norm)
    assert torch.equal(norm(**dict(zip(names, given, strict=True))), norm(*given))


def test_a_gated_norm_without_its_gate_is_refused() -> None:
    norm, given = norm_of(FORMS["Qwen3-Next gated"]), arguments("", F32)
    patch_model(norm)
    with pytest.raises(TypeError, match=r"gate is None: FusedQwen3NextRMSNormGated takes a torch\.Tensor"):
        norm(given[0], None)


@pytest.mark.parametrize("form", ["Llama", "Gemma", "Qwen3-Next gated", "torch LayerNorm"])
def test_an_input_that_the_kernels_do_not_have_goes_to_the_original(form: str) -> None:
    norm, given = norm_of(FORMS[form]), [tensor.double() for tensor in arguments(FORMS[form], F32)]
    if form == "torch LayerNorm":
        norm = nn.LayerNorm(COLS, elementwise_affine=False)
    expected = norm(*given)
    assert patch_model(norm).replaced
    assert torch.equal(norm(*given), expected)
