"""The commands that look at stored runs: judge, compare, and show and report of runs of several processes."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

sys.path.append(str(Path(__file__).parent / "evidence"))

from made import CASE, FUSED, GPU, manifest, measured, recorded

from norm_fusion.cli import lab
from norm_fusion.evidence.verdicts import RULE, conclude
from norm_fusion.records import SCHEMA, Label, Manifest, Measurement, Record, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import ROOF

OLD = Path(__file__).parent / "stored"  # a run of one process, by the first schema


def call(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(lab, list(words))


def stored(
    parent: Path, run_id: str, fused_ms: Sequence[float], *, judged: bool = False, of: Manifest | None = None
) -> RunStore:
    """A run on disk, a process for each time of the fused kernel; torch-eager takes 0.2 ms."""
    store = RunStore.create(parent, run_id)
    of = (of or manifest()).model_copy(update={"run_id": run_id})
    store.write_manifest(of)
    made = recorded([[measured("torch-eager", 0.2), measured(FUSED, ms), measured(ROOF, 0.05)] for ms in fused_ms])
    for replicate in range(len(fused_ms)):
        store.keep(CASE.name, 0, replicate, [pair for pair in made if pair[0].replicate == replicate])
    if judged:
        store.write_conclusions(conclude(store.records(), store.samples, of))
    return store


FAST = [0.1, 0.1001, 0.0999]
CLAIM = f"{CASE.name} {FUSED} over torch-eager, graph cold"


def test_judge_prints_every_call_where_none_were_stored(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", FAST)
    done = call("judge", "a", "--output", str(tmp_path))
    assert done.exit_code == 0
    assert done.stdout.startswith(f"1 calls by rule {RULE}: 1 supported\n")
    assert f"{CLAIM}: supported: 95% interval" in done.stdout
    assert store.conclusions() is None, "stored without --write"


def test_judge_says_plainly_that_nothing_changed(tmp_path: Path) -> None:
    stored(tmp_path, "a", FAST, judged=True)
    done = call("judge", "a", "--output", str(tmp_path))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [f"nothing changed against the stored calls, by rule {RULE}"]


def test_judge_prints_what_changed_and_stores_it_when_asked(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", FAST, judged=True)
    was = store.conclusions()
    assert was is not None
    old = [c.model_copy(update={"label": Label.INCONCLUSIVE, "code": "straddles", "rule": 0}) for c in was.calls]
    gone = old[0].model_copy(update={"profile": "torch-compile"})
    store.write_conclusions(was.model_copy(update={"calls": [*old, gone], "rule": 0}))
    for _ in range(2):  # without --write nothing is stored, so that the second says the same
        done = call("judge", "a", "--output", str(tmp_path))
        changed = done.stdout.splitlines()[1:]
        assert changed[0].startswith(
            f"{CLAIM}: inconclusive (straddles) -> supported (above-delta), rule 0 -> {RULE}: 95% interval"
        )
        assert changed[1].endswith(
            f"torch-compile over torch-eager, graph cold: inconclusive (straddles) -> no call, rule 0 -> {RULE}"
        )
    listed = json.loads(call("judge", "a", "--output", str(tmp_path), "--json").stdout)
    assert [(c["label"], c["was"]["label"]) for c in listed] == [("supported", "inconclusive")]
    assert call("judge", "a", "--output", str(tmp_path), "--write").exit_code == 0
    assert store.conclusions() == was


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "r1.json is not a readable record"),
        (
            lambda path: path.write_text(path.read_text().replace(f'"schema_version":{SCHEMA}', '"schema_version":9')),
            "update",
        ),
        (
            lambda path: path.write_text(path.read_text().replace('"p50_ms":0.1', '"p50_ms":0.01')),
            "r1.json was changed after",
        ),
        (lambda path: path.write_text("{}"), "r1.json is not a readable record"),
    ],
    ids=["truncated", "newer", "edited", "no-record"],
)
def test_a_bad_file_is_named_the_others_are_judged_and_nothing_is_stored(
    tmp_path: Path, damage: object, says: str
) -> None:
    store = stored(tmp_path, "a", [*FAST, 0.1], judged=True)
    before = (store.path / "calls.json").read_bytes()
    damage(store.path / "records" / f"{CASE.name}.r1.json")  # type: ignore[operator]
    done = call("judge", "a", "--output", str(tmp_path), "--write")
    assert done.exit_code == 1
    assert says in done.stderr
    assert "nothing stored" in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout.startswith("1 calls")
    assert (store.path / "calls.json").read_bytes() == before


def test_changed_and_missing_samples_are_named(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", [*FAST, 0.1, 0.1])
    (store.path / "samples" / f"{CASE.name}.r0.json.gz").write_bytes(b"x")
    (store.path / "samples" / f"{CASE.name}.r1.json.gz").unlink()
    done = call("judge", "a", "--output", str(tmp_path), "--json")
    assert done.exit_code == 1
    assert "r0.json.gz was changed after it was written" in done.stderr
    assert "r1.json.gz is missing" in done.stderr
    assert [(c["label"], c["code"]) for c in json.loads(done.stdout)] == [("invalid", "unreadable")]


def test_unreadable_calls_are_named_and_made_again(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", FAST, judged=True)
    good = (store.path / "calls.json").read_bytes()
    (store.path / "calls.json").write_bytes(good[:-50])
    shown = call("show", "a", "--output", str(tmp_path), "--json")
    assert shown.exit_code == 1
    assert {record["processes"] for record in json.loads(shown.stdout)} == {3}
    done = call("judge", "a", "--output", str(tmp_path), "--write")
    assert done.exit_code == 1
    assert "calls.json is not a readable conclusions" in done.stderr
    assert (store.path / "calls.json").read_bytes() == good


def test_old_runs_are_judged_shown_and_compared(tmp_path: Path) -> None:
    done = call("judge", "schema-1", "--output", str(OLD))
    assert (done.exit_code, done.stderr) == (0, "")
    assert (
        done.stdout == f"0 calls by rule {RULE}: there are none of a quick run, of one process, or of damaged records\n"
    )
    shown = call("show", "schema-1", "--output", str(OLD), "--json")
    records = [Record.model_validate(item) for item in json.loads(shown.stdout)]
    assert {record.processes for record in records} == {1}
    copy = shutil.copytree(OLD / "schema-1", tmp_path / "copy")
    compared = call("compare", "schema-1", str(copy), "--output", str(OLD))
    assert compared.exit_code == 0
    assert "inconclusive (processes) in" in compared.stdout
    assert "1 of at least 3 processes" in compared.stdout


def test_show_and_report_pool_the_processes(tmp_path: Path) -> None:
    stored(tmp_path, "a", [0.1, 0.11, 0.12])
    shown = call("show", "a", "--output", str(tmp_path), "--json")
    fused = next(r for r in json.loads(shown.stdout) if r["profile"] == FUSED)
    assert (fused["replicate"], fused["processes"], fused["n_samples"]) == (None, 3, 60)
    assert fused["p50_ms"] == pytest.approx(0.11)
    assert fused["call"]["torch-eager"] == "supported"
    assert "110 µs" in call("show", "a", "--output", str(tmp_path)).stdout
    done = call("report", "a", "--output", str(tmp_path))
    assert done.exit_code == 0
    assert "110 µs" in (tmp_path / "a" / "report.html").read_text()


def test_samples_that_were_cut_are_told_by_whoever_reads_stored_calls(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", FAST, judged=True)
    assert call("show", "a", "--output", str(tmp_path)).exit_code == 0
    path = next((store.path / "samples").glob("*.r1.json.gz"))
    path.write_bytes(path.read_bytes()[:-20])
    shutil.copytree(store.path, tmp_path / "b")
    for words in (["show", "a"], ["report", "a"], ["compare", "a", "b"]):
        done = call(*words, "--output", str(tmp_path))
        assert done.exit_code == 1
        assert "was changed after it was written" in done.stderr


@pytest.mark.parametrize("damaged", ["r2", "r*"])
def test_what_is_left_of_a_case_whose_file_cannot_be_read_is_not_quoted(tmp_path: Path, damaged: str) -> None:
    store = stored(tmp_path, "a", FAST)
    for path in (store.path / "records").glob(f"{CASE.name}.{damaged}.json"):
        path.write_text("{")
    done = call("show", "a", "--output", str(tmp_path), "--json")
    assert done.exit_code == 1
    assert "not believed: " in done.stderr and "r2.json" in done.stderr
    shown = {record["profile"]: record for record in json.loads(done.stdout)}
    assert {"torch-eager", FUSED} <= shown.keys()
    for record in shown.values():
        assert (record["status"], record["code"], record["speedup"]) == ("failed", "unreadable", {})
        assert "is not a readable record" in record["reason"]


def test_a_rerun_that_is_damaged_brings_no_earlier_attempt_back(tmp_path: Path) -> None:
    store = stored(tmp_path, "a", FAST)
    made = recorded([[measured("torch-eager", 0.2), measured(FUSED, ms)] for ms in FAST])
    for record, samples in made:
        again = record.model_copy(update={"attempt": 1})
        assert samples is not None and record.replicate is not None
        store.keep(CASE.name, 1, record.replicate, [(again, samples.model_copy(update={"key": again.key}))])
    (store.path / "records" / f"{CASE.name}.a1.r2.json").write_text("{")
    calls = json.loads(call("judge", "a", "--output", str(tmp_path), "--json").stdout)
    assert {(one["label"], one["code"]) for one in calls} == {("invalid", "unreadable")}


# compare


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("pair")
    stored(parent, "before", FAST)
    stored(parent, "again", FAST)
    stored(parent, "after", [ms * 1.1 for ms in FAST])
    other = GPU.model_copy(update={"torch": "3", "driver": "2"})
    stored(parent, "elsewhere", FAST, of=manifest(other))
    return parent


def test_compare_says_what_became_slower(pair: Path) -> None:
    done = call("compare", "before", "after", "--output", str(pair))
    assert done.exit_code == 0
    row = next(line for line in done.stdout.splitlines() if FUSED in line)
    assert row.split()[:7] == [FUSED, "graph", "100", "µs", "110", "µs", "0.909x"]
    assert row.rstrip().endswith("slower")
    assert "copy (the roof)" in done.stdout
    assert "after against before, 2 rows: 1 slower, 1 no difference." in done.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["before", "after"], 0),
        (["before", "after", "--fail-on", "regression"], 1),
        (["before", "after", "--fail-on", "difference"], 1),
        (["before", "after", "--fail-on", "supported"], 0),
        (["after", "before", "--fail-on", "regression"], 0),
        (["after", "before", "--fail-on", "supported", "--fail-on", "regression"], 1),
        (["before", "after", "--fail-on", "no-difference"], 1),
        (["before", "again", "--fail-on", "difference", "--fail-on", "inconclusive"], 0),
        (["before", "before"], 2),
        (["before", "after", "--fail-on", "slower"], 2),
        (["before", "elsewhere"], 2),
        (["before", "elsewhere", "--allow", "torch"], 2),
        (["before", "elsewhere", "--allow", "torch", "--allow", "driver"], 0),
        (["before", "elsewhere", "--allow", "all"], 0),
        (["before", "after", "--allow", "weather"], 2),
        (["before", "nothing"], 2),
    ],
)
def test_compares_exit_codes(pair: Path, words: list[str], code: int) -> None:
    done = call("compare", *words, "--output", str(pair))
    assert done.exit_code == code
    if code == 2:
        assert done.stderr.startswith("norm-fusion compare: ")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_unlike_runs_are_told_what_to_add(pair: Path) -> None:
    done = call("compare", "before", "elsewhere", "--output", str(pair))
    assert done.stderr == (
        "norm-fusion compare: before and elsewhere are unlike: driver 1 / 2; torch 2 / 3. "
        "To compare them all the same add --allow driver --allow torch (or --allow all)\n"
    )


def test_the_machine_is_shown_and_never_fails_a_comparison(tmp_path: Path, pair: Path) -> None:
    for name in ("before", "after"):
        shutil.copytree(pair / name, tmp_path / name)
    store = RunStore.open("after", tmp_path)
    slow = recorded([[measured("torch-eager", 0.2), measured(FUSED, ms), measured(ROOF, 0.09)] for ms in FAST])
    for replicate in range(3):
        store.keep(CASE.name, 0, replicate, [made for made in slow if made[0].replicate == replicate])
    done = call("compare", "before", "after", "--output", str(tmp_path), "--fail-on", "difference")
    assert done.exit_code == 0
    assert "the roof itself changed in 1 of 1 series" in done.stdout


def test_a_gate_lets_nothing_pass_that_is_wrong_gone_or_undecided(tmp_path: Path, pair: Path) -> None:
    def after(*fused: Measurement) -> str:
        name = f"b{len(list(tmp_path.iterdir()))}"
        store = RunStore.create(tmp_path, name)
        store.write_manifest(manifest(run_id=name))
        made = recorded([[measured("torch-eager", 0.2), one, measured(ROOF, 0.09)] for one in fused])
        for replicate in range(len(fused)):
            store.keep(CASE.name, 0, replicate, [each for each in made if each[0].replicate == replicate])
        done = call("compare", str(pair / "before"), name, "--output", str(tmp_path), "--fail-on", "regression")
        assert (done.exit_code, "--fail-on: " in done.stderr) in {(1, True), (0, False)}
        return done.stderr

    assert after(*[measured(FUSED, ms) for ms in FAST]) == ""
    assert f"{FUSED} at {CASE.name} (graph cold) is invalid" in after(
        *[measured(FUSED, ms, status=Status.WRONG, reason="r") for ms in FAST]
    )
    assert f"{FUSED} at {CASE.name} was not timed in B: it crashed" in after(
        *[measured(FUSED, None, status=Status.FAILED, reason="it crashed") for _ in FAST]
    )
    assert "no row could be decided" in after(measured(FUSED, FAST[0]))


def test_compares_json_is_an_array_of_rows(pair: Path) -> None:
    done = call("compare", "before", "after", "--output", str(pair), "--json")
    rows = {row["profile"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"torch-eager", FUSED, ROOF}
    assert (rows[FUSED]["label"], rows[FUSED]["a_processes"]) == ("regression", 3)
    assert rows[FUSED]["low"] < rows[FUSED]["speedup"] < rows[FUSED]["high"] < 1


def test_a_file_that_was_left_out_of_a_comparison_fails_it(tmp_path: Path, pair: Path) -> None:
    shutil.copytree(pair / "before", tmp_path / "cut")
    (tmp_path / "cut" / "records" / f"{CASE.name}.r0.json").write_text("[")
    done = call("compare", "cut", str(pair / "after"), "--output", str(tmp_path))
    assert done.exit_code == 1
    assert "r0.json is not a readable record" in done.stderr
    assert "2 rows: 2 invalid." in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("judge", ["Examples:", "Exit codes:", "--write", "supported, regression, no difference"]),
        ("compare", ["Examples:", "Exit codes:", "--allow", "--fail-on", "device, machine, clocks, driver"]),
    ],
)
def test_help_teaches(command: str, words: list[str]) -> None:
    text = " ".join(call(command, "--help").stdout.split())
    for word in words:
        assert word in text


def test_the_help_names_every_permission_and_every_label() -> None:
    from norm_fusion.evidence.compare import FAILURES, MUST_MATCH

    text = "".join(call("compare", "--help").stdout.split())
    for name in (*MUST_MATCH, *FAILURES):
        assert name in text
