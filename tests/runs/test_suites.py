"""Suites: the seed's is as the seed says, and a wrong file is named with its key."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from norm_fusion import backends
from norm_fusion.cli.measure import _known
from norm_fusion.runs import suites
from norm_fusion.spec import DEFAULT_CASES, Op, SpecError

GOOD = """
title = "T"
question = "Q?"
why = "W"
project = "P"
focus = "F"
profiles = ["torch"]
cases = ["rmsnorm-4x4-float16"]
"""


def test_the_seeds_suite() -> None:
    suite = suites.load("normalization-fusion")
    assert suite.cases == DEFAULT_CASES
    sweep = suite.select(("rmsnorm-shape-sweep",))
    assert [case.name.split("-")[1] for case in sweep if case.op == "rmsnorm"] == [
        "512x1024",
        "1024x2048",
        "2048x4096",
        "4096x4096",
        "4096x8192",
    ]
    assert len(backends.select(suite.profiles, {case.op for case in sweep})) == 6


def test_a_part_of_a_suite_is_chosen_by_names_that_fit() -> None:
    suite = suites.load("forward")
    wide = suite.select((), ["rmsnorm-*x65536-*", "layernorm-1024x65536-float32"])
    assert {(case.op, case.cols) for case in wide} == {(Op.RMSNORM, 65536), (Op.LAYERNORM, 65536)}
    assert [case for case in suite.select(()) if case in wide] == list(wide), "in the order of the whole"
    with pytest.raises(SpecError, match=r"no case of suite forward fits 'rmsnorm-5x\*'.*norm-fusion suites"):
        suite.select((), ["rmsnorm-*", "rmsnorm-5x*"])


def test_every_suite_loads_and_its_profiles_exist() -> None:
    assert "normalization-fusion" in suites.names()
    for name in suites.names():
        suite = suites.load(name)
        backends.select(suite.profiles, {case.op for case in suite.cases})


@pytest.mark.parametrize("name", suites.names())
def test_cases_of_one_size_have_one_order_in_every_process(name: str) -> None:
    suite = suites.load(name)
    shuffled = replace(suite, cases=tuple(reversed(suite.select(tuple(suite.options)))), options={})
    sizes = [case.rows * case.cols for case in shuffled.cases]
    assert name != "forward" or len(set(sizes)) < len(sizes)
    chosen = suite.select(tuple(suite.options))
    assert all(suites._in_order(one) < suites._in_order(next_one) for one, next_one in pairwise(chosen))
    assert shuffled.select(()) == chosen


def test_what_the_seeds_suite_says_beside_its_cases() -> None:
    suite = suites.load("normalization-fusion")
    assert set(suite.summaries) == {case.name for case in suite.cases}
    assert suite.summaries["rmsnorm-512x1024-float16"] == "small RMSNorm shape sweep point"
    assert suite.metrics["Throughput"] == ("effective GB/s", "effective TFLOP/s")
    assert suite.profiled == ("matmul-4096x4096x4096-float16",)
    compared = {case.name for case in suite.options["comparisons-4096x4096"].cases}
    assert {f"{op}-4096x4096-float16" for op in ("rmsnorm", "layernorm")} <= compared


def test_a_suite_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    listed = 'cases = ["rmsnorm-4x4-float16"]'
    path.write_text(GOOD.replace(listed, "") + TABLES)
    suite = suites.load(str(path))
    assert [case.name for case in suite.cases] == ["rmsnorm-4x4-float16"]
    assert suite.summaries == {"rmsnorm-4x4-float16": "a small one"}
    assert suite.options["more"].summary == "another"
    assert [case.name for case in suite.select(("more",))] == ["rmsnorm-4x4-float16", "rmsnorm-8x4-float16"]


TABLES = """
[cases]
rmsnorm-4x4-float16 = "a small one"

[options.more]
summary = "another"
cases = ["rmsnorm-8x4-float16"]

[metrics]
Latency = ["p50"]

