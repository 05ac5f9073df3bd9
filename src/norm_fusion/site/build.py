"""What the site is made of, and what need not be made again: pages of a run stay while its files have their hashes."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode
from pydantic import BaseModel, Field, ValidationError

import norm_fusion
from norm_fusion import machine
from norm_fusion.evidence.archive import Archive, Kept
from norm_fusion.evidence.deciding import Judged, decide
from norm_fusion.evidence.decisions import load_all
from norm_fusion.evidence.examples import examples
from norm_fusion.evidence.experiments import Experiment, experiment
from norm_fusion.evidence.standing import Evidence
from norm_fusion.records import DecisionStatus
from norm_fusion.runs.files import as_json, problem
from norm_fusion.runs.store import RunStore
from norm_fusion.runs.suites import Suite
from norm_fusion.site import comparing, decisions, experiments, runs
from norm_fusion.site.findings import AGAINST, answered
from norm_fusion.site.pages import CHARTS, Pages, charts, charts_of, slug, up
from norm_fusion.site.runs import Address
from norm_fusion.spec import SpecError

MARK = ".norm-fusion-site.json"
WORKERS = 3  # each imports what draws plots, 200 MB, and so does this process: more would not fit into a gigabyte
STATES = ("blocked", "planned", "partial", "ready")
ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # of figures that no run can have
FEW = 3  # runs that are not worth a process of their own


class _Run(BaseModel):
    """What was made of a run, by the hash of its files."""

    digest: str
    slug: str
    cases: dict[str, str]
    made: list[str]
    listed: dict[str, Any]


class _Made(BaseModel):
    """What is in the folder of a site, and what it was made of."""

    key: str = ""
    source: str = ""
    charts: str = ""  # what its charts were bundled of
    made: list[str] = Field(default_factory=list)
    runs: dict[str, _Run] = Field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A site: its first page, how many runs it has and how many of them were made anew, and what is left out."""

    index: Path
    runs: int
    anew: int
    pages: int
    left_out: Sequence[str]


@dataclass(frozen=True)
class Asked:
    """What a site is to be made of."""

    output: Path
    folders: Sequence[Path]
    decisions: Path | None
    suites: Sequence[Suite]
    summaries: Mapping[str, str]  # of profiles, in words
    as_of: date


def build(asked: Asked, tell: Callable[[str], None] = lambda said: None) -> Built:
    """Make the site, or what of it is not as it should be.

    Raises:
        SpecError: the folder holds something else, or a decision is wrong.
    """
    before, source = _before(asked.output), _source()
    archive = Archive(asked.folders)
    kept, unread = examples(asked.folders)
    digests = {run.name: digest(run.store.path) for run in archive.runs}
    left_out = [*archive.unreadable, *unread]
    harness = [report.model_dump_json() for report in archive.harness]
    key = _hash([source, str(asked.as_of), digests, _texts(asked), harness, left_out])
    old = before.runs if before.source == source else {}
    if before.key == key and all((asked.output / path).is_file() for path in before.made):
        named = [said for one in before.runs.values() for said in one.listed["left_out"]]
        return Built(asked.output / "index.html", len(digests), 0, len(before.made), [*left_out, *named])
    loaded = [] if asked.decisions is None else load_all(asked.decisions, [suite.name for suite in asked.suites])

    pages = Pages(asked.output, asked.folders)
    # Whose folder it is stands there first: what is interrupted can be gone on with.
    pages.put(MARK, as_json(before.model_copy(update={"key": ""})))
    at = runs.addresses(archive.runs)
    stays = {run.name: old[run.name] for run in archive.runs if _stays(asked.output, run, at, digests, old)}
    anew = [run for run in archive.runs if run.name not in stays]
    with _being_made(asked.output, anew, at, digests) as being_made:
        _charts(pages, before.charts)
        judged = [decide(one, Evidence(archive, kept)) for one in loaded]
        tried = [experiment(suite, archive) for suite in asked.suites]
        fresh: dict[str, _Run] = {}
        for run, one in zip(anew, being_made, strict=True):
            fresh[run.name] = one
            tell(f"run {len(fresh)} of {len(anew)}: {run.name}")
    made = {run.name: (stays | fresh)[run.name] for run in archive.runs}
    for name, one in made.items():
        at[name].cases.update(one.cases)
        pages.made.update(one.made)
    tell("decisions and experiments")
    with debug_mode(False):  # else half of this time goes into checking the plots, as the tests do already
        _rest(pages, asked, archive, at, made, judged, tried, left_out)
    for path in set(before.made) - pages.made:
        _remove(asked.output, path)
    mark = _Made(key=key, source=source, charts=charts_of(), made=sorted(pages.made), runs=made)
    pages.put(MARK, as_json(mark))
    named = [said for one in made.values() for said in one.listed["left_out"]]
    return Built(asked.output / "index.html", len(made), len(anew), len(mark.made), [*left_out, *named])


