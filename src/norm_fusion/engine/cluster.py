"""A Ray cluster's cards: each shard is a task that has a whole GPU, and streams back what it tells. No torch.

A task is never retried by Ray: what it told is kept here, and only the rest is submitted again, where there is a card.
A shard that falls silent is given up after a while that does not count queueing; a model of GPU that no node has is
told at once, and never waited for.
"""

from __future__ import annotations

import atexit
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import norm_fusion
from norm_fusion import machine
from norm_fusion.engine import messages as m
from norm_fusion.engine.cards import Job, Take, split, task_of
from norm_fusion.engine.joining import REACH_S, joined, unreachable
from norm_fusion.records import Manifest, first_line
from norm_fusion.runs.plan import Plan, dealt
from norm_fusion.spec import SpecError

TYPE = "accelerator_type:"  # how Ray names the resource that a node has for its model of GPU

LOOK_S = 1.0  # how often we look up
NODES_S = 5.0  # how often we ask which nodes there are
SILENT_S = 30.0  # a shard that began and tells nothing, not even that it is there, is given up
HEADLESS_S = 15.0  # a head that does not answer for so long is gone
TRIES = 3  # of a shard whose node is lost, or falls silent


@dataclass
class _Shard:
    """A shard on the cluster; its task grows by what it tells."""

    number: int
    task: m.Task
    take: Take
    tries: int = 0
    stream: Any = None  # of Ray: refs to what the task yields
    coming: Any = None  # the ref to a message that is not here yet
    where: str = ""
    heard_s: float = 0.0
    began: bool = False
    waits: bool = False  # for a card, as was told
    over: bool = False  # told to its end

    def rest(self) -> m.Task:
        """The task without the cases that are done, with what was measured of the others."""
        done = set(self.task.manifest.done)
        cases = [case for case in self.task.plan.cases if case.name not in done]
        names = {case.name for case in cases}
        earlier = [one for one in self.task.earlier if one[0].case in names]
        return self.task.model_copy(
            update={"plan": self.task.plan.of(cases, self.task.plan.profiled), "earlier": earlier}
        )

    def note(self, message: m.Message) -> None:
        """What a message leaves behind for the next try."""
        match message:
            case m.Began():
                self._now(environment=message.environment)
            case m.Anew():
                self._now(earlier=[one for one in self.task.earlier if one[0].case not in message.cases])
            case m.Measured() if not message.cut:
                self._now(earlier=[*self.task.earlier, *message.made])
            case m.Done():
                done = [*self.task.manifest.done, *message.cases]
                self._now(manifest=self.task.manifest.model_copy(update={"done": done}))
            case m.Counted():
                cell = (message.counters.case, message.counters.profile)
                plan = self.task.plan
                self._now(plan=plan.of(plan.cases, [one for one in plan.profiled if one != cell]))
            case m.Finished():
                self.over = True

    def _now(self, **changes: Any) -> None:
        self.task = self.task.model_copy(update=changes)


