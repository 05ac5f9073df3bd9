"""A site of the page of comparisons alone, opened as a reader opens it; runs that are called everything there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "report"))
sys.path.append(str(Path(__file__).parents[1] / "evidence"))

from made import COLD, FUSED, GPU, WALL, control, manifest, measured, reader, recorded
from playwright.sync_api import Browser, Page
from playwright.sync_api import TimeoutError as Late
from visiting import visited

from norm_fusion.evidence import compare
from norm_fusion.evidence.archive import Kept
from norm_fusion.evidence.compare import Comparison, Side, became
from norm_fusion.evidence.verdicts import RULE, conclude
from norm_fusion.records import Conclusions, Event, Manifest, Measurement, Record, Status
from norm_fusion.report.rows import ROLES, case_title, duration, give_or_take
from norm_fusion.runs.store import RunStore
from norm_fusion.site import comparing
from norm_fusion.site.pages import Pages
from norm_fusion.site.runs import Address, addresses
from norm_fusion.spec import ROOF

# Of every row: its words and links as a reader finds them.
ROWS = """() => [...document.querySelectorAll("#pairs tbody tr")].map((row) => [
    ...[...row.cells].map((cell) => cell.textContent),
    row.querySelector(".call").title,
    ...[...row.querySelectorAll("a")].map((link) => link.getAttribute("href")),
])"""


@dataclass(frozen=True)
class Site:
    """A site of which there is the page of comparisons alone."""

    path: Path
    sides: Mapping[str, Side]
    at: Mapping[str, Address]

    @property
    def page(self) -> Path:
        return self.path / "compare" / "index.html"

    def told(self, a: str, b: str) -> Comparison:
        return compare.compare(self.sides[a], self.sides[b], ["all"])

    def hash(self, a: str, b: str, *allowed: str) -> str:
        return f"#a={self.at[a].slug}&b={self.at[b].slug}" + (f"&allow={','.join(allowed)}" if allowed else "")

    def rows(self, a: str, b: str) -> list[list[str]]:
        """What the table is to say of a pair."""
        there = [(self.at[name], compare.rows_of(self.sides[name])) for name in (a, b)]
        found = []
        for row in self.told(a, b).rows:
            records = [(at, rows[row.case, row.profile, row.timer, row.cache]) for at, rows in there]
            links = [f"../{at.record(record.key, record.case)}" for at, record in records]
            found.append([*_words(row), f"{row.code}: {row.reason}", *links])
        return found


def _words(row: compare.Row) -> Iterator[str]:
    yield case_title(row.case) + ROLES.get(row.profile, row.profile)
    yield row.timer if row.cache == "cold" else f"{row.timer} {row.cache}"
    yield from (f"{row.speedup:.3f}x", became(row.label), "")
    if row.low is None or row.high is None:
        yield from ("\N{EN DASH}", "\N{EN DASH}")
    else:
        yield from (f"{row.low:.3f} to {row.high:.3f}", give_or_take(row.low, row.high))
    yield from (duration(row.a_ms), duration(row.b_ms))


def opened(browser: Browser, site: Site, after: str = "", **context: object) -> AbstractContextManager[Page]:
    """The page of comparisons."""
    return visited(browser, site.path, "compare/index.html", after, **context)


def says(page: Page, text: str) -> None:
    with suppress(Late):
        page.wait_for_function("text => document.getElementById('said').textContent === text", arg=text)
    assert page.locator("#said").text_content() == text


def go(page: Page, after: str) -> None:
    page.evaluate("after => { location.hash = after; }", after)


def made(*processes: Sequence[Measurement], of: Manifest | None = None, **more: object) -> Side:
    of = of or manifest()
    found = recorded(processes, of=of.environment or GPU, **more)  # type: ignore[arg-type]
    records = [record for record, _ in found]
    return Side(of, conclude(records, reader(found), of).pooled, records)


def kept(folder: Path, sides: Mapping[str, Side]) -> Site:
    """The page of runs that are not on disk but for their manifests."""
    runs = []
    for i, (name, side) in enumerate(sides.items()):
        store = RunStore.create(folder, f"run-{i}")
        store.write_manifest(side.manifest)
        run = Kept(store, name)
        concluded = Conclusions(rule=RULE, pooled=list(side.pooled), calls=[])
        run.__dict__["_concluded"] = concluded, list(side.records), []
        runs.append(run)
    pages, at = Pages(folder / "site"), addresses(runs)
    comparing.write(pages, runs, at)
    return Site(pages.output, sides, at)


def probed(ms: float, probe: float) -> list[Measurement]:
    one = measured(FUSED, ms)
    series = [s.model_copy(update={"probes_ms": [probe] * len(s.blocks)}) for s in one.series]
    return [one.model_copy(update={"series": series})]


def odd_sides() -> dict[str, Side]:
    """Runs that a pair with the first one, or with each other, is called everything there is for."""
    event = Event(kind="power", detail="capped")
    slow = [s.model_copy(update={"blocks": [[0.1] * 8 + [0.2] * 2]}) for s in measured(FUSED, 0.1).series]
    profiles = manifest(profiles=[FUSED, "torch-eager"])
    both = [measured(FUSED, {COLD: 0.1, WALL: 0.2}), measured("torch-eager", {COLD: 0.2})]
    return {
        "good": made(*[[measured(FUSED, 0.2), measured(ROOF, 0.1), control(0.2)]] * 3),
        "wrong": made(*[[measured(FUSED, 0.1)]] * 2, [measured(FUSED, 0.1, status=Status.WRONG, reason="r")]),
        "wrong, too": made(*[[measured(FUSED, 0.1, status=Status.WRONG, reason="s")]] * 3),
        "failed": made(*[[measured(FUSED, 0.1)]] * 2, [measured(FUSED, 0.1, status=Status.FAILED, reason="r")]),
        "capped": made(*[[measured(FUSED, 0.1)]] * 2, [measured(FUSED, 0.1, events=[event])]),
        "noisy": made(*[[measured(FUSED, None, series=slow)]] * 3),
        "apart": made(*[[measured(FUSED, 0.1), measured(ROOF, 0.1), control(0.11)]] * 3),
        "above": made(
            *[[measured(FUSED, 1e-3), measured(ROOF, 0.1, read_gbps=100.0, write_gbps=100.0), control(1e-3)]] * 3
        ),
        "changed": made(*[[measured(FUSED, 0.1)]] * 3, fingerprint=lambda k: "f" * 15 + str(k)),
        "two": made(*[[measured(FUSED, 0.1)]] * 2),
        "one": made([measured(FUSED, 0.1)]),
        "quicker": made(*([measured(FUSED, 0.1 * e), measured(ROOF, 0.05)] for e in (0.99, 1.0, 1.01, 1.02))),
        "other control": made(
            *[[measured(FUSED, 0.1), measured("torch-eager", 0.2), control(0.1, of="torch-eager")]] * 3
        ),
        "slow clock": made(*[probed(0.1, 1.0)] * 3),
        "fast clock": made(*[probed(0.1, 1.02)] * 3),
        "two of a fast clock": made(*[probed(0.1, 1.02)] * 2),
        "whole": made(*[both] * 3, of=profiles),
        "lost": made(*[[measured(FUSED, {WALL: 0.2}, notes=["no graph: it synchronizes"])]] * 3, of=profiles),
    }


def renamed(side: Side, case: str, profile: str, **changes: object) -> Side:
    def one(record: Record) -> Record:
        mine = profile if record.profile == FUSED else record.profile
        return record.model_copy(update={"case": case, "profile": mine, "reason": profile})

    found = side.manifest.model_copy(update={"cases": [case], "profiles": [profile], **changes})
    return Side(found, [one(r) for r in side.pooled], [one(r) for r in side.records])
