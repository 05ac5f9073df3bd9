"""Speedups by rows and columns: a cell a case, its call as its colour and its word. Altair, no data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import altair as alt

from norm_fusion.records import Label, Status
from norm_fusion.report.chart import INK, LABEL_COLOURS, TINT, drawn
from norm_fusion.report.quotes import quote
from norm_fusion.report.rows import Row, baseline_of, case_title, fastest_torch, fused, times
from norm_fusion.site.stack import GAP_PX, LINE_PX, MUTED, SMALL, SMALL_PX, Data, Marks, Stack, by_facet, most
from norm_fusion.spec import Case

ACROSS = 5  # columns that a telephone has room for: where there are more, the fewer of rows and columns go across
CELL_PX, BARE_CELL_PX = 38, 26
NO_BASELINE = "no baseline"
# In cells too narrow for the word itself.
SHORT: Mapping[str, str] = {
    Label.NO_DIFFERENCE.value: "no diff.",
    Label.INCONCLUSIVE.value: "inconcl.",
    Label.RERUN_NOISE.value: "noise",
    NO_BASELINE: "no base",
    "not called": "no call",
}

Over = Literal["fastest", "baseline"]


def speedups(rows: Sequence[Row], over: Over) -> alt.LayerChart | None:
    """The fused kernel's speedup at each number of rows and columns; its call is the cell's word and colour."""
    tables: list[tuple[str, dict[Case, Data]]] = []
    for title, shapes in by_facet(rows).items():
        found = {
            case: cell | _pointed(case, group, over, cell)
            for case, group in shapes.items()
            if (cell := _cell(group, over)) is not None
        }
        tables += [(title, found)] if found else []
    shown, left_out = most(tables, lambda table: len(table[1]))
    if all(cell["word"] == NO_BASELINE for _, found in shown for cell in found.values()):
        return None
    sides = {side: sorted({getattr(case, side) for _, found in shown for case in found}) for side in ("rows", "cols")}
    turned = len(sides["cols"]) > ACROSS and len(sides["rows"]) < len(sides["cols"])
    across, down = ("rows", "cols") if turned else ("cols", "rows")
    cells = [cell for _, found in shown for cell in found.values()]
    bare = "" if all(cell["word"] for cell in cells) else "; without a word: one process alone"
    tall = CELL_PX if any(cell["word"] and cell["text"] for cell in cells) else BARE_CELL_PX
    stack = Stack(left=SMALL_PX * max(len(str(n)) for n in [*sides[down], down]) + 10)
    stack.remark(f"{down} down, {across} across{bare}")
    marks: Marks = defaultdict(list)
    for title, found in shown:
        stack.heading(title)
        stack.side(stack.y + LINE_PX / 2, down)
        at = {str(getattr(case, across)): None for case in sorted(found, key=lambda case: getattr(case, across))}
        marks["heads"] += [{"x": n, "y": stack.y + LINE_PX / 2, "text": n, "colour": MUTED} for n in at]
        stack.y += LINE_PX
        for n in sorted({getattr(case, down) for case in found}):
            stack.side(stack.y + tall / 2, str(n))
            for case, cell in found.items():
                if getattr(case, down) == n:
                    _place_cell(marks, str(getattr(case, across)), stack.y, stack.y + tall - 2, cell)
            stack.y += tall
        stack.y += GAP_PX
    stack.y -= GAP_PX
    stack.remark(left_out)
    return stack.chart(*_cells(stack, marks, [str(n) for n in sides[across]]))


def _cell(group: Sequence[Row], over: Over) -> Data | None:
    """What a case's cell says; None where its fused kernel was not timed."""
    row = fused(group)
    if row is None or not (row.status is Status.OK or row.status.bad):
        return None
    best = fastest_torch(group)
    baseline = baseline_of(row.any.op) if over == "baseline" else best.profile if best else None
    one = None if baseline is None else quote(row, baseline)
    if row.status.bad:
        invalid = one is not None and one.label is Label.INVALID
        return {"text": "", "word": Label.INVALID.value if invalid else row.status.value, "colour": "var(--bad)"}
    if one is None or (one.speedup is None and one.label is None):
        return {"text": "", "word": NO_BASELINE, "colour": MUTED}
    text = "" if one.speedup is None else times(one.speedup)
    if one.label is None:
        return {"text": text, "word": "" if (row.any.processes or 1) == 1 else "not called", "colour": MUTED}
    return {"text": text, "word": one.label.value, "colour": LABEL_COLOURS[one.label]}


def _pointed(case: Case, group: Sequence[Row], over: Over, cell: Data) -> Data:
    """What a cell says to who points at it, with its interval and over whom; and the record that it leads to."""
    row, best = fused(group), fastest_torch(group)
    baseline = best.profile if over == "fastest" and best else baseline_of(case.op)
    one = quote(row, baseline) if row is not None and baseline is not None else None
    words = cell["text"] if one is None else f"{one.words} over {one.baseline}"
    tip = " · ".join(filter(None, (case_title(case.name), words, cell["word"])))
    return {"tip": tip, "record": one.key if one is not None else row.any.key if row is not None else ""}


def _place_cell(marks: Marks, x: str, y: float, y2: float, cell: Data) -> None:
    """A cell, its speedup and its word: above each other, or in the middle where it has one of them alone."""
    middle, both = (y + y2) / 2, bool(cell["text"] and cell["word"])
    tint = {"colour": cell["colour"], "opacity": 0.1 if cell["colour"] in (INK, MUTED) else 0.17}
    marks["cells"].append({"x": x, "y": y, "y2": y2, "tip": cell["tip"], "record": cell["record"]} | tint)
    if cell["text"]:
        marks["texts"].append(
            {"x": x, "y": middle - 6 * both, "text": cell["text"], "colour": INK if cell["word"] else MUTED}
        )
    if word := cell["word"]:
        said = {"text": word, "short": SHORT.get(word, word), "colour": cell["colour"]}
        marks["words"].append({"x": x, "y": middle + 8 * both} | said)


def _cells(stack: Stack, marks: Marks, domain: Sequence[str]) -> Iterator[alt.Chart]:
    x = alt.X("x:N", scale=alt.Scale(domain=list(domain), paddingInner=0.02, paddingOuter=0), axis=None)
    room = f"width / {len(domain)} - 4"
    opacity = alt.Opacity("opacity:Q", scale=None)
    shaped = stack.at(marks["cells"]).encode(x=x, y2="y2:Q", color=TINT, opacity=opacity, tooltip="tip:N")
    yield drawn(shaped, "rect")
    # `no difference` is 7.5 times as wide as its font is high.
    word, narrow = f"clamp(({room}) / 7.5, 9, {SMALL})", f"({room}) / 7.5 < 9"
    texts: tuple[tuple[str, Any, Data], ...] = (
        ("heads", "text:N", {"fontSize": SMALL}),
        ("texts", "text:N", {"fontWeight": 600}),
        ("words", alt.condition(narrow, alt.value(""), "text:N"), {"fontSize": alt.ExprRef(word)}),
        ("words", alt.condition(narrow, "short:N", alt.value("")), {"fontSize": 10}),
    )
    for name, text, font in texts:
        chart = stack.at(marks[name]).encode(x=x, text=text, color=TINT)
        yield drawn(chart, "text", align="center", strokeWidth=0, limit=alt.ExprRef(room), **font)
