"""The folder of a run: `runs/<run-id>/`, every file written whole or not at all.

manifest.json                     what was asked, where it ran, how it ended
records/<case>[.a1].r0.json       the records of one case in one process: a list; `.a1` names an automatic rerun
samples/<the same>.json.gz        their raw samples: a list
counters/<case>.<profile>.json    what hardware counters say of one profile of a case
SHA256SUMS                        of these three, a line as each is written: `sha256sum -c SHA256SUMS` checks them too
calls.json                        what a rule made of them; derived, and made again by `norm-fusion judge`
conditions.jsonl                  clocks, heat, power and load while it ran, a reading a line
events.jsonl                      what happened when: began, measured, done, lost, resumed, a line each
worker.log                        what the measuring processes printed
aside/N/                          what was measured and is no part of the run any more, with its own SHA256SUMS
lock                              held while it is being measured

Runs of schema 1 have a file for each record and one for its samples, and those before schema 3 no sums; all are read.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from norm_fusion.records import SCHEMA, Conclusions, Conditions, Counters, Manifest, Record, Samples
from norm_fusion.runs.files import (
    StoreError,
    append_lines,
    as_json,
    bytes_of,
    problem,
    read,
    records_in,
    sized,
    unzipped,
    write_whole,
)

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Files of samples that stay unpacked: those of one case, in fifteen processes and three attempts.
UNPACKED = 45
SUMS = "SHA256SUMS"
FOLDERS = ("records", "samples", "counters")  # whose files it tells of
SUMMED = 3  # from this schema on
LISTED = 8  # runs that are named where one is not there
SAMPLES_FILE = re.compile(r"samples/[A-Za-z0-9_][A-Za-z0-9_.,:=-]{0,249}")
SUM = re.compile(r"([0-9a-f]{64})  ((?:records|samples|counters)/[A-Za-z0-9_.,:=-]{1,250})")
_LIST_OF_SAMPLES = TypeAdapter(list[Samples])


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """A run id nobody chose: UTC time and four random hex digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class LeftOut:
    """What a run's folder holds and cannot be believed: of which case, of which profile (None: all), and why."""

    case: str
    profile: str | None
    said: str


