"""`norm-fusion decide`: exit codes, what goes to which stream, and that what is committed follows from the evidence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

sys.path.append(str(Path(__file__).parent / "evidence"))

from made import CASE, FUSED
from speaking import CLEAN, COMPILE, EAGER, NATIVE, OF_EXAMPLE, OTHER, USUAL, example, kept, toml

from norm_fusion.cli import lab
from norm_fusion.cli.decide import _decide, _here
from norm_fusion.evidence.ledger import LEDGER
from norm_fusion.records import Decided, Label, Ledger
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case

ROOT = Path(__file__).parents[1]
OUTSIDE: Mapping[str, object] = {"boundary": True, "baseline": COMPILE}


ALONE = typer.Typer()  # Typer makes all commands of an app anew for each call, which takes longer than to decide
ALONE.command()(_decide)


def invoke(*words: str, app: typer.Typer = ALONE) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, words)


class Place:
    """A folder of runs and one of decisions."""

    def __init__(self, path: Path) -> None:
        self.evidence, self.decisions = path / "evidence", path / "decisions"
        self.decisions.mkdir(parents=True)

    @property
    def ledger(self) -> Path:
        return self.decisions / LEDGER

    def write(self, name: str = "fused", **claims: Mapping[str, object]) -> None:
        (self.decisions / f"{name}.toml").write_text(toml(**claims))

    def decide(self, *words: str) -> Result:
        folders = ["--from", str(self.evidence), "--decisions", str(self.decisions)]
        as_of = [] if "--as-of" in words else ["--as-of", "2026-11-29"]
        return invoke(*folders, *as_of, *words)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two runs, an example, and two decisions that were decided."""
    place = Place(tmp_path_factory.mktemp("template"))
    kept(place.evidence, "old", day=10, counters={FUSED: {"dram_pct": 60.0}})
    kept(place.evidence, "new", day=20)
    example(place.evidence)
    place.write(over=dict[str, object](), outside=OUTSIDE, block=OF_EXAMPLE)
    place.write("counted", dram={"metric": "dram_pct", "at_least": 50, "baseline": None})
    done = place.decide("--write")
    assert (done.exit_code, done.stderr) == (
        0,
        f"norm-fusion decide: since {place.ledger}: nothing was decided before\n",
    )
    return place


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Place:
    """Its own copy."""
    shutil.copytree(template.evidence, tmp_path / "evidence")
    made = Place(tmp_path)
    for path in template.decisions.iterdir():
        shutil.copy(path, made.decisions)
    return made


def test_what_was_written_is_what_follows(place: Place) -> None:
    was = place.ledger.read_bytes()
    done = place.decide("--check")
    assert (done.exit_code, done.stderr) == (0, "")
    assert place.ledger.read_bytes() == was, "--check keeps nothing"
    assert place.decide("--write", "--check").exit_code == 0
    assert place.ledger.read_bytes() == was


def test_the_committed_decisions_follow_from_the_committed_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = invoke("decide", "--check", "--json", "--as-of", "2026-11-29", app=lab)
    assert (done.exit_code, done.stderr) == (0, "")
    committed = Ledger.model_validate_json((ROOT / "decisions" / LEDGER).read_bytes())
    assert len(json.loads(done.stdout)) == len(committed.decisions) == len([*(ROOT / "decisions").glob("*.toml")])
    assert str(ROOT) not in (ROOT / "decisions" / LEDGER).read_text()


def test_the_matrix_has_a_line_for_each_by_domain(place: Place) -> None:
    lines = place.decide().stdout.splitlines()
    assert lines.count("D") == 1
    rows = [line.split() for line in lines if line.endswith((" fused", " counted"))]
    assert rows == [
        ["Fused", "Measured", "1", "of", "1", "-", "2026-11-10", "counted"],
        ["Fused", "Caveated", "2", "of", "2", "0", "of", "1", "2026-11-20", "fused"],
    ]
    assert "Fused is Caveated: holds in 0 of 1 row, does not hold in 1: “outside is so” (boundary)." in lines
    assert "Fused is Measured: figures show it in 1 of 1 row, and no call says so." in lines


