"""What can be asked, and what is refused."""

import pytest

from norm_fusion.spec import DEFAULT_CASES, Case, Op, Pass, Shard, SpecError, odd_kind, parse_shape


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("pass_", Pass)
def test_a_case_survives_its_name(op: Op, pass_: Pass) -> None:
    case = Case(op, 4096, 8192, "bfloat16", pass_)
    assert Case.parse(case.name) == case


def test_names_say_operator_and_backward() -> None:
    case = Case(Op.ADD_RMSNORM, 512, 64, "float32", Pass.BACKWARD)
    assert case.name == "add-rmsnorm-backward-512x64-float32"
    assert Case(Op.RMSNORM, 512, 64, "float32").name == "rmsnorm-512x64-float32"


@pytest.mark.parametrize(
    ("name", "parts", "outputs", "tensors", "vectors"),
    [
        ("rmsnorm", "x", "y", 2, 1),
        ("layernorm", "x", "y", 2, 2),
        ("add-rmsnorm", "x residual", "y residual", 4, 1),
        ("rmsnorm-backward", "x dy", "dx dw", 3, 2),
        ("layernorm-backward", "x dy", "dx dw db", 3, 3),
        ("add-layernorm-backward", "x residual dy dresidual", "dx dresidual dw db", 4, 3),
    ],
)
def test_what_goes_in_and_comes_out(name: str, parts: str, outputs: str, tensors: int, vectors: int) -> None:
    """`tensors`: read or written by whoever does no more than it has to; a sum for two, and a gradient for two."""
    case = Case.parse(f"{name}-48x32-float16")
    assert case.parts == tuple(parts.split())
    assert case.output_names == tuple(outputs.split())
    assert len(case.outputs) == len(case.output_names)
    assert case.input_bytes == len(case.parts) * 48 * 32 * 2
    assert case.compulsory_bytes == (tensors * 48 + vectors) * 32 * 2


def test_an_output_of_another_kind_is_told_apart() -> None:
    case = Case.parse("add-rmsnorm-4x8-float16")
    right = {"type": "Tensor", "shape": [4, 8], "dtype": "float16", "device": "cuda"}
    assert odd_kind([right, right], case, "cuda") is None
    assert odd_kind([right], case, "cuda") == "there are 1 outputs, expected 2"
    for what, wrong in (("shape", [8, 4]), ("dtype", "float32"), ("device", "cpu")):
        said = odd_kind([right, right | {what: wrong}], case, "cuda")
        assert said == f"output residual has {what} {wrong}, expected {right[what]}"
    assert odd_kind([right | {"type": "list"}, right], case, "cuda") == "output y is a list, expected a tensor"


def test_the_seeds_four_cases_are_the_default() -> None:
    assert [case.name for case in DEFAULT_CASES] == [
        "rmsnorm-512x1024-float16",
        "rmsnorm-2048x4096-float16",
        "rmsnorm-4096x4096-float16",
        "layernorm-4096x4096-float32",
    ]


def test_compulsory_bytes_count_every_row_once() -> None:
    assert Case(Op.RMSNORM, 4096, 8192, "float16").compulsory_bytes == 2 * 4096 * 8192 * 2 + 8192 * 2
    assert Case(Op.LAYERNORM, 4096, 4096, "float32").compulsory_bytes == 2 * 4096 * 4096 * 4 + 2 * 4096 * 4


def test_flops_are_five_and_eight_per_element() -> None:
    assert Case(Op.RMSNORM, 3, 7, "float16").flops == 5 * 21
    assert Case(Op.LAYERNORM, 3, 7, "float16").flops == 8 * 21
    assert Case(Op.ADD_RMSNORM, 3, 7, "float16").flops == 6 * 21
    assert Case(Op.LAYERNORM, 3, 7, "float16", Pass.BACKWARD).flops == 13 * 21


@pytest.mark.parametrize(
    ("rows", "cols", "dtype", "seen"),
    [
        (0, 4, "float16", "rows is 0"),
        (4, -1, "float16", "cols is -1"),
        (2**31, 4, "float16", "rows is 2147483648"),
        (2**30, 2**30, "float16", "TiB"),
        (4, 4, "float64", "'float64' is unknown: choose from float16, bfloat16, float32"),
    ],
)
def test_absurd_cases_are_refused_with_what_was_seen(rows: int, cols: int, dtype: str, seen: str) -> None:
    with pytest.raises(SpecError, match=seen):
        Case(Op.RMSNORM, rows, cols, dtype)


@pytest.mark.parametrize("text", ["4096", "4096x", "x8", "4096*8", "-4x8", "4x8x9", "a x b", ""])
def test_malformed_shapes_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="write it like 4096x8192"):
        parse_shape(text)


@pytest.mark.parametrize("name", ["rmsnorm-4x4", "batchnorm-4x4-float16", "rmsnorm-4x4-float16-sideways"])
def test_malformed_case_names_are_refused(name: str) -> None:
    with pytest.raises(SpecError):
        Case.parse(name)


def test_a_shard_survives_json() -> None:
    shard = Shard("a", DEFAULT_CASES, ("torch-eager",), "cpu", seed=7, quick=True)
    assert Shard.from_dict(shard.to_dict()) == shard