class RunStore:
    """Reads and writes one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unpacked: dict[str, tuple[str, dict[str, Samples]]] = {}  # by file: its hash, and samples by key

    @classmethod
    def create(cls, parent: Path, run_id: str) -> RunStore:
        """A new folder for `run_id`.

        Raises:
            StoreError: the id has path characters, exists already, or the folder cannot be written.
        """
        store = cls(parent / checked_run_id(run_id))
        try:
            store.path.mkdir(parents=True, exist_ok=store.unborn)
            (store.path / "records").mkdir(exist_ok=store.unborn)
            (store.path / "samples").mkdir(exist_ok=store.unborn)
        except FileExistsError:
            raise StoreError(
                f"run {run_id!r} exists in {parent} and is never overwritten: choose another --run-id"
            ) from None
        except OSError as error:
            raise StoreError(f"cannot write the run folder {store.path}: {error.strerror}; use --output DIR") from None
        return store

    @property
    def unborn(self) -> bool:
        """Is there a folder that ended before it had a manifest, and anything else?"""
        if not self.path.is_dir():
            return False
        files = [path for path in self.path.rglob("*") if not path.is_dir()]
        return all(path.name == "lock" or path.name.startswith(".") for path in files)

    @classmethod
    def open(cls, run: str, parent: Path) -> RunStore:
        """The run of that id below `parent`, or of that folder."""
        with suppress(OSError):  # a name that no file can have is the name of no run
            for path in (Path(run), parent / run):
                if (path / "manifest.json").is_file():
                    return cls(path)
                if (path / "harness.json").is_file():
                    inside = ", ".join(str(p.parent) for p in sorted(path.glob("*/manifest.json")))
                    raise StoreError(
                        f"{path} is a check of the harness: its page is {path / 'harness.md'}, its runs are {inside}"
                    )
                if models := sorted(path.glob("*/manifest.json")):
                    inside = ", ".join(str(inner.parent) for inner in models)
                    raise StoreError(f"{path} is of several models of GPU: its runs are {inside}")
        known = sorted(parent.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
        newest = ", ".join(path.parent.name for path in known[: -LISTED - 1 : -1])
        more = f" and {len(known) - LISTED} older ones" if len(known) > LISTED else ""
        listing = f"{parent} holds {newest}{more}" if known else f"{parent} holds no runs yet"
        raise StoreError(f"there is no run {run[:120]!r}: {listing}")

    def append_log(self, text: str) -> None:
        """Add what a worker printed to worker.log."""
        with (self.path / "worker.log").open("a") as log:
            log.write(text)

    def write_manifest(self, manifest: Manifest) -> None:
        write_whole(self.path / "manifest.json", as_json(manifest))

    def keep(
        self, case: str, attempt: int, replicate: int, made: Sequence[tuple[Record, Samples | None]]
    ) -> list[Record]:
        """Keep the records of one case in one process, after their samples, each file whole or not at all.

        Returns the records as stored: those that have samples name their file and its hash. Of nothing no file is made.
        """
        if not made:
            return []
        name = self.name_of(case, attempt, replicate)
        file = f"samples/{name}.json.gz"
        taken = [samples for _, samples in made if samples is not None]
        hashed = None
        if taken:
            data = gzip.compress(_LIST_OF_SAMPLES.dump_json(taken), mtime=0)
            hashed = self._write_summed(file, data)
        named = {"samples_file": file, "samples_sha256": hashed}
        records = [record if samples is None else record.model_copy(update=named) for record, samples in made]
        rows = ",\n".join(record.model_dump_json(by_alias=True) for record in records)  # a line each, for diffs
        self._write_summed(f"records/{name}.json", f"[\n{rows}\n]\n".encode())
        return records

    @staticmethod
    def name_of(case: str, attempt: int, replicate: int) -> str:
        """Of the files of one case in one process, without what follows the last dot."""
        return f"{case}.a{attempt}.r{replicate}" if attempt else f"{case}.r{replicate}"

    def has(self, case: str, attempt: int, replicate: int) -> bool:
        """Are there records of this case in this process?"""
        return (self.path / "records" / f"{self.name_of(case, attempt, replicate)}.json").exists()

    def keep_counters(self, counters: Counters) -> Counters:
        """Keep what counters say of a profile of a case; a second time replaces the first."""
        (self.path / "counters").mkdir(exist_ok=True)
        self._write_summed(self.counters_file(counters.case, counters.profile), as_json(counters))
        return counters

    @staticmethod
    def counters_file(case: str, profile: str) -> str:
        """Where they are kept."""
        return f"counters/{case}.{profile.replace(':', '-')}.json"

    def counters(self) -> Iterator[Counters]:
        """All that is known from counters, by case and profile. A damaged file raises StoreError naming it."""
        sums = self._sums()
        for path in sorted((self.path / "counters").glob("*.json")):
            self._check(path, sums, SCHEMA)
            yield read(path, Counters)

    def append_event(self, what: str, **more: Any) -> None:
        """Add a line to events.jsonl: the moment, what happened, and what more there is to say of it."""
        line = json.dumps({"at": now(), "event": what} | {k: v for k, v in more.items() if v != ""})
        append_lines(self.path / "events.jsonl", [line])

    def events(self) -> list[dict[str, Any]]:
        """What happened, in time order. A last line that was cut off, as a crash leaves it, is skipped."""
        path = self.path / "events.jsonl"
        whole = bytes_of(path).split(b"\n")[:-1] if path.exists() else []
        try:
            found = [json.loads(line) for line in whole]
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is no log of events: {problem(error)}") from None
        if odd := [number for number, one in enumerate(found, start=1) if not isinstance(one, dict)]:
            raise StoreError(f"{path} is no log of events: line {odd[0]} is none")
        return found

    def sum_lines(self) -> list[str]:
        """The lines of SHA256SUMS."""
        path = self.path / SUMS
        return bytes_of(path).decode("utf-8", "replace").splitlines() if path.is_file() else []

    @property
    def sums_cut_off(self) -> bool:
        """Does SHA256SUMS end in the middle of a line?"""
        path = self.path / SUMS
        return path.is_file() and not path.read_bytes().endswith(b"\n")

    def write_sum_lines(self, lines: Iterable[str]) -> None:
        """Replace them."""
        write_whole(self.path / SUMS, "".join(f"{line}\n" for line in lines).encode())

    def _write_summed(self, file: str, data: bytes) -> str:
        """Write a file whole, then the line with its hash, which is returned."""
        write_whole(self.path / file, data)
        hashed = sha256(data).hexdigest()
        with (self.path / SUMS).open("a") as sums:
            sums.write(f"{hashed}  {file}\n")
        return hashed

    def write_conclusions(self, conclusions: Conclusions) -> Conclusions:
        """Keep what a rule made of the records; returned as it is kept, with its digest."""
        whole = Conclusions.model_validate_json(as_json(conclusions))
        made = whole.model_copy(update={"digest": self._digest(whole)})
        write_whole(self.path / "calls.json", as_json(made))
        return made

    def drop_conclusions(self) -> None:
        """What was concluded before more is measured is of other records."""
        (self.path / "calls.json").unlink(missing_ok=True)

    def append_conditions(self, readings: Iterable[Conditions]) -> None:
        """Add readings to conditions.jsonl, a line each."""
        append_lines(self.path / "conditions.jsonl", (reading.model_dump_json() for reading in readings))

    def manifest(self) -> Manifest:
        return read(self.path / "manifest.json", Manifest)

    def records(self) -> Iterator[Record]:
        """All records, by name. A file that does not hold records of this schema raises StoreError naming it."""
        for path in self.record_files():
            yield from records_in(path)

    def read(self) -> tuple[list[Record], list[LeftOut]]:
        """All records that can be read, and each file that cannot, or is not there."""
        records: list[Record] = []
        left_out: dict[str, LeftOut] = {}  # by the file's name
        sums, schema = self._sums(), self.manifest().schema_version
        files = self.record_files()
        for path in files:
            try:
                found = records_in(path)
                self._check(path, sums, schema)
                sized(path, found)
                if odd := {record.schema_version for record in found} - {schema}:
                    raise StoreError(f"{path} is of schema {max(odd)}, its run of {schema}: it is not the run's")
                records += found
            except StoreError as error:
                left_out[path.name] = LeftOut(path.name.partition(".")[0], None, str(error))
        for name in sorted(self._named(sums or {}, schema) - {path.name for path in files}):
            said = f"{self.path / 'records' / name} is missing: bring it back"
            left_out[name] = LeftOut(name.partition(".")[0], None, said)
        return records, list(left_out.values())

    def _named(self, sums: Mapping[str, str], schema: int) -> set[str]:
        """The files of records that others tell of: the sums, and samples beside which they were written."""
        files = [Path(file) for file in sums]
        if schema > 1:
            files += (self.path / "samples").glob("*.json.gz")
        return {file.name.removesuffix(".gz") for file in files if file.parent.name != "counters"}

    def _sums(self) -> dict[str, str] | None:
        """The hash of each file as it was written; None where the run is of before there were any."""
        path = self.path / SUMS
        if not path.exists():
            return None
        try:
            lines = bytes_of(path).decode().splitlines()
        except ValueError as error:
            raise StoreError(f"{path} cannot be read: {error}") from None
        found = [match.groups() for line in lines if (match := SUM.fullmatch(line))]
        return {file: hashed for hashed, file in found}

    def _check(self, path: Path, sums: Mapping[str, str] | None, schema: int) -> None:
        """Raise StoreError where a file of records is not the one that was written."""
        if sums is None:
            if schema >= SUMMED:
                raise StoreError(f"{self.path / SUMS} is missing: nothing tells that {path.name} is as it was")
            return
        told = sums.get(f"{path.parent.name}/{path.name}")
        if told is None:
            raise StoreError(f"{path} is not in {SUMS}: it was not written by the run")
        if sha256(bytes_of(path)).hexdigest() != told:
            raise StoreError(f"{path} was changed after it was written: its hash is not the one in {SUMS}")

    def samples(self, record: Record) -> Samples:
        """The raw samples of a record, checked against its hash.

        Raises:
            StoreError: it has none, or their file is missing, was changed, or does not hold them.
        """
        if record.samples_file is None:
            raise StoreError(f"record {record.key} has no samples: {record.reason or record.status}")
        if SAMPLES_FILE.fullmatch(record.samples_file) is None:
            raise StoreError(f"record {record.key} names samples outside its run: {record.samples_file[:200]!r}")
        path = self.path / record.samples_file
        if record.samples_file not in self._unpacked or self._unpacked[record.samples_file][0] != record.samples_sha256:
            self._unpack(path, record)
        by_key = self._unpacked[record.samples_file][1]
        if record.key not in by_key:
            raise StoreError(f"{path} has no samples of {record.key}: it is not the file that was written with it")
        return by_key[record.key]

    def has_samples(self, records: Iterable[Record]) -> bool:
        """Are all files of samples there that these records name, as they were written?"""
        named = {r.samples_file: r.samples_sha256 for r in records if r.samples_file is not None}
        try:
            return all(sha256(bytes_of(self.path / file)).hexdigest() == told for file, told in named.items())
        except StoreError:
            return False

    def conclusions(self) -> Conclusions | None:
        """What a rule made of the records, as it was last stored; None where nothing is."""
        path = self.path / "calls.json"
        if not path.is_file():
            return None
        made = read(path, Conclusions)
        if made.digest != self._digest(made):
            raise StoreError(f"{path} is not of this manifest and these records: one of them was changed since")
        return made

    def _digest(self, conclusions: Conclusions) -> str:
        # What an older version stored has not all of today's fields: as it was read, so it is hashed.
        told = conclusions.model_copy(update={"digest": None}).model_dump_json(
            by_alias=True, indent=1, exclude_unset=True
        )
        read = sha256(f"{told}\n".encode())
        for path in [self.path / "manifest.json", *self.record_files()]:
            read.update(path.name.encode() + b"\0" + sha256(bytes_of(path)).digest())
        return read.hexdigest()

    def conditions(self) -> Iterator[Conditions]:
        """The readings, in time order. A last line that was cut off, as a crash leaves it, is skipped."""
        path = self.path / "conditions.jsonl"
        whole = bytes_of(path).split(b"\n")[:-1] if path.exists() else []
        for number, line in enumerate(whole, start=1):
            try:
                yield Conditions.model_validate_json(line)
            except ValidationError as error:
                raise StoreError(f"{path} line {number} is not a reading of conditions: {problem(error)}") from None

    def record_files(self) -> list[Path]:
        """The files of records, by name."""
        return sorted((self.path / "records").glob("*.json"))

    def _unpack(self, path: Path, record: Record) -> None:
        if not path.exists():
            raise StoreError(f"{path} is missing: the samples of {record.key} belong there, bring them back")
        data = bytes_of(path)
        if sha256(data).hexdigest() != record.samples_sha256:
            raise StoreError(f"{path} was changed after it was written: its hash is not its record's")
        try:
            text = unzipped(path, data)
            found = _LIST_OF_SAMPLES.validate_json(text if text.startswith(b"[") else b"[" + text + b"]")
        except ValidationError as error:
            raise StoreError(f"{path} does not hold samples: {problem(error)}") from None
        while len(self._unpacked) >= UNPACKED:
            del self._unpacked[next(iter(self._unpacked))]
        name = str(record.samples_file)
        self._unpacked[name] = (str(record.samples_sha256), {samples.key: samples for samples in found})


def checked_run_id(run_id: str) -> str:
    """`run_id` if it can name a folder, else StoreError."""
    if RUN_ID.fullmatch(run_id) is None:
        raise StoreError(
            f"run id {run_id!r} must be 1 to 100 letters, digits, '.', '_' or '-', first a letter or digit"
        )
    return run_id
