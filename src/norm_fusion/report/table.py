"""A run as a terminal shows it: the machine, the figures, the notes and the answer.

Three tables: what a call takes, what the claims are worth, rates and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.text import Text

from norm_fusion.records import Counters, Environment, Label, Manifest, Status
from norm_fusion.report.answer import answer
from norm_fusion.report.counters import ordered, show_counters
from norm_fusion.report.notes import notes, printable
from norm_fusion.report.quotes import Quote, claims, quote
from norm_fusion.report.rows import (
    HOT,
    WALL,
    Row,
    baseline_of,
    cases,
    duration,
    fastest_torch,
    processes,
    rate,
    times,
    usual,
)
from norm_fusion.report.sheet import CALL_STYLE, NOTHING, Cell, Column, Group, Line, Sheet, print_sheet
from norm_fusion.spec import ROOF

STYLE = {
    Status.OK: "",
    Status.CHECKED: "cyan",
    Status.WRONG: "bold red",
    Status.FAILED: "red",
    Status.UNAVAILABLE: "yellow",
}
VERDICT = {
    Status.OK: "correct",
    Status.CHECKED: "checked",
    Status.WRONG: "WRONG",
    Status.FAILED: "failed",
    Status.UNAVAILABLE: NOTHING,
}
NOISE_STYLE = {"good": "", "warn": "yellow", "rerun": "bold yellow"}


def show(console: Console, manifest: Manifest, rows: Sequence[Row], counters: Sequence[Counters] = ()) -> None:
    """Print a run."""
    for told in manifest.alike(lambda environment: machine(environment).plain):
        console.print(Text(told, "dim"), soft_wrap=True)
    sheets = (_calls_sheet(rows), _claims_sheet(rows), _rates_sheet(rows)) if rows else ()
    for sheet in sheets:
        print_sheet(console, sheet)
    show_counters(console, ordered(counters, manifest))
    console.print()
    for note in notes(manifest, rows):
        console.print(_with_labels(f"- {note}", ""), soft_wrap=True)
    if manifest.state in ("interrupted", "partial"):
        said = f"- {manifest.state.capitalize()}: what was measured until then is shown and kept."
        console.print(said, style="yellow")
    if rows:
        console.print()
        console.print(_with_labels(printable(answer(rows)), "bold"))


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


def _with_labels(text: str, style: str) -> Text:
    """A sentence, its labels in their colours."""
    made = Text(text, style)
    for label in Label:
        made.highlight_words([label.value], f"{style} {CALL_STYLE[label]}".strip())
    return made


# What a call takes


def _calls_sheet(rows: Sequence[Row]) -> Sheet:
    hot = any(row.hot is not None for row in rows)
    hosted = any(row.ms("host") is not None for row in rows)
    title = "Time of a call, cold cache"
    title += " (hot: its producer has just left x in the cache)" if hot else ""

    def column(head: str, cell: Callable[[Row], Cell | str], wanted: bool = True) -> list[Column]:
        return [_column_of(rows, head, cell)] if wanted else []

    main = [
        *column("p50", _p50),
        *column("p95", lambda row: _ms(row.latency.p95_ms if row.latency else None)),
        *column("p95/p50", _noise),
        *column("wall", lambda row: _ms(row.ms("wall")), hosted),
        *column("regime", lambda row: row.regime or NOTHING, any(row.regime for row in rows)),
    ]
    more = [
        *column("hot", lambda row: _ms(row.hot.p50_ms if row.hot else None), hot),
        *column("host", lambda row: _ms(row.ms("host")), hosted),
        *column("spread", _spread, processes(rows) > 1),
    ]
    return Sheet(title, "case / profile", _by_case(rows), [Group(main, left=("regime",)), Group(more)])


def _by_case(rows: Sequence[Row]) -> list[Line]:
    lines: list[Line] = []
    for case, group in cases(rows).items():
        lines.append(Line(printable(case), heading=True))
        lines += [_line(row) for row in group]
    return lines


def _line(row: Row) -> Line:
    return Line(f"  {printable(row.name)}", STYLE[row.status] if row.contestant else "dim")


def _column_of(rows: Sequence[Row], head: str, cell: Callable[[Row], Cell | str]) -> Column:
    """A column over the lines of `_by_case`: headings have no cells."""
    by_line: list[Cell] = []
    for group in cases(rows).values():
        by_line.append(("", ""))
        said = [cell(row) for row in group]
        by_line += [(text, "") if isinstance(text, str) else text for text in said]
    return head, by_line.__getitem__


def _ms(value: float | None) -> str:
    return NOTHING if value is None else duration(value)


def _p50(row: Row) -> str:
    return row.status.value if row.latency is None else _ms(row.latency.p50_ms)


def _noise(row: Row) -> Cell:
    r = row.latency
    if r is None or r.noise_ratio is None:
        return NOTHING, ""
    return f"{r.noise_ratio:.2f}", NOISE_STYLE[r.noise or "good"]


def _spread(row: Row) -> str:
    """How far the processes' medians are apart: p95/p50 cannot see it."""
    spread = row.latency.process_spread if row.latency else None
    return NOTHING if spread is None else f"{spread - 1:.1%}"


