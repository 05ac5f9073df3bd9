"""When a decision has to be decided anew: its evidence is old, or what it was measured on is not what is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, timedelta

from norm_fusion.evidence.boundary import day
from norm_fusion.evidence.decisions import Decision
from norm_fusion.records import Decided

WORDS = {"gpu": "GPU", "driver": "driver", "torch": "PyTorch", "triton": "Triton"}


def expires(decision: Decision, decided: Decided) -> str:
    """What ends it, in a sentence."""
    parts = [
        f"another {WORDS[name]} than {' or '.join(decided.software.get(name, []))}" for name in _told(decision, decided)
    ]
    if (last := last_day(decision, decided)) is not None:
        parts.append(f"the day after {last}, {decision.expires_days} days after its oldest run")
    said = f"Decide anew with {'; '.join(parts)}." if parts else "Nothing ends it: it names no expiry."
    undated = decision.expires_days is not None and decided.oldest is None
    return f"{said} Its {decision.expires_days} days cannot be counted: nothing tells its age." if undated else said


def last_day(decision: Decision, decided: Decided) -> date | None:
    """Until when its evidence counts; None where it has no age."""
    if decision.expires_days is None or decided.oldest is None:
        return None
    try:
        return day(decided.oldest) + timedelta(days=decision.expires_days)
    except OverflowError:  # there is no later day
        return date.max


def expired(decision: Decision, decided: Decided, as_of: date, here: Mapping[str, str]) -> Iterator[str]:
    """A warning for each trigger that fired.

    `here`: what is used, by the words of EXPIRY; of what is not told nothing is said.
    """
    last = last_day(decision, decided)
    if last is not None and as_of > last:
        yield f"{decision.title} is {(as_of - last).days} days past its age: its evidence counted until {last}"
    for name in _told(decision, decided):
        versions = decided.software[name]
        if name in here and here[name] not in versions:
            yield f"{decision.title}: {WORDS[name]} is {here[name]} here, its evidence is of {' and '.join(versions)}"


def _told(decision: Decision, decided: Decided) -> list[str]:
    return [name for name in decision.expires_when if decided.software.get(name)]
