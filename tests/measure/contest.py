"""What the lab's tests measure with: a parent that is no process, an examiner, contestants that are watched."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.backends import builtin
from norm_fusion.backends.builtin import Operands, Prepared
from norm_fusion.backends.passes import Launch
from norm_fusion.measure import verifier
from norm_fusion.measure.case import CaseRun
from norm_fusion.measure.correctness import Check
from norm_fusion.measure.examine import Examiner
from norm_fusion.measure.inputs import draw_input, draw_operands
from norm_fusion.measure.ring import Contestant, Ring
from norm_fusion.records import Measurement
from norm_fusion.spec import CONTROL, Case, Effort, Shard, odd_kind

CPU = torch.device("cpu")
CASE = Case.parse("rmsnorm-64x256-float32")
EFFORT = Effort(rounds=5, block=3, warmup_s=0.0, settle_s=0.0)
SEED = 1


class FakeParent:
    """Answers as the process that judges does: it chooses rows, and has the real verifier judge them, here."""

    def __init__(self, seed: int = SEED) -> None:
        self.seed = seed
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.on: tuple[str, str] | None = None  # whose code runs
        self.seeds = itertools.count(1000)  # of inputs to be examined
        self.changed: int | None = None
        self.asked: dict[str, Any] = {}
        self.brackets, self.brackets_left = 1, 0  # how many are asked for in a row
        self.verdicts: list[tuple[str, str, str | None]] = []  # profile, when, what is wrong

    def at(self, case: str, profile: str) -> None:
        self.on = case, profile

    def send(self, event: str, **data: Any) -> None:
        self.sent.append((event, data))

    def ask(self, event: str, **data: Any) -> dict[str, Any]:
        self.send(event, **data)
        if event == "change":
            self.changed = next(self.seeds)
            return {"seed": self.changed}
        if event == "output":
            case = Case.parse(data["case"])
            rows = list(range(case.rows)) if odd_kind(data["kind"], case, "cpu") is None else []
            self.asked = data | {"rows": rows, "seed": self.seed + 1 + data["input"], "change": self.changed}
            return {"rows": rows}
        if event == "bracket-end":
            self.brackets_left -= 1
            return {"again": self.brackets_left > 0}
        if event == "bracket":
            self.brackets_left = self.brackets_left or self.brackets
        if event == "rows":
            found = verifier.judge(self.asked | {"operands": self.seed} | data)
            self.verdicts.append((self.asked["profile"], self.asked["when"], found["wrong"]))
        return {}

    def events(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.sent if event == name]


def measure(
    *profiles: str, case: Case = CASE, effort: Effort = EFFORT, cache_bytes: int = 2**17, **changes: Any
) -> tuple[dict[str, Measurement], FakeParent]:
    """One case on the CPU, as a worker measures it. `changes`: fields of the shard, `stop`, and `control`."""
    parent = FakeParent()
    stop: Callable[[], bool] = changes.pop("stop", lambda: False)
    skip = changes.pop("skip", ())
    if not changes.pop("control", False):
        skip += ((case.name, CONTROL),)
    shard = Shard("a", (case,), profiles or ("torch-eager", "torch-native"), "cpu", seed=SEED, skip=skip, **changes)
    run = CaseRun(case, shard, CPU, effort, cache_bytes, {"read": 10.0, "write": 5.0}, parent, stop)  # type: ignore[arg-type]
    with torch.inference_mode():
        measured = run.run()
    return {m.profile: m for m in measured}, parent


def install(monkeypatch: Any, **launches: Callable[[Operands], Launch]) -> None:
    """Register contestants for this test, by profile with `_` for `-`: functions of the operands, that may raise."""
    real = builtin.prepare
    made = {name.replace("_", "-"): make for name, make in launches.items()}

    def prepare(profile: str, operands: Operands, device: torch.device) -> Prepared:
        if profile not in made:
            return real(profile, operands, device)
        return Prepared(made[profile](operands), "made up")

    monkeypatch.setattr(builtin, "prepare", prepare)


def norm(p: Operands) -> Launch:
    return lambda x: F.rms_norm(x, p.shape, p.weight, p.eps)


class Table:
    """A case's inputs, their examiner, and a ring around both: what was judged is in `found`."""

    def __init__(self, case: Case = CASE, sets: int = 3, effort: Effort = EFFORT) -> None:
        self.case, self.effort = case, effort
        self.parent = FakeParent()
        self.inputs = [draw_input(case, CPU, SEED + 1 + i) for i in range(sets)]
        self.operands = draw_operands(case, CPU, SEED)
        self.found: list[tuple[str, Check, str]] = []
        self.examiner = Examiner(case, self.inputs, self.operands, SEED, self.parent, self._judge)  # type: ignore[arg-type]

    def _judge(self, profile: str, found: Check, when: str) -> None:
        self.found.append((profile, found, when))

    def wrong(self, profile: str) -> list[tuple[str, str]]:
        """What was wrong with a contestant: (code, when)."""
        return [(str(c.code), when) for name, c, when in self.found if name == profile and c.wrong is not None]

    def honest(self) -> Launch:
        return norm(self.operands)

    def ring(self, *contestants: Contestant, seed: int = 0) -> Ring:
        return Ring(list(contestants), self.inputs, self.effort, random.Random(seed), lambda: False, self.examiner)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)
