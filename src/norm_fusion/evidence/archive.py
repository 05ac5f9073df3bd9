"""The runs in some folders, each read as far as somebody asks; and the checks of the harness beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from norm_fusion.evidence.stored import rejudged, with_records
from norm_fusion.evidence.verdicts import RULE
from norm_fusion.records import Conclusions, Counters, Environment, HarnessReport, Manifest, Record
from norm_fusion.runs.files import StoreError, problem, read
from norm_fusion.runs.listing import folders
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import SpecError

EARLIEST = datetime.min.replace(tzinfo=UTC)
LONGEST = 300  # characters of what a machine and its software are called: records are data, and may be made to harm


def each_once(folders: Sequence[Path]) -> list[Path]:
    """Folders, by the first of the names that somebody gave each."""
    return [folder for i, folder in enumerate(folders) if folder.resolve() not in [f.resolve() for f in folders[:i]]]


def moment(text: str) -> datetime | None:
    """An ISO 8601 time, by UTC where it names no zone; None where it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def odd(*environments: Environment) -> str | None:
    """What of machines cannot be printed: JSON may hold texts of megabytes."""
    texts = [text for one in environments for text in one.model_dump(mode="json").values() if isinstance(text, str)]
    longest = max(map(len, texts), default=0)
    return f"its environment has a text of {longest:,} characters" if longest > LONGEST else None


class Kept:
    """A run on disk. Its manifest is read at once, what was concluded and counted when it is asked for."""

    def __init__(self, store: RunStore, name: str, anew: bool = False) -> None:
        self.store, self.name, self.anew = store, name, anew
        self.manifest: Manifest = store.manifest()
        self.began = moment(self.manifest.started_at)  # None: nobody knows when
        self.odd = odd(*self.manifest.environments)
        if not name.isprintable():
            raise StoreError(f"{name!a} is no name of a run: it has letters that cannot be printed")

    @cached_property
    def _concluded(self) -> tuple[Conclusions | None, list[Record], list[str]]:
        try:
            made, records, left_out = with_records(self.store, self.manifest, self.anew)
            if made.rule != RULE:  # what is decided rests on calls by the rule as it is now
                made, records, left_out = rejudged(self.store, self.manifest)
        except SpecError as error:  # nothing of it can be judged
            return None, [], [str(error)]
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # figures that no run can have
            return None, [], [f"{self.store.path} cannot be judged: {type(error).__name__}: {problem(error)}"]
        return made, records, left_out

    @property
    def conclusions(self) -> Conclusions | None:
        """What is concluded of it; None where nothing can be."""
        return self._concluded[0]

    @property
    def left_out(self) -> list[str]:
        """A sentence for each of its files that is not believed."""
        return self._concluded[2]

    @property
    def records(self) -> list[Record]:
        """The records, a process each, that the conclusions were made of."""
        return self._concluded[1]

    @property
    def doubts(self) -> list[str]:
        """Those of its files that somebody has asked for, its counters included."""
        asked = vars(self)
        said = [self.odd, *(self.left_out if "_concluded" in asked else ())]
        return [one for one in (*said, self.uncounted if "_counters" in asked else "") if one]

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

    def environment_of(self, case: str, counted: bool = False) -> Environment | None:
        """Of the card that measured a case; `counted`: that read its counters."""
        made = self.conclusions
        rows = self.counters if counted else made.pooled if made is not None else []
        first = next((row for row in rows if row.case == case), None)
        return self.manifest.environment if first is None else self.manifest.environment_of(first.fingerprint)


class Archive:
    """All runs below some folders, newest first, and a sentence for each that cannot be read.

    `anew`: calls are made again from records and samples, which takes seconds a run; else those that are stored
    beside them are believed, as far as they are of these records.
    """

    def __init__(self, parents: Sequence[Path], anew: bool = False) -> None:
        self.parents = [parent for parent in each_once(parents) if parent.is_dir()]
        self.runs: list[Kept] = []
        self.unreadable: list[str] = []
        seen: dict[str, Path] = {}
        for parent in self.parents:
            for path in folders(parent):
                name = path.relative_to(parent).as_posix()
                try:
                    if name in seen:
                        raise StoreError(f"{path} has the name of {seen[name]}, which is taken")
                    self.runs.append(Kept(RunStore(path), name, anew))
                    seen[name] = path
                except StoreError as error:
                    self.unreadable.append(str(error))
        self.runs.sort(key=lambda run: (run.began or EARLIEST, run.name), reverse=True)
        # The files of checks of the harness, newest first.
        found = sorted(self._reports(), key=lambda one: moment(one[1].started_at) or EARLIEST, reverse=True)
        self.checks = dict(found)

    @property
    def harness(self) -> list[HarnessReport]:
        """What the checks of the harness found, newest first."""
        return list(self.checks.values())

    @property
    def damaged(self) -> list[str]:
        """A sentence for each file that is not believed, of the runs that somebody has asked for."""
        return [f"{run.name}: {said}" for run in self.runs for said in run.doubts]

    def _reports(self) -> Iterable[tuple[Path, HarnessReport]]:
        for parent in self.parents:
            for path in sorted(parent.glob("*/harness.json")):
                try:
                    yield path, read(path, HarnessReport)
                except StoreError as error:
                    self.unreadable.append(str(error))
