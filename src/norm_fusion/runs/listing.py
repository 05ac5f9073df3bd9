"""The runs in a folder, by their manifests alone: however many records they have, they are listed at once. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from norm_fusion.runs.files import StoreError
from norm_fusion.runs.resume import locked
from norm_fusion.runs.store import RunStore


@dataclass(frozen=True)
class Listed:
    """A run in a list. `state`: how it ended, or running; `devices`: each name once, with how many there were."""

    run_id: str
    state: str
    suite: str | None
    devices: tuple[str, ...]
    cases: int
    done: int
    processes: int
    started_at: str
    finished_at: str | None
    took_s: float | None
    path: str


def listed(parent: Path) -> tuple[list[Listed], list[str]]:
    """The runs below `parent`, the newest first, and a sentence for each that cannot be read."""
    found, unreadable = [], []
    for path in folders(parent):
        try:
            found.append(_one(RunStore(path), path.relative_to(parent).as_posix()))
        except StoreError as error:
            unreadable.append(str(error))
    return sorted(found, key=lambda one: one.started_at, reverse=True), unreadable


def folders(parent: Path) -> Iterator[Path]:
    """A run's folder, or those of its models in it; what a check of the harness holds is no run of anybody's."""
    for path in sorted(path for path in parent.glob("*/") if not path.is_symlink()):
        if (path / "manifest.json").is_file():
            yield path
        elif not (path / "harness.json").is_file():
            yield from (inner.parent for inner in sorted(path.glob("*/manifest.json")))


def _one(store: RunStore, name: str) -> Listed:
    manifest = store.manifest()
    state: str = manifest.state
    if state == "running" and not locked(store):
        state = "interrupted"  # suddenly: nobody could write it down
    devices = tuple(manifest.alike(lambda environment: environment.device_name))
    whole = state == "finished" and not manifest.done  # of before cases were ticked off
    done = len(manifest.cases) if whole else len(manifest.done)
    asked = manifest.suite or "benchmark-norms"
    ended = manifest.finished_at
    return Listed(
        name,
        state,
        asked,
        devices,
        len(manifest.cases),
        done,
        manifest.processes,
        manifest.started_at,
        ended,
        manifest.took_s,
        str(store.path),
    )
