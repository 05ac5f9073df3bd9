"""What is concluded of a run on disk: as it was stored, or made again from its records and samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from norm_fusion.evidence.ledger import alike
from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Code, Conclusions, Manifest, Measurement, Record, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.runs.files import StoreError
from norm_fusion.runs.store import LeftOut, RunStore
from norm_fusion.runs.verify import gaps, verified
from norm_fusion.spec import Case


def rejudged(store: RunStore, manifest: Manifest) -> tuple[Conclusions, list[Record], list[str]]:
    """Conclusions from records and samples alone, those records, and a sentence for each file that was left out.

    What is damaged is no smaller run: what is left of its case could say something else, so its rows are invalid.
    """
    records, left_out = store.read()
    left_out += gaps(records, manifest, {one.case for one in left_out})
    records, edited = verified(store, records)
    left_out += edited
    records += list(_damaged(records, left_out, manifest))
    return conclude(records, store.samples, manifest), records, list(dict.fromkeys(one.said for one in left_out))


def concluded(store: RunStore, manifest: Manifest) -> tuple[Conclusions, list[str]]:
    """The stored conclusions; where there are none that can be read, those made of what can be."""
    made, _, left_out = with_records(store, manifest)
    return made, left_out


def with_records(
    store: RunStore, manifest: Manifest, anew: bool = False
) -> tuple[Conclusions, list[Record], list[str]]:
    """The same, with the records that they were made of; `anew`: made again, and those stored have to be alike."""
    unreadable = []
    try:
        stored = store.conclusions()
    except StoreError as error:
        stored, unreadable = None, [str(error)]
    if stored is not None and not anew:
        records, left_out = store.read()
        if store.has_samples(records) and not left_out:
            return stored, records, []
        # Samples are not what the records were made of: the judge says of which.
    made, records, said = rejudged(store, manifest)
    if anew and stored is not None and (odd := next(forged(stored, made), None)):
        unreadable.append(f"{store.path / 'calls.json'} is not what its records make: {odd}")
    return made, records, said + unreadable


def forged(stored: Conclusions, made: Conclusions) -> Iterator[str]:
    """In what stored conclusions are not what the same rule makes of the records: a sentence each."""
    if stored.rule != made.rule:
        return  # another rule may say otherwise; whoever uses them makes them again
    for what, one, other in (("call", _calls(stored), _calls(made)), ("record", _pooled(stored), _pooled(made))):
        for key in dict.fromkeys([*one, *other]):
            told, follows = one.get(key), other.get(key)
            if not alike(told, follows):
                yield f"the {what} {' '.join(key)} is {_brief(told)}, and the records make {_brief(follows)}"


def _calls(of: Conclusions) -> dict[tuple[str, ...], object]:
    return {c.claim: (c.label.value, c.code, c.speedup, c.low, c.high, c.processes) for c in of.calls}


def _pooled(of: Conclusions) -> dict[tuple[str, ...], object]:
    return {(r.key,): (r.status.value, r.p50_ms, r.p95_ms, r.gbps, r.max_rel_error, r.processes) for r in of.pooled}


def _brief(told: object) -> str:
    return "not there" if told is None else " ".join(str(part) for part in told if part is not None)  # type: ignore[attr-defined]


def _damaged(records: Sequence[Record], left_out: Iterable[LeftOut], manifest: Manifest) -> Iterator[Record]:
    """A failure of each row that a file was left out of, in every attempt: none of them may be quoted without it."""
    rows = {(r.case, r.profile, r.attempt): r for r in records}
    for one in left_out:
        mine = [r for (case, profile, _), r in rows.items() if case == one.case and one.profile in (None, profile)]
        if not mine and one.case in manifest.cases:
            mine = _blank(one, records, manifest)
        for record in mine:
            kept = record.model_dump(include=_IDENTITY, by_alias=True)
            yield Record(**kept, status=Status.FAILED, code=Code.UNREADABLE, reason=one.said)


_IDENTITY = {
    *("run_id", "case", "op", "pass_", "rows", "cols", "dtype", "profile", "control_of"),
    *("attempt", "replicate", "fingerprint"),
}


def _blank(lost: LeftOut, records: Sequence[Record], manifest: Manifest) -> list[Record]:
    """The rows of which nothing is left: what else the run's records of that operator have."""
    case = Case.of(lost.case)
    if case is None:
        return []  # no case of ours: the sentence is all that can be said
    there = dict.fromkeys(
        r.profile for r in records if (r.op, r.pass_) == (case.op, case.pass_) and r.profile in manifest.profiles
    )
    profiles = [lost.profile] if lost.profile else there or manifest.profiles
    told = [Measurement(case=case.name, profile=profile, status=Status.FAILED) for profile in profiles]
    return [record for record, _ in records_of(case, told, run_id=manifest.run_id, fingerprint="", replicate=0)]
