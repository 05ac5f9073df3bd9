"""What this machine can and cannot measure, and what to do about it. Nothing here changes a setting.

    facts                          reads the host; the cards are read by norm_fusion.nvml
    probe, trial                   a process that tries torch, the kernels, CUDA graphs and CUPTI, and what it told
    software, gpu, series, host    judge what was read: pure functions from facts to findings
    show                           findings as a terminal shows them

No torch in this process. Whatever is missing, broken or hostile ends as a finding, never as a crash.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from norm_fusion import machine, nvml
from norm_fusion.doctor import facts, gpu, host, probe, series, software
from norm_fusion.doctor.finding import Finding, printable, unknown
from norm_fusion.records import first_line

T = TypeVar("T")

__all__ = ["Facts", "Finding", "Report", "examine", "gather", "judge"]


@dataclass(frozen=True)
class Facts:
    """All that was read, before anything is judged."""

    asked: str
    cpu: facts.Cpu
    memory: facts.Memory
    output: facts.Folder
    temporary: facts.Folder
    clock: facts.Clock
    software: facts.Software
    nvml: nvml.Nvml
    module: str | None
    visible: str | None
    locks: tuple[str, ...]
    steps: dict[str, probe.Step]

    @property
    def device(self) -> str | None:
        """What `--device` turned out to be: cpu, cuda:N or nothing."""
        step = self.steps.get("device")
        found = step.facts.get("resolved") if step else None
        return None if found is None else str(found)

    @property
    def gpu(self) -> dict[str, object] | None:
        """What PyTorch says of the GPU in use."""
        if self.device is None or self.device == "cpu":
            return None
        found: dict[str, object] = self.steps["device"].facts["gpus"][int(self.device.partition(":")[2])]
        return found

    @property
    def gpu_here(self) -> bool:
        return bool(self.nvml.cards) or self.module is not None


@dataclass(frozen=True)
class Report:
    """The findings in order, the sentence that sums them up, and whether any series can be taken."""

    findings: tuple[Finding, ...]
    summary: str
    measurable: bool


def examine(device: str, output: Path) -> Report:
    """Look at this machine. `device`: auto, cpu, cuda or cuda:N; `output`: where runs would be kept. Takes seconds."""
    return judge(gather(device, output))


def gather(device: str, output: Path) -> Facts:
    """Read everything; the probes come last, since they are themselves load and company."""
    temporary = _read(facts.temporary, lambda _: facts.Folder(None))
    return Facts(
        asked=device,
        cpu=_read(facts.cpu, lambda _: facts.Cpu()),
        memory=_read(facts.memory, lambda _: facts.Memory()),
        output=facts.folder(output),
        temporary=temporary,
        clock=facts.clock(),
        nvml=_read(nvml.read, lambda why: nvml.Nvml(problem=why)),
        module=machine.text(machine.ROOT / "proc/driver/nvidia/version"),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        locks=facts.held_locks(temporary.path),
        software=_read(facts.software, lambda _: facts.Software()),
        steps=_read(lambda: probe.run(device), lambda why: {"start": probe.Step(False, why)}),
    )


def _read(reader: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """What a reader reads; where it fails in a way that it does not know, what is left to say."""
    try:
        return reader()
    except Exception as error:  # noqa: BLE001 - a doctor outlives what is broken, and then says so
        return otherwise(first_line(error))


def judge(read: Facts) -> Report:
    """Findings of facts: a pure function."""
    findings: list[Finding] = []
    for group, name, check in CHECKS:
        try:
            made = list(check(read))
        except Exception as error:  # noqa: BLE001 - facts of a machine nobody thought of; the other checks go on
            made = [unknown(name, f"could not be judged: {first_line(error)}", "a fault of this command")]
        findings += [_clean(finding, group) for finding in made]
    sentence = printable(series.summary(findings, read.asked, read.device), most=2000)
    return Report(tuple(findings), sentence, series.can_measure(findings))


def _clean(finding: Finding, group: str) -> Finding:
    return replace(finding, group=group, seen=printable(finding.seen))


def _software(read: Facts) -> Iterable[Finding]:
    versions, step = read.software.versions, read.steps.get("torch")
    torch = str(step.facts.get("version")) if step and step.ok else versions.get("torch")
    yield software.judge_python()
    yield software.judge_torch(versions.get("torch"), step or read.steps.get("start"), read.gpu_here)
    yield software.judge_native(torch, versions)
    yield software.judge_triton(versions.get("triton"), read.software.ptxas, sys.platform == "linux")
    capability = read.gpu["capability"] if read.gpu else None
    compiled_for = f"{capability[0]}.{capability[1]}" if isinstance(capability, list) else None
    yield software.judge_kernels(read.steps.get("kernels"), read.device, compiled_for)


def _compilers(read: Facts) -> Iterable[Finding]:
    on_gpu = read.gpu is not None
    headers = read.software.headers
    yield software.judge_compiler(
        read.software.c, "C", "launcher for Triton's kernels (ours and torch.compile's)", on_gpu, headers
    )
    yield software.judge_compiler(read.software.cxx, "C++", "torch.compile on a CPU", not on_gpu, headers)


def _libraries(read: Facts) -> Iterable[Finding]:
    yield from software.judge_extras(read.software.versions)
    yield software.judge_peers(read.software.versions)
    yield software.judge_variables(read.software.variables, read.device)


def _gpu(read: Facts) -> Iterable[Finding]:
    if read.asked == "cpu":
        return
    torch, step = read.steps.get("torch"), read.steps.get("device")
    yield gpu.judge_driver(read.nvml, read.module)
    yield gpu.judge_gpu(read.asked, torch, step, read.nvml, read.module, read.visible)
    if read.gpu is None or step is None:
        return
    major, minor = step.facts["gpus"][int(str(read.device).partition(":")[2])]["capability"]
    yield gpu.judge_capability(major, minor)
    yield gpu.judge_others(step.facts["gpus"], int(str(read.device).partition(":")[2]))


def _card(read: Facts) -> Iterable[Finding]:
    card = gpu.card_of(read.gpu, read.nvml.cards) if read.gpu else None
    if card is not None:
        yield from gpu.judge_card(card)
    if read.gpu is not None:
        uuid = read.gpu.get("uuid")
        yield from gpu.judge_company(card.processes if card else None, read.locks, str(uuid) if uuid else None)


def _series(read: Facts) -> Iterable[Finding]:
    yield from series.judge_series(read.steps, read.device)
    s = read.software
    yield series.judge_counters(s.ncu, s.ncu_version, s.restricted, s.admin, read.device)


def _host(read: Facts) -> Iterable[Finding]:
    step = read.steps.get("torch")
    yield from host.judge_host(read.cpu, step.facts.get("threads") if step else None)


def _places(read: Facts) -> Iterable[Finding]:
    yield from host.judge_places(read.memory, read.output, read.temporary, read.clock)


CHECKS: tuple[tuple[str, str, Callable[[Facts], Iterable[Finding]]], ...] = (
    ("Software", "software", _software),
    ("Software", "compilers", _compilers),
    ("Software", "libraries", _libraries),
    ("GPU", "GPU", _gpu),
    ("GPU", "card", _card),
    ("Host", "CPU", _host),
    ("Host", "places", _places),
    ("What can be measured", "series", _series),
)
