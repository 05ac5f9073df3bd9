"""Suites: the seed's is as the seed says, and a wrong file is named with its key."""

from pathlib import Path

import pytest

from norm_fusion import backends
from norm_fusion.runs import suites
from norm_fusion.spec import DEFAULT_CASES, SpecError

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


def test_every_suite_loads_and_its_profiles_exist() -> None:
    assert "normalization-fusion" in suites.names()
    for name in suites.names():
        suite = suites.load(name)
        backends.select(suite.profiles, {case.op for case in suite.cases})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("title = ", "titel = "), "key 'titel' is unknown"),
        (('title = "T"', "title = 3"), "key 'title' must be a text"),
        (('"rmsnorm-4x4-float16"', '"rmsnorm-4-float16"'), "key 'cases': case 'rmsnorm-4-float16'"),
        (('["torch"]', "[]"), "key 'profiles' must be a list"),
        (('["torch"]', '["torch"'), "line"),
    ],
)
def test_a_wrong_suite_is_named_with_its_key(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(SpecError, match=says) as caught:
        suites.load(str(path))
    assert "mine.toml" in str(caught.value)


def test_an_unknown_suite_names_those_that_exist() -> None:
    with pytest.raises(SpecError, match="no suite 'fusion': choose from normalization-fusion"):
        suites.load("fusion")
