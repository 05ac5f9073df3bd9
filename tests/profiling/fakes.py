"""An ncu, and a process under it, that need no GPU: what they do is told by the profiles' names, and by FAKE_NCU."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

# Cells by profile: dies and hangs end nothing well, waits only where it is counted; raises says so; silent runs, and is
# not in the report; halves says what it says in two. FAKE_LOG is told who was to be counted in each process, and beside
# it lies the last process's number.
CELLS = """
import json, os, signal, sys, time

folder = sys.argv[1]
job = json.load(open(f"{folder}/job"))
events = open(f"{folder}/events", "a")


def say(event, **data):
    print(json.dumps({"event": event, **data}), file=events, flush=True)


if job["device"] == "cuda:9":
    say("refused", message="there is no cuda:9")
    sys.exit(2)
if not job["trace"]:
    with open(os.environ["FAKE_LOG"], "a") as log:
        print(*(profile for _, _, profile in job["cells"]), file=log)
open(os.environ["FAKE_LOG"] + ".pid", "w").write(str(os.getpid()))
while not os.path.exists(f"{folder}/turn"):
    time.sleep(0.05)
say("ready", pid=os.getpid())
print("a library's own words")
for number, case, profile in job["cells"]:
    say("begin", cell=number)
    if profile == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if profile == "hangs" or profile == "waits" and not job["trace"]:
        time.sleep(600)
    if profile == "raises":
        say("failed", cell=number, status="failed", reason="ValueError: no such thing", remedy=None)
        continue
    names = ["slow copy", "quick copy"] if profile == "copy" else [f"the real {profile}"]
    with open(f"{folder}/launched", "a") as file:
        for variant in range(len(names)):
            if profile != "silent":
                print(case, profile, variant, file=file)
    found = {"kernels": 2, "ms": 0.5} if job["trace"] else {}
    if profile == "halves":
        print('{"event": "do', end="", file=events, flush=True)
        time.sleep(0.5)
        print(f'ne", "cell": {number}, "resolved": [""], "kernels": 2, "ms": 0.5}}', file=events, flush=True)
        continue
    say("done", cell=number, resolved=names, **found)
say("finished")
"""

# A report is a line for each kernel: case, profile, variant. Two kernels a call, of 10 and 30 us; of a copy's second
# variant of 5 and 15.
NCU = """#!{python}
import os, signal, subprocess, sys, time

PERMISSION = (
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the "
    "target device 0. For instructions on enabling permissions and to get more information see "
    "https://developer.nvidia.com/ERR_NVGPUCTRPERM"
)
TAKEN = (
    "==ERROR== Profiling failed because a driver resource was unavailable. Ensure that no other tool (like DCGM) is "
    "concurrently collecting profiling data."
)
mode, words = os.environ.get("FAKE_NCU", ""), sys.argv[1:]
METRICS = {metrics!r}
if words == ["--version"]:
    print("NVIDIA (R) Nsight Compute Command Line Profiler")
    print("Version 2025.3.1.0 (build 36398880) (public-release)")
elif words[0] == "-i":
    if mode == "unreadable":
        sys.exit("==ERROR== Failed to open " + words[1])
    head = ["ID", "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg", "Kernel Name"]
    print(",".join('"' + name + '"' for name in head + list(METRICS)))
    print(",".join('"' + unit + '"' for unit in ["", "", ""] + list(METRICS.values())))
    known = open(words[1]).readline().strip().split(",")
    for i, line in enumerate(open(words[1]).readlines()[1:]):
        case, profile, variant = line.split()
        label = "cell:" + case + "|" + profile + ("|" + variant if variant != "0" else "")
        where = '7  ""<default domain>:' + label + ':none:none:none:none:none:none"" '
        for k, ns in enumerate((10000, 30000)):
            ns //= 1 + int(variant)
            values = [str(ns if name.startswith("gpu__time") else 8 * (k + 1)) for name in METRICS]
            values = [value if name in known else "n/a" for name, value in zip(METRICS, values)]
            cells = [str(2 * i + k), where, label + "/kernel_" + str(k)] + values
            print(",".join('"' + cell + '"' for cell in cells))
