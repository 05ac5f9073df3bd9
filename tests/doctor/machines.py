"""Machines made up for the doctor's tests: a good one, and what to change to spoil it."""

from collections.abc import Sequence

from norm_fusion import doctor
from norm_fusion.doctor import facts
from norm_fusion.doctor.finding import Finding
from norm_fusion.doctor.probe import Step
from norm_fusion.nvml import Card, Nvml

H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "capability": [9, 0],
    "sms": 132,
    "memory": 80 * 2**30,
    "l2": 50 * 2**20,
    "uuid": "11111111-2222",
    "bus": [0, 7, 0],
}
CARD = Card(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-11111111-2222",
    bus=(0, 7, 0),
    sm_clock=345,
    sm_clock_max=1980,
    sm_clock_set=1980,
    sm_clock_default=1980,
    memory_clock=2619,
    memory_clock_max=2619,
    power_limit=700.0,
    power_limit_default=700.0,
    temperature=34,
    slowdown_at=87,
    reasons=0x1,
    persistence=True,
    mig=False,
    ecc=True,
    display=False,
    memory_free=79 * 2**30,
    memory_total=80 * 2**30,
    processes=(),
)
NVML = Nvml(cards=(CARD,), driver="580.159.04", cuda=(13, 0))
NO_NVML = Nvml(problem="NVML Shared Library Not Found")
TORCH = Step(True, facts={"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "threads": 8})
NO_CUDA = Step(True, facts={"version": "2.13.0+cpu", "cuda": None, "hip": None, "threads": 8})
OK = Step(True)
KERNELS = Step(True, facts={"resolved": "triton 3.7.1"})
ON_GPU = {
    "torch": TORCH,
    "device": Step(True, facts={"resolved": "cuda:0", "gpus": [H100], "problem": None}),
    "launch": OK,
    "kernels": KERNELS,
    "graph": OK,
    "trace": OK,
}
ON_CPU = {
    "torch": NO_CUDA,
    "device": Step(True, facts={"resolved": "cpu", "gpus": [], "problem": "AssertionError: no"}),
    "launch": OK,
    "kernels": KERNELS,
}
CPU = facts.Cpu("EPYC", 8, 8, 8, False, None, 0.1, 0, 160, 0.0, "performance", True)
GOOD = doctor.Facts(
    asked="auto",
    cpu=CPU,
    memory=facts.Memory(60 * 2**30, 64 * 2**30, 32 * 2**30),
    output=facts.Folder("runs", True, 50 * 2**30),
    temporary=facts.Folder("/tmp", True, 50 * 2**30),
    clock=facts.Clock("clock_gettime(CLOCK_MONOTONIC)", 1e-9, True, "tsc", 60.0),
    software=facts.Software(
        versions=dict.fromkeys((*facts.BENCH, *facts.REPORT), "1.0") | {"torch": "2.13.0+cu130", "triton": "3.7.1"},
        c=facts.Compiler("CC", on_path="/usr/bin/gcc"),
        cxx=facts.Compiler("CXX", on_path="/usr/bin/g++"),
        headers=True,
        ptxas="12.8",
        ncu="/usr/local/cuda/bin/ncu",
        ncu_version="2025.3",
        restricted=False,
        admin=False,
    ),
    nvml=NVML,
    module="NVRM version: 580.159.04",
    visible=None,
    locks=(),
    steps=ON_GPU,
)


def told(finding: Finding) -> Finding:
    """A finding that a person can do something with: what is not ok says what it means, or why."""
    if finding.state == "limited":
        assert finding.means and finding.remedy
    return finding


def named(findings: Sequence[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return told(found)
