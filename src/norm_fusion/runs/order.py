"""The order in which a run's records are shown."""

from __future__ import annotations

from collections.abc import Iterable

from norm_fusion.records import Manifest, Record
from norm_fusion.spec import CONTROL, ROOF


def in_order(records: Iterable[Record], manifest: Manifest) -> list[Record]:
    """Records in the order in which the run was asked: cases, then profiles, the control, the roof, then series."""
    cases = {name: i for i, name in enumerate(manifest.cases)}
    profiles = {name: i for i, name in enumerate(manifest.profiles)}
    late = len(cases) + len(profiles)
    profiles |= {CONTROL: late + 1, ROOF: late + 2}

    def place(record: Record) -> tuple[object, ...]:
        process = -1 if record.replicate is None else record.replicate
        series = (record.timer, record.cache, record.attempt, process)
        return cases.get(record.case, late), profiles.get(record.profile, late), *series

    return sorted(records, key=place)
