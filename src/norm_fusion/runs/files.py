"""Files of a run: written whole or not at all, read as models, with errors that name the file and the field."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from norm_fusion.records import SCHEMA, Record
from norm_fusion.spec import SpecError

M = TypeVar("M", bound=BaseModel)


class StoreError(SpecError):
    """A run that cannot be made or read. The message says what was seen and what to do."""


def as_json(model: BaseModel) -> bytes:
    """As it is written."""
    return (model.model_dump_json(by_alias=True, indent=1) + "\n").encode()


def records_in(path: Path) -> list[Record]:
    """The records of a file: a list of them, or, of schema 1, a single one."""
    data = load(path, "record")
    if data == []:
        raise StoreError(f"{path} is not a readable record: it holds none")
    return [validated(path, item, Record) for item in (data if isinstance(data, list) else [data])]


def read(path: Path, model: type[M]) -> M:
    """A file as that model; raises StoreError naming file and field."""
    return validated(path, load(path, model.__name__.lower()), model)


def bytes_of(path: Path) -> bytes:
    """What a file holds; raises StoreError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def load(path: Path, what: str) -> Any:
    """A file's JSON; `what` it should be."""
    try:
        return json.loads(bytes_of(path))
    except (ValueError, RecursionError) as error:  # cut, not UTF-8, a number of 5,000 digits, brackets without end
        raise StoreError(f"{path} is not a readable {what}: {problem(error)}") from None


def validated(path: Path, data: object, model: type[M]) -> M:
    """What was loaded of a file as that model."""
    schema = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise StoreError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: update")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise StoreError(f"{path} is not a readable {model.__name__.lower()}: {problem(error)}") from None


def problem(error: Exception) -> str:
    """The first line of what an error says; pydantic's second names the field."""
    lines = str(error).splitlines()
    return ": ".join(line.strip() for line in lines[: 2 if isinstance(error, ValidationError) else 1])


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines. One that an earlier writer left unfinished goes first."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(f"{line}\n" for line in lines).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write whole or not at all: a temporary neighbour, flushed to disk, renamed over the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # what was asked for, not the neighbour
        raise