def test_one_decision_whole(place: Place) -> None:
    text = place.decide("fused").stdout
    for said in (
        "Fused  Caveated  D · owner kernels · fused",
        "Rests on: over is so (speedup at least 1.02 in kernels)",
        "Boundary: outside is so (speedup at least 1.02 in kernels)",
        f"- new speaks for {CASE.name}. Passed over: old older than new.",
        "- “outside is so”: holds nowhere (no difference): rmsnorm-1024x1024-float16.",
        "- Decide anew with another GPU than a GPU;",
    ):
        assert said in text
    assert text.index("Selected runs") < text.index("Evidence boundary")
    row = next(line.split() for line in text.splitlines() if line.startswith(CASE.name) and "holds" in line)
    assert row[:2] + row[-4:] == [CASE.name, "2.00x", EAGER, "supported", "holds", "new"]
    assert "Fused  Measured" not in text
    both = place.decide("fused", "counted", "fused").stdout
    assert both.count("Evidence boundary") == 2


def test_rows_of_two_gpus_are_told_apart(place: Place) -> None:
    assert " GPU" not in place.decide("fused").stdout.partition("Evidence boundary")[0]
    kept(place.evidence, "b", of=OTHER)
    heads = [line for line in place.decide("fused").stdout.splitlines() if line.startswith("case ")]
    assert [head.split()[-1] for head in heads] == ["GPU", "GPU", "run"]


def test_json_is_one_array_alone_on_stdout(place: Place) -> None:
    kept(place.evidence, "newer", USUAL | {FUSED: 0.4}, day=21)
    done = place.decide("--json", "--as-of", "2027-06-01")
    found = [Decided.model_validate(one) for one in json.loads(done.stdout)]
    assert [(one.name, one.status.value) for one in found] == [("counted", "Measured"), ("fused", "Rejected")]
    assert "since" in done.stderr and "warning" in done.stderr
    (one,) = json.loads(place.decide("fused", "--json").stdout)
    assert one["claims"][0]["rows"][0]["label"] == "regression"


def test_a_reader_of_json_may_go_when_it_has_enough(place: Place) -> None:
    code = "from norm_fusion.cli import norm_fusion; norm_fusion()"
    words = ["decide", "--json", "--as-of", "2026-11-29", "--from", str(place.evidence)]
    words += ["--decisions", str(place.decisions)]
    made = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert made.stdout is not None and made.stderr is not None
    made.stdout.close()
    assert made.stderr.read() == b""
    assert made.wait() == 0


# --check


def _edit(was: str, is_: str) -> Callable[[Place], None]:
    def edit(place: Place) -> None:
        text = place.ledger.read_text()
        assert was in text
        place.ledger.write_text(text.replace(was, is_))

    return edit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_edit('"Caveated"', '"Supported"'), "Fused is Caveated, it was Supported: holds in 0 of 1 row"),
        (_edit('"does not hold"', '"holds"'), f"does not hold (no difference) over {COMPILE} by new, it was holds"),
        (_edit('"no difference"', '"supported"'), "it was does not hold (supported)"),
        (_edit('"threshold": 1.02', '"threshold": 1.01'), "its threshold is 1.02, it was 1.01"),
        (_edit('"run": "new"', '"run": "best"'), "holds (supported) over torch-eager by new, it was"),
        (_edit('"boundary": true', '"boundary": false'), "its boundary is True, it was False"),
        (_edit('"owner": "kernels"', '"owner": "me"'), "its owner was written anew"),
        (_edit('"deciding": ', '"deciding": 10'), "the rule of decisions is version"),
        (lambda place: place.ledger.unlink(), "nothing was decided before"),
        (
            lambda place: kept(place.evidence, "newer", USUAL | {FUSED: 0.4}, day=21),
            "Fused is Rejected, it was Caveated",
        ),
        (lambda place: kept(place.evidence, "newer", day=21), "by newer, it was holds"),
        (lambda place: shutil.rmtree(place.evidence / "new"), "by old, it was holds"),
        (lambda place: kept(place.evidence, "b", of=OTHER), f"{CASE.name} on another GPU is new: holds"),
        (
            lambda place: kept(place.evidence, "few", cases=[Case.parse("rmsnorm-8x8-float16")], processes=2),
            "No run may speak for rmsnorm-8x8-float16 on a GPU: few measured it in 2 processes, 5 are needed, which",
        ),
        (lambda place: place.write(over={"at_least": 3}), "Fused is Rejected, it was Caveated"),
        (lambda place: (place.decisions / "counted.toml").unlink(), "Fused is gone; it was Measured"),
        (
            lambda place: kept(place.evidence, "older", USUAL | {FUSED: 0.4}, day=5),
            "older runs say holds (old), does not hold (older), and said holds (old)",
        ),
    ],
)
def test_check_fails_where_what_is_committed_does_not_follow(
    place: Place, change: Callable[[Place], object], says: str
) -> None:
    change(place)
    done = place.decide("--check")
    assert done.exit_code == 1
    told = [line for line in done.stderr.splitlines() if line.startswith(f"norm-fusion decide: since {place.ledger}: ")]
    assert any(says in line for line in told) and len(told) == len(done.stderr.splitlines())
    assert place.decide("--write").stderr == done.stderr
    done = place.decide("--check")
    assert (done.exit_code, done.stderr) == (0, "")


