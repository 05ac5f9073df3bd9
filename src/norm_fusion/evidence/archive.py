"""The runs in some folders, each read as far as somebody asks; and the checks of the harness beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from norm_fusion.evidence.stored import concluded
from norm_fusion.records import Conclusions, Counters, Environment, HarnessReport, Manifest
from norm_fusion.runs.files import StoreError, read
from norm_fusion.runs.listing import folders
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import SpecError


class Kept:
    """A run on disk. Its manifest is read at once, what was concluded and counted when it is asked for."""

    def __init__(self, store: RunStore, name: str) -> None:
        self.store, self.name = store, name
        self.manifest: Manifest = store.manifest()

    @cached_property
    def _concluded(self) -> tuple[Conclusions | None, list[str]]:
        try:
            return concluded(self.store, self.manifest)
        except SpecError as error:  # nothing of it can be judged
            return None, [str(error)]

    @property
    def conclusions(self) -> Conclusions | None:
        """What is concluded of it; None where nothing can be."""
        return self._concluded[0]

    @property
    def left_out(self) -> list[str]:
        """A sentence for each of its files that is not believed."""
        return self._concluded[1]

    @cached_property
    def _counters(self) -> tuple[list[Counters], str]:
        try:
            return list(self.store.counters()), ""
        except StoreError as error:
            return [], str(error)

    @property
    def counters(self) -> list[Counters]:
        """Its hardware counters, those that can be believed."""
        return self._counters[0]

    @property
    def uncounted(self) -> str:
        """Why there are no counters; empty where nothing is wrong with them."""
        return self._counters[1]

    def environment_of(self, case: str) -> Environment | None:
        """Of the card that measured a case."""
        made = self.conclusions
        first = next((r for r in made.pooled if r.case == case), None) if made is not None else None
        return self.manifest.environment if first is None else self.manifest.environment_of(first.fingerprint)


class Archive:
    """All runs below some folders, newest first, and a sentence for each that cannot be read."""

    def __init__(self, parents: Sequence[Path]) -> None:
        self.parents = [parent for parent in parents if parent.is_dir()]
        self.runs: list[Kept] = []
        self.unreadable: list[str] = []
        seen: dict[str, Path] = {}
        for parent in self.parents:
            for path in folders(parent):
                name = path.relative_to(parent).as_posix()
                try:
                    if name in seen:
                        raise StoreError(f"{path} has the name of {seen[name]}, which is taken")
                    self.runs.append(Kept(RunStore(path), name))
                    seen[name] = path
                except StoreError as error:
                    self.unreadable.append(str(error))
        self.runs.sort(key=lambda run: (run.manifest.started_at, run.name), reverse=True)

    @cached_property
    def harness(self) -> list[HarnessReport]:
        """The checks of the harness, newest first."""
        return sorted(self._reports(), key=lambda report: report.started_at, reverse=True)

    def _reports(self) -> Iterable[HarnessReport]:
        for parent in self.parents:
            for path in sorted(parent.glob("*/harness.json")):
                try:
                    yield read(path, HarnessReport)
                except StoreError as error:
                    self.unreadable.append(str(error))
