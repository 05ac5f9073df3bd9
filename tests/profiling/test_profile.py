"""Profiling from end to end with an ncu and cells made up for it: what fails costs its own row, and says why."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import make_cells, make_module, make_ncu

from norm_fusion import profiling
from norm_fusion.doctor.series import judge_counters
from norm_fusion.profiling import child, ncu
from norm_fusion.records import Counters, Status
from norm_fusion.spec import Case, Matmul, SpecError

CASE, OTHER = "rmsnorm-8x16-float16", "layernorm-backward-8x16-float32"

Profile = Callable[..., list[Counters]]


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Profiles these profiles of a case on a GPU that nobody has."""
    make_ncu(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(ncu, "CELLS", (str(make_cells(tmp_path)),))

    def run(
        *names: str, mode: str = "", case: str = CASE, device: str = "cuda:0", timeout_s: float = 60
    ) -> list[Counters]:
        monkeypatch.setenv("FAKE_NCU", mode)
        cells = [(case, name) for name in names]
        rows = list(profiling.profile(cells, run_id="r", device=device, fingerprint="f", timeout_s=timeout_s))
        assert [(row.case, row.profile, row.run_id, row.fingerprint) for row in rows] == [
            (*cell, "r", "f") for cell in cells
        ]
        for row in rows:
            assert row.compulsory_bytes == 2 * 8 * 16 * 2 + 16 * 2
            assert (row.status is Status.OK) == bool(row.kernels)
            assert row.status is Status.OK or (row.reason and row.duration_ms is None and row.dram_bytes is None)
        return rows

    return run


@pytest.mark.parametrize("module", [False, True])
def test_a_row_has_the_kernels_of_its_call_and_their_totals(profile: Profile, tmp_path: Path, module: bool) -> None:
    if module:
        make_module(tmp_path)
    first, second = profile("a", "b")
    assert first.tool == f"ncu 2025.3.1.0, read {'with ncu-report' if module else 'from its CSV'}"
    assert [kernel.name for kernel in first.kernels] == ["kernel_0", "kernel_1"]
    assert [kernel.duration_ms for kernel in first.kernels] == pytest.approx([0.01, 0.03])
    assert (first.status, first.reason, first.resolved_backend) == (Status.OK, None, "the real a")
    assert (first.duration_ms, first.dram_bytes, first.registers) == (pytest.approx(0.04), 48, 16)
    assert first.dram_pct == pytest.approx((8 * 10 + 16 * 30) / 40)
    assert (first.traced_kernels, first.traced_ms, first.traced_reason) == (2, 0.5, None)
    assert second.resolved_backend == "the real b"


def test_of_the_copies_the_fastest_is_the_roof(profile: Profile) -> None:
    (row,) = profile("copy")
    assert (row.resolved_backend, row.duration_ms) == ("quick copy", pytest.approx(0.02))
    assert len(row.kernels) == 2


def test_one_that_raises_costs_its_own_row(profile: Profile) -> None:
    before, raised, after = profile("a", "raises", "b")
    assert (raised.status, raised.reason) == (Status.FAILED, "ValueError: no such thing")
    assert raised.traced_reason == "ValueError: no such thing"
    assert before.status is after.status is Status.OK


def test_a_line_that_arrives_in_two_halves_is_one(profile: Profile) -> None:
    (row,) = profile("halves")
    assert (row.status, row.traced_kernels) == (Status.OK, 2)


def test_one_that_dies_costs_its_own_row(profile: Profile) -> None:
    before, dead, after = profile("a", "dies", "b")
    assert dead.status is Status.FAILED
    assert dead.reason == "the profiled process ended with exit code 11 (a library's own words)"
    assert dead.traced_reason == "the profiled process was killed by SIGSEGV (a library's own words)"
    assert [row.status for row in (before, after)] == [Status.OK, Status.OK]
    assert [row.traced_kernels for row in (before, after)] == [2, 2]


def test_one_that_hangs_costs_its_own_row_and_its_timeout(profile: Profile, tmp_path: Path) -> None:
    """It alone is killed, so that ncu writes what it has: those before it are not counted again."""
    before, hung, after = profile("a", "hangs", "b", timeout_s=2)
    assert hung.status is Status.FAILED and hung.reason is not None
    assert hung.reason.startswith("the profiled process gave no sign of life for 2 s")
    assert [row.status for row in (before, after)] == [Status.OK, Status.OK]
    assert (tmp_path / "log").read_text().splitlines() == ["a hangs b", "b"]


def test_what_a_lost_report_had_is_counted_again(profile: Profile, tmp_path: Path) -> None:
    """Without one of the process that hung, the cells before it are known from the next process."""
    before, hung = profile("a", "hangs", mode="killed", timeout_s=2)
    assert (before.status, hung.status) == (Status.OK, Status.FAILED)
    assert (tmp_path / "log").read_text().splitlines() == ["a hangs", "a"]


def test_after_some_deaths_the_rest_is_given_up(profile: Profile) -> None:
    cells = [(f"rmsnorm-{n}x16-float16", "dies") for n in range(1, 6)]
    found = list(profiling.profile(cells, run_id="r", device="cuda:0", fingerprint="f"))
    assert ["given up" in (row.reason or "") for row in found] == [False] * 3 + [True] * 2


def test_no_permission_is_said_once_with_the_doctors_remedy(profile: Profile) -> None:
    began = time.monotonic()
    rows = profile("a", "waits", "b", mode="denied", timeout_s=40)
    assert time.monotonic() - began < 30  # nobody waits for a process that can come to nothing
    remedy = judge_counters("ncu", "1", True, False, "cuda").remedy
    for row in rows:
        assert row.status is Status.UNAVAILABLE
        assert row.reason is not None and row.reason.startswith("not collected") and "ERR_NVGPUCTRPERM" in row.reason
        assert row.remedy == remedy and "NVreg_RestrictProfilingToAdminUsers=0" in remedy
    assert [row.traced_kernels for row in rows] == [2, 2, 2]  # the trace needs no permission


def test_counters_that_another_program_holds_are_unavailable(profile: Profile) -> None:
    (row,) = profile("a", mode="taken")
    assert row.status is Status.UNAVAILABLE and row.remedy is not None and "dcgmi profile --pause" in row.remedy


def test_no_ncu_is_unavailable_and_traced_all_the_same(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncu.facts, "find_ncu", lambda: None)
    (row,) = profile("a")
    assert (row.status, row.reason) == (Status.UNAVAILABLE, "not collected: Nsight Compute (ncu) is not here")
    assert row.remedy is not None and "install Nsight Compute" in row.remedy
    assert row.traced_kernels == 2


def test_an_ncu_that_crashes_says_how(profile: Profile) -> None:
    (row, _) = profile("a", "b", mode="crashes")
    assert row.status is Status.FAILED
    assert row.reason == "no cell was profiled: the process was killed by SIGABRT (An internal error occurred.)"
    assert row.remedy is not None and "norm-fusion doctor" in row.remedy


def test_an_ncu_that_is_no_program_says_so(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "ncu").write_bytes(b"\x7fELF of another machine")
    (row,) = profile("a")
    assert row.status is Status.FAILED
    assert row.reason == "no cell was profiled: the process could not be started: Exec format error"


def test_an_ncu_that_hangs_is_given_up(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_S", 3.0)
    (row,) = profile("a", mode="hangs", timeout_s=2)
    assert row.status is Status.FAILED and row.reason is not None
    assert row.reason.startswith("no cell was profiled: the process gave no sign of life for 3 s")


def test_an_ncu_that_profiles_nothing_is_a_failure(profile: Profile) -> None:
    (row,) = profile("a", mode="nothing")
    assert (row.status, row.reason) == (Status.FAILED, "its call ran, and ncu profiled no kernel of it")
    shown, hidden = profile("a", "silent")
    assert (shown.status, hidden.status) == (Status.OK, Status.FAILED)
    assert hidden.reason == "its call ran, and ncu profiled no kernel of it"


def test_a_report_that_nobody_can_read_is_a_failure(profile: Profile) -> None:
    (row,) = profile("a", mode="unreadable")
    assert row.status is Status.FAILED and row.reason is not None and "Failed to open" in row.reason
    assert row.remedy is not None and "ncu-report" in row.remedy


def test_a_metric_that_this_ncu_does_not_know_is_left_out_and_named(profile: Profile) -> None:
    (row,) = profile("a", mode="unknown")
    assert row.status is Status.OK and row.tensor_pct is None
    assert row.reason == "not collected: tensor_pct: the report has no value of them"
    assert row.dram_pct is not None


def test_a_device_that_cannot_be_had_is_unavailable(profile: Profile) -> None:
    rows = profile("a", "b", device="cuda:9")
    assert {(row.status, row.reason) for row in rows} == {(Status.UNAVAILABLE, "not collected: there is no cuda:9")}


def test_the_real_process_says_that_a_device_cannot_be_had(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncu, "CELLS", ("-m", "norm_fusion.profiling.cells"))
    (row,) = profile("torch-native", device="cuda:99")
    assert row.status is Status.UNAVAILABLE and row.reason is not None
    assert row.reason.startswith("not collected: --device cuda:99: ") and row.traced_reason == row.reason


def test_on_a_cpu_nothing_is_started(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.subprocess, "Popen", lambda *words, **more: pytest.fail("a process was started"))
    (row,) = profile("a", device="cpu")
    assert row.status is Status.UNAVAILABLE and row.reason is not None and row.remedy is not None
    assert row.reason.startswith("not collected: hardware counters are a GPU's")
    assert row.traced_kernels is None and row.traced_reason == row.reason


def test_progress_is_told_what_begins(profile: Profile) -> None:
    said: list[tuple[str, str]] = []
    cells = [(CASE, "a"), (OTHER, "b")]
    list(
        profiling.profile(
            cells, run_id="r", device="cuda:0", fingerprint="f", progress=lambda case, what: said.append((case, what))
        )
    )
    assert said == [(CASE, "trace a"), (OTHER, "trace b"), (CASE, "count a"), (OTHER, "count b")]


def test_what_progress_raises_ends_the_process_at_work(profile: Profile, tmp_path: Path) -> None:
    def stop(case: str, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(profiling.profile([(CASE, "hangs")], run_id="r", device="cuda:0", fingerprint="f", progress=stop))
    # Killed by now; on a busy machine the kernel takes its time.
    _until(lambda: not _runs((tmp_path / "log.pid").read_text()))


def test_a_cell_that_is_asked_for_twice_is_profiled_once(profile: Profile) -> None:
    first, second = profile("a", "a")
    assert first == second and len(first.kernels) == 2


def test_a_name_that_is_no_case_is_refused(profile: Profile) -> None:
    with pytest.raises(SpecError, match="is not OP-ROWSxCOLS-DTYPE"):
        profile("a", case="rmsnorm")


def test_cells_are_who_serves_a_case_and_its_roof() -> None:
    cases = [Case.parse(CASE), Case.parse(OTHER), Matmul(8, 8, 8, "float16")]
    names = ["torch-eager", "triton-fused-rmsnorm", "known-norm"]
    assert profiling.cells_of(cases, names) == (
        (CASE, "torch-eager"),
        (CASE, "triton-fused-rmsnorm"),
        (CASE, "known-norm"),
        (CASE, "copy"),
        (OTHER, "torch-eager"),
        (OTHER, "copy"),
        ("matmul-8x8x8-float16", "torch-matmul"),
        ("matmul-8x8x8-float16", "triton-matmul"),
    )


WAITS = """
import sys
from pathlib import Path
from norm_fusion.profiling import cells
folder = Path(sys.argv[1])
(folder / "up").touch()
cells._await(folder / "turn")
with (folder / "events").open("w") as events:
    print('{"event": "ready", "pid": 1}', '{"event": "finished"}', sep="\\n", file=events)
"""


def test_who_is_started_early_waits_for_its_turn(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    said: list[object] = []

    def meanwhile() -> None:
        _until((tmp_path / "up").exists)
        time.sleep(1)
        said.append("meanwhile")

    command = [sys.executable, str(tmp_path / "waits.py"), str(tmp_path)]
    told = child.run(command, {}, tmp_path, 60, lambda event: said.append(event["event"]), meanwhile=meanwhile)
    assert said == ["meanwhile", "ready", "finished"] and told.finished


LEASHED = """
import os, sys, threading, time
from pathlib import Path
from norm_fusion.profiling.cells import _leashed
folder = Path(sys.argv[1])
threading.Thread(target=_leashed, args=[folder / "leash"], daemon=True).start()
print("begun", os.getpid(), flush=True)
time.sleep(600)
"""
HOLDER = """
import sys
from pathlib import Path
from norm_fusion.profiling import child
folder = Path(sys.argv[1])
child.run([sys.executable, str(folder / "leashed.py"), str(folder)], {}, folder, 600, print)
"""


def test_the_profiled_process_ends_with_the_one_that_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "leashed.py").write_text(LEASHED)
    (tmp_path / "holder.py").write_text(HOLDER)
    holder = subprocess.Popen([sys.executable, tmp_path / "holder.py", tmp_path])

    printed = tmp_path / "printed"
    _until(lambda: printed.exists() and printed.read_text().endswith("\n"))
    (pid,) = re.findall(r"begun (\d+)", printed.read_text())
    assert _runs(pid)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    _until(lambda: not _runs(pid))


def _runs(pid: str) -> bool:
    """Is it there, and no zombie that nobody has waited for?"""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
