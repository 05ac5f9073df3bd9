"""The commands as a person meets them: help, one-line errors, a real run on the CPU, its JSON and its page."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from norm_fusion.cli import measure
from norm_fusion.records import Record
from norm_fusion.spec import Op

BENCHMARK = "from norm_fusion.cli import benchmark_norms as main; main()"
LAB = "from norm_fusion.cli import norm_fusion as main; main()"


def call(program: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("program", [BENCHMARK, LAB], ids=["benchmark-norms", "norm-fusion"])
def test_help_comes_within_half_a_second(program: str) -> None:
    def once() -> float:
        start = time.perf_counter()
        assert call(program, "--help").returncode == 0
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.5


def test_help_teaches() -> None:
    text = call(BENCHMARK, "--help").stdout
    for word in ("--backend", "Examples:", "Exit codes:", "float16", "torch-baseline", "--shape ROWSxCOLS"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--backend", "tritn"],
            "backend 'tritn' is unknown: choose from all, torch, triton, torch-baseline, torch-eager",
        ),
        (["--dtype", "float8"], "dtype 'float8' is unknown: choose from float16, bfloat16, float32"),
        (
            ["--op", "batchnorm"],
            "op 'batchnorm' is unknown: choose from rmsnorm, layernorm, add-rmsnorm, add-layernorm, all",
        ),
        (["--pass", "sideways"], "pass 'sideways' is unknown: choose from forward, backward, both"),
        (["--rows", "0", "--cols", "8"], "rows is 0: it must be 1 to"),
        (["--rows", "8", "--cols", "-8"], "cols is -8: it must be 1 to"),
        (["--shape", "2147483647x2147483647"], "TiB for its input alone"),
        (["--shape", "4096*8192"], "shape '4096*8192' is not ROWSxCOLS: write it like 4096x8192"),
        (["--rows", "8"], "--rows is given without --cols"),
        (["--rows", "abc", "--cols", "8"], "--rows 'abc' is not a whole number: write it like --rows 4096"),
        (["--shape", "9" * 5000 + "x1"], "is not ROWSxCOLS: write it like 4096x8192"),
        (["--bogus"], "No such option: --bogus"),
        (["extra"], "see benchmark-norms --help"),
        (["--device", "cuda:²"], "device 'cuda:²' is unknown"),
        (["--device", "tpu"], "device 'tpu' is unknown: choose auto, cpu, cuda or cuda:N"),
        (["--run-id", "../up"], "run id '../up' must be"),
        (["--processes", "3:15"], "of fewer than 5 some agree by chance, and would end it too early; choose 5:15"),
        (["--processes", "5:4"], "it must be at least 1, and MOST at least as many"),
        (["--quick", "--processes", "5"], "--quick means one process"),
        (["--op", "rmsnorm", "--backend", "triton-fused-layernorm"], "does not implement rmsnorm"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], says: str, tmp_path: Path) -> None:
    done = call(BENCHMARK, *words, "--output", str(tmp_path))
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_cuda_without_cuda_says_how_to_run_on_the_cpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = call(BENCHMARK, "--device", "cuda", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "sees no GPU here; use --device cpu" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_labs_libraries_the_extra_is_named() -> None:
    done = call(f"import sys; sys.modules['typer'] = None; {BENCHMARK}")
    assert (done.returncode, done.stderr) == (2, "the commands need typer: pip install 'norm-fusion[bench,report]'\n")


def test_an_unknown_include_names_what_the_suite_has(tmp_path: Path) -> None:
    done = call(LAB, "run", "normalization-fusion", "--include-everything", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "suite normalization-fusion has --include-rmsnorm-shape-sweep" in done.stderr


SMALL = ["--device", "cpu", "--quick", "--backend", "torch-eager", "--backend", "torch-native", "--backend", "triton"]
SMALL += ["--shape", "8x48", "--dtype", "float32"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A real run of both operators, with JSON."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, call(BENCHMARK, *SMALL, "--json", "--run-id", "small", "--output", str(folder))


def test_json_is_one_array_of_records_and_nothing_else(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = finished[1]
    assert done.returncode == 0, done.stderr
    records = [Record.model_validate(item) for item in json.loads(done.stdout)]
    assert {(r.op, r.profile, r.status.value) for r in records if r.profile.startswith("t")} == {
        ("rmsnorm", "torch-eager", "ok"),
        ("rmsnorm", "torch-native", "ok"),
        ("rmsnorm", "triton-fused-rmsnorm", "checked"),
        ("layernorm", "torch-eager", "ok"),
        ("layernorm", "torch-native", "ok"),
        ("layernorm", "triton-fused-layernorm", "checked"),
    }
    for record in records:
        if record.timer == "wall":
            assert record.n_samples >= 50
            assert record.p95_ms >= record.p50_ms > 0  # type: ignore[operator]
    eager = next(r for r in records if r.op == "layernorm" and r.profile == "torch-eager")
    assert set(eager.speedup) == {"torch-native", "torch-baseline"}


def test_the_run_can_be_shown_again_and_is_not_measured_again(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    shown = call(LAB, "show", "small", "--output", str(folder))
    assert shown.returncode == 0
    for text in ("Time of a call, cold cache", "copy (the roof)", "triton-fused-rmsnorm", "checked", "torch-baseline"):
        assert text in shown.stdout
    before = {path: path.stat().st_mtime_ns for path in (folder / "small").rglob("*") if path.name != "lock"}
    again = call(BENCHMARK, *SMALL, "--run-id", "small", "--output", str(folder))
    assert again.returncode == 0
    assert again.stdout == shown.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = call(
        BENCHMARK, "--op", "rmsnorm", "--shape", "8x8", "--quick", "--run-id", "small", "--output", str(folder)
    )
    assert other.returncode == 2
    assert "exists" in other.stderr and "was asked something else: its cases" in other.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run"], "Missing argument"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["show", "x" * 5000], "there is no run"),
        (["report", "small", "--page", "/nonexistent/page.html"], "No such file or directory"),
    ],
)
def test_the_labs_bad_input_is_one_line_too(
    finished: tuple[Path, subprocess.CompletedProcess[str]], words: list[str], says: str
) -> None:
    output = ["--output", str(finished[0])] if words[0] in ("show", "report") else []
    done = call(LAB, *words, *output)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_run_without_records_says_so(finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    told = (finished[0] / "small" / "manifest.json").read_text()
    (tmp_path / "bare" / "manifest.json").write_text(told)
    done = call(LAB, "show", "bare", "--output", str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(
        r"(norm-fusion show: not believed: the records of \S+ are missing: bring them back\n)+", done.stderr
    )
    (tmp_path / "bare" / "manifest.json").write_text(json.dumps(json.loads(told) | {"state": "blocked", "done": []}))
    done = call(LAB, "show", "bare", "--output", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "norm-fusion show: run 'bare' has no records: it is blocked\n")


def test_a_page_is_made_of_it(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    done = call(LAB, "report", "small", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    assert page == folder / "small" / "report.html"
    assert "triton-fused-layernorm" in page.read_text()


def test_a_report_of_nothing_names_the_runs_there_are(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = call(LAB, "report", "smal", "--output", str(finished[0]))
    assert done.returncode == 2
    assert "there is no run 'smal'" in done.stderr
    assert "holds small" in done.stderr


@pytest.mark.parametrize(
    ("ops", "pass_", "shapes", "names"),
    [
        ([], "forward", ["4x8"], ["rmsnorm-4x8", "layernorm-4x8"]),
        (["add-rmsnorm"], "both", ["4x8"], ["add-rmsnorm-4x8", "add-rmsnorm-backward-4x8"]),
        (["all"], "backward", ["4x8"], [f"{op}-backward-4x8" for op in Op]),
        (["add-rmsnorm"], "forward", [], [f"add-rmsnorm-{shape}" for shape in ("512x1024", "2048x4096", "4096x4096")]),
    ],
)
def test_every_operator_and_pass_asked_for_is_a_case(
    ops: list[str], pass_: str, shapes: list[str], names: list[str]
) -> None:
    cases = measure._cases(measure._ops(ops), measure._passes(pass_), [], [], shapes, [])
    assert [case.name for case in cases] == [f"{name}-float16" for name in names]
