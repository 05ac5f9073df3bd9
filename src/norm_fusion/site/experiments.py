"""A page for each suite and model of GPU: the answer, where it does not hold, the evidence, and its boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from norm_fusion.evidence.archive import Archive, Kept
from norm_fusion.evidence.boundary import NAMED, covered
from norm_fusion.evidence.deciding import Judged
from norm_fusion.evidence.experiments import Experiment, needed
from norm_fusion.evidence.selection import Selected, refusals, speaking
from norm_fusion.records import Counters
from norm_fusion.report.answer import answers
from norm_fusion.report.cells import Timers, glance
from norm_fusion.report.counters import COLUMNS, TITLE, cells, missing
from norm_fusion.report.page import coloured, weathered
from norm_fusion.report.panels import PANELS, Panel
from norm_fusion.report.rows import Row, case_title, cases, fastest_torch, fused, join, label_of, usual
from norm_fusion.runs.files import StoreError
from norm_fusion.runs.store import RunStore
from norm_fusion.runs.suites import Suite
from norm_fusion.site import series, sizes
from norm_fusion.site.findings import TAKEN, answered, headline, unheld, winner
from norm_fusion.site.pages import Figure, Pages, slug, up
from norm_fusion.site.provenance import changed, passed_over, told
from norm_fusion.site.runs import Address
from norm_fusion.spec import Case, Op, Pass

# Of more cases a page has the plots over shapes, and those with a line a profile go to pages of their own.
TOGETHER = 12


@dataclass(frozen=True)
class Page:
    """An experiment on one model of GPU: what is on its page."""

    experiment: Experiment
    gpu: str
    path: str
    selected: Sequence[Selected]

    def slice(self, name: str) -> str:
        """The page of some of its cases."""
        return f"{self.path.removesuffix('.html')}/{name}.html"

    @cached_property
    def rows(self) -> list[Row]:
        """All rows of all its cases, each of the run that speaks for the case."""
        return [row for one in self.selected for row in join(one.rows, _calls(one))]

    @property
    def runs(self) -> list[Kept]:
        """Those that speak, newest first."""
        return speaking(self.selected)

    def links(self, at: Mapping[str, Address], path: str) -> dict[str, Any]:
        """From a page of the site to records, cases and files of counters of the runs that speak."""
        run_of = {one.case: at[one.run.name] for one in self.selected}
        counted_by = {case: at[run.name] for case, run in self.counting.items()}

        def record_url(key: str) -> str:
            case = key.partition(".")[0]
            return up(path) + run_of[case].record(key, case)

        return {
            "record_url": record_url,
            "case_url": lambda case: up(path) + run_of[case].case(case),
            "counters_url": lambda case, profile: up(path) + counted_by[case].counters(case, profile),
        }

    @cached_property
    def counting(self) -> dict[str, Kept]:
        """By case the run whose counters speak for it: it may be another than the one that timed it."""
        return {one.case: one.run for one in self.experiment.counted if one.gpu == self.gpu}

    @cached_property
    def counters(self) -> list[Counters]:
        """The counters of all its cases."""
        return [c for case, run in self.counting.items() for c in run.counters if c.case == case]


def _calls(one: Selected) -> list[Any]:
    made = one.run.conclusions
    return [] if made is None else [call for call in made.calls if call.case == one.case]


def pages_of(experiment: Experiment) -> list[Page]:
    """One for each model of GPU that has evidence."""
    gpus = sorted({one.gpu for one in experiment.selected})
    taken: set[str] = set()
    made = []
    for gpu in gpus:
        name = experiment.suite.name if len(gpus) == 1 else f"{experiment.suite.name}-{_plain(gpu)}"
        path = f"experiments/{slug(name, taken)}.html"
        made.append(Page(experiment, gpu, path, [one for one in experiment.selected if one.gpu == gpu]))
    return made


def _plain(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())


def write(
    pages: Pages,
    page: Page,
    archive: Archive,
    at: Mapping[str, Address],
    judged: Sequence[Judged],
    summaries: Mapping[str, str],
    as_of: date,
) -> None:
    """The page, and those of its slices where it has many cases."""
    suite, rows = page.experiment.suite, page.rows
    timers = Timers(usual(row.latency for row in rows), usual(row.ratio for row in rows))
    groups, measured = cases(rows), _cases(page)
    slices = _slices(page, rows)
    together = len(groups) <= TOGETHER
    links = page.links(at, page.path)
    figures, undrawn = _figures(pages, page, rows, [*PANELS] if together else [], links)
    strips, unread = _strips(pages, page, rows)
    baselines = [row.profile for row in rows if row.contestant]
    pages.write(
        page.path,
        "experiment.html",
        [*figures, *strips],
        figures=figures,
        suite=suite,
        gpu=page.gpu,
        readiness=page.experiment.readiness,
        latest=page.runs[0].manifest.started_at,
        answers=[list(coloured(said)) for said in answers(rows)],
        plain=[one for one in answered(rows) if one.plain],
        unheld=list(unheld(rows)),
        named=NAMED,
        shape=f"{len(groups)} cases / {len(_profiles(rows))} profiles",
        decisions=[one.decided for one in judged if suite.name in one.decision.experiments],
        headline=list(headline(rows, page.counters)),
        sweep=[(line, winner(groups[str(line["name"])])) for line in glance(rows, timers)],
        taken=TAKEN[timers.ratio or "none"],
        undrawn=undrawn,
        slices=[(title, up(page.path) + page.slice(name), count) for name, title, count in slices],
        strips=strips,
        unread=unread,
        bounds=covered(page.selected, baselines, archive, as_of),
        listed=[(case.name, _said(suite, case)) for case in measured],
        unmeasured=[case.name for case in page.experiment.cases if case not in measured],
        profiles=[(name, summaries.get(name, "")) for name in _profiles(rows)],
        local=_local(Case.parse(_largest(page)[0])),
        live=_live(suite),
        runs=[told(run, page.selected, at, up(page.path)) for run in page.runs],
        changed=list(changed(page.runs[0], page.gpu, archive, at, up(page.path))),
        over=list(passed_over(page.selected, at, up(page.path))),
        counted=cells(page.counters),
        counted_heads=[head for head, _ in COLUMNS],
        uncounted=missing(page.counters),
        counters_title=TITLE,
        environment=page.selected[0].environment,
        metrics=None,
        **links,
    )
    for name, title, _ in slices:
        _slice(pages, page, rows, name, title, at)


def planned(pages: Pages, experiment: Experiment, path: str, archive: Archive, summaries: Mapping[str, str]) -> None:
    """The page of a suite that no run speaks for: what it asks, why nothing answers yet, and how to make it."""
    suite = experiment.suite
    refused: dict[str, list[str]] = {}
    for case in experiment.cases:
        for said in refusals(archive.runs, case.name, needed(suite, case)):
            refused.setdefault(said, []).append(case.name)
    pages.write(
        path,
        "planned.html",
        suite=suite,
        readiness=experiment.readiness,
        refused=list(refused.items()),
        listed=[(case.name, _said(suite, case)) for case in experiment.cases],
        profiles=[(name, summaries.get(name, "")) for name in suite.profiles],
        local=_local(max(experiment.cases, key=lambda case: case.compulsory_bytes)),
        live=_live(suite),
    )


def _cases(page: Page) -> list[Case]:
    there = {one.case for one in page.selected}
    return [case for case in page.experiment.cases if case.name in there]


def _said(suite: Suite, case: Case) -> str:
    """What the suite, or an optional part of it, says of a case."""
    optional = next((o.summary for o in suite.options.values() if case in o.cases), "")
    return suite.summaries.get(case.name, optional)


def _profiles(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.profile for row in rows if row.contestant))


def _figures(
    pages: Pages,
    page: Page,
    rows: Sequence[Row],
    lines: Sequence[Panel],
    links: Mapping[str, Any],
    name: str = "plot",
) -> tuple[list[Figure], list[Panel]]:
    """The plots with a line a profile, and, on an experiment's own page, those over shapes and the counters'."""
    panels = [*lines]
    if name == "plot":
        # The first question first; then how it depends on the shape, then what may be doubted.
        panels = [*lines[:1], *sizes.panels(page.selected[0].environment.cache_bytes), *lines[1:]]
    figures, undrawn = [], []
    for i, panel in enumerate(panels):
        drawn = panel.draw(rows)
        made = pages.figure(f"{name}-{i}", panel.title, panel.explanation, panel.key, drawn, links["record_url"])
        if made is None:
            undrawn.append(panel)
        else:
            figures.append(made)
    if name == "plot":
        chart = series.counters_chart(page.counters) if len(cases(rows)) <= TOGETHER else None
        said = "One cold call of each profile, apart from all timing; at the right what limits it."
        files = {
            RunStore.counters_file(c.case, c.profile): links["counters_url"](c.case, c.profile) for c in page.counters
        }
        counted = pages.figure("plot-counters", "What limits each profile", said, series.COUNTERS_KEY, chart, files.get)
        figures += [counted] if counted is not None else []
    return figures, undrawn


def _strips(pages: Pages, page: Page, rows: Sequence[Row]) -> tuple[list[Figure], str]:
    """The raw samples of the largest case in time order, and the clock and heat of its card meanwhile."""
    case, one = _largest(page)
    group = [row for row in rows if row.case == case]
    mine, best = fused(group), fastest_torch(group)
    wanted = [row.profile for row in (mine, best) if row is not None]
    try:
        standing = {r.attempt for row in group for r in row.series.values()}
        records = [r for r in one.run.records if (r.case, r.cache) == (case, "cold") and r.attempt in standing]
        timer = mine.latency.timer if mine is not None and mine.latency is not None else "none"
        kept = {
            name: [(r, one.run.store.samples(r)) for r in records if (r.profile, r.timer) == (name, timer)]
            for name in wanted
        }
        chart, said = series.samples(kept, (timer, "cold"))
        conditions = list(one.run.store.conditions())
    except StoreError as error:
        return [], f"The samples are not shown: {error}"
    title = f"Every sample of {case_title(case)}, in time order"
    made = [pages.figure("strip-samples", title, said, (), chart)]
    for i, (name, words, drawn) in enumerate(weathered(conditions, one.run.manifest)):
        made.append(pages.figure(f"strip-{i}", name, f"{words}; over the whole run {one.run.name}.", (), drawn))
    return [figure for figure in made if figure is not None], ""


def _largest(page: Page) -> tuple[str, Selected]:
    def size(one: Selected) -> int:
        case = Case.of(one.case)
        return 0 if case is None else case.compulsory_bytes

    one = max(page.selected, key=size)
    return one.case, one


def _slices(page: Page, rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """Of an experiment of many cases: a name, a title and the number of cases for each operator, pass and dtype."""
    if len(cases(rows)) <= TOGETHER:
        return []
    found: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row.any.op, row.any.pass_, row.any.dtype), set()).add(row.case)
    taken: set[str] = set()
    return [
        (slug(f"{op}-{way}-{dtype}", taken), f"{label_of(Op(op), way)} {dtype}", len(those))
        for (op, way, dtype), those in found.items()
        if op in set(Op)
    ]


def _slice(pages: Pages, page: Page, rows: Sequence[Row], name: str, title: str, at: Mapping[str, Address]) -> None:
    """The plots with a line a profile, of some cases of an experiment."""
    mine = [row for row in rows if f"{label_of(Op(row.any.op), row.any.pass_)} {row.any.dtype}" == title]
    path = page.slice(name)
    links = page.links(at, path)
    figures, _ = _figures(pages, page, mine, PANELS, links, "line")
    timers = Timers(usual(row.latency for row in mine), usual(row.ratio for row in mine))
    pages.write(
        path,
        "slice.html",
        figures,
        figures=figures,
        suite=page.experiment.suite,
        gpu=page.gpu,
        title=title,
        back=up(path) + page.path,
        answers=[list(coloured(said)) for said in answers(mine)],
        glance=list(glance(mine, timers)),
        metrics=None,
        **links,
    )


def _local(case: Case) -> str:
    way = " --pass backward" if case.pass_ is Pass.BACKWARD else ""
    op = "" if case.op is Op.RMSNORM else f" --op {case.op}"
    return (
        f"uv run benchmark-norms --backend all --device cuda{op}{way} --rows {case.rows} --cols {case.cols} "
        f"--dtype {case.dtype}"
    )


def _live(suite: Suite) -> str:
    options = "".join(f" --include-{name}" for name in suite.options)
    if suite.name == "normalization-fusion":
        return f"./scripts/benchmark --run-id <run-id>{options} --with-profiling"
    return f"uv run norm-fusion run {suite.name} --run-id <run-id>{options} --with-profiling"
