"""A TOML file of somebody's: what is wrong with it is told by file, line and key, and in few words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from norm_fusion.runs.toml import LONGEST, TomlFile
from norm_fusion.spec import SpecError

TEXT = '''\
# title = "commented out"
title = "the fast\u2028one"
why = """
size = 3
fast = 4
"""
sizes = [
    "small",
    "large",
]

[claims.fast]
size = 1
baseline = "slow"

[claims.slow]
"size" = 2
baseline = "fast"
kinds = ["fast", "slow"]

[[parts]]
weight = 5
'''


def file(tmp_path: Path, text: str = TEXT) -> TomlFile:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return TomlFile.read(path)


def said(call: Callable[[], object]) -> str:
    with pytest.raises(SpecError) as caught:
        call()
    return str(caught.value)


def at(tmp_path: Path, key: str, **where: object) -> str:
    """The line that is named, without the rest."""
    path = tmp_path / "a.toml"
    told = said(lambda: file(tmp_path).wrong(key, "is odd", **where))  # type: ignore[arg-type]
    assert told.startswith(f"{path}") and told.endswith(f"key {key!r} is odd")
    return told.removeprefix(str(path)).partition(":")[0]


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("title", ", line 2"),
        ("sizes", ", line 7"),
        ("claims.fast", ", line 12"),
        ("claims.fast.size", ", line 13"),
        ("claims.slow.size", ", line 17"),
        ("claims.slow.baseline", ", line 18"),
        ("parts", ", line 21"),
        ("parts.weight", ", line 22"),
        ("claims.slow.colour", ""),
        ("owner", ""),
    ],
)
def test_a_key_is_looked_for_in_its_own_table(tmp_path: Path, key: str, line: str) -> None:
    assert at(tmp_path, key) == line


@pytest.mark.parametrize(
    ("key", "word", "line"),
    [
        ("sizes", "large", ", line 9"),
        ("claims.fast", "fast", ", line 12"),  # not the title's word, nor the other claim's baseline
        ("claims.slow.says", "slow", ", line 16"),
        ("claims.slow.baseline", "fast", ", line 18"),
        ("claims.slow.kinds", "slow", ", line 16"),
        ("sizes", "huge", ""),
    ],
)
def test_words_are_looked_for_in_the_table_of_their_key_first(tmp_path: Path, key: str, word: str, line: str) -> None:
    assert at(tmp_path, key, at=word) == line


def test_the_last_of_several_lines_where_one_is_there_twice(tmp_path: Path) -> None:
    assert at(tmp_path, "claims.slow.kinds", at="fast", last=True) == ", line 19"


def test_what_is_said_is_short_and_steers_no_terminal(tmp_path: Path) -> None:
    told = said(lambda: file(tmp_path).wrong("title", "\x1b[31mred\u202e " + "x" * 10**6))
    assert "\x1b" not in told and "\u202e" not in told and "[31mred " in told
    assert told.endswith("x...") and len(told) < len(str(tmp_path)) + LONGEST + 100
    assert len(said(lambda: file(tmp_path).wrong("k" * 10**6, "is odd"))) < len(str(tmp_path)) + LONGEST + 100


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'title = "', "Unterminated string (at end of document)"),
        (b"\xff\xfe", "is not TOML: 'utf-8' codec"),
        (b"days = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
        (b"deep = " + b"[" * 10**5, "is not TOML: "),
        (b"\0", "is not TOML: "),
        (b"a = 1\na = 2", "is not TOML: Cannot overwrite"),
    ],
    ids=["cut", "bytes", "huge", "deep", "nul", "twice"],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(data)
    told = said(lambda: TomlFile.read(path))
    assert told.startswith(f"{path} is not TOML: ") and says in told


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert (
        said(lambda: TomlFile.read(tmp_path / "none"))
        == f"{tmp_path / 'none'} cannot be read: No such file or directory"
    )
    assert said(lambda: TomlFile.read(tmp_path)) == f"{tmp_path} cannot be read: Is a directory"


def test_unknown_keys_are_refused_and_the_known_ones_told(tmp_path: Path) -> None:
    one = file(tmp_path)
    one.allow(["title", "why", "sizes", "claims", "parts"])
    told = said(lambda: one.allow(["why", "parts", "claims", "sizes"]))
    assert told.endswith("line 2: key 'title' is unknown: allowed are claims, parts, sizes, why")
    inner = one.data["claims"]["fast"]
    one.allow(["size", "baseline"], inner, "claims.fast")
    told = said(lambda: one.allow(["size"], inner, "claims.fast"))
    assert told.endswith("line 14: key 'claims.fast.baseline' is unknown: allowed is size")


def test_a_text_is_one_line(tmp_path: Path) -> None:
    one = file(tmp_path)
    assert one.words("why", one.data["why"]) == "size = 3 fast = 4"
    for value in ("", " \n ", 3, None, ["a"]):
        assert "key 'title' must be a text" in said(lambda value=value: one.words("title", value))  # type: ignore[misc]


def test_a_table_may_be_missing_and_nothing_else(tmp_path: Path) -> None:
    one = file(tmp_path)
    assert one.table("claims").keys() == {"fast", "slow"}
    assert one.table("none") == {}
    assert "line 2: key 'title' must be a table" in said(lambda: one.table("title"))


def test_each_of_a_list_is_read_and_is_there_once(tmp_path: Path) -> None:
    one = file(tmp_path)

    def length(text: str) -> int:
        if text == "large":
            raise SpecError("it is too large")
        return len(text)

    assert one.each("sizes", ["a", "ab"], length) == (1, 2)
    assert "line 9: key 'sizes': it is too large" in said(lambda: one.each("sizes", ["large"], length))
    assert "key 'sizes' names 'b' twice, as 'a' is the same" in said(lambda: one.each("sizes", ["a", "b"], length))
    assert said(lambda: one.each("sizes", ["small", "small"], length)).endswith(
        "line 8: key 'sizes' names 'small' twice"
    )
    for value in ("a", [], [1], None, {}, ["a", 1]):
        assert "must be a list of one or more texts" in said(
            lambda value=value: one.each("sizes", value, length)  # type: ignore[misc]
        )
