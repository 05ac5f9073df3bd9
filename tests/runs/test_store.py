"""A run's folder: whole files, refused ids, and records that were tampered with."""

import json
from pathlib import Path

import pytest

from norm_fusion.records import SCHEMA, Record, Samples, Status
from norm_fusion.runs.store import RunStore, StoreError, new_run_id


def record(profile: str = "torch-eager") -> Record:
    return Record(
        run_id="a",
        case="rmsnorm-4x4-float16",
        op="rmsnorm",
        rows=4,
        cols=4,
        dtype="float16",
        profile=profile,
        status=Status.OK,
        timer="wall",
        cache="cold",
        fingerprint="0" * 16,
    )


def samples(of: Record) -> Samples:
    return Samples(key=of.key, blocks=[[1.0, 2.0], [3.0]], positions=[0, 1], warmup=[9.0])


def test_a_record_and_its_samples_come_back_as_written(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    kept = store.write(record(), samples(record()))
    assert list(store.records()) == [kept]
    assert store.samples(kept).blocks == [[1.0, 2.0], [3.0]]
    assert not list(store.path.rglob(".*")), "a temporary file was left behind"


def test_the_stored_names_are_the_documented_ones(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    store.write(record(), None)
    stored = json.loads((store.path / "records" / f"{record().key}.json").read_text())
    documented = """run_id case op pass rows cols dtype profile resolved_backend status reason timer cache replicate
        p50_ms p95_ms noise_ratio gbps roof_gbps roof_share tflops speedup correct max_abs_error max_rel_error tolerance
        n_samples fingerprint"""
    assert set(documented.split()) <= stored.keys()


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    RunStore.create(tmp_path, "a")
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


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"run_id": "a"}', "\x00\xff", '{"schema_version": "x"}'],
    ids=["empty", "cut", "list", "fields", "bytes", "schema"],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    store = RunStore.create(tmp_path, "a")
    (store.path / "records" / "x.json").write_text(text)
    with pytest.raises(StoreError, match=r"x\.json is not a readable record"):
        list(store.records())


def test_a_newer_schema_is_refused_by_number(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    data = json.loads(record().model_dump_json(by_alias=True)) | {"schema_version": SCHEMA + 1, "colour": "blue"}
    (store.path / "records" / "x.json").write_text(json.dumps(data))
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}.*update"):
        list(store.records())


def test_samples_changed_after_the_fact_are_noticed(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    kept = store.write(record(), samples(record()))
    (store.path / str(kept.samples_file)).write_bytes(b"other")
    with pytest.raises(StoreError, match="changed after it was written"):
        store.samples(kept)


def test_a_record_cannot_name_samples_outside_its_run(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    with pytest.raises(StoreError, match="outside its run"):
        store.samples(record().model_copy(update={"samples_file": "../../etc/passwd"}))


def test_run_ids_from_the_clock_differ() -> None:
    assert new_run_id() != new_run_id()
