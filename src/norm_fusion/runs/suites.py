"""Suites: TOML files that say what to run. Loaded and checked here; profile names are resolved by the caller."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from norm_fusion.runs.toml import TomlFile
from norm_fusion.spec import Case, Op, Pass, SpecError, profiled

# A checkout's own suites, then those that came with an installed package.
FOLDERS = (Path(__file__).parents[3] / "suites", Path(__file__).parents[1] / "data" / "suites")
TEXTS = ("title", "question", "why", "project", "focus")
KEYS = (*TEXTS, "profiles", "cases", "options", "metrics", "profiling")
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

    def select(self, options: tuple[str, ...], only: Sequence[str] = ()) -> tuple[Case, ...]:
        """The suite's cases and those of the named options, each once: by operator, then by size.

        In one order: a run that goes on has to find its own. `only`: of them those whose names fit one of these
        patterns, like rmsnorm-*x65536-*.

        Raises:
            SpecError: a pattern fits no case.
        """
        chosen = {*self.cases, *(case for name in options for case in self.options[name].cases)}
        fitting = {pattern: {case for case in chosen if fnmatchcase(case.name, pattern)} for pattern in only}
        for pattern, those in fitting.items():
            if not those:
                raise SpecError(f"no case of suite {self.name} fits {pattern[:80]!r}: `norm-fusion suites` lists them")
        return tuple(sorted(set().union(*fitting.values()) if only else chosen, key=_in_order))


def _in_order(case: Case) -> tuple[int, bool, str, int, int]:
    return list(Op).index(case.op), case.pass_ is Pass.BACKWARD, case.dtype, case.rows * case.cols, case.cols


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
    file = TomlFile.read(path)
    file.allow(KEYS)
    cases = file.data.get("cases")
    summaries = {}
    for name_of, said in cases.items() if isinstance(cases, dict) else ():
        if not isinstance(said, str) or not said.strip():
            file.wrong("cases", f"must say in words what {name_of} is", at=name_of)
        summaries[name_of] = " ".join(said.split())
    for key in TEXTS:
        file.words(key, file.data.get(key))
    return Suite(
        name=path.stem,
        **{key: file.data[key].strip() for key in TEXTS},
        cases=file.each("cases", list(summaries) or cases, Case.parse),
        profiles=file.each("profiles", file.data.get("profiles"), profile),
        options={name: _option(file, name, value) for name, value in file.table("options").items()},
        summaries=summaries,
        metrics={name: file.each(f"metrics.{name}", v, str) for name, v in file.table("metrics").items()},
        profiled=_profiling(file),
    )


def _option(file: TomlFile, name: str, value: object) -> Option:
    key = f"options.{name}"
    if OPTION.fullmatch(name) is None:
        file.wrong(key, "must be lower-case words, digits and hyphens: it becomes --include-NAME", at=name)
    needed = ("summary", "cases")
    if not isinstance(value, dict) or not all(value.get(part) for part in needed):
        file.wrong(key, "must be a table with a summary and cases", at=name)
    file.allow(needed, value, key)
    summary = file.words(f"{key}.summary", value["summary"], at=name)
    return Option(summary, file.each(f"{key}.cases", value["cases"], Case.parse, at=name))


def _profiling(file: TomlFile) -> tuple[str, ...]:
    table = file.table("profiling")
    file.allow(["cases"], table, "profiling")
    return tuple(one.name for one in file.each("profiling.cases", table["cases"], profiled)) if table else ()
