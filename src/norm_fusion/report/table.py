"""A run as a terminal shows it: the machine, the figures, the notes and the answer.

The figures come in three groups of columns. As many groups share a table as the terminal is wide for: one table on a
wide screen or in a pipe, three on 80 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from norm_fusion.metrics import WARN_UP_TO
from norm_fusion.records import Environment, Manifest, Status, Timer
from norm_fusion.report.answer import answer
from norm_fusion.report.rows import Row, above_roof, baselines, cases, company, duration, noisy_series, rate
from norm_fusion.spec import ROOF

NOTHING = "-"
GAP = 2  # a space of padding, and the box's own divider
PIPE_WIDTH = 200  # a pipe has no width: wide enough that all figures of a row share a line
STYLE = {
    Status.OK: "",
    Status.CHECKED: "cyan",
    Status.WRONG: "bold red",
    Status.FAILED: "red",
    Status.UNAVAILABLE: "yellow",
}
VERDICT = {
    Status.OK: "right",
    Status.CHECKED: "right*",
    Status.WRONG: "WRONG",
    Status.FAILED: "failed",
    Status.UNAVAILABLE: NOTHING,
}
NOISE_STYLE = {"good": "", "warn": "yellow", "rerun": "bold yellow"}

Cell = Callable[[Row], str]


@dataclass(frozen=True)
class Group:
    """Columns that are read together: a heading for each, and what it says of a row."""

    title: str
    columns: tuple[tuple[str, Cell], ...]

    def width(self, rows: Sequence[Row]) -> int:
        return sum(GAP + max(len(head), *(len(cell(row)) for row in rows)) for head, cell in self.columns)


def show(console: Console, manifest: Manifest, rows: Sequence[Row]) -> None:
    """Print a run."""
    if manifest.environment is not None:
        console.print(machine(manifest.environment), soft_wrap=True)
    for table in _tables(rows, console.width):
        console.print()
        console.print(table)
    console.print()
    for note in [*notes(rows), *company(manifest)]:
        console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)
    if manifest.state == "interrupted":
        console.print("- Interrupted: what was measured until then is shown and kept.", style="yellow")
    console.print(f"\n{answer(rows)}", style="bold", highlight=False, markup=False)


def machine(e: Environment) -> Text:
    """Device and versions, two lines."""
    cache = f"{e.cache_bytes / 2**20:.0f} MiB {'L2' if e.device == 'cuda' else 'last-level cache'}"
    if e.device == "cuda":
        facts = [e.device_name, f"{e.sm_count} SMs", f"{e.memory_bytes / 2**30:.0f} GiB", cache, f"driver {e.driver}"]
    else:
        facts = [e.device_name, f"{e.threads} threads", f"{e.memory_bytes / 2**30:.0f} GiB", cache]
    software = [f"torch {e.torch}", f"triton {e.triton or 'missing'}", f"Python {e.python}"]
    if e.commit:
        software.append(f"commit {e.commit[:10]}{' (dirty)' if e.dirty else ''}")
    return Text(f"{' · '.join(facts)}\n{' · '.join(software)}", "dim")


def notes(rows: Sequence[Row]) -> list[str]:
    """What the figures alone do not say: reasons and remedies, fallbacks, noise; each once."""
    said: dict[str, None] = {}
    for row in rows:
        r = row.any
        if r.reason and r.status is not Status.CHECKED:
            said[f"{row.profile} {r.status} at {row.case}: {r.reason}" + (f"; {r.remedy}" if r.remedy else "")] = None
        for note in r.notes:
            said[f"{row.profile} at {row.case}: {note}"] = None
    if any(row.status is Status.CHECKED for row in rows):
        said["* right in Triton's interpreter, on a sample of the rows; a CPU says nothing of its latency"] = None
    noisy = [f"{row.profile} at {row.case} ({', '.join(timers)})" for row in rows if (timers := noisy_series(row))]
    if noisy:
        listed = "; ".join(noisy[:4]) + (f"; and {len(noisy) - 4} more" if len(noisy) > 4 else "")
        said[f"noisy (p95/p50 above {WARN_UP_TO}), rerun before a precise claim: {listed}"] = None
    above = [f"{row.profile} at {row.case}" for row in rows if above_roof(row)]
    if above:
        said[f"faster than the copy, which is then no roof, or not cold, or not honest: {'; '.join(above)}"] = None
    return [_printable(text) for text in said]


def _printable(text: str) -> str:
    """Records are data: what would steer the terminal is dropped."""
    return "".join(c for c in text if c.isprintable())


def _tables(rows: Sequence[Row], width: int) -> Iterator[Table]:
    """The groups in order, as many to a table as fit the width."""
    if not rows:
        return
    names = max(len("  copy (the roof)"), *(len(name) for row in rows for name in (row.case, f"  {row.profile}")))
    waiting = [group for group in _groups(rows) if group.columns]
    while waiting:
        chosen = [waiting.pop(0)]
        while waiting and names + sum(g.width(rows) for g in (*chosen, waiting[0])) <= width:
            chosen.append(waiting.pop(0))
        yield _table(chosen, rows)


def _table(groups: Sequence[Group], rows: Sequence[Row]) -> Table:
    title = "; ".join(group.title for group in groups)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, GAP - 1),
    )
    table.add_column("case / profile", no_wrap=True)
    for group in groups:
        for head, _ in group.columns:
            table.add_column(head, justify="right", no_wrap=True)
    for case, mine in cases(rows).items():
        table.add_row(Text(case, "bold"))
        for row in mine:
            roof = row.profile == ROOF
            name = "  copy (the roof)" if roof else f"  {row.profile}"
            cells = [_styled(head, cell(row), row) for group in groups for head, cell in group.columns]
            table.add_row(Text(name), *cells, style="dim" if roof else STYLE[row.status])
        table.add_section()
    return table


def _groups(rows: Sequence[Row]) -> list[Group]:
    compared = baselines(rows)
    hosted = any(row.ms("host") is not None for row in rows)
    eager = (("host", _of("host")), ("wall", _of("wall"))) if hosted else ()
    over = tuple((_short(name), _over(name)) for name in compared)
    return [
        Group("Time of a call, cold cache", (("p50", _p50), ("p95", _p95), ("p95/p50", _noise), *eager)),
        Group(
            (f"Speedup over PyTorch ({', '.join(_short(name) for name in compared)}), " if compared else "")
            + "effective GB/s",
            (*over, ("GB/s", _gbps), ("of copy", _share)),
        ),
        Group(
            "Arithmetic, errors against fp64",
            (
                ("TFLOP/s", _tflops),
                ("max abs", lambda row: _number(row.any.max_abs_error)),
                ("max rel", lambda row: _number(row.any.max_rel_error)),
                ("allowed", lambda row: _number(row.any.tolerance)),
                ("verdict", lambda row: NOTHING if row.profile == ROOF else VERDICT[row.status]),
            ),
        ),
    ]


def _short(profile: str) -> str:
    return profile.removeprefix("torch-").removeprefix("compile-")


def _styled(head: str, text: str, row: Row) -> Text:
    noise = row.latency.noise if head == "p95/p50" and row.latency else None
    return Text(text, NOISE_STYLE[noise] if noise else "")


def _p50(row: Row) -> str:
    return duration(row.latency.p50_ms) if row.latency and row.latency.p50_ms is not None else row.status.value


def _p95(row: Row) -> str:
    return duration(row.latency.p95_ms) if row.latency and row.latency.p95_ms is not None else NOTHING


def _noise(row: Row) -> str:
    return f"{row.latency.noise_ratio:.2f}" if row.latency and row.latency.noise_ratio is not None else NOTHING


def _of(timer: Timer) -> Cell:
    def cell(row: Row) -> str:
        ms = row.ms(timer)
        return NOTHING if ms is None else duration(ms)

    return cell


def _over(baseline: str) -> Cell:
    def cell(row: Row) -> str:
        speedup = row.ratio.speedup.get(baseline) if row.ratio else None
        return NOTHING if speedup is None else f"{speedup:.2f}x"

    return cell


def _gbps(row: Row) -> str:
    return rate(row.ratio.gbps) if row.ratio and row.ratio.gbps is not None else NOTHING


def _share(row: Row) -> str:
    return f"{row.ratio.roof_share:.3f}" if row.ratio and row.ratio.roof_share is not None else NOTHING


def _tflops(row: Row) -> str:
    return rate(row.ratio.tflops) if row.ratio and row.ratio.tflops is not None else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"
