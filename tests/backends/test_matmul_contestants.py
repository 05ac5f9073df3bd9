"""A matrix product as what is asked for, and its two contestants."""

from __future__ import annotations

import builtins

import pytest
import torch

from norm_fusion.backends import matmul
from norm_fusion.backends.builtin import Unavailable
from norm_fusion.spec import Case, Matmul, Op, SpecError, profiled

CPU = torch.device("cpu")


def test_a_product_survives_its_name_and_counts_each_matrix_once() -> None:
    case = Matmul(4096, 1024, 512, "float16")
    assert case.name == "matmul-4096x1024x512-float16"
    assert profiled(case.name) == Matmul.parse(case.name) == case
    assert case.compulsory_bytes == 2 * (4096 * 512 + 512 * 1024 + 4096 * 1024)
    assert case.flops == 2 * 4096 * 1024 * 512
    assert case.op == "matmul"


def test_what_can_be_profiled_is_a_case_or_a_product() -> None:
    assert profiled("rmsnorm-4x8-float16") == Case(Op.RMSNORM, 4, 8, "float16")
    with pytest.raises(SpecError, match="is not OP-ROWSxCOLS-DTYPE"):
        profiled("matmuls")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("matmul-4x4-float16", "is not matmul-MxNxK-DTYPE: write it like matmul-4096x4096x4096-float16"),
        ("matmul-4x4x4", "is not matmul-MxNxK-DTYPE"),
        ("matmul-backward-4x4x4-float16", "is not matmul-MxNxK-DTYPE"),
        ("matmul-0x4x4-float16", "m is 0: it must be 1 to 2,147,483,647"),
        ("matmul-4x4x2147483648-float16", "k is 2147483648"),
        ("matmul-4x4x4-float64", "'float64' is unknown: choose from float16, bfloat16, float32"),
        ("matmul-2000000x2000000x2-float16", "needs 7.3 TiB for its matrices: at most 1 TiB"),
    ],
)
def test_a_product_that_cannot_be_asked_for_is_refused(name: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        profiled(name)


@pytest.mark.parametrize("profile", matmul.CONTESTANTS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_contestant_makes_the_product_of_the_drawn_matrices(profile: str, dtype: str) -> None:
    case = Matmul(20, 24, 40, dtype)
    ready = matmul.prepare(profile, case, CPU, seed=5)
    a, b = matmul.draw(case, CPU, seed=5)
    made = ready.launch()
    assert (made.shape, made.dtype) == ((20, 24), getattr(torch, dtype))
    torch.testing.assert_close(made.double(), a.double() @ b.double(), rtol=2e-3, atol=2e-3)
    assert not torch.equal(a, matmul.draw(case, CPU, seed=6)[0])
    assert profile.split("-")[0] in ready.resolved


def test_another_contestant_is_refused() -> None:
    with pytest.raises(SpecError, match="'torch-eager' of matmul-4x4x4-float16 is unknown: choose from torch-matmul"):
        matmul.prepare("torch-eager", Matmul(4, 4, 4, "float16"), CPU, seed=0)


def test_a_missing_triton_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: object) -> object:
        if name == "triton":
            raise ModuleNotFoundError(name=name)
        return real(name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable, match="Triton is not installed"):
        matmul.prepare("triton-matmul", Matmul(4, 4, 4, "float16"), CPU, seed=0)
