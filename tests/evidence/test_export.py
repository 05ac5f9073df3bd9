"""Runs as tables: what is in them, what is left out and named, and that any tool can read them."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import get_args

import pyarrow as pa
import pytest
from made import CASE, FUSED, GPU, manifest, measured, recorded
from pyarrow import parquet
from typer.testing import CliRunner, Result

from norm_fusion.cli import export as command
from norm_fusion.cli import lab
from norm_fusion.evidence import export
from norm_fusion.evidence.stored import with_records
from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import SCHEMA, Call, Counters, Environment, Manifest, Measurement, Record, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import ROOF

sys.path.append(str(Path(__file__).parents[1] / "report"))

from example_runs import five
from manifests_of_counters import MATMUL, counters

EVIDENCE = Path(__file__).parents[2] / "evidence"
LIVE = EVIDENCE / "h200-live"
HOSTILE = [
    "=cmd()",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "<script>",
    'a "b", c',
    "two\nlines\r\n",
    "nul\0",
    "é→\u2028",
]


def call(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(lab, ["export", *map(str, words)])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def table(path: Path) -> pa.Table:
    return parquet.read_table(path)


def stored(parent: Path, run_id: str = "a", *more: Measurement, of: Manifest | None = None) -> RunStore:
    """Three processes, judged."""
    store = RunStore.create(parent, run_id)
    of = (of or manifest()).model_copy(update={"run_id": run_id})
    store.write_manifest(of)
    fast = (0.1, 0.1001, 0.0999)
    made = recorded([[measured("torch-eager", 0.2), measured(FUSED, ms), measured(ROOF, 0.05), *more] for ms in fast])
    made = [(record.model_copy(update={"run_id": run_id}), samples) for record, samples in made]
    for replicate in range(len(fast)):
        store.keep(CASE.name, 0, replicate, [pair for pair in made if pair[0].replicate == replicate])
    store.write_conclusions(conclude(store.records(), store.samples, of))
    return store


def rewrite(store: RunStore, file: str, old: str, new: str) -> None:
    """Edit a file, and its hash, as who means harm would."""
    path = store.path / file
    before = sha256(path.read_bytes()).hexdigest()
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    lines = [line.replace(before, sha256(path.read_bytes()).hexdigest()) for line in store.sum_lines()]
    store.write_sum_lines(lines)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Four cases in five processes, two of them with reruns, and claims of every label."""
    return five(tmp_path_factory.mktemp("runs"))


# What is in them


def test_a_live_run_comes_out_record_by_record(tmp_path: Path) -> None:
    done = call(LIVE, "--to", tmp_path / "live.parquet")
    assert (done.exit_code, done.stdout) == (0, "")
    made = table(tmp_path / "live.parquet").to_pylist()
    there = {record.key: record for record in RunStore(LIVE).records()}
    assert len(made) == len(there) == 1050
    assert done.stderr == f"norm-fusion export: 1,050 rows of 1 runs in {tmp_path / 'live.parquet'}\n"
    names = ("case", "profile", "timer", "cache", "attempt", "replicate")
    told = {tuple(row[name] for name in names): row for row in made}
    for record in there.values():
        row = told[tuple(getattr(record, name) for name in names)]
        stored = json.loads(record.model_dump_json(by_alias=True))
        for name in set(stored) - {"speedup", "interval", "call", "notes", "events"}:
            assert row[name] == stored[name], (record.key, name)
        assert (json.loads(row["notes"]), json.loads(row["events"])) == (stored["notes"], stored["events"])
    environment = RunStore(LIVE).manifest().environment
    assert environment is not None
    for name in ("device_name", "device_uuid", "driver", "torch", "cuda", "triton", "norm_fusion", "commit", "dirty"):
        assert {row[name] for row in made} == {getattr(environment, name)}
    assert {(row["suite"], row["started_at"], row["folder"]) for row in made} == {
        ("normalization-fusion", RunStore(LIVE).manifest().started_at, LIVE.as_posix())
    }


def test_a_pooled_figure_is_the_one_that_is_shown(tmp_path: Path) -> None:
    done = call(LIVE, "--pooled", "--to", tmp_path / "live.parquet")
    assert done.exit_code == 0
    made = table(tmp_path / "live.parquet").to_pylist()
    conclusions = RunStore(LIVE).conclusions()
    assert conclusions is not None
    assert len(made) == len(conclusions.pooled)
    assert {(row["replicate"], row["processes"]) for row in made} == {(None, 5)}
    assert sorted(row["p50_ms"] for row in made) == sorted(record.p50_ms or 0 for record in conclusions.pooled)


