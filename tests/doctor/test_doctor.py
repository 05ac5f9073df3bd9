"""The doctor as a whole: its report, its probing process, the real command on this machine and on broken ones."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from machines import CPU, GOOD, NO_NVML, ON_CPU, named
from rich.console import Console

from norm_fusion import doctor
from norm_fusion.doctor import probe, show
from norm_fusion.doctor.finding import Finding, printable, release
from norm_fusion.doctor.probe import Step

LAB = "from norm_fusion.cli import norm_fusion as main; main()"
SOURCE = Path(doctor.__file__).parent


def test_a_good_gpu_machine_has_nothing_but_ok_and_measures_all() -> None:
    report = doctor.judge(GOOD)
    assert {f.name: f.state for f in report.findings if f.state != "ok"} == {}
    assert report.measurable
    assert report.summary == ("This machine can measure on cuda:0: device, graph, host, wall, counters, fused kernels.")
    assert not any(f.means or f.remedy for f in report.findings)


def test_a_cpu_measures_wall_alone() -> None:
    report = doctor.judge(replace(GOOD, steps=ON_CPU, nvml=NO_NVML, module=None))
    assert report.measurable
    assert report.summary.startswith(
        "This machine can measure on cpu: wall. It cannot: device, graph, host, counters (needs a GPU). "
        "The fused kernels are checked, not timed."
    )
    assert named(report.findings, "fused kernels").state == "limited"


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on() -> None:
    odd = replace(GOOD, cpu=replace(CPU, load_1m="high"))  # type: ignore[arg-type]
    report = doctor.judge(odd)
    assert named(report.findings, "CPU").seen.startswith("could not be judged: ValueError")
    assert named(report.findings, "clock").state == "ok"
    assert report.measurable


@pytest.mark.parametrize("steps", [{}, {"start": Step(False, "FileNotFoundError: no temporary directory")}])
def test_without_any_probe_nothing_can_be_measured(steps: dict[str, Step]) -> None:
    report = doctor.judge(replace(GOOD, steps=steps))
    assert not report.measurable
    assert report.summary.startswith("This machine can measure nothing with --device auto: PyTorch")


# The probing process


def test_a_process_that_dies_or_hangs_is_blamed_at_the_step_it_had_begun() -> None:
    lines = [{"step": "torch"}, {"step": "torch", "ok": True, "seen": "", "facts": {}}, {"step": "device"}]
    text = "\n".join(json.dumps(line) for line in lines)
    found = probe.steps(text, "the process died: SIGSEGV", "last words")
    assert found["torch"].ok
    assert found["device"] == Step(False, "the process died: SIGSEGV (last words)")
    assert probe.steps("", "exit code 1") == {"start": Step(False, "exit code 1")}
    # A line cut short, and lines that are none of ours.
    assert probe.steps(text + '\n{"step": "dev', "x")["device"].seen == "x"
    assert probe.steps('[]\n7\nnull\n{"ok": true}\n', "x") == {"start": Step(False, "x")}


def fake_torch(folder: Path, body: str) -> dict[str, str]:
    """An environment in which `import torch` runs this."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/__init__.py").write_text(body)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_a_torch_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = fake_torch(
        tmp_path, f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    )
    monkeypatch.setenv("PYTHONPATH", env["PYTHONPATH"])
    start = time.monotonic()
    found = probe.run("auto", timeout_s=2)
    assert time.monotonic() - start < 20
    assert found == {"torch": Step(False, "no answer within 2 s")}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def call(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LAB, "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", "PyTorch"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "SIGSEGV"),
        ("raise SystemExit('gone')", "SystemExit: gone"),
        ("print('\\x1b[2J' * 3); x = 1", "AttributeError"),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
    ],
    ids=["absent", "crashes", "exits", "empty", "broken"],
)
def test_without_a_torch_that_works_nothing_can_be_measured(tmp_path: Path, body: str, says: str) -> None:
    done = call(env=fake_torch(tmp_path, body))
    assert (done.returncode, done.stderr) == (1, "")
    last = " ".join(done.stdout.split("\n\n")[-1].split())
    assert last.startswith("This machine can measure nothing with --device auto: PyTorch")
    assert says in last
    assert "\x1b" not in done.stdout


