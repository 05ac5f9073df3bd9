"""What is read: from a machine of made-up files, from a made-up NVML, and from nothing at all."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from norm_fusion import nvml
from norm_fusion.doctor import facts
from norm_fusion.nvml import Nvml


def test_a_held_lock_is_seen_and_not_taken(tmp_path: Path) -> None:
    from filelock import FileLock

    lock = FileLock(tmp_path / "norm-fusion-1.lock")
    lock.acquire()
    assert facts.held_locks(str(tmp_path)) == (lock.lock_file,)
    lock.release()
    (tmp_path / "norm-fusion-1.lock").touch()
    assert facts.held_locks(str(tmp_path)) == ()
    lock.acquire(timeout=0)
    lock.release()


class FakeNvml(ModuleType):
    """NVML with one card, of which a few things are not supported."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1, 2, 0, 1
    answers: ClassVar[dict[str, object]] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetCudaDriverVersion_v2": 12080,
        "nvmlSystemGetDriverVersion": b"570.1",
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetName": "Card",
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetClockInfo": 345,
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetEnforcedPowerLimit": 700000,
        "nvmlDeviceGetMigMode": [0, 1],
        "nvmlDeviceGetEccMode": [1, 1],
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x5,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=1)],
    }

    def __getattr__(self, name: str) -> object:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def function(*_: object) -> object:
            if name not in self.answers:
                raise self.NVMLError("Not Supported")
            return self.answers[name]

        return function


def test_nvml_is_read_and_what_it_lacks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    found = nvml.read()
    assert (found.driver, found.cuda, found.problem) == ("570.1", (12, 8), None)
    (card,) = found.cards
    assert (card.power_limit, card.mig, card.ecc, card.reasons) == (700.0, False, True, 0x5)
    assert card.processes == ()  # our own is no company
    assert (card.temperature, card.bus, card.display, card.memory_free) == (None, None, None, None)
    assert nvml.reason_names(0x5 | 1 << 20) == ["idle", "software power cap", "0x100000"]


def test_nvml_without_its_bindings_or_its_library_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.read().bindings is False
    broken = FakeNvml("pynvml")
    broken.answers = {}  # type: ignore[misc] - nvmlInit raises too
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert nvml.read() == Nvml(problem="Not Supported")


def test_counters_permission_is_read_from_the_driver_and_the_process(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir()
    params, status = tmp_path / "proc/driver/nvidia/params", tmp_path / "proc/self/status"
    assert facts.counters_restricted(tmp_path) is None
    assert facts.is_admin(tmp_path) is None
    params.write_text("Foo: 1\nRmProfilingAdminOnly: 1\nBar: 0\n")
    assert facts.counters_restricted(tmp_path) is True
    params.write_text("RmProfilingAdminOnly: 0\n")
    assert facts.counters_restricted(tmp_path) is False
    status.write_text("CapPrm:\t000001ffffffffff\nCapEff:\t00000000a80425fb\n")  # root in a plain container
    assert facts.is_admin(tmp_path) is False
    status.write_text("CapEff:\t000001ffffffffff\n")
    assert facts.is_admin(tmp_path) is True


def test_ncu_is_looked_for_beside_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert facts.find_ncu(tmp_path) is None
    for year in ("2023.1", "2025.3"):
        place = tmp_path / f"opt/nvidia/nsight-compute/{year}/ncu"
        place.parent.mkdir(parents=True)
        place.write_text("#!/bin/sh\necho Version 2025.3.1.0 '(build 1)'\n")
        place.chmod(0o755)
    found = facts.find_ncu(tmp_path)
    assert found is not None and "2025.3" in found
    assert facts._release_line("NVIDIA (R)\nVersion 2025.3.1.0 (build 1)") == "2025.3.1.0"


def machine(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    assert facts.quota(tmp_path) is None
    v2 = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/cpu.max": "400000 100000\n",
    }
    assert facts.quota(machine(tmp_path / "v2", v2)) == 1.5
    v1 = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert facts.quota(machine(tmp_path / "v1", v1)) == 2.5
    assert facts.quota(machine(tmp_path / "free", v1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"})) is None
    hostile = {"proc/self/cgroup": "0::/../../etc\n\nx\n0::\n", "sys/fs/cgroup/cpu.max": "1 0"}
    assert facts.quota(machine(tmp_path / "hostile", hostile)) is None


def test_a_machine_of_files_is_read(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/stat": "cpu  10 0 10 60 0 0 0 20 5 0\ncpu0 1\n",
            "proc/cpuinfo": "processor : 0\nmodel name\t: Great CPU\n",
            "proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:  900 kB\n",
            "sys/fs/cgroup/memory.max": "512000",
            "sys/fs/cgroup/memory.current": "500000",
            "sys/devices/system/cpu/smt/active": "1",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "1",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0-1",
            "sys/devices/system/cpu/cpu1/topology/thread_siblings_list": "0-1",
        },
    )
    found = facts.cpu(root, pause_s=0)
    assert (found.model, found.physical, found.smt, found.turbo, found.governor) == (
        "Great CPU",
        1,
        True,
        False,
        "powersave",
    )
    assert (found.stolen, found.sampled, found.stolen_since_boot) == (0, 0, 0.2)
    assert facts.memory(root) == facts.Memory(12000, 512000, None)


@pytest.mark.parametrize(
    "stat", ["", "cpu\n", "cpu a b c d e f g h\n", "intr 1 2 3 4 5 6 7 8 9", "cpu ² 1 1 1 1 1 1 1"]
)
def test_unreadable_facts_are_none(tmp_path: Path, stat: str) -> None:
    root = machine(tmp_path, {"proc/stat": stat, "proc/meminfo": "\x00\xff", "sys/fs/cgroup/memory.max": "9" * 5000})
    found = facts.cpu(root, pause_s=0)
    assert (found.stolen, found.sampled, found.stolen_since_boot, found.turbo) == (None, None, None, None)
    assert facts.memory(root) == facts.Memory()
    assert facts.clock(root).source is None


def test_folders(tmp_path: Path) -> None:
    assert facts.folder(tmp_path / "new/deep").writable is True
    (tmp_path / "file").touch()
    assert facts.folder(tmp_path / "file/runs").blocked == str(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert facts.folder(tmp_path / "dangling").blocked == str(tmp_path / "dangling")
    facts.folder(Path("x" * 5000))
    facts.folder(Path("a\0b"))
    assert not (tmp_path / "new").exists()


def test_programs_are_asked_and_named_by_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in (("gcc", "exit 0"), ("odd", "echo Version 9.9; exit 3"), ("ncu", "echo Version 2025.3")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "odd")
    assert facts.compiler("CC", ("gcc",)) == facts.Compiler("CC", "odd", str(tmp_path / "odd"), str(tmp_path / "gcc"))
    monkeypatch.setenv("CC", "gcc -O2")
    assert facts.compiler("CC", ("gcc",)).named is None
    monkeypatch.delenv("CC")
    assert facts.compiler("CC", ("gcc",)).value is None
    assert facts.says(str(tmp_path / "odd")) is None
    assert facts.says(str(tmp_path / "nowhere")) is None
    assert facts.software().ncu_version == "2025.3"
