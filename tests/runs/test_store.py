"""A run's folder: whole files, refused ids, and records that were tampered with."""

import gzip
import json
import os
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from manifests import manifest

from norm_fusion.records import SCHEMA, Conclusions, Conditions, Record, Samples, Status
from norm_fusion.runs import files
from norm_fusion.runs import store as module
from norm_fusion.runs.files import StoreError
from norm_fusion.runs.order import in_order
from norm_fusion.runs.store import RunStore, new_run_id
from norm_fusion.runs.verify import verified
from norm_fusion.spec import CONTROL, ROOF

CASE = "rmsnorm-4x4-float16"
OLD = Path(__file__).parents[1] / "stored"


def created(folder: Path, name: str = "a", **changes: object) -> RunStore:
    """A new run's folder, with its manifest."""
    store = RunStore.create(folder, name)
    store.write_manifest(manifest(name, cases=[CASE], **changes))
    return store


def record(profile: str = "torch-eager", **more: object) -> Record:
    made = Record(
        run_id="a",
        case=CASE,
        op="rmsnorm",
        rows=4,
        cols=4,
        dtype="float16",
        profile=profile,
        status=Status.OK,
        timer="wall",
        cache="cold",
        p50_ms=2.0,
        fingerprint="0" * 16,
    )
    return made.model_copy(update=more)


def samples(of: Record) -> Samples:
    return Samples(key=of.key, blocks=[[1.0, 2.0], [3.0]], positions=[0, 1], warmup=[9.0])