def test_without_check_a_change_is_told_and_no_more(place: Place) -> None:
    kept(place.evidence, "newer", USUAL | {FUSED: 0.4}, day=21)
    done = place.decide()
    assert done.exit_code == 0
    assert f"norm-fusion decide: since {place.ledger}: Fused is Rejected, it was Caveated: does not" in done.stderr


def test_runs_that_change_nothing_leave_it_as_it_is(place: Place) -> None:
    kept(place.evidence, "quick", USUAL | {FUSED: 0.4}, day=25, quick=True)
    kept(
        place.evidence,
        "other",
        {NATIVE: 0.1, "triton-fused-layernorm": 0.1},
        cases=[Case.parse("layernorm-8x8-float16")],
    )
    assert place.decide("--check").exit_code == 0


def test_calls_that_no_records_make_are_seen_where_it_counts(place: Place) -> None:
    store = RunStore(place.evidence / "new")
    stored = store.conclusions()
    assert stored is not None
    lies = [call.model_copy(update={"label": Label.SUPPORTED, "speedup": 99.0}) for call in stored.calls]
    store.write_conclusions(stored.model_copy(update={"calls": lies}))
    done = place.decide("--check")
    assert done.exit_code == 1
    assert "new/calls.json is not what its records make: the call" in done.stderr
    assert "is supported" in done.stderr and "99.0" in done.stderr
    assert "nothing is kept while files are left out" in place.decide("--write").stderr
    verified = CliRunner().invoke(lab, ["verify", str(store.path)])
    assert verified.exit_code == 1 and "calls.json: the call" in verified.stderr


# Evidence that is damaged


def test_a_damaged_run_is_named_fails_and_nothing_is_kept(place: Place) -> None:
    was = place.ledger.read_bytes()
    path = next((place.evidence / "new" / "records").glob("*.r1.json"))
    path.write_bytes(path.read_bytes()[:100])
    done = place.decide()
    assert done.exit_code == 1
    assert done.stderr.startswith(f"norm-fusion decide: left out: new: {path} is not a readable record")
    assert "by old, it was holds (supported) over torch-eager by new" in done.stderr
    done = place.decide("--write")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "norm-fusion decide: nothing is kept while files are left out: bring them back, or delete their runs"
    )
    assert place.ledger.read_bytes() == was
    shutil.rmtree(place.evidence / "old")
    (place.decisions / "counted.toml").unlink()
    done = place.decide()
    assert (done.exit_code, done.stdout) == (2, "")
    first, *_, second = done.stderr.splitlines()
    assert first.startswith(f"norm-fusion decide: left out: new: {path} is not")
    assert (
        f"key 'claims.over.cases' names 'rmsnorm-*x*-*', for which no run may speak: new is damaged: {path}" in second
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cut/manifest.json", "{"),
        ("newer/manifest.json", '{"schema_version": 99}'),
        ("check/harness.json", "[]"),
        ("examples/odd.json", '{"runs": [{"samples": 3}]}'),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_fails(place: Place, file: str, text: str) -> None:
    (place.evidence / file).parent.mkdir(exist_ok=True)
    (place.evidence / file).write_text(text)
    done = place.decide("--json")
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)) == 2, "the others are decided"
    assert done.stderr.startswith(f"norm-fusion decide: left out: {place.evidence / file}")
    assert done.stderr.count("\n") == 1


def test_hostile_texts_steer_no_terminal_and_fill_none(place: Place) -> None:
    nasty = "\x1b[31m\u202e" + "x" * 200
    kept(place.evidence, "red", day=21, of=CLEAN.model_copy(update={"device_name": nasty}))
    kept(place.evidence, "long", day=21, of=CLEAN.model_copy(update={"torch": "x" * 10**6}))
    for words in ((), ("fused",), ("--json",)):
        done = place.decide(*words)
        assert done.exit_code == 1  # "long" is left out
        for text in (done.stdout, done.stderr):
            assert "\x1b" not in text and len(text) < 20_000
            assert "\u202e" not in text or words == ("--json",)  # JSON says what there is
    done = place.decide()
    assert "left out: long: its environment has a text of 1,000,000 characters" in done.stderr
    place.ledger.write_text(place.ledger.read_text().replace('"run": "new"', f'"run": "{"y" * 10**6}"'))
    assert len(place.decide().stderr) < 20_000


