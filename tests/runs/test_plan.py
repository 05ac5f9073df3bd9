"""Shards: every case in one, about as much in each; their keys; ten thousand cells in seconds."""

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest

from norm_fusion.records import Record, Status
from norm_fusion.runs import resume
from norm_fusion.runs.listing import listed
from norm_fusion.runs.plan import dealt
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case

SIZES = st.lists(st.integers(1, 2**14), min_size=1, max_size=30, unique=True)


@given(SIZES, st.integers(1, 9))
def test_each_case_is_in_one_shard_and_none_is_empty(rows: list[int], hands: int) -> None:
    cases = [Case.parse(f"rmsnorm-{number}x64-float16") for number in rows]
    shards = dealt(cases, hands)
    assert sorted(case for shard in shards for case in shard) == sorted(cases)
    assert len(shards) == min(hands, len(cases)) and all(shards)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all([case for case in cases if case in shard] == list(shard) for shard in shards), "in their order"


def test_shards_are_about_as_large_as_each_other() -> None:
    cases = [Case.parse(f"rmsnorm-{2**n}x1024-float16") for n in range(4, 12)]
    one, two = (sum(case.moved_bytes for case in shard) for shard in dealt(cases, 2))
    assert max(one, two) / min(one, two) < 1.6, "halves by position differ by a factor of sixteen"


def test_ten_thousand_cells_are_planned_resumed_and_listed_in_five_seconds(tmp_path: Path) -> None:
    """400 cases of five profiles in five processes: a cell is a profile of a case in a process."""
    cases = [Case.parse(f"rmsnorm-{rows}x64-float16") for rows in range(1, 401)]
    profiles = [f"torch-{n}" for n in range(5)]
    names = [case.name for case in cases]
    store = RunStore.create(tmp_path, "a")
    asked = manifest("a", cases=names, profiles=profiles, done=names[:390])
    store.write_manifest(asked)
    for case in cases:
        for replicate in range(5):
            made = [
                Record(
                    run_id="a", case=case.name, op="rmsnorm", rows=case.rows, cols=64, dtype="float16",
                    profile=profile, status=Status.CHECKED, replicate=replicate, fingerprint="f",
                )
                for profile in profiles
            ]  # fmt: skip
            store.keep(case.name, 0, replicate, [(record, None) for record in made])
    began = time.monotonic()
    shards = dealt(cases, 8)
    left = resume.left(store, asked, cases, mixed=False, retry_failed=False)
    (one,), _ = listed(tmp_path)
    took = time.monotonic() - began
    assert sum(map(len, shards)) == 400
    assert [case.name for case in left.cases] == names[390:] and len(left.earlier) == 10 * 5 * 5
    assert (one.done, one.cases, one.state) == (390, 400, "interrupted")
    assert took < 5