def test_a_record_and_its_samples_come_back_as_written(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    unavailable = record("torch-compile", status=Status.UNAVAILABLE, timer="none", cache="none")
    kept = store.keep(CASE, 0, 0, [(record(), samples(record())), (unavailable, None)])
    assert list(store.records()) == kept
    assert (kept[0].samples_file, kept[1].samples_file) == (f"samples/{CASE}.r0.json.gz", None)
    assert store.samples(kept[0]) == samples(record())
    assert not list(store.path.rglob(".*")), "a temporary file was left behind"


def test_the_stored_names_are_the_documented_ones(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    store.keep(CASE, 0, 0, [(record(), None)])
    (stored,) = json.loads((store.path / "records" / f"{CASE}.r0.json").read_text())
    documented = """run_id case op pass rows cols dtype profile resolved_backend status reason timer cache replicate
        p50_ms p95_ms noise_ratio gbps roof_gbps roof_share tflops speedup correct max_abs_error max_rel_error tolerance
        n_samples fingerprint"""
    assert set(documented.split()) <= stored.keys()


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    created(tmp_path)
    with pytest.raises(StoreError, match="exists .* choose another --run-id"):
        RunStore.create(tmp_path, "a")


@pytest.mark.parametrize("run_id", ["../a", "a/b", "", ".", "..", ".hidden", "a" * 101, "a\nb", "-rf"])
def test_run_ids_with_path_characters_are_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(StoreError, match="run id"):
        RunStore.create(tmp_path, run_id)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write the run folder .* use --output DIR"):
        RunStore.create(tmp_path / "file", "a")


def test_a_run_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no runs yet"):
        RunStore.open("b", tmp_path)


DAMAGED = {
    "empty": "",
    "cut": "[{",
    "none": "[]",
    "fields": '[{"run_id": "a"}]',
    "bytes": "\x00\xff",
    "schema": '{"schema_version": "x"}',
    "number": "[" + "9" * 5000 + "]",
    "deep": "[" * 100_000,
    "items": "[3]",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_record_is_named_and_stops_no_other(tmp_path: Path, text: str) -> None:
    store = created(tmp_path)
    kept = store.keep(CASE, 0, 1, [(record(), None)])
    (store.path / "records" / "x.json").write_text(text)
    with pytest.raises(StoreError, match=r"x\.json is not a readable record"):
        list(store.records())
    records, left_out = store.read()
    assert records == kept
    assert len(left_out) == 1
    assert f"{store.path / 'records' / 'x.json'} is not a readable record" in left_out[0].said


def test_a_newer_schema_is_refused_by_number(tmp_path: Path) -> None:
    store = created(tmp_path)
    data = json.loads(record().model_dump_json(by_alias=True)) | {"schema_version": SCHEMA + 1, "colour": "blue"}
    (store.path / "records" / "x.json").write_text(json.dumps(data))
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}.*update"):
        list(store.records())
    (store.path / "records" / "x.json").write_text(json.dumps([data]))
    assert "update" in store.read()[1][0].said


def test_files_are_the_ones_that_were_written(tmp_path: Path) -> None:
    def left(name: str, act: Callable[[RunStore, Path], object]) -> list[str]:
        store = created(tmp_path, name)
        for replicate in range(2):
            mine = record(replicate=replicate)
            store.keep(CASE, 0, replicate, [(mine, samples(mine))])
        act(store, store.path / "records" / f"{CASE}.r1.json")
        records, left_out = store.read()
        assert len(records) == (2 if "x9" in str(left_out) or not left_out else 0 if "SUMS" in name else 1)
        assert all(one.case == CASE and one.profile is None for one in left_out)
        return [one.said for one in left_out]

    assert left("whole", lambda store, path: None) == []
    shown = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "whole", capture_output=True, text=True)
    assert (shown.returncode, shown.stdout.count(": OK")) == (0, 4)
    (said,) = left("gone", lambda store, path: path.unlink())
    assert "r1.json is missing" in said
    (said,) = left("edited", lambda store, path: path.write_text(path.read_text().replace("wall", "host")))
    assert "was changed after it was written" in said
    (said,) = left("added", lambda store, path: path.with_name(f"{CASE}.r1x9.json").write_bytes(path.read_bytes()))
    assert "was not written by the run" in said
    assert len(left("noSUMS", lambda store, path: (store.path / "SHA256SUMS").unlink())) == 2

    def folder(store: RunStore, path: Path) -> None:
        path.unlink()
        path.mkdir()

    (said,) = left("folder", folder)
    assert "r1.json is no file: delete it, or bring the run's back" in said

    def piped(store: RunStore, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    (said,) = left("pipe", piped)
    assert "r1.json is no file" in said

    def erased(store: RunStore, path: Path) -> None:
        path.unlink()
        sums = store.path / "SHA256SUMS"
        lines = [line for line in sums.read_text().splitlines() if not line.endswith(f"records/{path.name}")]
        sums.write_text("\n".join([*lines, f"{'0' * 64}  records/{'x' * 5000}"]))

    (said,) = left("erased", erased)
    assert "r1.json is missing" in said, "its samples tell of it"


@pytest.mark.parametrize(
    ("run", "of", "said"),
    [(2, 1, "is of schema 1, its run of 2"), (SCHEMA, 2, "SHA256SUMS is missing"), (2, 2, None)],
)
def test_a_record_that_says_an_older_schema_than_its_run_is_not_the_runs(
    tmp_path: Path, run: int, of: int, said: str | None
) -> None:
    """Less is checked of older ones."""
    store = created(tmp_path, schema_version=run)
    store.keep(CASE, 0, 0, [(record(schema_version=of), None)])
    (store.path / "SHA256SUMS").unlink()
    records, left_out = store.read()
    assert (len(records), len(left_out)) == ((1, 0) if said is None else (0, 1))
    assert said is None or said in left_out[0].said


def test_samples_changed_after_the_fact_are_noticed(tmp_path: Path) -> None:
    store = created(tmp_path)
    (kept,) = store.keep(CASE, 0, 0, [(record(), samples(record()))])
    (store.path / str(kept.samples_file)).write_bytes(b"other")
    with pytest.raises(StoreError, match="changed after it was written"):
        store.samples(kept)


def test_a_record_cannot_name_samples_outside_its_run(tmp_path: Path) -> None:
    store = created(tmp_path)
    with pytest.raises(StoreError, match="outside its run"):
        store.samples(record().model_copy(update={"samples_file": "../../etc/passwd"}))


def test_run_ids_from_the_clock_differ() -> None:
    assert new_run_id() != new_run_id()


def test_processes_and_attempts_have_files_of_their_own(tmp_path: Path) -> None:
    store = created(tmp_path)
    for attempt, replicate in ((0, 0), (0, 1), (1, 0)):
        mine = record(attempt=attempt, replicate=replicate)
        store.keep(CASE, attempt, replicate, [(mine, samples(mine))])
    names = {path.name for path in (store.path / "records").iterdir()}
    assert names == {f"{CASE}.r0.json", f"{CASE}.r1.json", f"{CASE}.a1.r0.json"}
    assert [store.samples(kept).key for kept in store.records()] == [kept.key for kept in store.records()]


def test_a_file_of_samples_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = created(tmp_path)
    mine = [record(f"torch-{i}") for i in range(9)]
    kept = store.keep(CASE, 0, 0, [(one, samples(one)) for one in mine])
    unpacked: list[int] = []
    unzipped = module.unzipped
    monkeypatch.setattr(module, "unzipped", lambda *words: unpacked.append(1) or unzipped(*words))
    assert [store.samples(one).key for one in kept] == [one.key for one in mine]
    assert len(unpacked) == 1


def test_samples_that_unpack_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = created(tmp_path)
    (kept,) = store.keep(CASE, 0, 0, [(record(), samples(record()))])
    monkeypatch.setattr(files, "LARGEST", 1000)
    bomb = gzip.compress(b" " * 10_000)
    (store.path / str(kept.samples_file)).write_bytes(bomb)
    odd = kept.model_copy(update={"samples_sha256": sha256(bomb).hexdigest()})
    with pytest.raises(StoreError, match="holds more than 0 MiB: no file of a run does"):
        store.samples(odd)


def test_few_files_of_samples_stay_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNPACKED", 2)
    store = created(tmp_path)
    kept = [store.keep(CASE, 0, i, [(one, samples(one))])[0] for i in range(4) for one in [record(replicate=i)]]
    assert [store.samples(one).key for one in kept * 2] == [one.key for one in kept * 2]
    assert len(store._unpacked) == 2


def test_samples_written_again_are_read_again(tmp_path: Path) -> None:
    store = created(tmp_path)
    (kept,) = store.keep(CASE, 0, 0, [(record(), samples(record()))])
    store.samples(kept)
    (again,) = store.keep(CASE, 0, 0, [(record(), samples(record()).model_copy(update={"blocks": [[7.0]]}))])
    assert store.samples(again).blocks == [[7.0]]
    with pytest.raises(StoreError, match="changed after it was written"):
        store.samples(kept)


def test_missing_and_foreign_samples_are_told(tmp_path: Path) -> None:
    store = created(tmp_path)
    (kept,) = store.keep(CASE, 0, 0, [(record(), samples(record()))])
    with pytest.raises(StoreError, match="has no samples of .*torch-native"):
        store.samples(kept.model_copy(update={"profile": "torch-native"}))
    (store.path / str(kept.samples_file)).unlink()
    with pytest.raises(StoreError, match=r"r0\.json\.gz is missing"):
        RunStore(store.path).samples(kept)


def test_runs_of_schema_1_stay_readable() -> None:
    store = RunStore.open("schema-1", OLD)
    records, left_out = store.read()
    assert left_out == []
    assert {record.schema_version for record in records} == {1}
    assert verified(store, records) == (records, [])
    assert len(in_order(records, store.manifest())) == len(records) >= 24


def test_conclusions_come_back_and_none_are_none(tmp_path: Path) -> None:
    store = created(tmp_path)
    assert store.conclusions() is None
    made = Conclusions(rule=1, pooled=[record(replicate=None)], calls=[])
    store.write_conclusions(made)
    found = store.conclusions()
    assert found is not None and found.digest is not None
    assert found.model_copy(update={"digest": None}) == made
    (store.path / "calls.json").write_text("{")
    with pytest.raises(StoreError, match=r"calls\.json is not a readable conclusions"):
        store.conclusions()


@pytest.mark.parametrize(
    ("edited", "was", "becomes"),
    [
        ("calls.json", "2.0", "1.0"),
        (f"records/{CASE}.r0.json", "2.0", "1.0"),
        ("manifest.json", '"quick": false', '"quick": true'),
    ],
)
def test_conclusions_that_were_edited_or_are_of_other_records_are_not_believed(
    tmp_path: Path, edited: str, was: str, becomes: str
) -> None:
    store = created(tmp_path)
    store.keep(CASE, 0, 0, [(record(), samples(record()))])
    store.write_conclusions(Conclusions(rule=1, pooled=[record(replicate=None)], calls=[]))
    path = store.path / edited
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, becomes))
    with pytest.raises(StoreError, match=r"calls\.json is not of this manifest and these records"):
        store.conclusions()