def _before(output: Path) -> _Made:
    """What is in the folder already; refuses one that holds anything else."""
    if not output.exists():
        return _Made()
    if not output.is_dir():
        raise SpecError(f"{output} is a file: --output names the folder of the site")
    if not (output / MARK).is_file():
        if any(output.iterdir()):
            raise SpecError(f"{output} holds something else than a site: choose another --output, or empty it")
        return _Made()
    try:
        return _Made.model_validate_json((output / MARK).read_bytes())
    except ValidationError:
        return _Made()  # of another version: everything is made anew


def digest(folder: Path) -> str:
    """The hash of all files of a run that the site tells of."""
    found = {file: sha256((folder / file).read_bytes()).hexdigest() for file in runs.files_of(folder)}
    return _hash(found)


def _charts(pages: Pages, was: str) -> None:
    """What draws plots, bundled where it is not there: that takes seconds."""
    if was == charts_of() and (pages.output / CHARTS).is_file():
        pages.made.add(CHARTS)
    else:
        pages.put(CHARTS, charts())


def _source() -> str:
    """Hash of the package's files, templates among them: other code makes other pages."""
    root = Path(norm_fusion.__file__).parent
    others = sorted(path for path in root.rglob("templates/*") if path.is_file())
    return _hash([machine.source(), *(path.read_text("utf-8") for path in others)])


def _hash(told: object) -> str:
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _texts(asked: Asked) -> list[str]:
    """The decisions, suites and examples as they are written."""
    files = sorted(asked.decisions.glob("*.toml")) if asked.decisions is not None else []
    files += [path for folder in asked.folders for path in sorted((folder / "examples").glob("*.json"))]
    return [*(path.read_text("utf-8", "replace") for path in files), repr(asked.suites), repr(asked.summaries)]


def _stays(
    output: Path, run: Kept, at: Mapping[str, Address], digests: Mapping[str, str], old: Mapping[str, _Run]
) -> bool:
    """Whether the pages of a run are there, made of the files that it has now."""
    was = old.get(run.name)
    if was is None or (was.digest, was.slug) != (digests[run.name], at[run.name].slug):
        return False
    return all((output / path).is_file() for path in was.made)