def test_csv_says_what_parquet_says(tmp_path: Path, judged: RunStore) -> None:
    for name in export.TABLES:
        assert call(judged.path, "--table", name, "--to", tmp_path / "a.parquet").exit_code == 0
        done = call(judged.path, "--table", name)
        assert (done.exit_code, done.stderr) == (0, "")
        exact = table(tmp_path / "a.parquet")
        told = rows(done.stdout)
        assert len(told) == exact.num_rows
        for line, row in zip(told, exact.to_pylist(), strict=True):
            for column in export.TABLES[name]:
                cell, value = line[column.name], row[column.name]
                if value is None:
                    assert cell == ""
                elif column.kind == "bool":
                    assert cell == ("true" if value else "false")
                elif column.kind == "string":
                    assert cell == value
                else:
                    assert {"int64": int, "float64": float}[column.kind](cell) == value


def test_speedups_are_one_row_for_each_baseline(tmp_path: Path, judged: RunStore) -> None:
    made, records, _ = with_records(judged, judged.manifest())
    single = rows(call(judged.path, "--table", "speedups").stdout)
    assert len(single) == sum(len(record.speedup) for record in records)
    assert {(row["low"], row["label"], row["rule"], row["processes"]) for row in single} == {("", "", "", "")}
    pooled = rows(call(judged.path, "--table", "speedups", "--pooled").stdout)
    by_key = {
        (row["case"], row["profile"], row["baseline"], row["timer"], row["cache"], row["attempt"]): row
        for row in pooled
    }
    assert len(by_key) == len(pooled) == sum(len({**r.speedup, **r.call}) for r in made.pooled)
    for one in [*made.calls, *(earlier for call in made.calls for earlier in call.earlier)]:
        row = by_key[one.case, one.profile, one.baseline, one.timer, one.cache, str(one.attempt)]
        assert (row["label"], row["code"], row["reason"]) == (one.label, one.code, one.reason)
        assert (row["rule"], row["processes"], row["replicate"]) == (str(one.rule), "5", "")
        assert (row["speedup"], row["low"]) == tuple("" if v is None else repr(v) for v in (one.speedup, one.low))
    alias = next(row for row in pooled if row["baseline"] == "torch-baseline" and row["profile"].startswith("triton"))
    assert alias["code"] and alias["label"]


def test_calls_of_earlier_attempts_are_there_and_say_so(judged: RunStore) -> None:
    made = judged.conclusions()
    assert made is not None
    told = rows(call(judged.path, "--table", "calls").stdout)
    assert len([row for row in told if row["earlier"] == "false"]) == len(made.calls)
    assert len([row for row in told if row["earlier"] == "true"]) == sum(len(one.earlier) for one in made.calls) > 0
    quoted = {(row["case"], row["attempt"]) for row in told if row["earlier"] == "false"}
    assert ("rmsnorm-2048x4096-float16", "1") in quoted
    row = next(row for row in told if row["label"] == "supported" and row["case"] == "rmsnorm-2048x4096-float16")
    where = ("op", "pass", "rows", "cols", "dtype", "device_name")
    assert [row[name] for name in where] == ["rmsnorm", "forward", "2048", "4096", "float16", "NVIDIA H200"]
    assert len(json.loads(row["ratios"])) == int(row["processes"]) == 5


