"""A TOML file that somebody wrote by hand, and what is wrong with it: by file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from norm_fusion.spec import SpecError

T = TypeVar("T")

# A text of several lines, in which no key stands.
LONG = re.compile(r'''("""|\'\'\').*?\1''', re.DOTALL)
HEADER = re.compile(r"\s*\[+([^\[\]]+)\]")
LONGEST = 600  # characters of what is wrong, and of a key: a file may hold words of megabytes


@dataclass(frozen=True)
class TomlFile:
    """A file as it was read: its data, and its text to find lines in."""

    path: Path
    text: str
    data: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """Raises SpecError where it cannot be read, or is not TOML."""
        try:
            text = path.read_text("utf-8")
            return cls(path, text, tomllib.loads(text))
        except (ValueError, RecursionError) as error:  # or not UTF-8, a number of 5,000 digits, endless brackets
            raise SpecError(f"{path} is not TOML: {error}") from None
        except OSError as error:
            raise SpecError(f"{path} cannot be read: {error.strerror}") from None

    def allow(self, keys: Collection[str], table: dict[str, Any] | None = None, under: str = "") -> None:
        """Refuse keys that nobody would read; `under`: the name of the table that they are in."""
        for key in sorted((self.data if table is None else table).keys() - set(keys)):
            named = f"{under}.{key}" if under else key
            self.wrong(named, f"is unknown: allowed {'are' if len(keys) > 1 else 'is'} {', '.join(sorted(keys))}")

    def words(self, key: str, value: object, at: str | None = None) -> str:
        """A text that is not empty, its lines joined."""
        if not isinstance(value, str) or not value.strip():
            self.wrong(key, "must be a text", at=at)
        return " ".join(value.split())

    def table(self, key: str) -> dict[str, Any]:
        """A table of the file, empty where there is none."""
        value = self.data.get(key, {})
        if not isinstance(value, dict):
            self.wrong(key, "must be a table")
        return value

    def each(self, key: str, value: object, read: Callable[[str], T], at: str | None = None) -> tuple[T, ...]:
        """A list of one or more texts, each read as what it stands for."""
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            self.wrong(key, "must be a list of one or more texts", at=at)
        found = []
        for item in value:
            try:
                found.append(read(item))
            except SpecError as error:
                self.wrong(key, f": {error}", at=item)
        first: dict[T, str] = {}  # how each was spelled
        for item, one in zip(value, found, strict=True):
            if one in first:
                other = "" if first[one] == item else f", as {first[one]!r} is the same"
                self.wrong(key, f"names {item!r} twice{other}", at=item, last=True)
            first[one] = item
        return tuple(found)

    def wrong(self, key: str, said: str, at: str | None = None, last: bool = False) -> NoReturn:
        """Raise SpecError with file, line and key; `at`: the words that stand in the line, where it is not the key.

        `last`: of several such lines the last one.
        """
        word = re.escape((at if at is not None else key.rpartition(".")[2])[:LONGEST])
        pattern = rf"""^(?!\s*#).*(?<![\w-]){word}(?![\w-])""" if at else rf"""^\s*\[*"?{word}"?\s*[=\].]"""
        text = LONG.sub(lambda found: "\n" * found[0].count("\n"), self.text)
        lines, own, table = [], [], ""
        for number, line in enumerate(text.split("\n"), start=1):
            header = HEADER.match(line)
            if header is not None:
                table = re.sub(r"""["'\s]""", "", header[1])
            if re.search(pattern, line) or (header is not None and table == key and not at):
                lines.append(number)
                own += [number] if table in (key.rpartition(".")[0], key) else []
        lines = own or lines  # a key of that name, or that word, may stand in other tables too
        where = f"{self.path}, line {lines[-last]}" if lines else f"{self.path}"
        plain = "".join(letter for letter in said[:LONGEST] if letter.isprintable())  # others would steer a terminal
        more = "..." if len(said) > LONGEST else ""
        raise SpecError(f"{where}: key {key[:LONGEST]!r}{'' if said.startswith(':') else ' '}{plain}{more}")
