"""A page for each run and each of its cases, with every record; and the files themselves beside them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from norm_fusion.evidence.archive import Kept
from norm_fusion.records import Conclusions, Conditions, Record
from norm_fusion.report.page import told
from norm_fusion.report.rows import Row, case_title, cases, duration, rows_of
from norm_fusion.runs.files import StoreError
from norm_fusion.runs.order import in_order
from norm_fusion.runs.store import FOLDERS, SUMS, RunStore
from norm_fusion.site.pages import Pages, clipped, slug

# Of a run's folder: what a reader's own tools need. Its log is not: it tells of the machine that it ran on.
FILES = ("manifest.json", "calls.json", SUMS, "conditions.jsonl", "events.jsonl")
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=-]{0,249}")
# Of more cases the page of a run has a line each, and their own pages the claims.
CLAIMED = 24
NONE = "\u2013"  # where there is no figure


@dataclass
class Address:
    """Where a run's pages are: its part of the site's addresses, and those of its cases."""

    name: str
    slug: str
    cases: dict[str, str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=lambda: {"index"})

    @property
    def page(self) -> str:
        """The run's own page, within the site."""
        return f"runs/{self.slug}/index.html"

    def case(self, name: str) -> str:
        """The page of one of its cases."""
        if name not in self.cases:
            self.cases[name] = slug(name, self._taken)
        return f"runs/{self.slug}/{self.cases[name]}.html"

    def record(self, key: str, case: str) -> str:
        """A record's line on the page of its case."""
        return f"{self.case(case)}#{anchor(key)}"

    def counters(self, case: str, profile: str) -> str:
        """The file of a profile's hardware counters."""
        return self.file(RunStore.counters_file(case, profile))

    def file(self, name: str) -> str:
        """A file of its folder."""
        return f"data/{self.slug}/{name}"


def addresses(runs: Sequence[Kept]) -> dict[str, Address]:
    """Of runs, by name; the oldest first, so that a newer one never moves another's."""
    taken: set[str] = {"index"}
    return {run.name: Address(run.name, slug(run.name, taken)) for run in reversed(runs)}


def anchor(key: str) -> str:
    """A record's name within a page."""
    return key if SAFE.fullmatch(key) else f"x-{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def write(pages: Pages, run: Kept, at: Address) -> list[str]:
    """All pages of a run, and its files; returns a sentence for each file that nothing else of the run asks for."""
    copied = set(_copied(pages, run.store, at))
    made = run.conclusions
    if made is None:
        pages.write(at.page, "unread.html", name=run.name, left_out=run.left_out, manifest=run.manifest)
        return []
    rows = rows_of(made, run.manifest)
    conditions, unread = _conditions(run.store)
    linked = {
        "record_url": _record_url(at),
        "case_url": lambda case: f"../../{at.case(case)}",
        "counters_url": lambda case, profile: f"../../{at.counters(case, profile)}",
    }
    facts = told(run.manifest, rows, made.rule, run.counters)
    many = len(facts["claims"]) > CLAIMED
    pages.write(
        at.page,
        "run.html",
        **facts | linked | {"claims": [] if many else facts["claims"]},
        name=run.name,
        left_out=[*run.left_out, *([run.uncounted] if run.uncounted else [])],
        listed=_listed(run, rows),
        files=sorted(file for file in copied if "/" not in file),
        at=at,
        weather=[],
        unread=unread,
        readings=len(conditions),
    )
    singles = _singles(run)
    sums = _sums(run.store)
    for case, mine in cases(rows).items():
        _case(pages, run, at, case, mine, singles.get(case, []), made, sums, copied, linked)
    return [unread] if unread else []


def _case(
    pages: Pages,
    run: Kept,
    at: Address,
    case: str,
    rows: Sequence[Row],
    singles: Sequence[Record],
    made: Conclusions,
    sums: dict[str, str],
    copied: set[str],
    linked: dict[str, Any],
) -> None:
    pooled = [record for row in rows for record in row.series.values()]

    def url(file: str | None) -> str | None:
        return None if file is None else f"../../{at.file(file)}"

    counters = [one for one in run.counters if one.case == case]
    files = {file for r in singles for file in (_file(r, copied), r.samples_file) if file in copied}
    pages.write(
        at.case(case),
        "case.html",
        **told(run.manifest, rows, made.rule, counters) | linked,
        name=run.name,
        title=case_title(case),
        case=case,
        at=at,
        pooled=Markup("\n").join(_line(r, url("calls.json" if "calls.json" in copied else None)) for r in pooled),
        singles=Markup("\n").join(
            _line(r, url(_file(r, copied)), url(r.samples_file if r.samples_file in copied else None)) for r in singles
        ),
        count=len(singles),
        files=[(file, sums.get(file, "")) for file in sorted(files)],
    )