# The command on this machine


@pytest.fixture(scope="module")
def here() -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.monotonic()
    done = call("--device", "cpu", "--json")
    return done, time.monotonic() - start


def test_json_is_one_array_of_findings_and_nothing_else(here: tuple[subprocess.CompletedProcess[str], float]) -> None:
    done, seconds = here
    assert (done.returncode, done.stderr) == (0, "")
    findings = json.loads(done.stdout)
    assert all(set(f) == {"name", "state", "seen", "means", "remedy", "group"} for f in findings)
    states = {f["name"]: f["state"] for f in findings}
    assert len(states) == len(findings), "a name that comes twice"
    assert set(states.values()) <= {"ok", "limited", "missing", "unknown"}
    assert (states["wall"], states["device"], states["fused kernels"]) == ("ok", "missing", "limited")
    assert seconds < 60


def test_text_has_every_group_and_ends_with_what_can_be_measured() -> None:
    done = call("--device", "cpu", env=os.environ | {"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert not any(line != line.rstrip() for line in lines)
    for group in ("Software", "Host", "What can be measured"):
        assert group in lines
    last = " ".join(done.stdout.split("\n\n")[-1].split())
    assert last.startswith("This machine can measure on cpu: wall. It cannot: device, graph, host, counters")


def test_cuda_without_a_gpu_is_exit_code_1_and_says_why() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = call("--device", "cuda", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)
    assert done.stderr.startswith("This machine can measure nothing with --device cuda: ")
    assert "use --device cpu" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["tpu", "cuda:", "cuda:²", "cuda:-1", "x" * 5000, "cpu\n"])
def test_bad_usage_is_one_line(word: str) -> None:
    done = call("--device", word)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("norm-fusion doctor: device ")
    assert done.stderr.count("\n") == 1


def test_help_tells_the_exit_codes_and_imports_none_of_the_doctor() -> None:
    text = call("--help").stdout
    for word in ("Exit codes:", "Examples:", "--json", "--device", "limited"):
        assert word in text
    assert "norm_fusion.doctor" not in loaded_by("norm_fusion.cli")


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


# How it is shown


@pytest.mark.parametrize("width", [80, 120])
def test_a_report_fits_its_terminal(width: int) -> None:
    out = StringIO()
    show.show(Console(file=out, width=width), doctor.judge(replace(GOOD, steps=ON_CPU, nvml=NO_NVML, module=None)))
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    assert "  missing  GPU" in out.getvalue()


def test_lines_keep_to_the_width_and_commands_stay_whole() -> None:
    command = "/a/very/long/path/" + "x" * 80
    finding = Finding("odd", "limited", "word " * 40, "meaning " * 30, f"run {command}", "Group")
    lines = [line.plain for line in show.lines([finding], 60)]
    assert lines[0] == "Group"
    assert lines[1].startswith("  limited  odd  word")
    assert all(len(line) <= 60 or command in line for line in lines)
    assert sum("-> " in line for line in lines) == 1
    assert list(show.lines([], 60)) == []


def test_an_ascii_terminal_and_hostile_text_do_no_harm(tmp_path: Path) -> None:
    assert printable("\x1b[2Jname\n\r\x00\x9bx \u202e") == "[2Jname x"
    assert len(printable("x" * 10_000)) == 400
    hostile = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "TRITON_DEBUG": "µ\x1b[31m", "TERM": "dumb"}
    done = call(env=fake_torch(tmp_path, "raise OSError('µ')") | hostile)
    assert done.returncode == 1
    assert "OSError: ?" in done.stdout
    assert "TRITON_DEBUG=?" in done.stdout
    assert "\x1b" not in done.stdout


def test_versions_are_read_as_numbers() -> None:
    assert release("2.13.0+cpu") == (2, 13)
    assert release("3.10") == (3, 10)
    for odd in (None, "", "main", "²", "9" * 5000):
        assert release(odd) is None


# The house


def test_doctor_imports_no_torch() -> None:
    assert not {"torch", "triton", "rich", "pynvml"} & loaded_by("norm_fusion.doctor")
