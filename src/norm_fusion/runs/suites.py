"""Suites: TOML files that say what to run. Loaded and checked here; profile names are resolved by the caller."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from norm_fusion.spec import Case, SpecError, Suite

# A checkout's own suites, then those that came with an installed package.
FOLDERS = (Path(__file__).parents[3] / "suites", Path(__file__).parents[1] / "data" / "suites")
TEXTS = ("title", "question", "why", "project", "focus")


def names() -> list[str]:
    """The suites there are."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def load(name: str) -> Suite:
    """The suite of that name, or of that TOML file.

    Raises:
        SpecError: there is none, or the file is wrong; says which file and key.
    """
    candidates = [Path(name)] if name.endswith(".toml") else [folder / f"{name}.toml" for folder in FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise SpecError(f"there is no suite {name!r}: choose from {', '.join(names())}, or give a .toml file")
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not TOML: {error}") from None
    return _suite(path, data)


def _suite(path: Path, data: dict[str, Any]) -> Suite:
    allowed = {*TEXTS, "profiles", "cases", "options"}
    for key in sorted(data.keys() - allowed):
        raise SpecError(f"{path}: key {key!r} is unknown: allowed are {', '.join(sorted(allowed))}")
    for key in TEXTS:
        if not isinstance(data.get(key), str):
            raise SpecError(f"{path}: key {key!r} must be a text")
    options = data.get("options", {})
    if not isinstance(options, dict):
        raise SpecError(f"{path}: key 'options' must be a table of lists of cases")
    return Suite(
        name=path.stem,
        **{key: data[key].strip() for key in TEXTS},
        cases=_cases(path, "cases", data.get("cases")),
        profiles=tuple(_strings(path, "profiles", data.get("profiles"))),
        options={name: _cases(path, f"options.{name}", value) for name, value in options.items()},
    )


def _cases(path: Path, key: str, value: object) -> tuple[Case, ...]:
    try:
        return tuple(Case.parse(name) for name in _strings(path, key, value))
    except SpecError as error:
        raise SpecError(f"{path}: key {key!r}: {error}") from None


def _strings(path: Path, key: str, value: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise SpecError(f"{path}: key {key!r} must be a list of one or more texts")
    return value