else:
    if mode == "crashes":
        print("==ERROR== An internal error occurred.", flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if mode == "hangs":
        time.sleep(600)
    asked = words[words.index("--metrics") + 1]
    if mode == "unknown" and "tensor" in asked:
        print("==ERROR== Failed to find metric regex:^sm__pipe_tensor_cycles_active\\\\.(sum|min|max|avg|pct|ratio)$")
        sys.exit(1)
    if mode in ("denied", "taken"):
        print(PERMISSION if mode == "denied" else TAKEN, flush=True)
    app = words[words.index("--force-overwrite") + 1 :]
    code = subprocess.run(app).returncode
    print("==PROF== Disconnected from process 7")
    if code:
        print("==ERROR== The application returned an error code (" + str(abs(code)) + ").")
    if mode in ("denied", "taken", "nothing") or code == -9 and mode == "killed":
        print("==WARNING== No kernels were profiled.")
    else:
        path = app[-1] + "/launched"
        launched = open(path).read() if os.path.exists(path) else ""
        open(words[words.index("--export") + 1] + ".ncu-rep", "w").write(asked + "\\n" + launched)
    sys.exit(abs(code))
"""

# As NVIDIA's: reports in ranges of actions, metrics with values and units, ranges by domain.
MODULE = """
UNITS = {metrics!r}


class Metric:
    def __init__(self, found, unit):
        self.found, self.its = found, unit

    def value(self):
        return self.found

    def unit(self):
        return self.its


class Domain:
    def __init__(self, *messages):
        self.messages = messages

    def push_pop_ranges(self):
        return self.messages


class State:
    def __init__(self, domains):
        self.all = domains

    def domains(self):
        return tuple(self.all)

    def domain_by_id(self, number):
        return self.all[number]


class Action:
    NameBase_DEMANGLED = 1

    def __init__(self, label, k, ns):
        self.label, self.k, self.ns = label, k, ns

    def name(self, base):
        assert base == self.NameBase_DEMANGLED
        return "kernel_" + str(self.k)

    def metric_by_name(self, name):
        if name not in UNITS:
            return None
        return Metric(self.ns if name.startswith("gpu__time") else 8 * (self.k + 1), UNITS[name])

    def nvtx_state(self):
        return State({{3: Domain("another library's"), 7: Domain("around", self.label)}}) if self.label else None


class Range:
    def __init__(self, actions):
        self.actions = actions

    def num_actions(self):
        return len(self.actions)

    def action_by_idx(self, i):
        return self.actions[i]


class Context:
    def __init__(self, ranges):
        self.ranges = ranges

    def num_ranges(self):
        return len(self.ranges)

    def range_by_idx(self, i):
        return self.ranges[i]


def load_report(path):
    actions = [Action("", 0, 1000)]
    for line in open(path).readlines()[1:]:
        case, profile, variant = line.split()
        label = "cell:" + case + "|" + profile + ("|" + variant if variant != "0" else "")
        actions += [Action(label, k, ns // (1 + int(variant))) for k, ns in enumerate((10000, 30000))]
    return Context([Range(actions[:1]), Range(actions[1:])])
"""

UNITS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "byte",
    "dram__bytes_write.sum": "byte",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "%",
    "launch__registers_per_thread": "register/thread",
    "lts__t_sector_hit_rate.pct": "%",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": "%",
}


def make_ncu(folder: Path) -> Path:
    """An ncu in that folder."""
    path = folder / "ncu"
    path.write_text(NCU.format(python=sys.executable, metrics=UNITS))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_module(folder: Path) -> Path:
    """NVIDIA's Python module as it lies beside an ncu in that folder."""
    place = folder / "extras" / "python"
    place.mkdir(parents=True)
    (place / "ncu_report.py").write_text(MODULE.format(metrics=UNITS))
    return place


def make_cells(folder: Path) -> Path:
    """The program that stands for the process under ncu."""
    path = folder / "cells.py"
    path.write_text(CELLS)
    return path