def _line(r: Record, url: str | None, samples: str | None = None) -> Markup:
    """A record as a row of a table. Made here: through a template a hundred thousand of them take half a minute."""

    def n(value: float | None, form: str, scale: float = 1.0) -> str:
        return f'<td class="n">{NONE if value is None else format(value * scale, form)}</td>'

    def ms(value: float | None) -> str:
        return f'<td class="n">{NONE if value is None else duration(value)}</td>'

    process = "all" if r.replicate is None else f"{r.replicate + 1}"
    named = "pooled" if r.replicate is None else "record"
    file = NONE if url is None else f'<a href="{escape(url)}">{named}</a>'
    again = f" of try {r.attempt + 1}" if r.attempt else ""
    cells = [
        f'<tr id="{escape(anchor(r.key))}"><th scope="row">{escape(clipped(r.profile))}</th>',
        f"<td>{r.timer}{'' if r.cache == 'none' else f' {r.cache}'}</td>",
        f'<td class="n">{process}{again}</td><td>{r.status.value}</td>{ms(r.p50_ms)}{ms(r.p95_ms)}',
        f'<td class="n {r.noise or ""}">{NONE if r.noise_ratio is None else f"{r.noise_ratio:.3f}"}</td>',
        f'<td class="n">{r.n_samples or NONE}</td>{n(r.gbps, ",.0f")}{n(r.roof_share, ".1f", 100)}',
        n(r.max_rel_error, ".1e"),
        f'<td>{file}</td><td class="id">{_hash(r, samples)}</td></tr>',
    ]
    return Markup("".join(cells))


def _hash(r: Record, url: str | None) -> str:
    """Of a record's samples; it leads to their file, where that was copied."""
    if not r.samples_file or not r.samples_sha256 or r.replicate is None:
        return NONE
    told = escape(clipped(f"{r.samples_file}, SHA-256 {r.samples_sha256}"))
    opened, closed = ("span", "span") if url is None else (f'a href="{escape(url)}"', "a")
    return f'<{opened} title="{told}">{escape(r.samples_sha256[:12])}</{closed}>'


def _file(r: Record, copied: set[str]) -> str | None:
    """The file that holds a record: that of its case and process; of schema 1 its own."""
    names = (RunStore.name_of(r.case, r.attempt, r.replicate or 0), r.key)
    return next((file for name in names if (file := f"records/{name}.json") in copied), None)


def _singles(run: Kept) -> dict[str, list[Record]]:
    """The records of each case, a process each: those that can be believed, and a failure of each that cannot."""
    found: dict[str, list[Record]] = {}
    for record in in_order(run.records, run.manifest):
        found.setdefault(record.case, []).append(record)
    return found


def _record_url(at: Address) -> Callable[[str], str]:
    """For a page of the run: a record's address, by its key, which begins with the case."""
    return lambda key: f"../../{at.record(key, key.partition('.')[0])}"


def _listed(run: Kept, rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """The cases that have a page: name, title, how many rows."""
    return [(case, case_title(case), len(mine)) for case, mine in cases(rows).items()]


def _conditions(store: RunStore) -> tuple[list[Conditions], str]:
    try:
        return list(store.conditions()), ""
    except StoreError as error:
        return [], str(error)


def _sums(store: RunStore) -> dict[str, str]:
    """By file, the hash that was written with it."""
    lines = (line.split("  ", 1) for line in store.sum_lines())
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}


def _copied(pages: Pages, store: RunStore, at: Address) -> Iterator[str]:
    """Copy a run's files into the site; yields their names. What is no plain file, or oddly named, stays behind."""
    for file in files_of(store.path):
        target = pages.output / at.file(file)
        pages.made.add(at.file(file))
        source = store.path / file
        if not _same(source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        yield file


def files_of(folder: Path) -> list[str]:
    """The files of a run that the site tells of."""
    found = [name for name in FILES if _plain(folder / name)]
    for inner in FOLDERS:
        if (folder / inner).is_dir() and not (folder / inner).is_symlink():
            found += [f"{inner}/{p.name}" for p in sorted((folder / inner).iterdir()) if _plain(p)]
    return found


def _plain(path: Path) -> bool:
    return SAFE.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def _same(source: Path, target: Path) -> bool:
    try:
        return source.stat().st_size == target.stat().st_size and source.read_bytes() == target.read_bytes()
    except FileNotFoundError:
        return False
