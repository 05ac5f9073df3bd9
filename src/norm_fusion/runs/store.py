"""The folder of a run: `runs/<run-id>/`, every file written whole or not at all.

manifest.json           what was asked, where it ran, how it ended
records/<key>.json      one record
samples/<key>.json.gz   its raw samples
worker.log              what the measuring process printed
"""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from norm_fusion.records import SCHEMA, Manifest, Record, Samples
from norm_fusion.spec import SpecError

M = TypeVar("M", bound=BaseModel)

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StoreError(SpecError):
    """A run that cannot be made or read. The message says what was seen and what to do."""


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """A run id nobody chose: UTC time and four random hex digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunStore:
    """Reads and writes one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path, run_id: str) -> RunStore:
        """A new folder for `run_id`.

        Raises:
            StoreError: the id has path characters, exists already, or the folder cannot be written.
        """
        store = cls(parent / checked_run_id(run_id))
        try:
            store.path.mkdir(parents=True)
            (store.path / "records").mkdir()
            (store.path / "samples").mkdir()
        except FileExistsError:
            raise StoreError(
                f"run {run_id!r} exists in {parent} and is never overwritten: choose another --run-id"
            ) from None
        except OSError as error:
            raise StoreError(f"cannot write the run folder {store.path}: {error.strerror}; use --output DIR") from None
        return store

    @classmethod
    def open(cls, run: str, parent: Path) -> RunStore:
        """The run of that id below `parent`, or of that folder."""
        with suppress(OSError):  # a name that no file can have is the name of no run
            for path in (Path(run), parent / run):
                if (path / "manifest.json").is_file():
                    return cls(path)
        known = sorted(p.parent.name for p in parent.glob("*/manifest.json"))
        listing = f"{parent} holds {', '.join(known[-8:])}" if known else f"{parent} holds no runs yet"
        raise StoreError(f"there is no run {run[:120]!r}: {listing}")

    def append_log(self, text: str) -> None:
        """Add what a worker printed to worker.log."""
        with (self.path / "worker.log").open("a") as log:
            log.write(text)

    def write_manifest(self, manifest: Manifest) -> None:
        write_whole(self.path / "manifest.json", _json(manifest))

    def write(self, record: Record, samples: Samples | None) -> Record:
        """Keep a record and its samples; returns the record as stored, which names and hashes its samples."""
        if samples is not None:
            data = gzip.compress(samples.model_dump_json().encode(), mtime=0)
            name = f"samples/{record.key}.json.gz"
            write_whole(self.path / name, data)
            record = record.model_copy(update={"samples_file": name, "samples_sha256": sha256(data).hexdigest()})
        write_whole(self.path / "records" / f"{record.key}.json", _json(record))
        return record

    def manifest(self) -> Manifest:
        return _read(self.path / "manifest.json", Manifest)

    def records(self) -> Iterator[Record]:
        """All records, by name. A file that is not a record of this schema raises StoreError naming it."""
        for path in sorted((self.path / "records").glob("*.json")):
            yield _read(path, Record)

    def samples(self, record: Record) -> Samples:
        """The raw samples of a record, checked against its hash."""
        if record.samples_file is None:
            raise StoreError(f"record {record.key} has no samples: {record.reason or record.status}")
        path = self.path / record.samples_file
        if path.parent != self.path / "samples":
            raise StoreError(f"record {record.key} names samples outside its run: {record.samples_file}")
        data = path.read_bytes()
        if sha256(data).hexdigest() != record.samples_sha256:
            raise StoreError(f"{path} was changed after it was written: its hash is not its record's")
        return Samples.model_validate_json(gzip.decompress(data))


def in_order(records: Iterable[Record], manifest: Manifest) -> list[Record]:
    """Records in the order in which the run was asked: cases, then profiles, the roof last, then series."""
    cases = {name: i for i, name in enumerate(manifest.cases)}
    profiles = {name: i for i, name in enumerate(manifest.profiles)}
    late = len(cases) + len(profiles)
    return sorted(records, key=lambda r: (cases.get(r.case, late), profiles.get(r.profile, late), r.timer, r.replicate))


def checked_run_id(run_id: str) -> str:
    """`run_id` if it can name a folder, else StoreError."""
    if RUN_ID.fullmatch(run_id) is None:
        raise StoreError(
            f"run id {run_id!r} must be 1 to 100 letters, digits, '.', '_' or '-', first a letter or digit"
        )
    return run_id


def _json(model: BaseModel) -> bytes:
    return (model.model_dump_json(by_alias=True, indent=1) + "\n").encode()


def _read(path: Path, model: type[M]) -> M:
    try:
        data = json.loads(path.read_bytes())
        schema = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: update")
        return model.model_validate(data)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not a readable {model.__name__.lower()}: {str(error).splitlines()[0]}") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write whole or not at all: a temporary neighbour, flushed to disk, renamed over the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