def test_counters_are_a_row_for_each_profile_of_a_case(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.keep_counters(counters(FUSED, CASE.name, fingerprint=GPU.fingerprint))
    missing = {"status": Status.UNAVAILABLE, "reason": "no permission", "kernels": [], "duration_ms": None}
    store.keep_counters(counters("torch-eager", MATMUL, **missing))
    done = call("a", "--from", tmp_path, "--table", "counters", "--to", tmp_path / "c.parquet")
    assert done.exit_code == 0
    matmul, norm = table(tmp_path / "c.parquet").to_pylist()
    assert (matmul["case"], matmul["op"], matmul["rows"], matmul["status"]) == (MATMUL, None, None, "unavailable")
    assert (matmul["n_kernels"], matmul["duration_ms"], matmul["kernels"]) == (None, None, "[]")
    assert (norm["op"], norm["rows"], norm["n_kernels"], norm["duration_ms"]) == ("rmsnorm", 1024, 1, 0.02)
    assert json.loads(norm["kernels"])[0]["name"] == "k"
    assert (norm["device_name"], norm["dram_bytes"]) == ("a GPU", 33_600_000)
    live = rows(call(LIVE, "--table", "counters").stdout)
    assert len(live) == len(list(RunStore(LIVE).counters())) > 0


def test_runs_on_two_cards_say_which() -> None:
    two = RunStore(EVIDENCE / "h200-live-two")
    cards = {one.fingerprint: one.device_uuid for one in two.manifest().environments}
    for words in (["--table", "records"], ["--table", "calls"], ["--table", "counters"], ["--pooled"]):
        told = rows(call(two.path, *words).stdout)
        assert len({row["device_uuid"] for row in told}) == 2
        assert all(row["device_uuid"] == cards[row["fingerprint"]] for row in told)


# Columns


def test_types_and_order_are_the_same_of_nothing(tmp_path: Path, judged: RunStore) -> None:
    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    (tmp_path / "none").mkdir()
    for name, columns in export.TABLES.items():
        full, empty = tmp_path / "full.parquet", tmp_path / "empty.parquet"
        assert call(judged.path, "--table", name, "--to", full).exit_code == 0
        done = call("--from", tmp_path / "none", "--table", name, "--to", empty)
        assert done.exit_code == 0
        assert "there are no runs in" in done.stderr
        assert table(empty).num_rows == 0
        assert table(empty).schema.equals(table(full).schema, check_metadata=True)
        assert [(one.name, one.type) for one in table(full).schema] == [(c.name, kinds[c.kind]) for c in columns]
        header = ",".join(column.name for column in columns)
        assert call("--from", tmp_path / "none", "--table", name).stdout == f"{header}\n"
    told = table(full).schema.metadata
    assert (told[b"norm_fusion.table"], told[b"norm_fusion.schema"]) == (b"counters", str(SCHEMA).encode())
    assert b"norm_fusion" in told


def kind_of(annotation: object) -> str:
    """The type of column that a field of a model needs; what is neither number nor truth is text."""
    either = [one for one in get_args(annotation) if one is not NoneType]
    one = either[0] if NoneType in get_args(annotation) else annotation
    return {int: "int64", float: "float64", bool: "bool"}.get(getattr(one, "__origin__", one), "string")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("name", "model", "elsewhere"),
    [
        ("records", Record, {"speedup", "interval", "call"}),
        ("calls", Call, set()),
        ("counters", Counters, set()),
    ],
)
def test_every_stored_field_has_a_column_of_its_type(name: str, model: type[Record], elsewhere: set[str]) -> None:
    """A field that is added to a record gets its column here, or says where else it is."""
    columns = {column.name: column for column in export.TABLES[name]}
    assert len(columns) == len(export.TABLES[name]), "a name twice"
    fields = {field.alias or key: field.annotation for key, field in model.model_fields.items()}
    assert set(fields) - set(columns) == elsewhere
    for key in set(fields) - elsewhere:
        assert key == "earlier" or columns[key].kind == kind_of(fields[key]), (key, fields[key])
    assert {"device_name", "device_uuid", "driver", "torch", "commit", "dirty"} <= set(columns) & (
        set(Environment.model_fields)
    )


def test_columns_are_printed_with_their_types() -> None:
    done = call("--table", "calls", "--columns")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert [line.split()[:2] for line in lines] == [[c.name, c.kind] for c in export.TABLES["calls"]]


# Which runs


def test_all_runs_of_the_folders_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "runs", "a")
    stored(tmp_path / "runs" / "lab", "A10G")
    stored(tmp_path / "evidence", "b")
    stored(tmp_path / "evidence" / "check", "known-1")
    (tmp_path / "evidence" / "check" / "harness.json").write_text("{}")
    stored(tmp_path / "more", "c")

    def found(*words: object) -> list[str]:
        done = call(*words)
        assert (done.exit_code, done.stderr) == (0, "")
        told = [row["folder"] for row in rows(done.stdout)]
        assert all(told.count(folder) == 9 for folder in told), "a run twice"
        return list(dict.fromkeys(told))

    assert sorted(found()) == ["evidence/b", "runs/a", "runs/lab/A10G"]
    assert sorted(found("--from", "more", "--from", "runs", "--from", "more")) == ["more/c", "runs/a", "runs/lab/A10G"]
    assert found("b", "runs/a", "a") == ["evidence/b", "runs/a"], "in the order in which they were asked for"
    assert found("lab") == ["runs/lab/A10G"]
    assert found("lab/A10G") == ["runs/lab/A10G"]
    assert found("more") == ["more/c"]
    assert found("c", "--from", "more") == ["more/c"]
    assert found("evidence/check/known-1") == ["evidence/check/known-1"]


