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
    made, _, left_out = with_records(store, manifest)
    return made, left_out


def with_records(store: RunStore, manifest: Manifest) -> tuple[Conclusions, list[Record], list[str]]:
    """The same, with the records that they were made of."""
    unreadable = []
    try:
        stored = store.conclusions()
    except StoreError as error:
        stored, unreadable = None, [str(error)]
    if stored is not None:
        records, left_out = store.read()
        if store.has_samples(records):
            return stored, records, left_out
        # Samples are not what the records were made of: the judge says of which.
    made, records, left_out = rejudged(store, manifest)
    return made, records, unreadable + left_out
