"""A run as a terminal shows it: the machine, how fast, whether it is right, and the answer."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from norm_fusion.records import Environment, Manifest, Status
from norm_fusion.report.answer import answer
from norm_fusion.report.rows import Row, cases, duration
from norm_fusion.spec import BASELINE, ROOF

NOTHING = "-"
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


def show(console: Console, manifest: Manifest, rows: Sequence[Row]) -> None:
    """Print a run."""
    console.print(render(manifest, rows), soft_wrap=False)


def render(manifest: Manifest, rows: Sequence[Row]) -> RenderableType:
    """The whole of a run."""
    parts: list[RenderableType] = []
    if manifest.environment is not None:
        parts.append(machine(manifest.environment))
    parts += [speed(rows), gains(rows)]
    notes = footnotes(rows)
    if notes:
        parts.append(notes)
    if manifest.state == "interrupted":
        parts.append(Text("Interrupted: what was measured until then is shown and kept.", "yellow"))
    parts.append(Text(f"\n{answer(rows)}", "bold"))
    return Group(*parts)


def machine(e: Environment) -> Text:
    """Device and versions, a line or two."""
    cache = f"{e.cache_bytes / 2**20:.0f} MiB {'L2' if e.device == 'cuda' else 'last-level cache'}"
    if e.device == "cuda":
        facts = [e.device_name, f"{e.sm_count} SMs", f"{e.memory_bytes / 2**30:.0f} GiB", cache, f"driver {e.driver}"]
    else:
        facts = [e.device_name, f"{e.threads} threads", f"{e.memory_bytes / 2**30:.0f} GiB", cache]
    software = [f"torch {e.torch}", f"triton {e.triton or 'missing'}", f"Python {e.python}"]
    if e.commit:
        software.append(f"commit {e.commit[:10]}{' (dirty)' if e.dirty else ''}")
    return Text(f"{' · '.join(facts)}\n{' · '.join(software)}", "dim")


def speed(rows: Sequence[Row]) -> Table:
    """Latency and throughput of every profile, and of the copy that is their roof."""
    hosted = any(row.ms("host") is not None for row in rows)
    columns = ["p50", "p95", "p95/p50", "GB/s", "of copy", "TFLOP/s", *(["host", "wall"] if hosted else [])]
    table = _table("How fast, cold cache", columns)
    for case, group in cases(rows).items():
        table.add_row(Text(case, "bold"))
        for row in group:
            cells = [*_latency_cells(row), *_rate_cells(row)]
            if hosted:
                cells += [_time(row.ms("host")), _time(row.ms("wall"))]
            roof = row.profile == ROOF
            table.add_row(
                "  copy (the roof)" if roof else f"  {row.profile}", *cells, style="dim" if roof else STYLE[row.status]
            )
        table.add_section()
    return table


def gains(rows: Sequence[Row]) -> Table:
    """Speedup over each PyTorch, and errors against the fp64 reference."""
    baselines = _baselines(rows)
    columns = [*(f"vs {_short(name)}" for name in baselines), "max abs", "max rel", "allowed", "verdict"]
    table = _table("How much faster than PyTorch, and is it right (against fp64)", columns)
    for case, group in cases(rows).items():
        table.add_row(Text(case, "bold"))
        for row in (row for row in group if row.profile != ROOF):
            r = row.any
            cells = [_speedup(row, name) for name in baselines]
            cells += [_number(r.max_abs_error), _number(r.max_rel_error), _number(r.tolerance)]
            table.add_row(f"  {row.profile}", *cells, VERDICT[r.status], style=STYLE[row.status])
        table.add_section()
    return table


def footnotes(rows: Sequence[Row]) -> Text | None:
    """Reasons and remedies of what was not measured, each once."""
    said: dict[str, None] = {}
    for row in rows:
        r = row.any
        if r.reason and r.status is not Status.CHECKED:
            said[f"{row.profile} {r.status} at {row.case}: {r.reason}" + (f"; {r.remedy}" if r.remedy else "")] = None
        for note in r.notes:
            said[f"{row.profile} at {row.case}: {note}"] = None
    if any(row.status is Status.CHECKED for row in rows):
        said[
            "* checked: correct in Triton's interpreter on a sample of the rows; a CPU says nothing of its latency"
        ] = None
    noisy = [f"{row.profile} at {row.case}" for row in rows if row.latency and row.latency.noise == "rerun"]
    if noisy:
        said[f"noisy (p95/p50 above 1.15), rerun before a precise claim: {len(noisy)} of {_timed(rows)} rows"] = None
    return Text("\n".join(f"- {line}" for line in said)) if said else None


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 2)
    )
    table.add_column("case / profile", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _short(profile: str) -> str:
    return profile.removeprefix("torch-").removeprefix("compile-")


def _baselines(rows: Sequence[Row]) -> list[str]:
    seen = {name: None for row in rows if row.ratio for name in row.ratio.speedup if name != BASELINE}
    order = {row.profile: i for i, row in enumerate(rows)}
    return sorted(seen, key=lambda name: order.get(name, 0))


def _latency_cells(row: Row) -> list[str]:
    r = row.latency
    if r is None or r.noise_ratio is None:
        return [row.status.value, NOTHING, NOTHING]
    style = NOISE_STYLE[r.noise or "good"]
    ratio = f"{r.noise_ratio:.2f}"
    return [_time(r.p50_ms), _time(r.p95_ms), f"[{style}]{ratio}[/]" if style else ratio]


def _rate_cells(row: Row) -> list[str]:
    r = row.ratio
    if r is None or r.gbps is None:
        return [NOTHING, NOTHING, NOTHING]
    share = NOTHING if r.roof_share is None else f"{r.roof_share:.3f}"
    return [f"{r.gbps:,.0f}" if r.gbps >= 10 else f"{r.gbps:.2g}", share, f"{r.tflops:.2g}" if r.tflops else NOTHING]


def _speedup(row: Row, baseline: str) -> str:
    if row.ratio is None or baseline not in row.ratio.speedup:
        return NOTHING
    return f"{row.ratio.speedup[baseline]:.2f}x"


def _time(ms: float | None) -> str:
    return NOTHING if ms is None else duration(ms)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"


def _timed(rows: Sequence[Row]) -> int:
    return sum(row.latency is not None for row in rows)