def test_a_run_is_read_when_its_rows_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs there are, one is in memory, and a chunk of rows."""
    stores = [stored(tmp_path, name) for name in "abc"]
    opened: list[str] = []

    def reading(store: RunStore, of: Manifest) -> object:
        opened.append(of.run_id)
        return with_records(store, of)

    monkeypatch.setattr(export, "with_records", reading)
    taken = export.rows_of(stores, "records", tell=pytest.fail)
    next(taken)
    assert opened == ["a"]
    monkeypatch.setattr(command, "CHUNK_ROWS", 10)
    with (tmp_path / "x.parquet").open("wb") as file:
        assert command.write_parquet(export.rows_of(stores, "records", tell=pytest.fail), "records", file) == 27
    read = parquet.ParquetFile(tmp_path / "x.parquet").metadata
    assert [read.row_group(i).num_rows for i in range(read.num_row_groups)] == [10, 10, 7]
    monkeypatch.setattr(command, "CHUNK_CHARACTERS", 100)
    assert [len(chunk) for chunk in command.chunked([("x" * 60,)] * 5)] == [2, 2, 1]


# What is damaged


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "r1.json is not a readable record"),
        (
            lambda path: path.write_text(path.read_text().replace('"p50_ms":0.1', '"p50_ms":0.01')),
            "r1.json was changed",
        ),
        (lambda path: path.write_text(path.read_text().replace(f'n":{SCHEMA}', 'n":9')), "reads up to"),
        (lambda path: path.unlink(), "r1.json is missing"),
    ],
    ids=["truncated", "edited", "newer", "gone"],
)
def test_a_damaged_file_is_named_and_its_rows_are_left_out(tmp_path: Path, damage: object, says: str) -> None:
    store = stored(tmp_path)
    damage(store.path / "records" / f"{CASE.name}.r1.json")  # type: ignore[operator]
    done = call("--from", tmp_path)
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.startswith("norm-fusion export: not believed: ")
    assert {row["replicate"] for row in rows(done.stdout)} == {"0", "2"}
    assert {row["status"] for row in rows(done.stdout)} == {"ok"}
    pooled = call("--from", tmp_path, "--pooled")
    assert pooled.exit_code == 1
    assert {(row["status"], row["code"]) for row in rows(pooled.stdout)} == {("failed", "unreadable")}


def test_who_edits_the_hash_too_is_found_by_the_samples(tmp_path: Path) -> None:
    store = stored(tmp_path)
    rewrite(store, f"records/{CASE.name}.r1.json", '"p50_ms":0.1001', '"p50_ms":0.01')
    done = call("--from", tmp_path)
    assert done.exit_code == 1
    assert f"{FUSED}.graph.cold.r1 was edited: its p50 is 0.01" in done.stderr
    assert [row["profile"] for row in rows(done.stdout) if row["replicate"] == "1"] == ["torch-eager", ROOF]


def test_runs_that_cannot_be_read_are_named_and_the_others_are_there(tmp_path: Path) -> None:
    for name in ("cut", "fine", "newer", "odd", "sums"):
        stored(tmp_path, name)
    (tmp_path / "cut" / "manifest.json").write_text("{")
    newer = tmp_path / "newer" / "manifest.json"
    newer.write_text(newer.read_text().replace(f'"schema_version": {SCHEMA}', '"schema_version": 99'))
    odd = tmp_path / "odd" / "manifest.json"
    odd.write_text(odd.read_text().replace('"device_name": "a GPU"', '"device_name": "\\ud800"'))
    (tmp_path / "sums" / "SHA256SUMS").write_bytes(b"\xff")
    for words in (["--from", tmp_path], [tmp_path], [tmp_path / n for n in ("cut", "fine", "newer", "odd", "sums")]):
        done = call(*words, "--to", tmp_path / "x.csv")
        assert done.exit_code == 1
        assert done.stderr.count("not believed") == 4
        for said in (
            "cut/manifest.json is not a readable",
            "has schema 99",
            "odd/manifest.json is not a readable manifest: it",
        ):
            assert said in done.stderr
        assert "SHA256SUMS cannot be read" in done.stderr
        assert {row["run_id"] for row in rows((tmp_path / "x.csv").read_text())} == {"fine"}


def test_damaged_counters_are_named_and_the_others_are_there(tmp_path: Path) -> None:
    store = stored(tmp_path)
    for profile in ("torch-eager", "torch-native", "torch-compile", "torch-compile-max", FUSED):
        store.keep_counters(counters(profile, CASE.name))
    folder = store.path / "counters"
    paths = {path.name.split(".")[1]: path for path in folder.iterdir()}
    paths["torch-eager"].write_text("{")
    paths["torch-native"].write_text(paths["torch-native"].read_text().replace("0.02", "0.01"))
    paths["torch-compile"].unlink()
    shutil.copy(paths[FUSED], folder / "planted.json")
    done = call("a", "--from", tmp_path, "--table", "counters")
    assert done.exit_code == 1
    assert [row["profile"] for row in rows(done.stdout)] == ["torch-compile-max", FUSED]
    for said in (
        "eager.json is not a readable",
        "native.json was changed",
        "compile.json cannot be read",
        "planted.json is not in",
    ):
        assert said in done.stderr
    (store.path / "SHA256SUMS").write_bytes(b"\xff")
    assert call("a", "--from", tmp_path, "--table", "counters").exit_code == 1


def test_calls_that_were_edited_are_made_again(tmp_path: Path) -> None:
    store = stored(tmp_path)
    path = store.path / "calls.json"
    path.write_text(path.read_text().replace("supported", "regression"))
    done = call("a", "--from", tmp_path, "--table", "calls")
    assert done.exit_code == 1
    assert "one of them was changed since" in done.stderr
    assert {row["label"] for row in rows(done.stdout)} == {"supported"}


# Hostile values


@pytest.fixture
def hostile(tmp_path: Path) -> RunStore:
    more = [
        Measurement(case=CASE.name, profile=f"p{i}", status=Status.FAILED, reason=text, notes=[text])
        for i, text in enumerate([*HOSTILE, "x" * 10_000_000])
    ]
    return stored(tmp_path, "a", *more)


def test_texts_survive_exactly_in_parquet_and_quoted_in_csv(tmp_path: Path, hostile: RunStore) -> None:
    assert call("a", "--from", tmp_path, "--to", tmp_path / "x.parquet").exit_code == 0
    made = {row["profile"]: row for row in table(tmp_path / "x.parquet").to_pylist()}
    assert call("a", "--from", tmp_path, "--to", tmp_path / "x.csv").exit_code == 0
    csv.field_size_limit(20_000_000)
    told = rows((tmp_path / "x.csv").read_bytes().decode())
    assert len(told) == 3 * (3 + len(HOSTILE) + 1)
    assert all(None not in row and None not in row.values() for row in told), "every line has every column"
    cells = {row["profile"]: row for row in told}
    for i, text in enumerate([*HOSTILE, "x" * 10_000_000]):
        assert made[f"p{i}"]["reason"] == text
        assert json.loads(made[f"p{i}"]["notes"]) == [text]
        assert cells[f"p{i}"]["reason"] == (f"'{text}" if text[0] in "=+-@\t\r" else text)
        assert json.loads(cells[f"p{i}"]["notes"]) == [text]
    assert not any(cell[:1] in tuple("=+@\t\r") for row in told for cell in row.values() if cell)


def test_text_that_is_no_unicode_is_named_and_left_out(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", Measurement(case=CASE.name, profile="p", status=Status.FAILED, reason="HERE"))
    rewrite(store, f"records/{CASE.name}.r1.json", "HERE", "\\ud800")
    (store.path / "calls.json").unlink()
    for name in ("x.csv", "x.parquet"):
        done = call("a", "--from", tmp_path, "--to", tmp_path / name)
        assert done.exit_code == 1
        assert "r1.json is not a readable record: it holds half of a character" in done.stderr
    assert "HERE" in table(tmp_path / "x.parquet").column("reason").to_pylist()


def test_an_integer_that_no_column_holds_is_named(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.keep_counters(counters(FUSED, CASE.name, dram_bytes=2**63 - 2))
    store.keep_counters(counters("torch-eager", CASE.name, dram_bytes=2**63 - 1))
    rewrite(store, RunStore.counters_file(CASE.name, FUSED), str(2**63 - 2), str(2**63))
    done = call("a", "--from", tmp_path, "--table", "counters")
    assert done.exit_code == 1
    assert "dram_bytes: Input should be less than or equal to 9223372036854775807" in done.stderr
    assert [row["dram_bytes"] for row in rows(done.stdout)] == [str(2**63 - 1)]


# Files, streams, exit codes


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "a")
    path = tmp_path / "x.parquet"
    path.write_text("before")

    def ends(rows: object, *more: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_parquet", ends)
        assert call("a", "--from", tmp_path, "--to", path).exit_code != 0
    assert path.read_text() == "before"
    (tmp_path / "link.csv").symlink_to(tmp_path / "other.csv")
    assert call("a", "--from", tmp_path, "--to", tmp_path / "link.csv").exit_code == 0
    assert (tmp_path / "link.csv").is_symlink()
    with path.open() as reader:  # who reads it meanwhile has the old one, and not a part of the new
        assert call("a", "--from", tmp_path, "--to", path).exit_code == 0
        assert reader.read() == "before"
    assert table(path).num_rows == 9
    assert {p.name for p in tmp_path.iterdir()} == {"a", "x.parquet", "link.csv", "other.csv"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "there is no run 'nothing' in"),
        (["x" * 5000], "there is no run 'xxx"),
        (["a", "--table", "rows"], "choose from records, speedups, calls, counters"),
        (["a", "--table", "calls", "--pooled"], "--pooled is for records and speedups, not for calls"),
        (["a", "--format", "json"], "choose from csv, parquet"),
        (["a", "--to", "x.json"], "the suffix tells no format"),
        (["a", "--to", "nowhere/x.csv"], "x.csv cannot be written: No such file or directory"),
        (["a", "--to", "a", "--format", "csv"], "is no file"),
        (["--from", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_usage_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path, "a")
    done = call(*words, *([] if "--from" in words else ["--from", "."]))
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.startswith("norm-fusion export: ") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_pyarrow_there_is_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "a")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert call("a", "--from", tmp_path).exit_code == 0
    for words in (["--to", tmp_path / "x.parquet"], ["--format", "parquet"]):
        done = call("a", "--from", tmp_path, *words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == (
            "norm-fusion export: Parquet needs pyarrow: pip install 'norm-fusion[export]'; CSV does not\n"
        )
    assert not (tmp_path / "x.parquet").exists()


def run(*words: object) -> Sequence[str]:
    return [sys.executable, "-m", "norm_fusion", "export", *map(str, words)]


def test_stdout_has_csv_and_nothing_else(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", Measurement(case=CASE.name, profile="p", status=Status.FAILED, reason="ångström →"))
    (store.path / "records" / f"{CASE.name}.r1.json").write_text("{")
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(run("--from", tmp_path), capture_output=True, check=False, env=plain)
    assert done.returncode == 1
    assert b"r1.json is not a readable record" in done.stderr
    assert b"\r" not in done.stdout
    lines = list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))
    assert {len(line) for line in lines} == {len(export.TABLES["records"])}
    assert len(lines) == 1 + 2 * 4
    assert "ångström →" in done.stdout.decode()


def test_a_reader_may_go_when_it_has_enough() -> None:
    with subprocess.Popen(run("--from", EVIDENCE), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"run_id,case,")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_nothing_more_is_read_when_nobody_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    taken: list[int] = []
    row = tuple("x" * 100 for _ in export.TABLES["records"])
    with os.fdopen(theirs, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        command._to_stdout((taken.append(i) or row for i in range(1000)), "records", "csv")
    assert len(taken) < 100


@pytest.fixture
def terminal() -> Iterator[int]:
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_parquet_is_piped_and_never_shown_on_a_terminal(tmp_path: Path, terminal: int) -> None:
    stored(tmp_path, "a")
    words = run("--from", tmp_path, "--format", "parquet")
    done = subprocess.run(words, capture_output=True, check=True)
    assert done.stderr == b""
    assert parquet.read_table(io.BytesIO(done.stdout)).num_rows == 9
    refused = subprocess.run(words, stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=60)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"norm-fusion export: Parquet is nothing for a terminal")


def test_neither_torch_nor_pyarrow_is_loaded_for_csv(tmp_path: Path) -> None:
    stored(tmp_path, "a")
    code = (
        "import sys; from norm_fusion.cli import lab, export; "
        f"lab(['export', '--from', {str(tmp_path)!r}], standalone_mode=False); "
        "print(*sorted({'torch', 'triton', 'pyarrow', 'pandas', 'pickle5'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (10, "\n")


def test_help_teaches() -> None:
    text = " ".join(call("--help").stdout.split())
    for word in ("Examples:", "Exit codes:", "pandas", "duckdb", "column -s, -t", "apostrophe", "norm-fusion[export]"):
        assert word in text
    for name in export.TABLES:
        assert name in text
