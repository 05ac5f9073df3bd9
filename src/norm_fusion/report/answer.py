"""The answer to the question, in one sentence an operator, with both baselines. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from norm_fusion.records import Label, Status
from norm_fusion.report.quotes import Overall, Quote, overall, quote
from norm_fusion.report.rows import (
    WALL,
    Row,
    baseline_of,
    cases,
    fastest_torch,
    fastest_wall,
    fused,
    label_of,
    processes,
)
from norm_fusion.spec import BASELINE, BASELINE_OF, Case, Op, Pass, is_users

Group = Sequence[Row]


def answer(rows: Sequence[Row]) -> str:
    """How much a fused kernel moves latency here."""
    return " ".join([*answers(rows), alone(rows)]).strip()


def answers(rows: Sequence[Row]) -> list[str]:
    """That, an operator and a kernel each."""
    asked = {(op, way): [r for r in rows if (r.any.op, r.any.pass_) == (op, way)] for op in Op for way in Pass}
    return [
        sentence for (op, way), mine in asked.items() if mine for sentence in _answers_of(op, label_of(op, way), mine)
    ]


def alone(rows: Sequence[Row]) -> str:
    """What one process cannot say; empty where there were more."""
    if processes(rows) > 1 or not any(row.ratio and row.ratio.speedup for row in rows):
        return ""
    return "One process measured this: there are no intervals and no calls."


def _answers_of(op: Op, label: str, rows: Sequence[Row]) -> list[str]:
    groups = list(cases(rows).values())
    theirs = dict.fromkeys(row.profile for row in rows if is_users(row.profile))  # the user's own
    mine = _against(f"Fused {label}", op, groups, fused)
    others = [_against(f"{label} by {name}", op, groups, _named(name)) for name in theirs]
    said = [sentence for sentence in (mine, *others) if sentence] or [_without(op, label, rows, groups)]
    return [*said[:-1], said[-1] + _wrong(rows)]


def _named(name: str) -> Callable[[Group], Row | None]:
    return lambda group: next((row for row in group if row.profile == name), None)


def _against(who: str, op: Op, groups: Sequence[Group], pick: Callable[[Group], Row | None]) -> str:
    """One contestant against both baselines, and in eager calls; empty where it has no claim."""
    picked = [(row, group) for group in groups if (row := pick(group)) is not None]
    over_baseline = _over(picked, lambda group: _profile(_named(BASELINE_OF[op])(group)))
    over_fastest = _over(picked, lambda group: _profile(fastest_torch(group)))
    parts = [
        _part(over_baseline, f"{BASELINE} ({BASELINE_OF[op]})"),
        _part(over_fastest, f"the fastest correct PyTorch{_which(over_fastest)}"),
    ]
    if not any(parts):
        if all(row.status is Status.WRONG for row, _ in picked):
            return ""  # told at the end
        refused = _refused([*over_baseline, *over_fastest])
        return f"{who}: {refused}." if refused else ""
    most = max(len(over_baseline), len(over_fastest))
    about = f", geometric mean of {most} cases" if most > 1 else ""
    eager = _eager(picked) if pick is fused else ""
    return f"{who}{about}: {'; '.join(part for part in parts if part)}.{eager}"


def _refused(quotes: Sequence[Quote]) -> str:
    """Why there is no speedup where there are claims; empty where there are none."""
    calls = [one.call for one in quotes if one.call is not None and one.call.label is Label.INVALID]
    return f"every speedup is invalid: {calls[0].reason}" if calls else ""


def _over(picked: Sequence[tuple[Row, Group]], baseline: Callable[[Group], str | None]) -> list[Quote]:
    named = [(row, name) for row, group in picked if (name := baseline(group)) is not None and name != row.profile]
    return [one for row, name in named if (one := quote(row, name)) is not None]


def _part(quotes: Sequence[Quote], what: str) -> str:
    """`12.8x [12.7, 12.8] over torch-baseline (torch-eager), supported`; of several cases with the worst by name."""
    found = overall(quotes)
    if found is None:
        return ""
    called = f", {found.called}" if found.called else ""
    return f"{found.words} over {what}{called}{_worst(found)}"


def _worst(found: Overall) -> str:
    if len(found.quotes) < 2 or found.worst.speedup is None:
        return ""
    return f", worst {found.worst.speedup:.2f}x at {_shape(found.worst.row.case)}"


def _which(quotes: Sequence[Quote]) -> str:
    """The name of the fastest PyTorch where it is the same in all cases."""
    names = {one.baseline for one in quotes}
    return f" ({names.pop()})" if len(names) == 1 else ""


def _eager(picked: Sequence[tuple[Row, Group]]) -> str:
    """What is left of it for a caller that waits for each call: a win of the kernel alone may be none."""
    if all(row.ratio is None or row.ratio.timer == WALL[0] for row, _ in picked):
        return ""
    there = [(row, best) for row, group in picked if (best := fastest_wall(group)) is not None]
    quotes = [one for row, best in there if (one := quote(row, best.profile, WALL)) is not None]
    found = overall(quotes)
    if found is None:
        return ""
    bound = sum(one.row.regime == "launch-bound" for one in found.quotes)
    share = "" if len(found.quotes) < 2 else f" in {bound} of {len(found.quotes)} cases"
    names = {one.baseline for one in found.quotes}
    what = names.pop() if len(names) == 1 else "the fastest PyTorch there"
    called = f", {found.called}" if found.called else ""
    return f" In eager calls it is {found.words} over {what}{called}{_worst(found)}" + (
        f" (launch-bound{share})." if bound else "."
    )


def _without(op: Op, label: str, rows: Sequence[Row], groups: Sequence[Group]) -> str:
    """What can be said where nobody but PyTorch was timed."""
    why = _why_untimed(rows)
    competitors = sorted({row.profile for row in rows if row.profile.startswith("torch-") and row.ratio})
    best = [(row, group) for group in groups if (row := fastest_torch(group)) is not None]
    if best and len(competitors) > 1:
        over = _over(best, lambda group: baseline_of(group[0].any.op))
        alone = sum(row.profile == BASELINE_OF[op] for row, _ in best)
        if part := _part(over, f"{BASELINE} ({BASELINE_OF[op]})"):
            mean = f", geometric mean of {len(over)} cases" if len(over) > 1 else ""
            most = f"; in {alone} of {len(best)} cases {BASELINE} is itself the fastest" if alone else ""
            return f"{label}: {why}; the fastest correct PyTorch{_which_row(best)}{mean}: {part}{most}."
        if alone:
            return f"{label}: {why}; the fastest correct PyTorch is {BASELINE} ({BASELINE_OF[op]}) itself."
        if refused := _refused(over):
            return f"{label}: {why}, and {refused}."
    if competitors:
        return f"{label}: {why}, so {', '.join(competitors)} has nothing to be compared with."
    return f"{label}: {why}, and no PyTorch to compare with was timed."


def _which_row(best: Sequence[tuple[Row, Group]]) -> str:
    names = {row.profile for row, _ in best}
    return f" ({names.pop()})" if len(names) == 1 else ""


def _profile(row: Row | None) -> str | None:
    return None if row is None else row.profile


def _why_untimed(rows: Sequence[Row]) -> str:
    statuses = {row.status for row in rows if row.profile.startswith("triton-")}
    if statuses == {Status.CHECKED}:
        return "the fused kernel is correct, and a CPU cannot time it"
    if not statuses:
        theirs = {row.profile: row for row in rows if is_users(row.profile)}
        return f"{', '.join(theirs)} has no speedup here" if theirs else "the fused kernel was not asked for"
    return "the fused kernel was timed" if statuses == {Status.OK} else "the fused kernel has no speedup here"


def _wrong(rows: Sequence[Row]) -> str:
    wrong = [f"{row.profile} at {_shape(row.case)}" for row in rows if row.status is Status.WRONG and row.contestant]
    return f" Wrong, and left out: {', '.join(wrong)}." if wrong else ""


def _shape(case: str) -> str:
    asked = Case.of(case)
    return case if asked is None else f"{asked.rows}x{asked.cols} {asked.dtype}"