@contextmanager
def _being_made(
    output: Path, anew: Sequence[Kept], at: Mapping[str, Address], digests: Mapping[str, str]
) -> Iterator[Iterator[_Run]]:
    """The pages of runs, in this order: where they are many, other processes make them while the caller does more."""
    tasks = [(output, run.store.path, run.name, at[run.name].slug, digests[run.name]) for run in anew]
    if len(tasks) <= FEW:
        yield map(_one, tasks)
        return
    with ProcessPoolExecutor(min(WORKERS, os.cpu_count() or 1), get_context("spawn"), _begin) as pool:
        try:
            yield pool.map(_one, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin() -> None:
    """In a process of its own: what is imported stays, and the collector need not look at it again and again."""
    gc.freeze()


def _one(task: tuple[Path, Path, str, str, str]) -> _Run:
    """The pages of a run, in whatever process."""
    output, path, name, slug, told = task
    pages, address = Pages(output, [path.parents[name.count("/")]]), Address(name, slug)
    run = Kept(RunStore(path), name)
    try:
        odd = runs.write(pages, run, address)
        pages.put(comparing.path_of(address), comparing.data_of(run, address))
    except ODD as error:  # one run is no reason to make no site
        odd = [f"{path} cannot be shown: {type(error).__name__}: {problem(error)}"]
        address.cases.clear()
        pages.write(address.page, "unread.html", name=name, left_out=odd, manifest=run.manifest)
        pages.put(comparing.path_of(address), comparing.none(name, odd[0]))
    listed = _listed(run)
    listed["left_out"] += odd
    return _Run(digest=told, slug=slug, cases=address.cases, made=sorted(pages.made), listed=listed)


def _listed(run: Kept) -> dict[str, Any]:
    """A line of the list of runs."""
    manifest, where = run.manifest, run.manifest.environment
    return {
        "name": run.name,
        "left_out": [*run.left_out, *([run.uncounted] if run.uncounted else [])],
        "state": manifest.state,
        "started_at": manifest.started_at,
        "device": ", ".join(manifest.alike(lambda environment: environment.device_name)),
        "cases": len(manifest.cases),
        "processes": manifest.processes,
        "took_s": manifest.took_s,
        "torch": where.torch if where is not None else "",
        "suite": manifest.suite or "",
    }


def _rest(
    pages: Pages,
    asked: Asked,
    archive: Archive,
    at: Mapping[str, Address],
    made: Mapping[str, _Run],
    judged: Sequence[Judged],
    tried: Sequence[Experiment],
    left_out: Sequence[str],
) -> None:
    """The pages that are of many runs."""
    found = {one.suite.name: experiments.pages_of(one) for one in tried}
    for page in [page for those in found.values() for page in those]:
        experiments.write(pages, page, archive, at, judged, asked.summaries, asked.as_of)
    titles: dict[str, list[tuple[str, str]]] = {}
    for one in tried:
        title, those = one.suite.title, found[one.suite.name]
        more = len(those) > 1
        titles[one.suite.name] = [(f"{title}, {page.gpu}" if more else title, page.path) for page in those]
        if not those:
            path = f"experiments/{one.suite.name}.html"
            experiments.planned(pages, one, path, archive, asked.summaries)
            titles[one.suite.name] = [(title, path)]
    kept = {example.path: example.name for one in judged for example in one.examples}
    copied = {kept[path]: to for path, to in _copies(pages, "examples", kept).items()}
    decisions.write(pages, judged, archive, at, copied, asked.as_of, titles)
    speaks: dict[str, set[str]] = {}
    for selected in [*(one for page in tried for one in page.selected), *(s for one in judged for s in one.selected)]:
        speaks.setdefault(selected.run.name, set()).add(selected.case)
    lines = [
        one.listed
        | {
            "url": f"{one.slug}/index.html",
            "speaks": len(speaks.get(name, ())),
            "left_out": len(one.listed["left_out"]),
        }
        for name, one in made.items()
    ]
    copies = _copies(pages, "harness", {path: path.parent.name for path in archive.checks})
    checks = [(report, up("runs/index.html") + copies[path]) for path, report in archive.checks.items()]
    pages.write("runs/index.html", "runs.html", runs=lines, unreadable=left_out, checks=checks)
    comparing.write(pages, archive.runs, at)
    first = next((page for those in found.values() for page in those if page.experiment.suite.options), None)
    first = first or next((page for those in found.values() for page in those), None)
    pages.write(
        "index.html",
        "index.html",
        first=None if first is None else _first(first, at),
        matrix=decisions.matrix([one.decided for one in judged]),
        statuses=[status.value for status in DecisionStatus],
        decisions=[(one.decided, decisions.summary(one.decided)) for one in judged],
        experiments=[
            card
            for one in _readiest(tried)
            for card in _cards(one, found[one.suite.name], titles[one.suite.name][0][1])
        ],
        runs=len(made),
        left_out=left_out,
    )


def _copies(pages: Pages, folder: str, names: Mapping[Path, str]) -> dict[Path, str]:
    """Files of the evidence that are no run's, copied into the site; their paths there."""
    taken: set[str] = set()
    made = {path: f"kept/{folder}/{slug(name, taken)}.json" for path, name in names.items()}
    for path, to in made.items():
        pages.put(to, path.read_bytes())
    return made


def _readiest(tried: Sequence[Experiment]) -> list[Experiment]:
    return sorted(tried, key=lambda one: -STATES.index(one.readiness.state))


def _first(page: experiments.Page, at: Mapping[str, Address]) -> dict[str, Any]:
    """The question that the site opens with."""
    return {
        "question": page.experiment.suite.question,
        "answers": list(answered(page.rows)),
        "against": AGAINST,
        "gpu": page.gpu,
        "latest": page.runs[0].manifest.started_at,
        "url": page.path,
        "record_url": page.links(at, "index.html")["record_url"],
    }


def _cards(one: Experiment, those: Sequence[experiments.Page], path: str) -> Iterator[dict[str, Any]]:
    """An experiment on the first page; once for each model of GPU, or as one that has no evidence yet."""
    base = {
        "title": one.suite.title,
        "question": one.suite.question,
        "state": one.readiness.state,
        "sentence": one.readiness.sentence,
    }
    if not those:
        yield base | {"url": path, "gpu": "", "latest": ""}
    for page in those:
        yield base | {"url": page.path, "gpu": page.gpu, "latest": page.runs[0].manifest.started_at}


def _remove(output: Path, path: str) -> None:
    """Delete what an earlier site left; never anything that is not in the folder."""
    target = output / path
    if target.is_file() and not target.is_symlink() and output.resolve() in target.resolve().parents:
        target.unlink()
        for parent in target.parents:
            if parent == output or any(parent.iterdir()):
                break
            parent.rmdir()
