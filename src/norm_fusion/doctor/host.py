"""Judges the host: CPUs and who shares them, memory, folders and the clock behind every host and wall sample."""

from __future__ import annotations

from norm_fusion.doctor.facts import Clock, Cpu, Folder, Memory
from norm_fusion.doctor.finding import Finding, gib, limited, missing, ok, share, unknown

# A share of time taken by others that is half of the effect the labels decide on (2%).
STEAL = 0.01
LOAD_SHARE = 0.25
ENOUGH_MEMORY = 4 * 2**30
ENOUGH_DISK = 2**30  # a full suite with its raw samples and its page is tens of MiB
ENOUGH_TEMP = 512 * 2**20  # Triton's and Inductor's compiled code
ENOUGH_SHM = 64 * 2**20  # what a container gets by default
STEADY_SOURCES = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase", "tod")
SLOW_SOURCES = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit")
SLOW_READ_NS = 500
NOISE = "labels may come out 'rerun noise' or 'inconclusive'"
SERIES = "the wall and host series"


def judge_cpu(cpu: Cpu) -> Finding:
    cores = f"{cpu.physical} cores, " if cpu.physical else ""
    threads = {None: "", True: ", hyperthreads on", False: ""}[cpu.smt]
    usable = f"{cpu.usable} of {cpu.logical} CPUs usable" if cpu.usable != cpu.logical else f"{cpu.logical} CPUs"
    return ok("CPU", f"{cpu.model or 'model not told'}, {cores}{usable}{threads}")


def judge_threads(threads: int | None, cpu: Cpu) -> Finding:
    """PyTorch's threads against the CPUs, and the CPU time, that this process may use."""
    name = "threads"
    if threads is None or cpu.usable is None:
        return unknown(name, "not told", "whether PyTorch starts more threads than it has CPUs is not known")
    seen = f"PyTorch starts {threads}" + (f", a control group allows {cpu.quota:g} CPUs' time" if cpu.quota else "")
    if cpu.quota and cpu.quota < min(threads, cpu.usable):
        return limited(
            name,
            seen,
            "once the time is spent the kernel stops the process for the rest of the period (100 ms as a rule): "
            f"long tails in {SERIES}, {NOISE}",
            f"start with OMP_NUM_THREADS={max(1, int(cpu.quota))}, or lift the container's CPU limit",
        )
    if threads > cpu.usable:
        return limited(
            name,
            f"{seen} on {cpu.usable} usable CPUs",
            f"threads wait for each other: long tails on a CPU, {NOISE}",
            f"start with OMP_NUM_THREADS={cpu.usable}",
        )
    if cpu.smt and cpu.physical and threads > cpu.physical:
        return limited(
            name,
            f"{seen} on {cpu.physical} cores",
            "two threads share a core: slower and less steady than one a core",
            f"start with OMP_NUM_THREADS={cpu.physical}",
        )
    return ok(name, seen)


def judge_load(load: float | None, usable: int | None) -> Finding:
    """Load average of the last minute, taken before this command's own probes."""
    if load is None or not usable:
        return unknown("load", "not told", "whether others work on these CPUs is not known")
    seen = f"{load:.2f} in the last minute, on {usable} CPUs"
    if load > LOAD_SHARE * usable:
        return limited(
            "load", seen, f"other work shares these CPUs: {NOISE}", "end it or wait, and look again in a minute"
        )
    return ok("load", seen)


def judge_steal(stolen: int | None, sampled: int | None, since_boot: float | None) -> Finding:
    """CPU time that the hypervisor gave to other guests: ticks of a short sample, and a share since boot."""
    if stolen is None or not sampled or sampled < 0:
        return unknown("steal", "not told", "whether the hypervisor takes CPU time away is not known")
    seen = f"{stolen} of {sampled} ticks now" + ("" if since_boot is None else f", {share(since_boot)} since boot")
    # A single tick of the sample is within its resolution.
    if (stolen > 1 and stolen / sampled > STEAL) or (since_boot or 0) > STEAL:
        return limited(
            "steal",
            seen,
            f"other guests of this host take CPU time: {SERIES} pause at random, {NOISE}",
            "use a machine with CPUs of its own, or rerun at a quieter hour; on a GPU look at device and graph",
        )
    return ok("steal", seen)


def judge_frequency(governor: str | None, turbo: bool | None) -> Finding:
    boost = {None: "turbo not told", True: "turbo on", False: "turbo off"}[turbo]
    seen = f"governor {governor or 'not told'}, {boost}"
    if governor not in (None, "performance"):
        return limited(
            "frequency",
            seen,
            f"the CPU changes its clock with the load: {SERIES} drift, {NOISE}",
            "a person may set it: sudo cpupower frequency-set -g performance",
        )
    if governor is None:
        return unknown("frequency", seen, "common in virtual machines: clocks that move would show as drift")
    return ok("frequency", seen)


