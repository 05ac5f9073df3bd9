"""Files of a run: written whole or not at all, read as models, with errors that name the file and the field."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from norm_fusion.records import SCHEMA, Record
from norm_fusion.spec import Case, SpecError

LARGEST = 2**28  # bytes of a file, or of what it holds
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # in JSON a character beyond 16 bits has two
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


def sized(path: Path, records: Iterable[Record]) -> None:
    """Raises StoreError where a record is of another operator or size than the name of its case says."""
    for one in records:
        case, told = _case_of(one.case), (one.op, one.pass_, one.rows, one.cols, one.dtype)
        if case is not None and told != (case.op, case.pass_, case.rows, case.cols, case.dtype):
            raise StoreError(f"{path} was edited: a record of {one.case} says that it is {' '.join(map(str, told))}")


_case_of = lru_cache(maxsize=4096)(Case.of)


def read(path: Path, model: type[M]) -> M:
    """A file as that model; raises StoreError naming file and field."""
    return validated(path, load(path, model.__name__.lower()), model)


def bytes_of(path: Path) -> bytes:
    """What a file holds; raises StoreError naming it where it is none, or larger than any of ours."""
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):  # a pipe would never end
            raise StoreError(f"{path} is no file: delete it, or bring the run's back")
        if found.st_size > LARGEST:
            raise StoreError(f"{path} has {found.st_size / 2**20:,.0f} MiB: no file of a run is as large")
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def unzipped(path: Path, data: bytes) -> bytes:
    """What a .gz file holds; raises StoreError where it is none, or holds more than any of ours."""
    packed = zlib.decompressobj(wbits=31)
    try:
        found = packed.decompress(data, LARGEST)
    except zlib.error as error:
        raise StoreError(f"{path} does not hold samples: {problem(error)}") from None
    if packed.unconsumed_tail:
        raise StoreError(f"{path} holds more than {LARGEST / 2**20:,.0f} MiB: no file of a run does")
    if not packed.eof or packed.unused_data:
        raise StoreError(f"{path} does not hold samples: it ends too early, or goes on after its end")
    return found


def load(path: Path, what: str) -> Any:
    """A file's JSON; `what` it should be."""
    data = bytes_of(path)
    try:
        found = json.loads(data)
        if HALF.search(data):
            json.dumps(found, ensure_ascii=False).encode()
        return found
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
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a character"
    if isinstance(error, ValidationError):  # without what was read: that may be of any length, and of any file
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        count = f"{error.error_count()} errors, the first" if error.error_count() > 1 else ""
        return ": ".join(filter(None, (count, ".".join(map(str, first["loc"])), first["msg"])))
    return str(error).partition("\n")[0].strip()


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
