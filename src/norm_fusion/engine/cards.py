"""The cards of this machine: one is measured by this process, several by a process each, at the same time."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from norm_fusion.engine import messages as m
from norm_fusion.engine.session import Session
from norm_fusion.records import Environment, Manifest
from norm_fusion.runs.plan import Plan, dealt
from norm_fusion.spec import Case

SHARD = [sys.executable, "-m", "norm_fusion.engine.shard"]
# A shard's process says every few seconds that it is there (see shard.py): one that is silent for so long hangs.
SILENT_S = 60.0
LOOK_S = 1.0  # how often we look
HELD_UP_S = 5.0  # after a longer look it was us who were held up, by Ctrl-Z or a slow disk
# A message is at most the samples of a case.
MAX_LINE = 2**30

# What a shard tells is taken: on which card (empty where there is one alone), and what.
Take = Callable[[str, m.Message], None]
Job = tuple[m.Task, Take]


class Here:
    """One card, measured by this process."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.stopped: list[int] = []

    def tasks(self, plan: Plan, manifest: Manifest, earlier: Sequence[m.Made]) -> list[m.Task]:
        return [task_of(plan, manifest, earlier)]

    def work(self, jobs: Sequence[Job]) -> None:
        for task, take in jobs:
            self.session = Session(task, partial(take, ""))
            for number in self.stopped:
                self.session.stop(number)
            self.session.measure()

    def stop(self, number: int) -> None:
        self.stopped.append(number)
        if self.session is not None:
            self.session.stop(number)


class Cards:
    """Several cards of this machine: the cases are dealt to them, each card's to a process of its own.

    `cards`: by names that CUDA_VISIBLE_DEVICES takes. A shard's process sees its own card alone.
    """

    def __init__(self, cards: Sequence[str]) -> None:
        self.cards = cards
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped = 0

    def tasks(self, plan: Plan, manifest: Manifest, earlier: Sequence[m.Made]) -> list[m.Task]:
        """A shard for each card. What was begun goes on where it was, if that card is still there."""
        begun = {record.case: manifest.environment_of(record.fingerprint) for record, _ in earlier}
        shares: list[list[Case]] = [[] for _ in self.cards]
        loose: list[Case] = []
        for case in plan.cases:
            was = begun.get(case.name)
            mine = next((i for i, card in enumerate(self.cards) if was and f"GPU-{was.device_uuid}" == card), None)
            (loose if mine is None else shares[mine]).append(case)
        for share, more in zip(sorted(shares, key=len), dealt(loose, len(shares)) if loose else [], strict=False):
            share += more
        return [task_of(part, manifest, earlier) for part in split(plan, shares)]

    def work(self, jobs: Sequence[Job]) -> None:
        heard: queue.Queue[tuple[str, bytes | None]] = queue.Queue()
        waiting = {f"cuda:{i}": job for i, job in enumerate(jobs) if job[0].plan.cases or job[0].plan.profiled}
        for device, (task, _) in list(waiting.items()):
            if self.stopped:
                del waiting[device]
            else:
                self._start(device, self.cards[int(device.partition(":")[2])], task, heard)
        takes = {device: take for device, (_, take) in waiting.items()}
        looked = time.monotonic()
        spoke = dict.fromkeys(waiting, looked)
        try:
            while spoke:
                for device, line in _arrived(heard):
                    if device in spoke and not self._hear(device, line, waiting, takes):
                        del spoke[device]
                        self._ended(device, waiting)
                    elif device in spoke:
                        spoke[device] = time.monotonic()
                before, looked = looked, time.monotonic()
                if looked - before > HELD_UP_S:
                    spoke = dict.fromkeys(spoke, looked)
                # Each that is ended ends with an empty line, and its code says the rest.
                self._end(device for device, at in spoke.items() if looked - at > SILENT_S)
        finally:
            self._end(self.running)

    def stop(self, number: int) -> None:
        self.stopped += 1
        for process in self.running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def _hear(self, device: str, line: bytes | None, waiting: dict[str, Job], takes: Mapping[str, Take]) -> bool:
        """Take a message; False where there will be no other: its process ended, maybe in the middle of this one."""
        if not line or not line.endswith(b"\n"):
            return False
        message = m.read(line)
        takes[device](device, message)
        if isinstance(message, m.Finished):
            waiting.pop(device, None)
        return True

    def _start(self, device: str, card: str, task: m.Task, heard: queue.Queue[tuple[str, bytes | None]]) -> None:
        only = os.environ | {"CUDA_VISIBLE_DEVICES": card}
        process = subprocess.Popen(
            SHARD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=only
        )
        self.running[device] = process
        if self.stopped:  # meanwhile
            process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(task.model_dump_json(by_alias=True).encode() + b"\n")
            process.stdin.close()

        def listen() -> None:
            assert process.stdout is not None
            while line := process.stdout.readline(MAX_LINE):
                heard.put((device, line))
            heard.put((device, None))

        threading.Thread(target=listen, daemon=True).start()

    def _ended(self, device: str, waiting: dict[str, Job]) -> None:
        process = self.running.pop(device)
        code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if device in waiting and not self.stopped:
            task, take = waiting[device]
            names = ", ".join(case.name for case in task.plan.cases)
            said = f"the process of {device} ended early (code {code}), with {names}"
            take(device, m.Note(text=f"{said}: the same run id goes on with them"))

    def _end(self, devices: Iterable[str]) -> None:
        """End processes, and all that they started."""
        for device in list(devices):
            if device in self.running:
                with suppress(ProcessLookupError):
                    os.killpg(self.running[device].pid, signal.SIGKILL)


def _arrived(heard: queue.Queue[tuple[str, bytes | None]]) -> Iterator[tuple[str, bytes | None]]:
    """All that was told since; waits a moment where nothing was."""
    with suppress(queue.Empty):
        yield heard.get(timeout=LOOK_S)
        while True:
            yield heard.get_nowait()


def split(plan: Plan, shares: Sequence[Sequence[Case]]) -> list[Plan]:
    """The plan for each share of its cases, with its share of the budget.

    What is profiled and no case of it goes to the smallest share.
    """
    names = {case.name for case in plan.cases}
    apart = [cell for cell in plan.profiled if cell[0] not in names]
    smallest = min(range(len(shares)), key=lambda i: len(shares[i]))
    parts = []
    for i, share in enumerate(shares):
        mine = {case.name for case in share}
        cells = [cell for cell in plan.profiled if cell[0] in mine]
        budget = plan.budget_s and plan.budget_s * len(share) / max(1, len(plan.cases))
        parts.append(replace(plan.of(share, cells + apart * (i == smallest)), budget_s=budget))
    return parts


def task_of(plan: Plan, manifest: Manifest, earlier: Sequence[m.Made]) -> m.Task:
    """A shard's task, with what was measured of its cases before."""
    names = {case.name for case in plan.cases}
    mine = [one for one in earlier if one[0].case in names]
    was: Environment | None = manifest.environment_of(mine[0][0].fingerprint) if mine else None
    if not mine and not plan.cases and manifest.environments:
        was = manifest.environments[0]
    return m.Task(plan=plan, manifest=manifest, earlier=mine, environment=was)