[profiling]
cases = ["matmul-8x8x8-float16"]
"""


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("title = ", "titel = "), 2, "key 'titel' is unknown"),
        (('title = "T"', "title = 3"), 2, "key 'title' must be a text"),
        (('why = "W"', 'why = " "'), 4, "key 'why' must be a text"),
        (('focus = "F"', ""), None, "key 'focus' must be a text"),
        (('"rmsnorm-4x4-float16"', '"rmsnorm-4-float16"'), 8, "key 'cases': case 'rmsnorm-4-float16'"),
        (('["rmsnorm-4x4-float16"]', "3"), 8, "key 'cases' must be a list"),
        (('["rmsnorm-4x4-float16"]', '["rmsnorm-4x4-float16", "rmsnorm-4x4-float16"]'), 8, "names .* twice"),
        (('["torch"]', "[]"), 7, "key 'profiles' must be a list"),
        (('["torch"]', '["torch"'), 8, "not TOML"),
    ],
)
def test_a_wrong_suite_is_named_with_its_line_and_key(
    tmp_path: Path, change: tuple[str, str], line: int | None, says: str
) -> None:
    wrong(tmp_path, GOOD.replace(*change), line, says)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (('"a small one"', "3"), 11, "key 'cases' must say in words what rmsnorm-4x4-float16 is"),
        (("options.more", "options.More"), 13, "key 'options.More' must be lower-case words"),
        (('summary = "another"', ""), 13, "key 'options.more' must be a table with a summary and cases"),
        (
            ('["rmsnorm-8x4-float16"]', '["rmsnorm-8-float16"]'),
            15,
            "key 'options.more.cases': case 'rmsnorm-8-float16'",
        ),
        (('["p50"]', '"p50"'), 18, "key 'metrics.Latency' must be a list"),
        (("matmul-8x8x8", "matmul-8x8"), 21, "key 'profiling.cases': case 'matmul-8x8-float16' is not matmul-MxNxK"),
        (("[profiling]\ncases", "[profiling]\ncase"), 21, "key 'profiling.case' is unknown"),
        (('["matmul-8x8x8-float16"]', "[]"), 21, "key 'profiling.cases' must be a list"),
        (("[cases]\nrmsnorm-4x4-float16 = ", "[cases]\n# "), 10, "key 'cases' must be a list"),
    ],
)
def test_a_wrong_table_is_named_with_its_line_and_key(
    tmp_path: Path, change: tuple[str, str], line: int, says: str
) -> None:
    text = GOOD.replace('cases = ["rmsnorm-4x4-float16"]', "") + TABLES
    assert change[0] in text
    wrong(tmp_path, text.replace(*change), line, says)


def wrong(folder: Path, text: str, line: int | None, says: str) -> None:
    path = folder / "mine.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=says) as caught:
        suites.load(str(path))
    where = f"{path}, line {line}:" if line is not None else f"{path}: "
    assert where in str(caught.value) or f"at line {line}" in str(caught.value)


def test_a_case_in_two_spellings_is_there_twice(tmp_path: Path) -> None:
    text = GOOD.replace('cases = ["rmsnorm-4x4-float16"]', "") + TABLES
    other = 'rmsnorm-4x4-float16 = "a small one"\nrmsnorm-04x4-float16 = "the same"'
    text = text.replace('rmsnorm-4x4-float16 = "a small one"', other)
    wrong(tmp_path, text, 12, "key 'cases' names 'rmsnorm-04x4-float16' twice, as 'rmsnorm-4x4-float16' is the same")


def test_what_stands_in_a_long_text_is_no_key(tmp_path: Path) -> None:
    text = GOOD.replace('why = "W"', 'why = """\ncolour = "in words"\n"""') + 'colour = "red"\n'
    wrong(tmp_path, text, 11, "key 'colour' is unknown")


def test_of_two_lines_the_second_is_the_one_too_many(tmp_path: Path) -> None:
    listed = 'cases = [\n  "rmsnorm-4x4-float16",\n  "rmsnorm-4x4-float16",\n]'
    wrong(tmp_path, GOOD.replace('cases = ["rmsnorm-4x4-float16"]', listed), 10, "names 'rmsnorm-4x4-float16' twice")


def test_an_option_with_another_key_is_told_which(tmp_path: Path) -> None:
    text = GOOD.replace('cases = ["rmsnorm-4x4-float16"]', "") + TABLES
    text = text.replace('summary = "another"', 'summary = "another"\nsummery = "a slip"')
    wrong(tmp_path, text, 15, "key 'options.more.summery' is unknown: allowed are cases, summary")


def test_a_profile_that_there_is_not_is_named_with_its_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('["torch"]', '["torch", "torch-eagre"]'))
    with pytest.raises(SpecError, match=r"line 7: key 'profiles': backend 'torch-eagre' is unknown"):
        suites.load(str(path), _known)
    path.write_text(GOOD)
    assert suites.load(str(path), _known).profiles == ("torch",)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no suite 'nothing'"):
        suites.load("nothing")
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(SpecError, match=r"mine\.toml is not TOML"):
        suites.load(str(path))