def test_conditions_are_added_line_by_line_and_a_cut_line_costs_itself(tmp_path: Path) -> None:
    store = created(tmp_path)
    assert list(store.conditions()) == []
    readings = [Conditions(at=f"t{i}", monotonic_s=float(i)) for i in range(4)]
    store.append_conditions(readings[:2])
    store.append_conditions(readings[2:3])
    path = store.path / "conditions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "t9"')
    assert list(store.conditions()) == readings[:3]
    store.append_conditions(readings[3:])
    assert list(store.conditions()) == readings
    path.write_bytes(b"{\n" + path.read_bytes())
    with pytest.raises(StoreError, match=r"conditions\.jsonl line 1 is not a reading"):
        list(store.conditions())


def test_the_order_is_that_of_the_question_then_control_then_roof_then_series() -> None:
    asked = manifest(cases=["b", "a"], profiles=["torch-native", "torch-eager"])
    expected = [
        record("torch-native", case="b", cache="cold", replicate=None),
        record("torch-native", case="b", cache="cold", replicate=0),
        record("torch-native", case="b", cache="cold", replicate=1),
        record("torch-native", case="b", cache="cold", replicate=0, attempt=1),
        record("torch-native", case="b", cache="hot"),
        record("torch-eager", case="b"),
        record("file.py:mine", case="b"),
        record(CONTROL, case="b"),
        record(ROOF, case="b"),
        record("torch-native", case="a"),
    ]
    assert in_order(reversed(expected), asked) == expected
