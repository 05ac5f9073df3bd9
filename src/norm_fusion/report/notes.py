"""What a run's figures alone do not say: how it was measured, reruns, reasons, events; each once, equal ones together.

The terminal prints all of it under its tables; the page takes the parts that it does not show in a place of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from norm_fusion.records import Call, Label, Manifest, Status
from norm_fusion.report.quotes import Quote, claims, overall, precision, quote
from norm_fusion.report.rows import (
    WALL,
    Row,
    above_roof,
    cases,
    company,
    gates,
    noisy_series,
    processes,
    times,
)

APART = 1.05  # largest over smallest of the processes' medians from which a note tells of it; a GPU's noise is 1%
NAMED = 4  # rows that a note names before it counts the rest


def notes(manifest: Manifest, rows: Sequence[Row]) -> list[str]:
    """All of it, printable."""
    said = [effort(manifest, rows), *manifest.notes, *changed(manifest, rows), *controls(rows)]
    said += [*reruns(rows, everything=False), *apart(rows), *undecided(rows, everything=False)]
    said += [*happened(rows), *_rows(rows), *company(manifest)]
    if any(row.status is Status.CHECKED for row in rows):
        said.append(
            "checked: correct in Triton's interpreter, on a sample of the rows; a CPU says nothing of its latency"
        )
    return [printable(text) for text in dict.fromkeys(said) if text]


def effort(manifest: Manifest, rows: Sequence[Row]) -> str:
    """How many processes measured, how precise the intervals became; or plainly that there are none."""
    counted, reached = processes(rows), precision(rows)
    if manifest.quick:
        return "quick: one process, so no intervals and no calls"
    if not any(row.ratio or row.latency for row in rows):
        return ""
    if counted == 1:
        return "one process measured this, so there are no intervals and no calls"
    fewest = min(row.latency.processes or 1 for row in rows if row.latency is not None)
    said = f"{counted} processes" if fewest == counted else f"{fewest} to {counted} processes, as the cases needed"
    if reached is None:
        return said
    return f"{said}; the widest interval that the answer rests on is ±{reached:.1%} (asked: ±{manifest.precision:.1%})"


def controls(rows: Sequence[Row]) -> Iterator[str]:
    """How far contestants were from themselves where they were measured a second time (A/A): a sentence each."""
    of: dict[str, list[Quote]] = {}
    for row in rows:
        original = row.any.control_of
        one = quote(row, original) if original is not None else None
        if original is not None and one is not None:
            of.setdefault(original, []).append(one)
    for original, quotes in of.items():
        apart = [one.speedup - 1 for one in quotes if one.speedup is not None]
        if not apart:
            yield f"control (A/A): {original}, measured a second time, has no figure that may be quoted"
            continue
        ends = dict.fromkeys(_percent(end) for end in (min(apart), max(apart)))
        far = f"{' to '.join(ends)} in {len(apart)} cases" if len(apart) > 1 else "".join(ends)
        found = overall(quotes)
        called = f"; {found.called}" if found is not None and found.called else ""
        yield f"control (A/A): {original}, measured a second time, differs from itself by {far}{called}"


def _percent(share: float) -> str:
    return "0.0%" if abs(share) < 0.0005 else f"{share:+.1%}"


def reruns(rows: Sequence[Row], everything: bool = True) -> Iterator[str]:
    """What earlier attempts said of the claims that are quoted: a sentence for each row that was measured again.

    Without `everything` claims that no attempt called noisy are only counted.
    """
    for group in cases(rows).values():
        for row, quotes in claims(group):
            again = [one for one in quotes if one.call is not None and one.call.earlier]
            told = [one for one in again if everything or Label.RERUN_NOISE in _labels(one)]
            if told:
                most = max(len(_labels(one)) for one in again)
                each = [f"over {one.baseline} {attempts(one)}" for one in told]
                each += [f"{len(again) - len(told)} without noise"] if len(again) > len(told) else []
                yield f"measured {most} times, all kept: {row.name} at {row.case}: {'; '.join(each)}"


def changed(manifest: Manifest, rows: Sequence[Row]) -> Iterator[str]:
    """Cases during which a setting, or something else that a run's environment tells, became another."""
    if manifest.environment is None or manifest.schema_version == 1:  # whose fingerprint was of other facts
        return
    known = {environment.fingerprint for environment in manifest.environments}
    odd = [row.any.case for row in rows if row.any.status is Status.OK and row.any.fingerprint not in known]
    if odd:
        named = _some(list(dict.fromkeys(odd)))
        yield f"device, software or settings changed during the run, so no claim is valid there: {named}"


def apart(rows: Sequence[Row]) -> Iterator[str]:
    """Whose kernel is another one in another process, as its medians there tell; on a GPU, whose clock is quiet."""
    told = {}
    for row in rows:
        spread = row.latency.process_spread if row.latency is not None and _is_gpu(row) else None
        if spread is not None and spread > APART:
            told[f"{row.name} at {row.case}"] = spread
    if told:
        named = _some([f"{name} by {spread - 1:.0%}" for name, spread in told.items()])
        yield f"differs from process to process, as what compiles or tunes itself may: {named}; intervals cover that"


