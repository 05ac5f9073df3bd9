"""Each judgement of made-up facts, the bad ones above all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from machines import CARD, CPU, GOOD, H100, KERNELS, NO_CUDA, NO_NVML, NVML, ON_GPU, TORCH, named, told

from norm_fusion import doctor
from norm_fusion.doctor import facts, gpu, host, series, software
from norm_fusion.doctor.finding import Finding
from norm_fusion.doctor.probe import Step
from norm_fusion.nvml import Card, Nvml, Process

# PyTorch and Triton


@pytest.mark.parametrize(
    ("installed", "step", "gpu_here", "state", "says"),
    [
        ("2.13.0", TORCH, True, "ok", "2.13.0+cu130, built for CUDA 13.0"),
        ("2.13.0+cpu", NO_CUDA, False, "ok", "built without CUDA"),
        ("2.13.0+cpu", NO_CUDA, True, "limited", "built without CUDA"),
        (None, Step(False, "ModuleNotFoundError: No module named 'torch'"), False, "missing", "not installed"),
        ("2.13.0", Step(False, "the process died: SIGSEGV"), True, "missing", "cannot be imported: the process died"),
        ("2.13.0", None, True, "missing", "not tried"),
        ("2.8.1", Step(True, facts={"version": "2.8.1", "cuda": "12.8"}), True, "limited", "2.8.1"),
        ("2.9.0", Step(True, facts={"version": "2.9.0", "cuda": "12.8"}), True, "ok", "2.9.0"),
        ("2.12", Step(True, facts={"version": "2.12", "cuda": None, "hip": "6.4"}), False, "limited", "ROCm 6.4"),
        ("main", Step(True, facts={"version": "main", "cuda": "13.0"}), True, "unknown", "main"),
    ],
)
def test_torch(installed: str | None, step: Step | None, gpu_here: bool, state: str, says: str) -> None:
    finding = told(software.judge_torch(installed, step, gpu_here))
    assert finding.state == state
    assert says in finding.seen


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("3.5.1", "limited"),
        ("3.6.0", "ok"),
        ("3.7.1", "ok"),
        ("3.8.0", "limited"),
        ("4.0.0", "limited"),
        ("3.10.0", "limited"),
        (None, "missing"),
        ("nightly", "unknown"),
    ],
)
def test_triton(version: str | None, state: str) -> None:
    assert told(software.judge_triton(version, "12.8", linux=True)).state == state


def test_triton_elsewhere_than_on_linux_is_not_offered() -> None:
    assert "pip install" not in (software.judge_triton(None, None, linux=False).remedy or "")


def test_kernels_on_a_cpu_are_checked_and_never_timed() -> None:
    assert software.judge_kernels(KERNELS, "cuda:0", "9.0").state == "ok"
    assert (
        told(software.judge_kernels(KERNELS, "cpu")).means == "on a CPU the Triton profiles are 'checked', never timed"
    )
    broken = software.judge_kernels(Step(False, "RuntimeError: Failed to find C compiler."), "cuda:0", "9.0")
    assert (broken.state, broken.seen) == ("missing", "RuntimeError: Failed to find C compiler.")
    assert software.judge_kernels(None, None).state == "missing"


@pytest.mark.parametrize(
    ("compiler", "wanted", "headers", "state", "says"),
    [
        (facts.Compiler("CC", on_path="/usr/bin/gcc"), True, True, "ok", "/usr/bin/gcc"),
        (facts.Compiler("CC"), True, True, "missing", "none on PATH"),
        (facts.Compiler("CC"), False, True, "ok", "not needed on this device"),
        (facts.Compiler("CC", "ccache gcc", None, "/usr/bin/gcc"), True, True, "missing", "'ccache gcc' names no"),
        (facts.Compiler("CC", "tcc", "/opt/tcc", "/usr/bin/gcc"), True, True, "ok", "/opt/tcc (CC)"),
        (facts.Compiler("CC", on_path="/usr/bin/gcc"), True, False, "missing", "Python.h is not there"),
    ],
)
def test_compiler(compiler: facts.Compiler, wanted: bool, headers: bool, state: str, says: str) -> None:
    finding = told(software.judge_compiler(compiler, "C", "launcher", wanted, headers))
    assert finding.state == state
    assert says in finding.seen


@pytest.mark.parametrize(
    ("torch", "installed", "state"),
    [
        ("2.13.0", facts.CUTE, "limited"),
        ("2.14.0a0+git1", facts.CUTE, "limited"),
        ("2.12.1", facts.CUTE, "ok"),
        ("2.13.0", facts.CUTE[:1], "ok"),
        ("2.13.0", facts.CUTE[1:], "ok"),
        ("2.13.0", (), "ok"),
        (None, facts.CUTE, "unknown"),
    ],
)
def test_torch_native_is_another_kernel_with_both_packages(
    torch: str | None, installed: Sequence[str], state: str
) -> None:
    finding = told(software.judge_native(torch, dict.fromkeys(installed, "4.2")))
    assert finding.state == state
    if state == "limited":
        assert "QuACK" in (finding.means or "")


def test_extras_are_named_by_what_they_lack() -> None:
    have = dict.fromkeys((*facts.BENCH, *facts.REPORT), "1.0")
    assert {f.state for f in software.judge_extras(have)} == {"ok"}
    del have["scipy"], have["altair"]
    bench, report, _ = software.judge_extras(have)
    assert (bench.state, bench.seen, report.state, report.seen) == (
        "missing",
        "without scipy",
        "limited",
        "without altair",
    )


@pytest.mark.parametrize(
    ("variables", "device", "state"),
    [
        ({}, "cuda:0", "ok"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "cuda:0", "limited"),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, "cuda:0", "ok"),
        ({"TRITON_INTERPRET": "1"}, "cuda:0", "limited"),
        ({"TRITON_INTERPRET": "1"}, "cpu", "ok"),
        ({"TRITON_DEBUG": "off"}, "cpu", "ok"),
        ({"LD_PRELOAD": "/x.so"}, None, "limited"),
    ],
)
def test_variables(variables: dict[str, str], device: str | None, state: str) -> None:
    assert told(software.judge_variables(variables, device)).state == state


def test_every_variable_that_is_read_is_judged() -> None:
    finding = software.judge_variables(dict.fromkeys(facts.VARIABLES, "1"), "cuda:0")
    assert all(name in finding.seen for name in facts.VARIABLES)


# Is there a GPU, and if not, why


@pytest.mark.parametrize(
    ("asked", "torch", "problem", "nvml_", "visible", "says"),
    [
        ("auto", NO_CUDA, "no", NO_NVML, None, "no GPU found; PyTorch is built without CUDA"),
        ("cuda", NO_CUDA, "no", NVML, None, "H100 80GB HBM3 is here; PyTorch is built without CUDA"),
        ("cuda", TORCH, "no", NVML, "", "CUDA_VISIBLE_DEVICES='' hides NVIDIA H100"),
        ("cuda", TORCH, "no", NVML, "7", "CUDA_VISIBLE_DEVICES='7' hides NVIDIA H100"),
        ("cuda", TORCH, "found 11040", replace(NVML, cuda=(12, 8)), "0", "is too old: it serves CUDA up to 12.8"),
        ("cuda", TORCH, "unknown error 999", NVML, "0", "PyTorch cannot use it: unknown error 999"),
        ("cuda", TORCH, "Found no NVIDIA driver", NO_NVML, None, "no GPU found: Found no NVIDIA driver"),
        ("cuda", Step(False, "x"), "", NVML, None, "PyTorch, which would use it, cannot be imported"),
    ],
)
def test_why_there_is_no_gpu(
    asked: str, torch: Step, problem: str, nvml_: Nvml, visible: str | None, says: str
) -> None:
    step = Step(True, facts={"resolved": None, "gpus": [], "problem": problem})
    module = "NVRM" if nvml_ is not NO_NVML else None
    finding = gpu.judge_gpu(asked, torch, step, nvml_, module, visible)
    assert finding.state == "missing"
    assert says in finding.seen
    assert finding.means and finding.remedy


def test_an_index_too_far_names_those_there_are() -> None:
    step = Step(True, facts={"resolved": None, "gpus": [H100, H100], "problem": "there is no cuda:9"})
    finding = gpu.judge_gpu("cuda:9", TORCH, step, NVML, "NVRM", None)
    assert finding.state == "missing"
    assert "no cuda:9: this machine has cuda:0, cuda:1" in finding.seen


def test_the_gpu_in_use_is_described() -> None:
    finding = gpu.judge_gpu("auto", TORCH, ON_GPU["device"], NVML, "NVRM", None)
    assert (finding.state, finding.seen) == ("ok", "cuda:0: NVIDIA H100 80GB HBM3, 132 SMs, 80 GiB, L2 50 MiB")


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [
        ("", True),
        ("-1", True),
        ("0", False),
        ("1", True),
        ("1,0", True),
        ("GPU-1111", False),
        ("GPU-9", True),
        ("MIG-1", False),
    ],
)
def test_cuda_visible_devices(visible: str, hidden: bool) -> None:
    assert gpu.hides(visible, [CARD]) is hidden


def test_driver() -> None:
    assert gpu.judge_driver(NVML, "NVRM").seen == "580.159.04, for CUDA up to 13.0"
    assert gpu.judge_driver(NO_NVML, None).state == "missing"
    assert told(gpu.judge_driver(NO_NVML, "NVRM")).state == "limited"
    assert "nvidia-ml-py" in (told(gpu.judge_driver(Nvml(problem="no", bindings=False), None)).remedy or "")


@pytest.mark.parametrize(
    ("pair", "state"),
    [((8, 0), "ok"), ((8, 6), "ok"), ((9, 0), "ok"), ((10, 0), "ok"), ((8, 9), "limited"), ((12, 0), "limited")],
)
def test_capability(pair: tuple[int, int], state: str) -> None:
    assert told(gpu.judge_capability(*pair)).state == state


def test_the_tested_capabilities_are_those_of_the_kernels_tests() -> None:
    text = (Path(__file__).parents[1] / "kernels/test_compiled.py").read_text()
    for major, minor in gpu.TESTED:
        assert str(10 * major + minor) in text


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        ({"reasons": 0x4}, "throttling", "software power cap"),
        ({"reasons": 0x61}, "throttling", "software thermal slowdown, hardware thermal slowdown"),
        ({"reasons": 0x4000}, "throttling", "0x4000"),
        ({"reasons": 0x2}, "clocks", "held by an application setting"),
        ({"sm_clock_set": 1200}, "clocks", "1200 MHz"),
        ({"temperature": 83}, "temperature", "83 C"),
        ({"temperature": 86, "slowdown_at": None}, "temperature", "86 C"),
        ({"power_limit": 350.0}, "power limit", "350 W, this card's default is 700 W"),
        ({"mig": True}, "modes", "MIG on"),
        ({"display": True}, "display", "driven by this card"),
        ({"memory_free": 2**30}, "GPU memory", "1.0 GiB of 80 GiB free"),
        ({"processes": (Process(42, "python", 2**30),)}, "company", "42 python 1.0 GiB"),
        ({"processes": tuple(Process(i, None, None) for i in range(9))}, "company", "5 more"),
    ],
)
def test_a_card_that_will_make_noise(change: dict[str, object], name: str, says: str) -> None:
    card = replace(CARD, **change)  # type: ignore[arg-type]
    report = doctor.judge(replace(GOOD, nvml=replace(NVML, cards=(card,))))
    finding = named(report.findings, name)
    assert finding.state == "limited"
    assert says in finding.seen
    assert [f.name for f in report.findings if f.state != "ok"] == [name]
    assert f"What limits it: {name}." in report.summary
    assert report.measurable


def test_a_card_that_tells_nothing_is_unknown_and_never_ok() -> None:
    states = {f.name: f.state for f in gpu.judge_card(Card(0)) if f.name != "modes"}
    assert set(states.values()) == {"unknown"}


def test_a_gpu_is_found_among_the_cards_by_uuid_or_by_bus() -> None:
    other = replace(CARD, index=1, uuid="GPU-9", bus=(0, 8, 0))
    assert gpu.card_of(H100, [other, CARD]) is CARD
    assert gpu.card_of(H100 | {"uuid": "MIG-5"}, [other, CARD]) is CARD
    assert gpu.card_of(H100 | {"uuid": None, "bus": None}, [other, CARD]) is None


def test_another_run_on_this_card_is_seen_and_on_another_card_not() -> None:
    mine, others = "/tmp/norm-fusion-11111111-2222.lock", "/tmp/norm-fusion-9.lock"
    assert named(gpu.judge_company((), [others, mine], "11111111-2222"), "other runs").state == "limited"
    assert named(gpu.judge_company((), [others], "11111111-2222"), "other runs").state == "ok"
    assert named(gpu.judge_company(None, [], None), "company").state == "unknown"


# The series and the counters


def test_series_that_fail_say_what_is_left() -> None:
    def states(**steps: Step) -> dict[str, str]:
        return {f.name: f.state for f in series.judge_series(ON_GPU | steps, "cuda:0")}

    assert states() == {"device": "ok", "graph": "ok", "host": "ok", "wall": "ok"}
    bad = Step(False, "no")
    assert states(trace=bad) == {"device": "missing", "graph": "ok", "host": "ok", "wall": "ok"}
    assert states(graph=bad, trace=bad) == {"device": "missing", "graph": "missing", "host": "ok", "wall": "ok"}
    assert set(states(launch=bad).values()) == {"missing"}
    assert "fall back to the graph series" in (
        named(series.judge_series(ON_GPU | {"trace": bad}, "cuda:0"), "device").means or ""
    )


def test_series_after_a_crash_are_unknown_and_host_remains() -> None:
    died = {name: step for name, step in ON_GPU.items() if name not in ("trace",)} | {"graph": Step(False, "SIGSEGV")}
    states = {f.name: f.state for f in series.judge_series(died, "cuda:0")}
    assert states == {"device": "unknown", "graph": "missing", "host": "ok", "wall": "ok"}


@pytest.mark.parametrize(
    ("ncu", "version", "restricted", "admin", "device", "state"),
    [
        ("/ncu", "2025.3", False, False, "cuda:0", "ok"),
        ("/ncu", "2025.3", True, True, "cuda:0", "ok"),
        ("/ncu", "2025.3", True, False, "cuda:0", "missing"),
        ("/ncu", "2025.3", True, None, "cuda:0", "missing"),
        ("/ncu", "2025.3", None, False, "cuda:0", "unknown"),
        ("/ncu", None, False, True, "cuda:0", "limited"),
        (None, None, False, True, "cuda:0", "missing"),
        ("/ncu", "2025.3", False, True, "cpu", "missing"),
    ],
)
def test_counters(
    ncu: str | None, version: str | None, restricted: bool | None, admin: bool | None, device: str, state: str
) -> None:
    finding = told(series.judge_counters(ncu, version, restricted, admin, device))
    assert finding.state == state
    if restricted and not admin:
        assert "NVreg_RestrictProfilingToAdminUsers=0" in (finding.remedy or "")


# The host


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (host.judge_threads(8, CPU), "ok"),
        (host.judge_threads(16, CPU), "limited"),
        (host.judge_threads(8, replace(CPU, quota=2.0)), "limited"),
        (host.judge_threads(2, replace(CPU, quota=2.0)), "ok"),
        (host.judge_threads(8, replace(CPU, smt=True, physical=4)), "limited"),
        (host.judge_threads(4, replace(CPU, smt=True, physical=4)), "ok"),
        (host.judge_threads(None, CPU), "unknown"),
        (host.judge_load(0.4, 2), "ok"),
        (host.judge_load(0.6, 2), "limited"),
        (host.judge_load(3.0, 128), "ok"),
        (host.judge_load(None, 2), "unknown"),
        (host.judge_steal(0, 40, 0.001), "ok"),
        (host.judge_steal(1, 40, 0.001), "ok"),
        (host.judge_steal(2, 40, 0.001), "limited"),
        (host.judge_steal(2, 2560, 0.001), "ok"),
        (host.judge_steal(0, 40, 0.05), "limited"),
        (host.judge_steal(0, 0, None), "unknown"),
        (host.judge_steal(None, None, None), "unknown"),
        (host.judge_frequency("performance", True), "ok"),
        (host.judge_frequency("powersave", True), "limited"),
        (host.judge_frequency(None, None), "unknown"),
        (host.judge_memory(2**30, 2**36), "limited"),
        (host.judge_memory(2**35, 2**36), "ok"),
        (host.judge_memory(None, None), "unknown"),
        (host.judge_shm(64 * 2**20), "limited"),
        (host.judge_shm(2**30), "ok"),
        (host.judge_shm(None), "unknown"),
        (host.judge_output(facts.Folder("runs", True, 2**40)), "ok"),
        (host.judge_output(facts.Folder("runs", True, 2**20)), "limited"),
        (host.judge_output(facts.Folder("runs", False, 2**40)), "missing"),
        (host.judge_output(facts.Folder("runs", False, blocked="/x/runs")), "missing"),
        (host.judge_output(facts.Folder("runs")), "unknown"),
        (host.judge_temporary(facts.Folder("/tmp", True, 2**40)), "ok"),
        (host.judge_temporary(facts.Folder("/tmp", True, 2**20)), "limited"),
        (host.judge_temporary(facts.Folder("/tmp", False)), "missing"),
        (host.judge_temporary(facts.Folder(None)), "missing"),
        (host.judge_clock(facts.Clock("x", 1e-9, True, "tsc", 60)), "ok"),
        (host.judge_clock(facts.Clock("x", 1e-9, True, "hpet", 60)), "limited"),
        (host.judge_clock(facts.Clock("x", 1e-9, True, "tsc", 900)), "limited"),
        (host.judge_clock(facts.Clock("x", 1e-6, True, "tsc", 60)), "limited"),
        (host.judge_clock(facts.Clock("x", 1e-9, False, "tsc", 60)), "limited"),
        (host.judge_clock(facts.Clock("x", 1e-9, True, None, None)), "unknown"),
    ],
)
def test_host(finding: Finding, state: str) -> None:
    assert told(finding).state == state, finding
