"""What is committed beside the code: the runs in evidence/, and what README.md and docs/ quote of them."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from norm_fusion import functional
from norm_fusion.evidence.stored import rejudged
from norm_fusion.harness.page import page
from norm_fusion.records import HarnessReport
from norm_fusion.report.verdicts import changes
from norm_fusion.runs.store import RunStore

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.parent for path in (ROOT / "evidence").rglob("manifest.json"))
CHECKS = sorted((ROOT / "evidence").glob("*/harness.json"))


def test_what_is_quoted_is_what_the_runs_say() -> None:
    pages = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "-I", "docs", *pages], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plots_are_drawn_of_what_the_runs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import draw

    pictures = sorted(draw.FOLDER.glob("*.svg"))
    named = {f"{name}-{scheme}.svg": draw.told(name) for name in draw.plots() for scheme in ("light", "dark")}
    assert {path.name: draw.drawn_of(path) for path in pictures} == named, "python docs/draw.py draws them again"
    readme = (ROOT / "README.md").read_text()
    for path in pictures:
        assert path.relative_to(ROOT).as_posix() in readme
        assert "var(--" not in path.read_text() and "<script" not in path.read_text()


def test_every_parameter_of_an_operator_is_in_the_table_of_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import support

    plain = {"input", "normalized_shape", "weight", "eps", "norm_before_gate"}
    found = {name for each in support.OPERATORS for name in inspect.signature(each).parameters}
    assert found - plain == set(support.FEATURES)
    assert sorted(each.__name__ for each in support.OPERATORS) == functional.__all__


@pytest.mark.parametrize("run", RUNS, ids=lambda path: str(path.relative_to(ROOT / "evidence")))
def test_evidence_is_whole_and_today_judged_as_it_was(run: Path) -> None:
    store = RunStore.open(str(run), run.parent)
    manifest = store.manifest()
    made, records, left_out = rejudged(store, manifest)
    assert records
    assert left_out == []
    assert manifest.environment is not None
    assert (manifest.state, manifest.environment.dirty) == ("finished", False)
    assert changes(made, store.conclusions()) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda path: path.parent.name)
def test_the_harness_passed_where_that_is_said(check: Path) -> None:
    report = HarnessReport.model_validate_json(check.read_bytes())
    assert all(each.passed for each in report.checks)
    assert check.with_name("harness.md").read_text() == page(report)
    assert list(check.parent.glob("*/manifest.json")), "with every record and sample"


def test_there_is_evidence() -> None:
    assert {check.parent.name for check in CHECKS} >= {"h200-aa-all", "h200-planted", "h200-harness", "cpu-harness"}
    assert len(RUNS) >= 10


def test_readmes_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 norms replaced")
