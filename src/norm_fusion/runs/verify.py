"""Do a run's records follow from its samples? Each is derived once more, and compared. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from norm_fusion.records import Manifest, Record
from norm_fusion.runs import derive
from norm_fusion.runs.files import StoreError, bytes_of, problem
from norm_fusion.runs.store import FOLDERS, SUM, SUMMED, SUMS, LeftOut, RunStore

# Not figures: where samples lie, and by what code a record was written.
_OF_THE_FILE = {"schema_version", "samples_file", "samples_sha256"}
_ADDED = {2: {"probe_ms"}}  # by schema: what it had not yet


def damaged(store: RunStore) -> tuple[list[str], int]:
    """A sentence for each file that is not what its line in SHA256SUMS says, or is not there; and how many are told.

    What was set aside has lines of its own; a file of a process that ended suddenly has none there.
    """
    odd: list[str] = []
    told = _told(store.path, odd)
    for part in sorted((store.path / "aside").glob("*/")):
        told |= {str(part.relative_to(store.path) / file): hashed for file, hashed in _told(part, odd).items()}
    for file, hashed in told.items():
        path = store.path / file
        if not path.is_file():
            odd.append(f"{path} is missing")
        elif sha256(bytes_of(path)).hexdigest() != hashed:
            odd.append(f"{path} was changed after it was written: its hash is not the one in {SUMS}")
    summed = store.manifest().schema_version >= SUMMED
    for folder in FOLDERS if summed else ():
        for path in sorted((store.path / folder).glob("[!.]*")):
            if f"{folder}/{path.name}" not in told:
                odd.append(f"{path} is not in {SUMS}: it was not written by the run")
    return odd, len(told)


def _told(folder: Path, odd: list[str]) -> dict[str, str]:
    """By file: its hash. A line that is none of ours is told in `odd`, and never followed to a file elsewhere."""
    told = {}
    for number, line in enumerate(RunStore(folder).sum_lines(), start=1):
        if match := SUM.fullmatch(line):
            told[match[2]] = match[1]
        else:
            odd.append(f"line {number} of {folder / SUMS} is no hash and file")
    return told


def incomplete(store: RunStore) -> Iterator[str]:
    """A sentence for each part that a run has when it has ended, and this one lacks, or that cannot be read."""
    manifest = store.manifest()
    ended = manifest.state == "finished"
    if ended and not (store.path / "calls.json").is_file():
        yield f"{store.path / 'calls.json'} is missing: `norm-fusion judge {store.path} --write` makes it again"
    try:
        uncounted = manifest.uncounted(store.counters())
    except StoreError as error:
        yield str(error)
    else:
        for case, profile in uncounted if ended else ():
            yield f"counters of {profile} at {case} are missing: the command that made the run collects them again"
    for read in (store.conditions, store.events):
        try:
            list(read())
        except StoreError as error:
            yield str(error)


def verified(store: RunStore, records: Iterable[Record]) -> tuple[list[Record], list[LeftOut]]:
    """Those of `records` that follow from their samples, unchanged; and those that do not.

    A record that was never timed has no samples, and is kept.
    """
    groups: dict[tuple[str, int, int | None], list[Record]] = {}
    for record in records:
        groups.setdefault((record.case, record.attempt, record.replicate), []).append(record)
    kept: list[Record] = []
    left_out: list[LeftOut] = []
    for (case, _, _), mine in groups.items():
        try:
            odd = _edited(store, mine)
        except StoreError as error:
            left_out.append(LeftOut(case, None, str(error)))
            continue
        left_out += odd
        doubted = {one.profile for one in odd}
        kept += [record for record in mine if record.profile not in doubted]
    return kept, left_out


def gaps(records: Sequence[Record], manifest: Manifest, known: Collection[str] = ()) -> list[LeftOut]:
    """What the run measured and has no records of: processes are numbered, and the manifest has counted them.

    `known`: cases of which something is known to be missing already.
    """
    there: dict[tuple[str, int], set[int]] = {}
    for record in records:
        if record.replicate is not None:
            there.setdefault((record.case, record.attempt), set()).add(record.replicate)
    measured = {record.case for record in records}
    lost = {case: f"the records of {case} are missing: bring them back" for case in set(manifest.done) - measured}
    for (case, _), numbers in there.items():
        missing = next(n for n in range(len(numbers) + 1) if n not in numbers)  # a number may be of any size
        if missing < max(numbers):
            lost.setdefault(case, f"the records of {case} in process {missing + 1} are missing: bring them back")
    found = max((max(numbers) + 1 for (_, attempt), numbers in there.items() if attempt == 0), default=0)
    if 0 < found < manifest.processes and not known:
        said = f"there are records of {found} processes, and the run had {manifest.processes}: bring them back"
        lost |= dict.fromkeys(manifest.cases, said)
    return [LeftOut(case, None, said) for case, said in lost.items() if case not in known]


def _edited(store: RunStore, records: Sequence[Record]) -> list[LeftOut]:
    """Who of the records of a case in one process has a figure that does not follow from the samples."""
    keys = [record.key for record in records]
    if len(set(keys)) < len(keys):
        raise StoreError(f"{store.path} has several records {max(keys, key=keys.count)}: a run writes each once")
    for record in records:
        if (record.p50_ms is None) != (record.samples_file is None):
            raise StoreError(f"record {record.key} was edited: it has figures or samples, and not both")
    try:
        made = {record.key: record for record in derive.made_again(records, store.samples)}
    except StoreError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise StoreError(f"record {keys[0]} or its samples were edited: {problem(error)}") from None
    found: dict[str, LeftOut] = {}
    for record in records:
        if record.key not in made:
            raise StoreError(f"record {record.key} was edited: its samples make no such record")
        for name, told, follows in _differences(record, made[record.key]):
            said = f"record {record.key} was edited: its {name} is {told}, that of its samples {follows}"
            found.setdefault(record.profile, LeftOut(record.case, record.profile, said))
    return list(found.values())


def _differences(stored: Record, made: Record) -> Iterator[tuple[str, object, object]]:
    """What is told of a record and does not follow from its samples: name, told, found."""
    then = _ADDED.get(stored.schema_version, set())
    if stored.schema_version == 1:  # its speedups were means over rounds, and its names others'
        then = set(Record.model_fields) - {"p50_ms", "p95_ms"}
    for name in set(Record.model_fields) - _OF_THE_FILE - then:
        told, found = getattr(stored, name), getattr(made, name)
        pairs = [("", told, found)]
        if isinstance(told, dict) and isinstance(found, dict):
            pairs = [(f" over {key}", told.get(key), found.get(key)) for key in {**told, **found}]
        for key, one, other in pairs:
            if not _same(one, other):
                yield f"{name.removesuffix('_ms')}{key}", one, other


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other
