"""The answer to the question, in one sentence an operator, with both baselines. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from norm_fusion.metrics import geometric_mean
from norm_fusion.records import Status
from norm_fusion.report.rows import OP_LABEL, Row, cases, fastest_torch, fused
from norm_fusion.spec import BASELINE, BASELINE_OF, Op


def answer(rows: Sequence[Row]) -> str:
    """How much a fused kernel moves latency here."""
    by_op = {op: [row for row in rows if row.any.op == op] for op in Op}
    return " ".join(_answer_of(op, mine) for op, mine in by_op.items() if mine)


def _answer_of(op: Op, rows: Sequence[Row]) -> str:
    over_baseline: dict[str, float] = {}
    over_fastest: dict[str, float] = {}
    torch_gain: dict[str, float] = {}
    for case, group in cases(rows).items():
        best, mine = fastest_torch(group), fused(group)
        if best is None:
            continue
        gain = 1.0 if best.profile == BASELINE_OF[op] else _speedup(best, BASELINE)
        if gain is not None:
            torch_gain[case] = gain
        if mine is not None:
            for over, baseline in ((over_baseline, BASELINE), (over_fastest, best.profile)):
                if (ratio := _speedup(mine, baseline)) is not None:
                    over[case] = ratio
    baseline = f"{BASELINE} ({BASELINE_OF[op]})"
    label, why = OP_LABEL[op], _why_untimed(rows)
    competitors = sorted({row.profile for row in rows if row.profile.startswith("torch-") and row.ratio})
    if over_baseline and over_fastest:
        said = (
            f"Fused {label} runs at {_mean(over_baseline)} the speed of {baseline} and {_mean(over_fastest)} that of "
        )
        said += f"the fastest correct PyTorch{_spread([over_baseline, over_fastest])}."
    elif over_fastest:
        said = f"Fused {label} runs at {_mean(over_fastest)} the speed of the fastest correct PyTorch"
        said += f"{_spread([over_fastest])}."
    elif torch_gain and len(competitors) > 1:
        said = f"{label}: {why}; the fastest correct PyTorch runs at {_mean(torch_gain)} the speed of {baseline}"
        said += f"{_spread([torch_gain])}."
    elif competitors:
        said = f"{label}: {why}, so {', '.join(competitors)} has nothing to be compared with."
    else:
        said = f"{label}: {why}, and no PyTorch to compare with was timed."
    return said + _wrong(rows)


def _speedup(row: Row, baseline: str) -> float | None:
    return None if row.ratio is None else row.ratio.speedup.get(baseline)


def _why_untimed(rows: Sequence[Row]) -> str:
    statuses = {row.status for row in rows if row.profile.startswith("triton-")}
    if statuses == {Status.CHECKED}:
        return "the fused kernel is right, and a CPU cannot time it"
    if not statuses:
        return "the fused kernel was not asked for"
    return "the fused kernel was timed" if statuses == {Status.OK} else "the fused kernel has no speedup here"


def _wrong(rows: Sequence[Row]) -> str:
    wrong = [f"{row.profile} at {_shape(row.case)}" for row in rows if row.status is Status.WRONG]
    return f" Wrong, and left out: {', '.join(wrong)}." if wrong else ""


def _mean(by_case: Mapping[str, float]) -> str:
    return f"{geometric_mean(list(by_case.values())):.2f}x"


def _spread(ratios: Sequence[Mapping[str, float]]) -> str:
    """What a mean over several cases hides: how many there are, and the worst of each by name."""
    if all(len(by_case) == 1 for by_case in ratios):
        return ""
    worst = [min(by_case, key=by_case.__getitem__) for by_case in ratios]
    named = [f"worst {by_case[case]:.2f}x at {_shape(case)}" for by_case, case in zip(ratios, worst, strict=True)]
    return f" (geometric mean of {max(map(len, ratios))} cases; {' and '.join(named)})"


def _shape(case: str) -> str:
    return case.split("-", 1)[1].replace("-", " ")