class Cluster:
    """A crew of the cards of the Ray cluster at `address`. `shards`: how many a model's cases make; else one a card.

    Raises:
        SpecError: it cannot be reached, refuses us, or runs another Ray or Python.
    """

    def __init__(self, address: str, shards: int | None = None) -> None:
        self.ray, self.address, self.shards = joined(address), address, shards
        self.stopped = False
        self.archive, self.name = packed()
        self.settings = {machine.COMMIT: _commit()}

    def tasks(self, plan: Plan, manifest: Manifest, earlier: Sequence[m.Made]) -> list[m.Task]:
        try:
            model = self._model(plan, manifest)
        except SpecError:
            self._leave()
            raise
        cards = self._cards(model)
        shares = dealt(plan.cases, self.shards or max(1, cards)) if plan.cases else [()]
        device = "cpu" if plan.shard.device == "cpu" else "cuda"
        return [
            task_of(part.of(part.cases, part.profiled, device), manifest, earlier).model_copy(update={"model": model})
            for part in split(plan, shares)
        ]

    def work(self, jobs: Sequence[Job]) -> None:
        archive = self.ray.put(self.archive)
        shards = [_Shard(number, task, take) for number, (task, take) in enumerate(jobs)]
        looked_s = head_s = time.monotonic()
        try:
            blocked = self._blocked(shards)
            going = [shard for shard in shards if shard not in blocked]
            for shard in going:
                self._submit(shard, archive)
            while going and not self.stopped:
                self._hear(going)
                now = time.monotonic()
                lost = [] if self.stopped else [shard for shard in going if self._lost(shard, now)]
                if lost and not self._head_there():
                    self._headless(going)
                    return
                for shard in lost:
                    self._again(shard, archive)
                if now - looked_s > NODES_S:
                    looked_s = now
                    self._say_who_waits(going)
                    head_s = now if self._head_there() else head_s
                    if now - head_s > HEADLESS_S:
                        self._headless(going)
                        return
                    if head_s == now:
                        blocked = self._blocked([shard for shard in going if not shard.began])
                        going = [shard for shard in going if shard not in blocked]
                going = [shard for shard in going if shard.stream is not None]
            for shard in going:
                self._cancel(shard)
        except self.ray.exceptions.RayError as error:
            for shard in shards:
                self._tell(shard, m.Note(text=f"the cluster is lost: {_kind(error)}"))
        finally:
            self._leave()

    def stop(self, number: int) -> None:
        """What was told is kept: nothing is waited for."""
        self.stopped = True

    # What a shard is and how it fares

    def _submit(self, shard: _Shard, archive: Any) -> None:
        from norm_fusion.engine import remote

        cpickle = self.ray.cloudpickle
        cpickle.register_pickle_by_value(remote)
        try:
            task, model = shard.rest(), shard.task.model
            function = self.ray.remote(remote.shard).options(
                num_returns="streaming",
                max_retries=0,
                num_cpus=0 if model is not None else 1,
                num_gpus=1 if model is not None else 0,
                resources={f"{TYPE}{model}": 0.001} if model is not None else {},
            )
            line = task.model_dump_json(by_alias=True).encode()
            shard.stream = function.remote(line, archive, self.name, self.settings)
        finally:
            cpickle.unregister_pickle_by_value(remote)
        shard.coming = None
        shard.tries += 1
        shard.began = False
        shard.heard_s = time.monotonic()

    def _hear(self, shards: Sequence[_Shard]) -> None:
        """Take what has arrived; waits a moment where nothing has."""
        by_stream = {shard.stream: shard for shard in shards if shard.stream is not None}
        for shard in by_stream.values():
            if shard.coming is not None:
                self._next(shard)
        timeout = LOOK_S
        while not self.stopped:
            # One whose node does not send what it has told is not asked for more.
            streams = [
                stream for stream, shard in by_stream.items() if shard.stream is not None and shard.coming is None
            ]
            if not streams:
                return
            ready, _ = self.ray.wait(streams, num_returns=1, timeout=timeout, fetch_local=False)
            for stream in ready:
                self._next(by_stream[stream])
            if not ready:
                return
            timeout = 0

    def _next(self, shard: _Shard) -> None:
        """Take the message that is there, or the end of them; what its node does not send is waited for later."""
        try:
            if shard.coming is None:
                shard.coming = next(shard.stream)
            here, _ = self.ray.wait([shard.coming], timeout=LOOK_S)
            if not here:
                return
            line = self.ray.get(shard.coming, timeout=REACH_S)
            shard.coming = None
        except StopIteration:
            shard.stream = None
        except self.ray.exceptions.GetTimeoutError:
            return
        except (self.ray.exceptions.RayError, ConnectionError) as error:
            self._tell(shard, m.Note(text=f"lost: {_kind(error)}"))
            shard.stream = None
        else:
            self._follow(shard, line)

    def _follow(self, shard: _Shard, line: bytes) -> None:
        shard.heard_s = time.monotonic()
        event = json.loads(line[:65536]) if line.startswith((b'{"kind": "started"', b'{"kind": "gone"')) else None
        if event is None:
            try:
                message = m.read(line)
            except ValueError:  # its process ended in the middle of it
                return
            shard.note(message)
            self._tell(shard, message)
        elif event["kind"] == "started":
            shard.began, shard.where = True, str(event["where"])
        elif event["code"] != 0:
            words = str(event["words"]).splitlines()
            self._tell(shard, m.Note(text=f"its process ended with code {event['code']}: {words[-1] if words else ''}"))

    def _tell(self, shard: _Shard, message: m.Message) -> None:
        shard.take(shard.where or f"shard {shard.number + 1}", message)

    def _lost(self, shard: _Shard, now: float) -> bool:
        """Did it end early, or fall silent after it began?"""
        if shard.over:
            return False
        if shard.stream is None:
            return True
        return shard.began and now - shard.heard_s > SILENT_S

    def _again(self, shard: _Shard, archive: Any) -> None:
        silent = shard.stream is not None
        self._cancel(shard)
        what = f"fell silent for {SILENT_S:.0f} s" if silent else "ended early"
        names = ", ".join(case.name for case in shard.rest().plan.cases) or "its counters"
        if shard.tries >= TRIES:
            said = f"the shard of {names} {what} at try {shard.tries}, and is given up: the same run id goes on"
            self._tell(shard, m.Note(text=said))
            shard.stream, shard.over = None, True
            return
        self._tell(shard, m.Note(text=f"the shard of {names} {what}, and is submitted again"))
        self._submit(shard, archive)

    def _cancel(self, shard: _Shard) -> None:
        if shard.stream is not None:
            stream, shard.stream, shard.coming = shard.stream, None, None
            _bounded(lambda: self.ray.cancel(stream, force=True))

    # The cluster

    def _models(self) -> dict[str, int]:
        """The cards of the nodes that are alive, by model."""
        found: dict[str, int] = {}
        for node in self.ray.nodes():
            resources = node["Resources"] if node["Alive"] else {}
            for name in resources:
                if name.startswith(TYPE) and resources.get("GPU"):
                    model = name.removeprefix(TYPE)
                    found[model] = found.get(model, 0) + int(resources["GPU"])
        return found

    def _model(self, plan: Plan, manifest: Manifest) -> str | None:
        """The model of GPU that is meant: the one asked for, or the only one; None where CPUs are."""
        if manifest.model is not None:
            return manifest.model
        if plan.shard.device == "cpu":
            return None
        there = self._models()
        if len(there) != 1:
            has = (
                f"has {_listed(there)}: choose with --gpu-model" if there else "has no GPU: --device cpu uses its CPUs"
            )
            raise SpecError(f"the cluster at {self.address} {has}")
        return next(iter(there))

    def _cards(self, model: str | None) -> int:
        if model is not None:
            return self._models().get(model, 0)
        return sum(1 for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1)

    def _blocked(self, shards: Iterable[_Shard]) -> list[_Shard]:
        """Those whose model no node has, or that want a CPU where there is none: told, and not waited for."""
        there, cpus = self._models(), self._cards(None)
        found = [one for one in shards if (not cpus if one.task.model is None else one.task.model not in there)]
        for shard in found:
            self._cancel(shard)
            wanted = "CPUs to lend" if shard.task.model is None else f"a GPU of model {shard.task.model}"
            reason = f"blocked: no node with {wanted}; the cluster has {_listed(there)}"
            shard.take("", m.Blocked(reason=reason))
        return found

    def _say_who_waits(self, shards: Sequence[_Shard]) -> None:
        """A card that another run has is waited for, and that is said, once."""
        for shard in shards:
            if shard.stream is not None and not shard.began and not shard.waits:
                shard.waits = True
                shard.take(f"shard {shard.number + 1}", m.Note(text="waits for a card that is free", passing=True))

    def _head_there(self) -> bool:
        host, _, port = self.ray.get_runtime_context().gcs_address.rpartition(":")
        return unreachable(host, int(port)) is None

    def _headless(self, shards: Sequence[_Shard]) -> None:
        for shard in shards:
            self._tell(shard, m.Note(text="the cluster's head does not answer any more: the same run id goes on"))

    def _leave(self) -> None:
        if not _bounded(self.ray.shutdown):
            atexit.unregister(self.ray.shutdown)  # which would try once more


def _bounded(call: Callable[[], object]) -> bool:
    """Make a call of Ray's, which waits without end for a cluster that is gone; False where it did."""
    made = threading.Thread(target=call, daemon=True)
    made.start()
    made.join(REACH_S)
    return not made.is_alive()


def packed() -> tuple[bytes, str]:
    """This package's code, zipped, and a name that tells it from any other."""
    root = Path(norm_fusion.__file__).parent
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.py")):
            archive.write(path, Path("norm_fusion") / path.relative_to(root))
    return made.getvalue(), machine.source()


def _commit() -> str:
    """What our code on a node says of where it came from."""
    code = machine.code()
    return f"{code.get('commit') or ''}{'+' if code.get('dirty') else ''}"


def _listed(models: dict[str, int]) -> str:
    return ", ".join(f"{model} ({count})" for model, count in sorted(models.items())) or "no GPU"


def _kind(error: Exception) -> str:
    """What was lost: of an error in the task itself, that error; of Ray's own, their names say it."""
    cause = getattr(error, "cause", None)
    return first_line(cause) if isinstance(cause, Exception) else type(error).__name__
