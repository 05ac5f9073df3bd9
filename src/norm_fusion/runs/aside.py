"""What a run measured and is no part of it any more is set aside, never deleted: below aside/, with its hashes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from norm_fusion.records import Record
from norm_fusion.runs.files import StoreError, records_in, write_whole
from norm_fusion.runs.store import FOLDERS, SUM, SUMS, RunStore


def set_aside(store: RunStore, chosen: Callable[[Record], bool]) -> list[str]:
    """Move files that hold a chosen record, and their samples; returns the keys of all records in them."""
    keys: list[str] = []
    files: list[str] = []
    for path in store.record_files():
        found = records_in(path)
        if any(chosen(record) for record in found):
            keys += [record.key for record in found]
            files += pair(path.name)
    move(store, files)
    return keys


def pair(name: str) -> list[str]:
    """A file of records and that of their samples."""
    return [f"records/{name}", f"samples/{name}.gz"]


def move(store: RunStore, files: Iterable[str]) -> None:
    """Move these files, where they are there, to a new folder below aside/, with the lines of their hashes."""
    there = {file for file in files if (store.path / file).exists()}
    if not there:
        return
    parent = store.path / "aside"
    parent.mkdir(exist_ok=True)
    folder = parent / str(1 + max((int(path.name) for path in parent.glob("[0-9]*")), default=0))
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    lines = store.sum_lines()
    gone = [line for line in lines if _file(line) in there]
    write_whole(folder / SUMS, "".join(f"{line}\n" for line in gone).encode())
    for file in sorted(there):
        (store.path / file).replace(folder / file)
    store.write_sum_lines(line for line in lines if line not in gone)


def mend(store: RunStore, done: Collection[str] = ()) -> list[str]:
    """Undo what a sudden end left half done; returns a sentence where there was something.

    A file without its line was written in the last moment, and is set aside with its partner; so are samples without
    their records. A line that is cut off, or whose file is not there, is dropped, as is a file that was not whole.

    Raises:
        StoreError: what is wrong is no sudden end: the sums are gone, or records of a case that is `done`.
    """
    for folder in (".", *FOLDERS):
        for path in (store.path / folder).glob(".*.*"):
            path.unlink()
    written = store.sum_lines()
    _refuse_damage(store, written, done)
    lines = [line for line in written if SUM.fullmatch(line) and (store.path / _file(line)).exists()]
    if lines != written or store.sums_cut_off:
        store.write_sum_lines(lines)
    told = {_file(line) for line in lines}
    names = {path.name for path in store.record_files()}
    names |= {path.name.removesuffix(".gz") for path in (store.path / "samples").glob("*.json.gz")}
    odd = [name for name in sorted(names) if not _whole(store, name, told)]
    counters = [f"counters/{path.name}" for path in sorted((store.path / "counters").glob("*.json"))]
    untold = [file for file in counters if file not in told]
    move(store, [*(file for name in odd for file in pair(name)), *untold])
    found = [*odd, *untold]
    return [f"of a process that ended suddenly, set aside: {', '.join(found)}"] if found else []


def _refuse_damage(store: RunStore, lines: Iterable[str], done: Collection[str]) -> None:
    if store.record_files() and not (store.path / SUMS).is_file():
        raise StoreError(
            f"{store.path / SUMS} is missing: nothing tells that the records are as they were; bring it back"
        )
    for line in lines:
        file = _file(line)
        measured = SUM.fullmatch(line) and not file.startswith("counters/")  # which may be collected again
        if measured and Path(file).name.partition(".")[0] in done and not (store.path / file).exists():
            raise StoreError(f"{store.path / file} is missing, of a case that is done: bring it back")


def _whole(store: RunStore, name: str, told: set[str]) -> bool:
    """Are records there and told, and their samples too, where there are any?"""
    records, samples = pair(name)
    return records in told and (samples in told or not (store.path / samples).exists())


def _file(line: str) -> str:
    return line.partition("  ")[2]
