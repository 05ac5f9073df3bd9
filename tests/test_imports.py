"""Who may import whom, and what the kernels and the paper tower must never pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import norm_fusion

SOURCE = Path(norm_fusion.__file__).parent
GROUND = {"spec", "records", "metrics", "machine", "nvml", "lifeline"}
# The table of the design: a module or folder, and what of ours it may import.
MAY_IMPORT = {
    "spec": set(),
    "records": {"spec"},
    "nvml": set(),
    "lifeline": set(),
    "machine": {"records", "nvml"},
    "doctor": {*GROUND, "backends"},
    "harness": {*GROUND, "backends", "measure", "runs", "evidence", "engine"},
    "metrics": {"spec", "records"},
    "reference": {"spec"},
    "kernels": {"spec"},
    "ops": {"spec", "kernels"},
    "functional": {"ops"},
    "modules": {"functional", "ops"},
    "known_norms": {"ops"},
    "patching": {"functional", "known_norms", "modules", "ops"},
    "backends": {"spec", "reference", "functional", "kernels"},
    "measure": {*GROUND, "reference", "backends"},
    "profiling": {*GROUND, "backends", "measure", "doctor"},
    "runs": GROUND,
    "evidence": {*GROUND, "runs"},
    "report": {*GROUND, "runs", "evidence"},
    "site": {*GROUND, "runs", "evidence", "report"},
    "engine": {*GROUND, "runs", "evidence", "backends", "profiling"},
}
# The registry of names is torch-free; its implementations are not, and stay out of the engine.
PAPER = [
    "spec",
    "records",
    "metrics",
    "backends",
    "runs.store",
    "runs.suites",
    "runs.derive",
    "evidence.pool",
    "evidence.verdicts",
    "evidence.compare",
    "report.rows",
    "report.table",
]
PAPER += ["report.page", "report.progress", "engine", "cli"]
PAPER += ["profiling", "backends.matmul", "evidence.limiting", "evidence.export", "cli.export"]
PAPER += ["evidence.deciding", "site.build"]


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports: first part below norm_fusion, or '' for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "norm_fusion":
                found.add(name.split(".")[1] if "." in name else "")
    return found


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_import_only_what_the_design_allows(module: str) -> None:
    folder = SOURCE / module
    files = list(folder.glob("**/*.py")) if folder.is_dir() else [SOURCE / f"{module}.py"]
    assert files
    for file in files:
        odd = imports(file) - MAY_IMPORT[module] - {module, "", "__version__"}
        assert not odd, f"{file.relative_to(SOURCE)} imports {sorted(odd)}"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_kernels_import_none_of_the_labs_libraries() -> None:
    loaded = loaded_by("import norm_fusion; norm_fusion.rms_norm")
    assert "torch" in loaded
    assert not loaded & {"typer", "rich", "pydantic", "altair", "ray", "numpy_financial", "jinja2"}


def test_the_paper_tower_imports_no_torch() -> None:
    loaded = loaded_by(f"import {', '.join(f'norm_fusion.{name}' for name in PAPER)}")
    assert not loaded & {"torch", "triton"}


def test_the_package_imports_where_triton_is_missing() -> None:
    assert "triton" not in loaded_by("import norm_fusion.functional, norm_fusion.backends.builtin")


def test_a_shards_process_has_its_worker_at_work_before_it_imports_what_takes_long() -> None:
    assert not loaded_by("import norm_fusion.engine.shard") & {"numpy", "pydantic", "torch"}


def test_all_is_what_there_is() -> None:
    assert sorted(norm_fusion.__all__) == list(norm_fusion.__all__)
    for name in norm_fusion.__all__:
        assert callable(getattr(norm_fusion, name))
    assert set(norm_fusion.__all__) <= set(dir(norm_fusion))
    with pytest.raises(AttributeError, match="no attribute 'batch_norm'"):
        norm_fusion.batch_norm  # noqa: B018


def test_test_files_have_names_of_their_own() -> None:
    """Pytest takes two of one name, in folders that are no packages, for one."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