def judge_memory(free: int | None, total: int | None) -> Finding:
    """Bytes; the limit of a container counts."""
    if free is None or total is None:
        return unknown("memory", "not told", "a case too large for it is found when it runs")
    seen = f"{gib(free)} of {gib(total)} free"
    if free < ENOUGH_MEMORY:
        return limited(
            "memory",
            seen,
            "large cases may be refused, and a run may be killed: a cold cache needs inputs of several times its size",
            "end other programs, or choose smaller shapes",
        )
    return ok("memory", seen)


def judge_shm(size: int | None) -> Finding:
    if size is None:
        return unknown("/dev/shm", "not told", "matters for runs on a Ray cluster alone")
    if size <= ENOUGH_SHM:
        return limited(
            "/dev/shm",
            gib(size),
            "a container's default: Ray, and NCCL among several GPUs, want more; runs on this machine do not",
            "start the container with --shm-size=1g or more",
        )
    return ok("/dev/shm", gib(size))


def judge_output(folder: Folder) -> Finding:
    name, seen = "output", f"{folder.path}/"
    if folder.blocked:
        return missing(
            name,
            f"{folder.path}: {folder.blocked} is no folder",
            "a run has nowhere to be kept: it is refused",
            "name another folder with --output, or move that file away",
        )
    if folder.writable is None:
        return unknown(name, f"{seen} cannot be looked at", "a run may be refused", "name another with --output")
    if not folder.writable:
        return missing(
            name,
            f"{seen} cannot be written",
            "a run has nowhere to be kept: it is refused",
            "name a folder of your own with --output",
        )
    free = "" if folder.free is None else f", {gib(folder.free)} free"
    if folder.free is not None and folder.free < ENOUGH_DISK:
        return limited(name, seen + free, "a long run may not fit: what was kept until then stays", "free some space")
    return ok(name, f"{seen} can be written{free}")


def judge_temporary(folder: Folder) -> Finding:
    name = "temporary"
    if folder.path is None or folder.writable is False:
        return missing(
            name,
            "no folder that can be written" if folder.path is None else f"{folder.path} cannot be written",
            "the GPU's lock and the compilers' files go there: runs are refused, torch.compile fails",
            "set TMPDIR to a folder of your own",
        )
    free = "" if folder.free is None else f", {gib(folder.free)} free"
    if folder.free is not None and folder.free < ENOUGH_TEMP:
        means = "compiled code may not fit: compiling then fails"
        return limited(name, folder.path + free, means, "free some space, or set TMPDIR elsewhere")
    return ok(name, folder.path + free)


def judge_clock(clock: Clock) -> Finding:
    """perf_counter and what the kernel reads for it."""
    source = clock.source or "not told"
    cost = "" if clock.read_ns is None else f", a reading takes {clock.read_ns:.0f} ns"
    seen = f"{source}, resolution {clock.resolution_s * 1e9:g} ns{cost}"
    if not clock.monotonic:
        return limited("clock", f"{seen}, not monotonic", f"{SERIES} may run backwards", "use another Python build")
    slow = clock.read_ns is not None and clock.read_ns > SLOW_READ_NS
    coarse = clock.resolution_s > 1e-7
    if clock.source in SLOW_SOURCES or slow or coarse:
        return limited(
            "clock",
            seen,
            f"slow or coarse to read, which adds to every sample of {SERIES}; device and graph do not use it",
            "a person may look why the kernel gave up tsc (dmesg | grep -i tsc); some virtual machines have none",
        )
    if clock.source not in STEADY_SOURCES:
        return unknown("clock", seen, "its readings are fast; whether it is steady is not known here")
    return ok("clock", seen)


def judge_host(cpu: Cpu, threads: int | None) -> list[Finding]:
    return [
        judge_cpu(cpu),
        judge_threads(threads, cpu),
        judge_load(cpu.load_1m, cpu.usable),
        judge_steal(cpu.stolen, cpu.sampled, cpu.stolen_since_boot),
        judge_frequency(cpu.governor, cpu.turbo),
    ]


def judge_places(memory: Memory, output: Folder, temporary: Folder, clock: Clock) -> list[Finding]:
    return [
        judge_memory(memory.free, memory.total),
        judge_shm(memory.shm),
        judge_output(output),
        judge_temporary(temporary),
        judge_clock(clock),
    ]