# Bad usage


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "there is no decision 'nothing': choose from counted, fused"),
        (["--from", "none"], "there is no folder none: --from names one that holds runs"),
        (["--decisions", "none"], "none holds no decisions: each is a .toml file"),
    ],
)
def test_bad_usage_is_one_line(place: Place, words: list[str], says: str) -> None:
    done = place.decide(*words)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"norm-fusion decide: {says}\n")


@pytest.mark.parametrize("as_of", ["soon", "2026-13-01", "20261129"])
def test_a_date_is_a_date(place: Place, as_of: str) -> None:
    assert place.decide("--as-of", as_of).exit_code == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 99}', "\x00", "[" * 10**5])
def test_a_damaged_ledger_is_named_and_says_what_to_do(place: Place, text: str) -> None:
    place.ledger.write_text(text)
    for words in ([], ["--check"], ["--write"]):
        done = place.decide(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"norm-fusion decide: {place.ledger} ") and done.stderr.count("\n") == 1
        assert "bring it back, or delete it and decide with --write" in done.stderr
    place.ledger.unlink()
    assert place.decide("--write").exit_code == 0


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        (
            {"cases": ["rmsnorm-3x3-float16"]},
            "line 13: key 'claims.over.cases' names 'rmsnorm-3x3-float16', which no run",
        ),
        ({"baseline": "liger"}, "line 13: key 'claims.over.cases' names 'rmsnorm-*x*-*', for which no run may speak: "),
        (
            {"example": "none", "cases": None},
            "line 15: key 'claims.over.example' names 'none', and the evidence has block",
        ),
        ({"at_least": "much"}, "line 16: key 'claims.over.at_least' must be a number"),
    ],
)
def test_a_decision_that_names_what_is_missing_fails_with_file_and_key(
    place: Place, claim: dict[str, object], says: str
) -> None:
    place.write(over=claim)
    done = place.decide("--check")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"norm-fusion decide: {place.decisions / 'fused.toml'}, {says}")


def test_an_empty_folder_of_evidence_decides_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    place.evidence = tmp_path / "none"
    done = place.decide()
    assert (done.exit_code, done.stdout) == (2, "")
    assert "which no run has measured" in done.stderr


def test_several_folders_and_one_that_is_named_twice(place: Place, tmp_path: Path) -> None:
    kept(tmp_path / "more", "newest", day=22)
    assert "by newest, it was" in place.decide("--from", str(tmp_path / "more")).stderr
    again = place.decide("--from", f"{place.evidence}/../evidence", "--check")
    assert (again.exit_code, again.stderr) == (0, "")
    kept(tmp_path / "more", "new", day=22)
    done = place.decide("--from", str(tmp_path / "more"))
    assert done.exit_code == 1
    assert f"left out: {tmp_path / 'more' / 'new'} has the name of {place.evidence / 'new'}" in done.stderr


# Age, and what is used here


def test_age_only_warns(place: Place) -> None:
    for as_of, warnings in (
        ("2026-11-01", 0),
        ("2027-02-18", 0),
        ("2027-02-19", 1),
        ("2027-03-01", 2),
        ("9999-12-31", 2),
    ):
        done = place.decide("--check", "--as-of", as_of)
        assert done.exit_code == 0
        assert done.stderr.count("norm-fusion decide: warning: Fused is ") == done.stderr.count("\n") == warnings


def test_another_machine_only_warns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("norm_fusion.cli.decide._here", lambda: {"torch": "2", "driver": "9"})
    assert place.decide("--check").stderr == ""
    done = place.decide("--check", "--here")
    assert done.exit_code == 0
    assert (
        done.stderr.splitlines() == ["norm-fusion decide: warning: Fused: driver is 9 here, its evidence is of 1"] * 2
    )


def test_what_is_used_here_is_told_without_torch() -> None:
    assert {"torch", "triton"} <= _here().keys() <= {"torch", "triton", "driver", "gpu"}


def test_the_help_teaches() -> None:
    text = " ".join(invoke("decide", "--help", app=lab).stdout.split())
    for word in (
        "Examples:",
        "Exit codes:",
        "--check",
        "--write",
        "--as-of",
        "--here",
        "--json",
        "Supported",
        "Caveated",
    ):
        assert word in text