# What the claims are worth


def _claims_sheet(rows: Sequence[Row]) -> Sheet:
    """Every claim of who is not PyTorch, beside the same one for eager calls, and with the input left in the cache."""
    lines: list[Line] = []
    primary: list[Quote | None] = []
    for case, group in cases(rows).items():
        found = claims(group)
        if not found:
            continue
        lines.append(Line(printable(case), heading=True))
        primary.append(None)
        for row, quotes in found:
            if row.contestant:
                lines.append(Line(f"  {printable(row.name)} over", heading=True))
                primary.append(None)
            for one in quotes:
                name = f"    {_tagged(one, group)}" if row.contestant else f"  {row.name}"
                lines.append(Line(printable(name), "" if row.contestant else "dim"))
                primary.append(one)

    def beside(series: Iterable[tuple[str, str]]) -> list[Quote | None]:
        wanted = [one for one in [*HOT, WALL] if one in set(series)]
        return [
            next((found for s in wanted if (found := quote(one.row, one.baseline, s)) is not None), None)
            if one is not None
            else None
            for one in primary
        ]

    gpu = any(one is not None and one.series[0] != "wall" for one in primary)
    wall = beside([WALL]) if gpu else []
    hot = beside(HOT)
    groups = [
        _claimed("kernel" if gpu else "wall", primary),
        _claimed("eager", wall),
        _claimed("hot", hot, needed=False),
    ]
    shown = [
        "Speedup",
        f", 95% interval over {processes(rows)} processes, and call" if processes(rows) > 1 else ", one process",
        ": kernel (in CUDA graphs), eager call (wall time)" if gpu else "",
    ]
    return Sheet("".join(shown), "case / profile over", lines, groups)


def _tagged(one: Quote, group: Sequence[Row]) -> str:
    best = fastest_torch(group)
    tags = ["baseline"] if one.baseline == baseline_of(one.row.any.op) else []
    tags += ["fastest"] if best is not None and best.profile == one.baseline else []
    return ", ".join([one.baseline, *tags])


def _claimed(head: str, quotes: Sequence[Quote | None], needed: bool = True) -> Group:
    """Speedup, half-width and call of each line; the last two where there are any."""
    there = [one for one in quotes if one is not None]
    if not there:
        return Group(())
    common = usual(one.row.series.get(one.series) for one in there)

    def speedup(i: int) -> Cell:
        one = quotes[i]
        if one is None or one.speedup is None:
            return NOTHING, ""
        fell = "" if one.series[0] == common else f" ({one.series[0]})"
        return f"{times(one.speedup)}{fell}", ""

    def width(i: int) -> Cell:
        one = quotes[i]
        return ("" if one is None else one.width) or NOTHING, ""

    def call(i: int) -> Cell:
        one = quotes[i]
        return (NOTHING, "") if one is None or one.label is None else (one.label.value, CALL_STYLE[one.label])

    columns: list[Column] = [(head, speedup)]
    columns += [("95%", width)] if any(one.interval for one in there) else []
    columns += [("call", call)] if any(one.label for one in there) else []
    return Group(columns, left=("call",), needed=needed)


# Rates and errors


def _rates_sheet(rows: Sequence[Row]) -> Sheet:
    def column(head: str, cell: Callable[[Row], str]) -> Column:
        return _column_of(rows, head, cell)

    rates = [
        column("GB/s", lambda row: NOTHING if not row.ratio or row.ratio.gbps is None else rate(row.ratio.gbps)),
        column("of copy", _share),
        column("TFLOP/s", lambda row: NOTHING if not row.ratio or row.ratio.tflops is None else rate(row.ratio.tflops)),
        column("speedup", _over_baseline),
    ]
    errors = [
        column("max abs", lambda row: _number(row.any.max_abs_error)),
        column("max rel", lambda row: _number(row.any.max_rel_error)),
        column("allowed", lambda row: _number(row.any.tolerance)),
        column("verdict", lambda row: NOTHING if row.profile == ROOF else VERDICT[row.status]),
    ]
    title = "Effective rates, speedup over torch-baseline; errors against fp64"
    return Sheet(title, "case / profile", _by_case(rows), [Group(rates), Group(errors)])


def _share(row: Row) -> str:
    return f"{row.ratio.roof_share:.3f}" if row.ratio and row.ratio.roof_share is not None else NOTHING


def _over_baseline(row: Row) -> str:
    name = baseline_of(row.any.op)
    if name == row.profile:
        return "baseline"
    one = quote(row, name) if name and row.contestant else None
    return NOTHING if one is None or one.speedup is None else times(one.speedup)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"
