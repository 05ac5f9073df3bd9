"""Suites: TOML files that say what to run. Loaded and checked here; profile names are resolved by the caller."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from norm_fusion.spec import Case, Op, Pass, SpecError, profiled

T = TypeVar("T")

# A checkout's own suites, then those that came with an installed package.
FOLDERS = (Path(__file__).parents[3] / "suites", Path(__file__).parents[1] / "data" / "suites")
TEXTS = ("title", "question", "why", "project", "focus")
KEYS = (*TEXTS, "profiles", "cases", "options", "metrics", "profiling")
# A text of several lines, in which no key stands.
LONG = re.compile(r'''("""|\'\'\').*?\1''', re.DOTALL)
HEADER = re.compile(r"\s*\[([^\[\]]+)\]")
# Of an optional part: what follows --include-.
OPTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Option:
    """An optional part of a suite: cases beside its own."""

    summary: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Suite:
    """Cases x profiles, with the question they answer and why it matters.

    `options` are its optional parts, by name; `summaries` say in words what a case is; `metrics` are the figures that
    the question needs, in groups; `profiled` are the names whose counters are read beside those of the cases.
    """

    name: str
    title: str
    question: str
    why: str
    project: str
    focus: str
    cases: tuple[Case, ...]
    profiles: tuple[str, ...]
    options: Mapping[str, Option] = field(default_factory=dict)
    summaries: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    profiled: tuple[str, ...] = ()

    def select(self, options: tuple[str, ...]) -> tuple[Case, ...]:
        """The suite's cases and those of the named options, each once: by operator, then by size."""
        chosen = {*self.cases, *(case for name in options for case in self.options[name].cases)}
        return tuple(sorted(chosen, key=_in_order))


def _in_order(case: Case) -> tuple[int, bool, str, int]:
    return list(Op).index(case.op), case.pass_ is Pass.BACKWARD, case.dtype, case.rows * case.cols


def names() -> list[str]:
    """The suites there are."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def load(name: str, profile: Callable[[str], str] = str) -> Suite:
    """The suite of that name, or of that TOML file; `profile` returns the name of a profile if there is one.

    Raises:
        SpecError: there is none, or the file is wrong; says which file, line and key.
    """
    candidates = [Path(name)] if name.endswith(".toml") else [folder / f"{name}.toml" for folder in FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise SpecError(f"there is no suite {name!r}: choose from {', '.join(names())}, or give a .toml file")
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    return _File(path, text).suite(data, profile)


@dataclass(frozen=True)
class _File:
    """A suite's file, and how what is wrong with it is told."""

    path: Path
    text: str

    def suite(self, data: dict[str, Any], profile: Callable[[str], str]) -> Suite:
        for key in sorted(data.keys() - set(KEYS)):
            self.wrong(key, f"is unknown: allowed are {', '.join(sorted(KEYS))}")
        for key in TEXTS:
            if not isinstance(data.get(key), str) or not data[key].strip():
                self.wrong(key, "must be a text")
        cases = data.get("cases")
        summaries = {}
        for name, said in cases.items() if isinstance(cases, dict) else ():
            if not isinstance(said, str) or not said.strip():
                self.wrong("cases", f"must say in words what {name} is", at=name)
            summaries[name] = " ".join(said.split())
        return Suite(
            name=self.path.stem,
            **{key: data[key].strip() for key in TEXTS},
            cases=self.each("cases", list(summaries) or cases, Case.parse),
            profiles=self.each("profiles", data.get("profiles"), profile),
            options={name: self.option(name, value) for name, value in self.table("options", data).items()},
            summaries=summaries,
            metrics={name: self.each(f"metrics.{name}", v, str) for name, v in self.table("metrics", data).items()},
            profiled=self.profiling(data),
        )

    def option(self, name: str, value: object) -> Option:
        key = f"options.{name}"
        if OPTION.fullmatch(name) is None:
            self.wrong(key, "must be lower-case words, digits and hyphens: it becomes --include-NAME", at=name)
        needed = ("summary", "cases")
        if not isinstance(value, dict) or not all(value.get(part) for part in needed):
            self.wrong(key, "must be a table with a summary and cases", at=name)
        for part in sorted(value.keys() - set(needed)):
            self.wrong(f"{key}.{part}", "is unknown: allowed are summary, cases")
        if not isinstance(value["summary"], str):
            self.wrong(f"{key}.summary", "must be a text", at=name)
        return Option(
            " ".join(value["summary"].split()), self.each(f"{key}.cases", value["cases"], Case.parse, at=name)
        )

    def profiling(self, data: dict[str, Any]) -> tuple[str, ...]:
        table = self.table("profiling", data)
        for key in sorted(table.keys() - {"cases"}):
            self.wrong(f"profiling.{key}", "is unknown: allowed is cases", at=key)
        return tuple(one.name for one in self.each("profiling.cases", table["cases"], profiled)) if table else ()

    def table(self, key: str, data: dict[str, Any]) -> dict[str, Any]:
        value = data.get(key, {})
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
        word = re.escape(at if at is not None else key.rpartition(".")[2])
        pattern = rf"""^(?!\s*#).*(?<![\w-]){word}(?![\w-])""" if at else rf"""^\s*\[?"?{word}"?\s*[=\].]"""
        text = LONG.sub(lambda found: "\n" * found[0].count("\n"), self.text)
        lines, own, table = [], [], ""
        for number, line in enumerate(text.splitlines(), start=1):
            if header := HEADER.match(line):
                table = re.sub(r"""["'\s]""", "", header[1])
            if re.search(pattern, line):
                lines.append(number)
                own += [number] if table in (key.rpartition(".")[0], key) else []
        lines = lines if at else own or lines  # a key of that name may stand in other tables too
        where = f"{self.path}, line {lines[-last]}" if lines else f"{self.path}"
        raise SpecError(f"{where}: key {key!r}{'' if said.startswith(':') else ' '}{said}")