def _labels(one: Quote) -> list[Label]:
    """What the attempts said of a claim, the one that is quoted last."""
    return [] if one.call is None else [call.label for call in (*one.call.earlier, one.call)]


def attempts(one: Quote) -> str:
    """`1.31x rerun noise, 1.33x rerun noise, then 1.34x supported`, the attempt that is quoted last."""
    if one.call is None:
        return ""
    *before, last = [_attempt(call) for call in (*one.call.earlier, one.call)]
    return f"{', '.join(before)}, then {last}" if before else last


def _attempt(call: Call) -> str:
    speedup = "" if call.speedup is None or call.label is Label.INVALID else f"{times(call.speedup)} "
    return f"{speedup}{call.label.value}"


def undecided(rows: Sequence[Row], everything: bool = True) -> Iterator[str]:
    """Why claims have a label that is not by their interval, with its code: those that share it share a line.

    Without `everything` rows that are wrong or failed are left out: a line of their own tells why.
    """
    shared: dict[tuple[Label, str, str], list[tuple[Row, Call]]] = {}
    for group in cases(rows).values():
        told = {row.profile for row in group if row.status.bad}
        for row, quotes in claims(group):
            walls = [quote(row, one.baseline, WALL) for one in quotes if one.series != WALL]
            for call in (one.call for one in (*quotes, *walls) if one is not None):
                if (
                    call is None
                    or not _needs_a_reason(call)
                    or (not everything and told & {row.profile, call.baseline})
                ):
                    continue
                about = ", wall time" if (call.timer, call.cache) == WALL and _is_gpu(row) else ""
                shared.setdefault((call.label, call.code, about), []).append((row, call))
    for (label, code, about), those in shared.items():
        row, call = those[0]
        reasons = {other.reason for _, other in those}
        if about and reasons <= {other.reason for _, other in shared.get((label, code, ""), [])}:
            continue  # told of the kernel
        names = list(dict.fromkeys(f"{other.name} at {other.case}" for other, _ in those))
        count = f"{len(those)} claims, of " if len(those) > 1 else ""
        over = f" over {call.baseline}" if len(those) == 1 else ""
        first = "the first: " if len(reasons) > 1 else ""
        yield f"{label.value} ({code}{about}): {count}{_some(names)}{over}: {first}{call.reason}"


def _needs_a_reason(call: Call) -> bool:
    return call.label in (Label.INVALID, Label.RERUN_NOISE) or call.code == "processes"


def _is_gpu(row: Row) -> bool:
    return any(timer in ("device", "graph") for timer, _ in row.series)


def happened(rows: Sequence[Row]) -> Iterator[str]:
    """What happened to the machine, by kind, with the rows sampled meanwhile; what no call gives as reason."""
    by_kind: dict[str, dict[str, str]] = {}
    for row in rows:
        told = {call.code for call in row.calls}
        for record in row.series.values():
            for event in (event for event in record.events if event.kind not in told):
                by_kind.setdefault(event.kind, {}).setdefault(f"{row.name} at {row.case}", event.detail)
    for kind, by_row in by_kind.items():
        yield f"{kind} event while sampling {_some(list(by_row))}: {next(iter(by_row.values()))}"


def _rows(rows: Sequence[Row]) -> Iterator[str]:
    """Reasons and remedies of rows without figures, what the worker noted, noise where no call tells it, the roof."""
    told: dict[str, list[str]] = {}
    for row in rows:
        r = row.any
        if r.reason and r.status is not Status.CHECKED:
            code = f" ({r.code.value})" if r.code else ""
            told.setdefault(f"{row.name} {r.status.value}{code}", []).append(
                f"{row.case}: {r.reason}" + (f"; {r.remedy}" if r.remedy else "")
            )
    yield from (f"{who} at {where}" for who, all_of_it in told.items() for where in all_of_it)
    for note, those in noted(rows).items():
        yield f"{_some([f'{row.name} at {row.case}' for row in those])}: {note}"
    noisy = [(row, timers) for row in rows if row.contestant and not row.calls and (timers := noisy_series(row))]
    if noisy:
        listed = _some([f"{row.profile} at {row.case} ({', '.join(timers)})" for row, timers in noisy])
        yield f"noisy (p95/p50 above {gates(rows)[1]}), rerun before a precise claim: {listed}"
    if above := [f"{row.name} at {row.case}" for row in rows if above_roof(row)]:
        yield f"faster than the copy, which is then no roof, or not cold, or not honest: {_some(above)}"


def noted(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    """What the worker noted of rows: each note once, with those that it is of."""
    said: dict[str, list[Row]] = {}
    for row in rows:
        for note in dict.fromkeys(note for record in row.series.values() for note in record.notes):
            said.setdefault(note, []).append(row)
    return said


def _some(names: Sequence[str]) -> str:
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def printable(text: str) -> str:
    """Records are data: what would steer the terminal is dropped."""
    return "".join(c for c in text if c.isprintable())
