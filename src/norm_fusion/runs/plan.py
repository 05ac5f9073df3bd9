"""What is to be measured, by how many processes, and how it is shared out over cards. No torch.

The unit that travels is a shard: some cases, all their contestants, all their processes, on one card, so that no ratio
ever spans two cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from norm_fusion.spec import FEWEST, MOST, PRECISION, RERUNS, Case, Shard

SPENT = "was spent after"  # in the note of a run that its budget ended


@dataclass(frozen=True)
class Plan:
    """A shard, how many processes measure it, and for how long.

    `profiled`: the cells whose hardware counters are read afterwards, as pairs of a case's name and a profile.
    """

    shard: Shard
    fewest: int = FEWEST
    most: int = MOST
    precision: float = PRECISION  # half-width of the interval at which a case needs no further process
    budget_s: float | None = None  # on one card: no process is started that would end after it; several cards share it
    timeout_s: float = 300.0  # a worker that says nothing for so long is given up
    reruns: int = RERUNS
    profiled: tuple[tuple[str, str], ...] = ()

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.shard.cases

    def of(self, cases: Sequence[Case], profiled: Sequence[tuple[str, str]] = (), device: str | None = None) -> Plan:
        """The same for these cases alone, on that device."""
        shard = replace(self.shard, cases=tuple(cases), device=device or self.shard.device)
        return replace(self, shard=shard, profiled=tuple(profiled))


def dealt(cases: Sequence[Case], hands: int) -> list[tuple[Case, ...]]:
    """The cases in at most so many shards, about as long as each other: the largest are dealt first, back and forth.

    Each shard keeps the order of `cases`; none is empty.
    """
    hands = max(1, min(hands, len(cases)))
    there_and_back = [*range(hands), *reversed(range(hands))]
    largest_first = sorted(cases, key=lambda case: case.moved_bytes, reverse=True)
    hand_of = {case: there_and_back[i % len(there_and_back)] for i, case in enumerate(largest_first)}
    return [tuple(case for case in cases if hand_of[case] == hand) for hand in range(hands)]
