"""What does not follow from a run's samples is not believed, whatever its file says."""

from pathlib import Path

import pytest
from manifests import manifest

from norm_fusion.records import Measurement, Record, Series, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.runs.store import RunStore
from norm_fusion.runs.verify import gaps, verified
from norm_fusion.spec import Case

CASE = Case.parse("rmsnorm-64x64-float16")


def measured(profile: str, ms: float | None, **more: object) -> Measurement:
    series = (
        []
        if ms is None
        else [
            Series(timer="graph", cache="cold", blocks=[[ms, ms * 1.3], [ms]], positions=[0, 1], probes_ms=[0.1, 0.11])
        ]
    )
    fields = {"case": CASE.name, "profile": profile, "status": Status.OK, "series": series, "outside_ms": {"graph": ms}}
    return Measurement.model_validate(fields | ({} if ms else {"outside_ms": {}}) | more)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[RunStore, list[Record]]:
    store = RunStore.create(tmp_path, "a")
    told = [
        measured("torch-eager", 3.0, max_rel_error=1e-4, read_gbps=9.0),
        measured("torch-native", 2.0, notes=["n"]),
        measured("triton-x", None, status=Status.CHECKED, max_rel_error=1e-4),
        measured("torch-compile", 1.0, status=Status.WRONG, reason="r"),
    ]
    made = records_of(CASE, told, run_id="a", fingerprint="f", replicate=2, attempt=1)
    return store, store.keep(CASE.name, 1, 2, made)


def test_what_was_derived_is_derived_alike(kept: tuple[RunStore, list[Record]]) -> None:
    store, records = kept
    assert verified(store, records) == (records, [])
    assert len(records) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p50_ms": 1.0}, "its p50 is 1.0, that of its samples 2.0"),
        ({"p95_ms": 2.0}, "its p95 is 2.0"),
        ({"noise": "good"}, "its noise is good, that of its samples rerun"),
        ({"probe": None}, "its probe is None"),
        ({"probe_ms": 0.2}, "its probe is 0.2"),
        ({"gbps": 1e6}, "its gbps is"),
        ({"rows": 1}, "its rows is 1"),
        ({"dtype": "float32"}, "its dtype is float32"),
        ({"op": "foo"}, "its op is foo"),
        ({"speedup": {"torch-eager": 9.0}}, "its speedup over torch-"),
        ({"speedup": {}}, "its speedup over torch-"),
        ({"n_samples": 99}, "its n_samples is 99"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_edited_figure_costs_its_profile(
    kept: tuple[RunStore, list[Record]], change: dict[str, object], said: str
) -> None:
    store, records = kept
    edited = [r.model_copy(update=change) if r.profile == "torch-native" else r for r in records]
    left, left_out = verified(store, edited)
    assert left == [r for r in records if r.profile != "torch-native"]
    (one,) = left_out
    assert (one.case, one.profile) == (CASE.name, "torch-native")
    assert said in one.said


@pytest.mark.parametrize(
    "change",
    [
        {"samples_file": None},
        {"samples_file": "samples/\0"},
        {"samples_file": "samples/.."},
        {"samples_file": f"samples/{'x' * 300}"},
        {"samples_sha256": "0" * 64},
        {"case": "foo"},
        {"fingerprint": "g"},
        {"timer": "none"},
        {"profile": "torch-eager"},
    ],
    ids=str,
)
def test_what_cannot_be_followed_costs_every_speed_of_the_case(
    kept: tuple[RunStore, list[Record]], change: dict[str, object]
) -> None:
    store, records = kept
    edited = [r.model_copy(update=change) if r.profile == "torch-native" else r for r in records]
    left, left_out = verified(store, edited)
    assert CASE.name in {one.case for one in left_out}
    assert not [r for r in left if r.status is Status.OK]


@pytest.mark.parametrize("damage", ["cut", "other", "gone", "folder"])
def test_damaged_samples_cost_the_case(kept: tuple[RunStore, list[Record]], damage: str) -> None:
    store, records = kept
    path = store.path / str(records[0].samples_file)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(data[:-9] if damage == "cut" else b"other")
    left, (one, *_) = verified(RunStore(store.path), records)
    assert left == []
    assert (one.case, one.profile) == (CASE.name, None)


@pytest.mark.parametrize("blocks", [[], [[]]], ids=str)
def test_samples_of_nothing_are_no_traceback(tmp_path: Path, blocks: list[list[float]]) -> None:
    store = RunStore.create(tmp_path, "a")
    made = records_of(CASE, [measured("torch-eager", 1.0)], run_id="a", fingerprint="f", replicate=0)
    records = store.keep(CASE.name, 0, 0, [(r, s and s.model_copy(update={"blocks": blocks})) for r, s in made])
    left, (one,) = verified(store, records)
    assert left == []
    assert "samples were edited" in one.said


def process(number: int, case: str = CASE.name, attempt: int = 0) -> Record:
    fields = {"op": "rmsnorm", "rows": 64, "cols": 64, "dtype": "float16", "status": Status.OK, "fingerprint": "f"}
    return Record(run_id="a", case=case, profile="torch-eager", replicate=number, attempt=attempt, **fields)


def lost(*records: Record, processes: int = 3, known: set[str] = frozenset(), **told: object) -> dict[str, str]:
    return {one.case: one.said for one in gaps(records, manifest(processes=processes, **told), known)}


def test_processes_of_which_nothing_is_left_are_missed() -> None:
    a, b = ([process(number, case) for number in range(3)] for case in "ab")
    assert lost(*a, *b) == lost(*a, *b[:2]) == {}, "a case may need fewer"
    assert lost(*a, *b, *(process(number, "a", 1) for number in range(5))) == {}
    assert list(lost(a[0], a[2], *b)) == ["a"] and "in process 2 are missing" in lost(a[0], a[2], *b)["a"]
    assert list(lost(*a, *b, process(1, "b", 1))) == ["b"]
    assert list(lost(*a[:2], *b[:2])) == ["a", "b"], "whose it was cannot be told"
    assert "records of 2 processes, and the run had 3" in lost(*a[:2], *b[:2])["b"]
    assert lost(*a, process(3, "a"), *b) == {}, "the last one was interrupted"
    assert lost(a[0], a[2], *b, known={"a"}) == {}
    assert lost(*a, done=["a", "b"]) == {"b": "the records of b are missing: bring them back"}
