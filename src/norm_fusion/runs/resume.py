"""Going on with a run: one process at a time, the same question, and nothing measured twice. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from norm_fusion.records import SCHEMA, Code, Manifest, Record, Samples, Status
from norm_fusion.runs import aside
from norm_fusion.runs.files import StoreError, records_in
from norm_fusion.runs.plan import SPENT
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case

# Notes that are of one attempt alone, and not of the next.
PASSING = ("blocked:",)
# What a run is asked: another question is another run.
ASKED = {"suite": "suite", "question": "question", "cases": "cases", "profiles": "profiles", "quick": "--quick"}
ASKED |= {"precision": "--precision", "model": "--gpu-model"}


@dataclass
class Left:
    """What is left of a run: its manifest, the cases that are not done, and what was measured of these."""

    manifest: Manifest
    cases: tuple[Case, ...]
    profiled: tuple[tuple[str, str], ...]
    earlier: list[tuple[Record, Samples | None]] = field(default_factory=list)


def lock(store: RunStore) -> FileLock:
    """Hold a run, so that no other process measures it too; released when this process ends, however it ends.

    Raises:
        StoreError: another process holds it, or the folder cannot be written.
    """
    held = FileLock(store.path / "lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise StoreError(busy(store)) from None
    except OSError as error:
        raise StoreError(
            f"cannot write the run folder {store.path}: {error.strerror}; use --output DIR; "
            f"`norm-fusion show {store.path}` prints what is there"
        ) from None
    return held


def busy(store: RunStore) -> str:
    """What there is to say where another process holds it."""
    held = f"{store.path / 'lock'} is held"
    return (
        f"run {store.path.name!r} is being measured by another process ({held}): wait until it ends, or choose "
        "another --run-id"
    )


def locked(store: RunStore) -> bool:
    """Is a process measuring it now?"""
    path = store.path / "lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a file system that is read only: nobody measures there
        return False


def unlike(was: Manifest, asked: Manifest) -> list[str]:
    """How a run that is there differs from what is asked now, a sentence each; none where it may go on."""
    found = []
    for field_, name in ASKED.items():
        before, now_ = getattr(was, field_), getattr(asked, field_)
        if before != now_:
            found.append(f"its {name} {_shown(before, now_)}")
    kind, there = asked.device.partition(":")[0], was.environment
    if there is not None and kind not in ("auto", there.device):
        found.append(f"its --device {_shown(there.device, asked.device)}")
    if was.quick == asked.quick and _pace(was) != _pace(asked):
        found.append(f"its --processes {_shown(_pace(was), _pace(asked))}")
    if was.cases == asked.cases and not set(was.profiled) <= set(asked.profiled):
        found.append("it is --with-profiling")
    source = was.source or (was.environment.source if was.environment is not None else None)
    if source is not None and asked.source is not None and source != asked.source:
        found.append(f"its commit was {_code(was)}, this is {_code(asked)}")
    return found


def left(store: RunStore, asked: Manifest, cases: Sequence[Case], *, mixed: bool, retry_failed: bool) -> Left:
    """What is left of the run in `store`, which is mended and held.

    `mixed`: go on although the code is another; what is not done is measured anew by it. `retry_failed`: cases with a
    row that failed or was wrong are measured anew, and counters that were not collected asked for again. Counters may
    be asked for of a run that had none. Cases that a budget ended before their fewest processes are gone on with.

    Raises:
        StoreError: it was asked something else, or its files are damaged.
    """
    was = store.manifest()
    if was.schema_version != SCHEMA:
        raise StoreError(
            f"run {was.run_id!r} was begun by a version of schema {was.schema_version}, this writes {SCHEMA}: its "
            "records and new ones are no one run, choose another --run-id"
        )
    odd = unlike(was, asked)
    if mixed:
        odd = [said for said in odd if not said.startswith("its commit")]
    if odd:
        more = " (--allow-mixed goes on with other code)" if odd[-1].startswith("its commit") else ""
        raise StoreError(
            f"run {was.run_id!r} exists in {store.path.parent} and was asked something else: {'; '.join(odd)}{more}: "
            "choose another --run-id"
        )
    known = [note for note in was.notes if not note.startswith(PASSING) and not (was.short and SPENT in note)]
    notes = [*known, *(said for said in aside.mend(store, set(was.done)) if said not in known)]
    aside.move(store, [file for name in was.cut for file in aside.pair(f"{name}.json")])
    records = {path: records_in(path) for path in store.record_files()}
    there = {record.case for found in records.values() for record in found}
    done = set(was.done) & there - set(was.short)
    bad = {r.case for found in records.values() for r in found if r.amiss} if retry_failed else set()
    processes = [path for path, found in records.items() if not any(r.case in bad or r.attempt for r in found)]
    counted = [r.replicate for path in processes for r in records[path] if r.replicate is not None]
    manifest = asked.model_copy(
        update={
            "seed": was.seed,  # the order of what is left, and its inputs, are those of the run
            "started_at": was.started_at,
            "worked_s": was.took_s,
            "processes": max(counted, default=0) + 1,
            "done": [name for name in was.done if name in done - bad],
            "short": [],
            "environment": was.environment,
            "further": was.further,
            "before": was.before,
            "after": was.after,
            "notes": notes,
        }
    )
    counters = list(store.counters())
    lacking = [store.counters_file(c.case, c.profile) for c in counters if retry_failed and c.status is not Status.OK]
    uncounted = asked.uncounted(c for c in counters if not retry_failed or c.status is Status.OK)
    remaining = tuple(case for case in cases if case.name not in manifest.done)
    if was.state == "finished" and not remaining and not uncounted and not lacking:
        return Left(was, (), ())
    store.write_manifest(manifest)  # before anything is set aside: an end in between loses no case
    store.drop_conclusions()
    if bad:
        aside.set_aside(store, lambda record: record.case in bad)
    aside.move(store, lacking)
    return Left(
        manifest,
        remaining,
        uncounted,
        _earlier(store, records, {case.name for case in remaining}),
    )


def _earlier(
    store: RunStore, records: Mapping[Path, Sequence[Record]], cases: set[str]
) -> list[tuple[Record, Samples | None]]:
    """What there is of these cases; `records`: by file, some of which were set aside meanwhile."""
    found: list[tuple[Record, Samples | None]] = []
    for path, mine in records.items():
        if path.name.partition(".")[0] not in cases or not path.exists():
            continue
        if any(record.code is Code.INTERRUPTED for record in mine):
            aside.move(store, aside.pair(path.name))
            continue
        found += [(record, store.samples(record) if record.samples_file else None) for record in mine]
    return found


def _shown(before: object, now_: object) -> str:
    """Two values of a field; of two lists what one has and the other lacks."""
    if isinstance(before, list) and isinstance(now_, list):
        lacks, has = [one for one in before if one not in now_], [one for one in now_ if one not in before]
        said = [f"have {_words(lacks)} too"] if lacks else []
        said += [f"lack {_words(has)}"] if has else []
        return " and ".join(said) or "are in another order"
    return f"was {before}, is now {now_}"


def _pace(manifest: Manifest) -> str:
    return str(manifest.fewest) if manifest.fewest == manifest.most else f"{manifest.fewest}:{manifest.most}"


def _words(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:3])) + (f" and {len(items) - 3} others" if len(items) > 3 else "")


def _code(manifest: Manifest) -> str:
    dirty = " with changes" if manifest.dirty else ""
    return f"{manifest.commit[:10]}{dirty}" if manifest.commit else f"source {manifest.source}"
