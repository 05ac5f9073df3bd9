"""What can be asked, and what is refused."""

import pytest

from norm_fusion.spec import DEFAULT_CASES, Case, Op, Shard, SpecError, parse_shape


def test_a_case_survives_its_name() -> None:
    for case in DEFAULT_CASES:
        assert Case.parse(case.name) == case


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
