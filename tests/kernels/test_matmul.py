"""The product of matrices: its arithmetic in Triton's interpreter, and its machine code, compiled ahead of time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from norm_fusion.kernels.matmul import GROUP, TILES, matmul

EACH_DTYPE = pytest.mark.parametrize("dtype", TILES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def drawn(m: int, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n + k)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((m, k), (k, n)))
    return a, b


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    """Within one rounding of the result, of a subnormal by its spacing, and of sums of k terms in fp32."""
    found, right = matmul(a, b), a.double() @ b.double()
    terms = a.double().abs() @ b.double().abs()
    kind = torch.finfo(a.dtype)
    allowed = 1.001 * kind.eps / 2 * right.abs() + kind.smallest_normal * kind.eps + 2.0**-24 * a.shape[1] * terms
    assert found.dtype == a.dtype and found.shape == right.shape
    assert torch.isfinite(found).all()
    assert ((found.double() - right).abs() <= allowed).all()


@EACH_DTYPE
@pytest.mark.parametrize("m", [1, 63, 129])
@pytest.mark.parametrize("n", [1, 65, 130])
@pytest.mark.parametrize("k", [1, 31, 100])
def test_edges_that_no_tile_fits(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    check(*drawn(m, n, k, dtype))


@EACH_DTYPE
def test_whole_tiles(dtype: torch.dtype) -> None:
    tiles = TILES[dtype]
    check(*drawn(tiles.m, 2 * tiles.n, 3 * tiles.k, dtype))


@pytest.mark.parametrize("down", [GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 3])
def test_every_tile_is_made_in_whole_groups_and_in_a_last_one_that_is_lower(down: int) -> None:
    tiles = TILES[torch.float32]
    check(*drawn(down * tiles.m, 2 * tiles.n + 1, 4, torch.float32))


def test_matrices_of_other_strides() -> None:
    a, b = drawn(70, 66, 40, torch.float16)
    check(a.t().contiguous().t(), b.t().contiguous().t())
    check(a[::2, 1::3], b[1::3, ::2])


def test_what_lies_beyond_a_matrix_is_not_read() -> None:
    wide = torch.full((80, 80), float("nan"), dtype=torch.float16)
    a, b = drawn(33, 35, 37, torch.float16)
    inside = wide[:33, :37]
    inside.copy_(a)
    check(inside, b)


def test_products_of_nothing() -> None:
    assert matmul(torch.zeros(0, 4), torch.zeros(4, 3)).shape == (0, 3)
    assert torch.equal(matmul(torch.zeros(2, 0), torch.zeros(0, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"shapes \(2, 3\) and \(2, 3\) do not fit: they must be \(m, k\)"),
        (torch.zeros(3), torch.zeros(3, 2), "do not fit"),
        (torch.zeros(2, 3), torch.zeros(3, 2).half(), "float32 and torch.float16: both must be one of float16, bf"),
        (torch.zeros(2, 3).double(), torch.zeros(3, 2).double(), "both must be one of float16, bfloat16, float32"),
    ],
)
def test_what_is_no_product_is_refused(a: torch.Tensor, b: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        matmul(a, b)


# In a process of its own: one that interprets Triton cannot compile it.
COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from norm_fusion.kernels.matmul import GROUP, TILES, multiply

names = multiply.arg_names
found = {}
for dtype, letters in ((torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "fp32")):
    tiles = TILES[dtype]
    fixed = {"BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k, "GROUP": GROUP}
    fixed |= {"a_col": 1, "b_col": 1, "c_col": 1}  # as Triton specializes strides of one
    types = {name: f"*{letters}" if name.endswith("_ptr") else "i32" for name in names}
    for cc in (80, 90):
        compiled = triton.compile(
            ASTSource(
                fn=multiply,
                signature={name: "constexpr" if name in fixed else types[name] for name in names},
                constexprs={(names.index(name),): value for name, value in fixed.items()},
                attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in fixed},
            ),
            target=GPUTarget("cuda", cc, 32),
            options={"num_warps": tiles.num_warps, "num_stages": tiles.stages},
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        found[f"{letters} {cc}"] = {"ptx": compiled.asm["ptx"], "usage": usage, "shared": compiled.metadata.shared}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """PTX, registers and spills, by dtype and compute capability."""
    env = os.environ | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, text=True, stdout=subprocess.PIPE, check=True)
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("which", "instruction"),
    [
        ("fp16 80", r"mma\.sync\.\S*\.f32\.f16\.f16\.f32"),
        ("bf16 80", r"mma\.sync\.\S*\.f32\.bf16\.bf16\.f32"),
        ("fp16 90", r"wgmma\.mma_async\.\S*\.f32\.f16\.f16"),
        ("bf16 90", r"wgmma\.mma_async\.\S*\.f32\.bf16\.bf16"),
    ],
)
def test_sixteen_bits_are_multiplied_by_tensor_pipes(
    compiled: dict[str, dict[str, str]], which: str, instruction: str
) -> None:
    assert re.search(instruction, compiled[which]["ptx"])


@pytest.mark.parametrize("cc", [80, 90])
def test_fp32_is_multiplied_as_fp32(compiled: dict[str, dict[str, str]], cc: int) -> None:
    ptx = compiled[f"fp32 {cc}"]["ptx"]
    assert "mma" not in ptx and "fma.rn.f32" in ptx


@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize("letters", ["fp16", "bf16", "fp32"])
def test_nothing_spills_and_two_programs_fit_a_multiprocessor(
    compiled: dict[str, dict[str, str]], letters: str, cc: int
) -> None:
    found = compiled[f"{letters} {cc}"]
    stack, local = (int(re.search(rf"{what}:(\d+)", found["usage"])[1]) for what in ("STACK", "LOCAL"))  # type: ignore[index]
    assert (stack, local) == (0, 0)
    assert 2 * int(found["shared"]) <= {80: 163, 90: 227}[cc] * 1024


@pytest.mark.parametrize("letters", ["fp16", "bf16"])
def test_tiles_arrive_in_accesses_of_sixteen_bytes_and_ahead_of_their_use(
    compiled: dict[str, dict[str, str]], letters: str
) -> None:
    ptx = compiled[f"{letters} 90"]["ptx"]
    sizes = {
        int(size) for size in re.findall(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x([0-9a-f]+)", ptx)
    }
    assert sizes == {10}  # hexadecimal
