"""The harness tried for real on this CPU, reduced: what has to hold on any machine, however busy."""

import json
import subprocess
import sys

import pytest

from norm_fusion.records import HarnessCheck, HarnessReport

PROGRAM = "from norm_fusion.cli import norm_fusion as main; main()"
GROUPS = ("aa", "known", "disturbed", "sabotage", "breakage")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> HarnessReport:
    folder = tmp_path_factory.mktemp("harness")
    words = ["check-harness", "--device", "cpu", "--reduced", "--json", "--run-id", "h", "--output", str(folder)]
    for group in GROUPS:
        words += ["--only", group]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    made = HarnessReport.model_validate(json.loads(done.stdout))
    assert HarnessReport.model_validate_json((folder / "h" / "harness.json").read_bytes()) == made
    assert (folder / "h" / "harness.md").read_text().startswith("# Harness check h")
    return made


def check(report: HarnessReport, name: str) -> HarnessCheck:
    return next(one for one in report.checks if one.name == name)


@pytest.mark.parametrize("name", ["A/A: false labels, wall", "sabotage", "breakage", "disturbed workloads"])
def test_what_must_hold_on_a_busy_machine_too(report: HarnessReport, name: str) -> None:
    found = check(report, name)
    assert found.passed, f"{found.found}\n{found.details}"


def test_every_cheat_is_found_by_a_reason_of_its_own(report: HarnessReport) -> None:
    codes = {str(row["contestant"]): row["code"] for row in check(report, "sabotage").details}
    assert codes == {
        "stale_output": "wrong-output",
        "cached_output": "wrong-output",
        "side_stream": "wrong-output",
        "mutated_input": "mutated-input",
        "wrong_dtype": "wrong-kind",
        "patched_clock": "timer",
        "skipped_rows": "wrong-output",
        "lying_clock": "timer",
    }
    assert codes["cached_output"] in ("above-ceiling", "wrong-output")


def test_spins_take_as_long_as_they_take(report: HarnessReport) -> None:
    """The bound of 1% is for quiet machines; here it is that nothing is off by a factor."""
    rows = check(report, "known answer").details
    assert len(rows) == 16
    for row in rows:
        known, measured = float(row["known_us"] or 0), float(row["measured_us"] or 0)
        assert known <= measured < 1.5 * known + 20
