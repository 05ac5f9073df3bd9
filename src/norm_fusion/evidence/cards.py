"""Do the cards of one run agree? A case is measured on one of them, so that a card that differs shows in no ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from norm_fusion.evidence.verdicts import DELTA
from norm_fusion.records import Environment, Manifest, Record

# What every process measures of its card beside its cases: the name of a record's field, in words, its unit.
YARDSTICKS = (("read_gbps", "reading memory", "GB/s"), ("write_gbps", "writing memory", "GB/s"))


def disagreement(records: Iterable[Record], manifest: Manifest) -> list[str]:
    """A sentence for each yardstick by which two cards of a run can be compared; none of a run of one card."""
    cards = {e.fingerprint: e for e in manifest.environments if e.device == "cuda"}
    if len({card.device_uuid for card in cards.values()}) < 2:
        return []
    singles = [record for record in records if record.replicate is not None and record.fingerprint in cards]
    return [said for name, words, unit in YARDSTICKS for said in _by(name, words, unit, singles, cards)]


def _by(name: str, words: str, unit: str, records: Sequence[Record], cards: dict[str, Environment]) -> Iterator[str]:
    """By one yardstick: the slowest card beside the fastest."""
    told: dict[str, dict[tuple[int, int | None], float]] = {}
    for record in records:
        if (value := getattr(record, name)) is not None:  # once a process, with each of its records
            told.setdefault(str(cards[record.fingerprint].device_uuid), {})[record.attempt, record.replicate] = value
    if len(told) < 2:
        return
    medians = sorted((float(np.median(list(values.values()))), uuid) for uuid, values in told.items())
    (low, slow), (high, fast) = medians[0], medians[-1]
    apart = high / low - 1
    verdict = "agree" if apart <= DELTA else "disagree"
    yield (
        f"the {len(told)} cards {verdict} in {words}: {short(slow)} {low:,.0f} {unit}, {short(fast)} {high:,.0f} "
        f"{unit}, {apart:.1%} apart; no ratio spans two cards"
    )


def short(uuid: str) -> str:
    """A card's own name, as far as it tells two of one host apart."""
    return f"GPU-{uuid.removeprefix('GPU-')[:8]}"
