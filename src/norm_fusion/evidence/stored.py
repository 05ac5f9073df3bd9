"""What is concluded of a run on disk: as it was stored, or made again from its records and samples."""

from __future__ import annotations

from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Conclusions, Manifest, Record
from norm_fusion.runs.store import RunStore, StoreError


def rejudged(store: RunStore, manifest: Manifest) -> tuple[Conclusions, list[Record], list[str]]:
    """Conclusions from records and samples alone, those records, and a sentence for each file that was left out.

    A run of one process has no calls, and its pooled figures are its records': its samples are not asked for.
    """
    records, left_out = store.read()
    if any(record.replicate for record in records):
        records, changed = store.verified(records)
        left_out += changed
    return conclude(records, store.samples, manifest), records, left_out


def concluded(store: RunStore, manifest: Manifest) -> tuple[Conclusions, list[str]]:
    """The stored conclusions; where there are none that can be read, those made of what can be."""
    stored, unreadable = _stored(store)
    if stored is not None:
        return stored, []
    made, _, left_out = rejudged(store, manifest)
    return made, unreadable + left_out


def with_records(store: RunStore, manifest: Manifest) -> tuple[Conclusions, list[Record], list[str]]:
    """The same, with the records that they were made of."""
    stored, unreadable = _stored(store)
    if stored is not None:
        return stored, *store.read()
    made, records, left_out = rejudged(store, manifest)
    return made, records, unreadable + left_out


def _stored(store: RunStore) -> tuple[Conclusions | None, list[str]]:
    try:
        made = store.conclusions()
    except StoreError as error:
        return None, [str(error)]
    # Where samples are not what the records were made of, the judge says of which.
    return (made if store.has_samples(store.read()[0]) else None), []
