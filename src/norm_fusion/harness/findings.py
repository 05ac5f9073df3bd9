"""What has to come out of a trial, and whether it did: from records and calls alone.

The bounds are the protocol's (`docs/how-a-number-is-made.md` has them in words).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from norm_fusion.harness.trials import CHEATS, Trial
from norm_fusion.records import Call, Conclusions, HarnessCheck, Label, Record, Status
from norm_fusion.spec import is_users

# Of 60 intervals of 95% at most 7 may exclude the truth: more has a chance of 2% where all is well.
EXCLUDED_OF = (7, 60)
# On a quiet GPU so many A/A cases are called "no difference": a lab that never decides is useless.
DECIDED = 0.90
# Planted percent: the share of cases in which it has to be called a regression.
FOUND = {"3": 0.80, "5": 0.95, "25": 0.90}
SLOPE_WITHIN = 0.01
THOUGH_HONEST = "invalid, though honest"

Row = dict[str, str | int | float | None]


def of(trial: Trial, records: Sequence[Record], conclusions: Conclusions) -> list[HarnessCheck]:
    """The checks that a trial is for."""
    gpu = bool(records) and "graph" in {record.timer for record in records}
    by_series: dict[str, list[Call]] = {"graph" if gpu else "wall": []}  # that of answers first
    for call in conclusions.calls:
        by_series.setdefault(call.timer + (" hot" if call.cache == "hot" else ""), []).append(call)
    calls, *_ = by_series.values()
    match trial.group:
        case "aa":
            return [*_aa(by_series), *(_decided(calls) if gpu else ())]
        case "planted":
            return list(_planted(calls))
        case "known":
            return list(_known(records))
        case "disturbed":
            return [_disturbed(calls)]
        case "sabotage":
            return [_sabotage(conclusions.calls, trial)]
        case other:
            assert other == "breakage"
            return list(_breakage(records, trial))


def joined(checks: Iterable[HarnessCheck]) -> list[HarnessCheck]:
    """Checks of one name that came from several runs, as one."""
    by_name: dict[str, list[HarnessCheck]] = {}
    for check in checks:
        by_name.setdefault(check.name, []).append(check)
    return [_known_of(group) if name == "known answer" else _all_of(group) for name, group in by_name.items()]


def _all_of(group: Sequence[HarnessCheck]) -> HarnessCheck:
    if len(group) == 1:
        return group[0]
    details = [row for check in group for row in check.details]
    passed = all(check.passed for check in group)
    found = _cheats_found(details) if group[0].name == "sabotage" else "; ".join(check.found for check in group)
    return group[0].model_copy(update={"passed": passed, "details": details, "found": found})


def _aa(by_series: Mapping[str, Sequence[Call]]) -> Iterable[HarnessCheck]:
    for series, calls in by_series.items():
        # Before any rerun: running again what is noisy would count an error of 5% less often.
        firsts = [call.earlier[0] if call.earlier else call for call in calls]
        excluded = [c for c in firsts if c.low is not None and c.high is not None and not c.low <= 1 <= c.high]
        false = [c for c in calls if c.label in (Label.SUPPORTED, Label.REGRESSION)]
        labels = Counter(call.label.value for call in calls)
        said = ", ".join(f"{n} {label}" for label, n in labels.most_common())
        allowed = EXCLUDED_OF[0] if len(calls) >= EXCLUDED_OF[1] else max(1, round(0.2 * len(calls)))
        yield HarnessCheck(
            name=f"A/A: raw intervals, {series}",
            passed=bool(calls) and len(excluded) <= allowed,
            wanted=f"at most {allowed} of {len(calls)} intervals of 95% exclude 1",
            found=f"{len(excluded)} of {len(calls)}",
            details=[_row(call) for call in sorted(calls, key=_furthest_from_1)],
        )
        yield HarnessCheck(
            name=f"A/A: false labels, {series}",
            passed=bool(calls) and not false,
            wanted="no kernel is called faster or slower than itself",
            found=f"{len(false)} of {len(calls)}: {said}{_again(calls)}",
        )


def _decided(calls: Sequence[Call]) -> Iterable[HarnessCheck]:
    same = sum(call.label is Label.NO_DIFFERENCE for call in calls)
    yield HarnessCheck(
        name="A/A: decided",
        passed=same >= DECIDED * len(calls),
        wanted=f"at least {DECIDED:.0%} are called no difference",
        found=f"{same} of {len(calls)}",
    )


def _planted(calls: Sequence[Call]) -> Iterable[HarnessCheck]:
    by_profile: dict[str, list[Call]] = {}
    for call in calls:
        by_profile.setdefault(call.profile, []).append(call)
    for profile, mine in by_profile.items():
        percent = profile.rpartition("-")[2]
        found = [call for call in mine if call.label is Label.REGRESSION]
        middle = float(np.median([1 / call.speedup for call in mine if call.speedup]))
        yield HarnessCheck(
            name=f"planted {percent}%",
            passed=len(found) >= FOUND[percent] * len(mine),
            wanted=f"called a regression in at least {FOUND[percent]:.0%} of cases",
            found=f"{len(found)} of {len(mine)}; measured {middle - 1:+.2%} in the median{_again(mine)}",
            details=[_row(call) for call in sorted(mine, key=lambda call: call.speedup or 0, reverse=True)],
        )


def _again(calls: Sequence[Call]) -> str:
    """How many were noisy at first; what is quoted of them is what their last rerun said."""
    again = sum(bool(call.earlier) for call in calls)
    return f"; {again} noisy at first and run again" if again else ""


def _known(records: Sequence[Record]) -> Iterable[HarnessCheck]:
    rows: list[Row] = []
    for record in records:
        if record.p50_ms is None or record.cache != "cold":
            continue
        kind, _, rest = record.profile.removeprefix("known-").partition("-")
        if kind == "spin":
            us, ratio = (float(word) for word in rest.split("-"))
            rows.append({"known_us": us * ratio, "measured_us": record.p50_ms * 1e3, "timer": record.timer})
        if kind == "empty":
            yield HarnessCheck(
                name="floor",
                passed=True,
                wanted="published: what a call that does nothing takes",
                found=f"{record.p50_ms * 1e3:.2f} us ({record.timer})",
            )
    yield HarnessCheck(name="known answer", passed=None, wanted="", found="", details=rows)


def _known_of(group: Sequence[HarnessCheck]) -> HarnessCheck:
    """measured = overhead + slope x known, by least squares on relative errors, so that short spins count too."""
    rows = [row for check in group for row in check.details]
    known = np.array([float(row["known_us"] or 0) for row in rows])
    measured = np.array([float(row["measured_us"] or 0) for row in rows])
    design = np.stack([np.ones_like(known), known], axis=1) / measured[:, None]
    (overhead, slope), *_ = np.linalg.lstsq(design, np.ones_like(measured), rcond=None)
    worst = float(np.max(np.abs((overhead + slope * known) / measured - 1)))
    return HarnessCheck(
        name="known answer",
        passed=bool(abs(slope - 1) <= SLOPE_WITHIN),
        wanted=f"slope 1 within {SLOPE_WITHIN:.0%} over {known.min():g} to {known.max():g} us",
        found=f"slope {slope:.4f}, overhead {overhead:.2f} us, largest residual {worst:.1%}",
        details=rows,
    )


def _disturbed(calls: Sequence[Call]) -> HarnessCheck:
    """Noise is called noise; a workload that slows down is called slower or noisy, and nothing is called faster."""
    allowed = {
        "known-noisy": {Label.RERUN_NOISE},
        "known-drifting": {Label.RERUN_NOISE, Label.REGRESSION},
    }
    good = [call for call in calls if call.label in allowed.get(call.profile, set())]
    return HarnessCheck(
        name="disturbed workloads",
        passed=bool(calls) and len(good) == len(calls),
        wanted="a noisy one is rerun noise, a drifting one is that or a regression",
        found=", ".join(f"{call.profile.removeprefix('known-')}: {call.label}" for call in calls),
        details=[_row(call) for call in calls],
    )


def _sabotage(calls: Sequence[Call], trial: Trial) -> HarnessCheck:
    cheats = [name for name in trial.profiles if is_users(name)]
    found: dict[str, Call] = {}
    for call in calls:
        if call.label is Label.INVALID and call.code == CHEATS.get(call.profile.rpartition(":")[2]):
            found.setdefault(call.profile, call)
    honest = {call.profile for call in calls if call.label is Label.INVALID and not is_users(call.profile)}
    details: list[Row] = [
        {
            "contestant": name.rpartition(":")[2],
            "label": found[name].label.value if name in found else "not found",
            "code": found[name].code if name in found else None,
            "reason": found[name].reason if name in found else _said_instead(name, calls),
        }
        for name in cheats
    ]
    details += [{"contestant": name, "label": THOUGH_HONEST} for name in sorted(honest)]
    return HarnessCheck(
        name="sabotage",
        passed=set(cheats) <= set(found) and not honest,
        wanted="every cheat is invalid, for the right reason, and nobody else",
        found=_cheats_found(details),
        details=details,
    )


def _said_instead(name: str, calls: Sequence[Call]) -> str:
    """What the lab said of a cheat that it did not find for what it does."""
    said = dict.fromkeys(f"{call.label.value}: {call.reason}" for call in calls if call.profile == name)
    return "; ".join(said) or "nothing was called of it"


def _cheats_found(details: Sequence[Row]) -> str:
    labels = Counter(row["label"] for row in details)
    honest = labels.pop(THOUGH_HONEST, 0)
    return f"{labels[Label.INVALID.value]} of {labels.total()}" + (f", and {honest} that are honest" if honest else "")


def _breakage(records: Sequence[Record], trial: Trial) -> Iterable[HarnessCheck]:
    by_profile = {record.profile: record for record in records}
    broken = [name for name in trial.profiles if is_users(name)]
    bad = {name for name in broken if by_profile[name].status.bad}
    honest = by_profile["torch-native"].status
    yield HarnessCheck(
        name="breakage",
        passed=len(bad) == len(broken) and honest is Status.OK,
        wanted="what raises, crashes or hangs has a row with its reason, the others theirs",
        found=f"{len(bad)} of {len(broken)}; torch-native beside them is {honest}",
        details=[
            {
                "contestant": name.rpartition(":")[2],
                "status": by_profile[name].status.value,
                "code": by_profile[name].code,
                "reason": by_profile[name].reason,
            }
            for name in broken
        ],
    )


def _furthest_from_1(call: Call) -> float:
    """To sort by: those that a doubter looks at come first."""
    return -abs(math.log(call.speedup)) if call.speedup else -math.inf


def _row(call: Call) -> Row:
    return {
        "case": call.case,
        "profile": call.profile,
        "speedup": call.speedup,
        "low": call.low,
        "high": call.high,
        "label": call.label.value,
        "code": call.code,
    }
