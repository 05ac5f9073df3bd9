"""Examines contestants' outputs: here, all rows of them, and by sending rows to a process that they cannot reach.

Before timing on poisoned memory and shifted inputs; then calls picked at random among the timed ones, each with its
input changed and its output's memory poisoned just before; and once more after timing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from norm_fusion.backends.builtin import Operands
from norm_fusion.backends.passes import Launch, get_ready
from norm_fusion.measure.clocks import tampered
from norm_fusion.measure.correctness import Check, check, cloned, kind_of, outputs_of, poison, spread_rows, wrong_kind
from norm_fusion.measure.inputs import activation_rows, draw_input, rows_of_parts
from norm_fusion.measure.parent import Parent
from norm_fusion.measure.ring import Contestant, Lost
from norm_fusion.records import Code
from norm_fusion.spec import Case

# On a CPU a fp64 reference of all rows costs more than the timing; in-run verifications take a sample.
CPU_SAMPLED_ROWS = 256
# Values that poisoned memory holds: one that spreads, one that looks like a result.
POISONS = (float("nan"), 1234.5)
# What is added to the activations meanwhile: a kernel may treat rows far from zero in a way of its own.
SHIFTS = (0.0, 3.0)
# 2 ms at 2 GHz: what runs beside the stream that it was called on has long begun when the stream goes on.
WAIT_CYCLES = 4_000_000

WATCHED = 8

Judge = Callable[[str, Check, str], None]


class Wrong(Exception):
    """An output that was judged wrong: its contestant leaves the ring."""


class Examiner:
    """Examines the outputs of one case. `judge(profile, check, when)` is told what was found.

    `thorough`: on a CPU too all rows are compared before timing; that takes seconds, and one process of a run does it.
    """

    def __init__(
        self,
        case: Case,
        inputs: list[Tensor],
        operands: Operands,
        seed: int,
        parent: Parent,
        judge: Judge,
        thorough: bool = True,
    ):
        self.case, self.inputs, self.operands, self.parent, self.judge = case, inputs, operands, parent, judge
        self.device, self.shape = inputs[0].device, inputs[0].shape
        self.rows = spread_rows(case, CPU_SAMPLED_ROWS, self.device) if self.device.type == "cpu" else None
        self.rows_before = None if thorough else self.rows
        # Of each input: the seed that it was drawn with, and that of its change since.
        self.drawn: list[tuple[int, int | None]] = [(seed + 1 + i, None) for i in range(len(inputs))]
        self.parameters = [p for p in (operands.weight, operands.bias) if p is not None]
        self.pristine = [p.clone() for p in self.parameters]
        # Whose sums are compared after each block: up to eight inputs, on a CPU one row in sixteen of them.
        step = 16 if self.device.type == "cpu" else 1
        self.watched = [x[::step] for x in inputs[:: -(-len(inputs) // WATCHED)]]
        self.sums = self._sums()

    def content(self, i: int) -> Tensor:
        """What input `i` has to hold."""
        seed, change = self.drawn[i]
        return draw_input(self.case, self.device, seed, change=change)

    def renew(self, i: int) -> None:
        """Have input `i` hold what it has to, in the shape that it has to have."""
        self.inputs[i].resize_(self.shape).copy_(self.content(i))

    def entered(self, contestant: Contestant) -> None:
        self.parent.at(self.case.name, contestant.name)

    def before(self, name: str, launch: Launch) -> None:
        """Calls on poisoned memory, after one that compiles: all rows are checked, and the input is compared."""
        self.parent.at(self.case.name, name)
        x, pristine = self.inputs[0], self.content(0)
        for value, shift in zip(POISONS, SHIFTS, strict=True):
            given = pristine.clone()
            given[: activation_rows(self.case)] += shift
            x.copy_(given)
            get_ready(launch, x)
            launch(x)  # its output is freed at once: what it leaves behind is the memory poisoned next
            poison(self.case, x, value)
            out = launch(x)
            self._parameters(name, "before timing")
            self._input(name, 0, given, "before timing")
            self.judge(name, check(out, given, self.operands, self.case, self.rows_before), "before timing")
        x.copy_(pristine)
        get_ready(launch, x)
        x.zero_()
        if x.is_cuda:
            torch.cuda.synchronize()
            torch.cuda._sleep(WAIT_CYCLES)  # type: ignore[no-untyped-call]
        # In stream order the input is written before it is read, and the output read after it is written.
        x.copy_(pristine)
        out = launch(x)
        found = check(cloned(out), pristine, self.operands, self.case, self.rows_before)
        self.judge(name, found, "read at once, in stream order")
        x.copy_(pristine)
        self._clocks(name, "before timing")

    def set_up(self, contestant: Contestant, i: int) -> None:
        """New content for input `i` at an address that the contestant knows, and poison where its output will be."""
        self._change(contestant, i)
        self.sums = self._sums()
        for kept in outputs_of(contestant.outputs[i], self.case):
            if isinstance(kept, Tensor) and kept.is_floating_point() and not self._is_input(kept):
                kept.fill_(POISONS[0])

    def left(self, contestant: Contestant) -> None:
        """After each block: whoever changes an input, or a parameter, is found before another one is measured on it."""
        if self._sums() != self.sums or any(x.shape != self.shape for x in self.inputs):
            wrong, when = "it changed its input", "while it was timed"
            if self._parameters(contestant.name, when):
                self.judge(contestant.name, Check.failed(wrong, Code.MUTATED_INPUT), when)
            for i in range(len(self.inputs)):
                self.renew(i)
            raise Lost(contestant, Wrong(wrong))

    def examine(self, contestant: Contestant, i: int, output: Any) -> None:
        """The output of a timed call on input `i`; its neighbours' kind; the clocks."""
        when, x = "a timed call", self.inputs[i]
        found = check(output, x, self.operands, self.case, self.rows)
        for kept in contestant.outputs[: len(self.inputs)]:
            if found.wrong is None and kept is not None and (odd := wrong_kind(kept, x, self.case)) is not None:
                found = Check.failed(odd, Code.WRONG_KIND)
        self.judge(contestant.name, found, when)
        self._clocks(contestant.name, when)
        self.show(contestant.name, i, output, when)
        if found.wrong is not None:
            raise Lost(contestant, Wrong(found.wrong))

    def after(self, contestant: Contestant) -> None:
        """New content at an address that the contestant knows: an output remembered by address is stale now."""
        last = len(self.inputs) - 1
        self.entered(contestant)
        x = self._change(contestant, last)
        given = x.clone()
        poison(self.case, x, POISONS[0])
        out = contestant.launch(x)
        self._parameters(contestant.name, "after timing")
        self._input(contestant.name, last, given, "after timing")
        self.judge(contestant.name, check(out, given, self.operands, self.case, self.rows), "after timing")
        self.show(contestant.name, last, out, "after timing")
        self._clocks(contestant.name, "after timing")

    def inputs_intact(self) -> bool:
        """Do all inputs hold what they have to?"""
        return all(torch.equal(x, self.content(i)) for i, x in enumerate(self.inputs))

    def show(self, name: str, i: int, output: Any, when: str) -> None:
        """Let the parent choose rows, and send these of input and output: they are judged elsewhere."""
        told = {"case": self.case.name, "profile": name, "when": when}
        wanted = self.parent.ask("output", **told, input=i, kind=kind_of(output, self.case))["rows"]
        if not wanted:
            return  # of a kind that has no rows to send: judged by its kind
        rows = torch.tensor(wanted, device=self.device)
        given = self.inputs[i][rows_of_parts(self.case, rows)]
        self.parent.ask(
            "rows", x=_encoded(given), y=[_encoded(y[rows]) for y in outputs_of(output, self.case) if y.dim() == 2]
        )

    def _change(self, contestant: Contestant, i: int) -> Tensor:
        """Change input `i` by a seed that the parent chooses now: nobody can have the right result already."""
        told = self.parent.ask("change", case=self.case.name, profile=contestant.name)
        self.drawn[i] = self.drawn[i][0], int(told["seed"])
        return self.inputs[i].copy_(self.content(i))

    def _input(self, name: str, i: int, given: Tensor, when: str) -> None:
        """Is input `i` what was given? If not it is renewed, and it is known whose deed it was."""
        if not torch.equal(self.inputs[i], given):
            self.judge(name, Check.failed("it changed its input", Code.MUTATED_INPUT), when)
            self.renew(i)

    def _parameters(self, name: str, when: str) -> bool:
        """Are weight and bias what they were? If not they are now, and it is known whose deed it was."""
        if all(torch.equal(p, kept) for p, kept in zip(self.parameters, self.pristine, strict=True)):
            return True
        self.judge(name, Check.failed("it changed its weight or bias", Code.MUTATED_INPUT), when)
        for p, kept in zip(self.parameters, self.pristine, strict=True):
            p.copy_(kept)
        return False

    def _clocks(self, name: str, when: str) -> None:
        replaced = tampered()
        if replaced is not None:
            self.judge(name, Check.failed(f"it replaced {replaced}", Code.TIMER), when)

    def _sums(self) -> list[int]:
        """A checksum of the bits of each watched input, and of the parameters."""
        kind = torch.int16 if self.inputs[0].element_size() == 2 else torch.int32
        watched = [*self.watched, *self.parameters]
        sums: list[int] = torch.stack([x.view(kind).sum(dtype=torch.int64) for x in watched]).tolist()
        return sums

    def _is_input(self, output: Tensor) -> bool:
        """An output that is an input's memory must not be poisoned: its contestant gives itself away later."""
        where = output.untyped_storage().data_ptr()
        return any(where == x.untyped_storage().data_ptr() for x in (*self.inputs, *self.parameters))


def _encoded(rows: Tensor) -> str:
    return base64.b64encode(rows.contiguous().view(torch.uint8).cpu().numpy().tobytes()).decode()
