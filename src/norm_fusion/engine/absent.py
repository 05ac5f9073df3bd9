"""Contestants that a run goes on without, because they ended a worker or lied, and what is known of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from norm_fusion import backends
from norm_fusion.engine.host import Fate
from norm_fusion.records import Code, Measurement, Record, Status
from norm_fusion.spec import CONTROL, Case, is_users

# How a contestant fails that is not asked for again.
ENDED_IT = (Code.CRASHED, Code.HUNG, Code.TIMER)


class Absent:
    """Who is not asked for again in this run. `skip`: case and profile of each; what is known is told with the case."""

    def __init__(self) -> None:
        self.skip: tuple[tuple[str, str], ...] = ()
        self.known: dict[str, list[Measurement]] = {}  # by case
        self.untold: dict[str, list[Measurement]] = {}  # of them those that the attempt's records lack

    def remember(self, records: Iterable[Record]) -> None:
        """Who was left out before this run was interrupted is so now; its reason is with the records of then."""
        for record in records:
            if record.status.bad and record.code in ENDED_IT and (record.case, record.profile) not in self.skip:
                told = record.model_dump(include={"case", "profile", "status", "code", "reason", "control_of"})
                self.leave_out([Measurement(**told)])
        self.untold = {}

    def leave_out(self, losses: Iterable[Measurement]) -> None:
        """Go on without these."""
        for loss in losses:
            self.skip += ((loss.case, loss.profile),)
            for kept in (self.known, self.untold):
                kept.setdefault(loss.case, []).append(loss)

    def tell_again(self, cases: Iterable[Case]) -> None:
        """These cases are run again: who was left out before is so now, and its reason is told again."""
        for case in cases:
            self.untold[case.name] = list(self.known.get(case.name, []))

    def told(self, case: Case, there: Collection[str]) -> list[Measurement]:
        """What is to be kept with a case beside the profiles that are there; not to be told a second time."""
        return [loss for loss in self.untold.pop(case.name, []) if loss.profile not in there]

    def of(self, case: Case) -> set[str]:
        """Who is left out of a case."""
        return {profile for name, profile in self.skip if name == case.name}

    def blamed(self, fate: Fate, case: Case, asked: Sequence[str], device: str) -> list[Measurement]:
        """Who is to be left out because a worker died on this case; nobody, where its turn is not known.

        `asked`: all that serve the case. On the turn of PyTorch, of one of ours or of the copy it may have been the
        deed of a user's contestant in that process, which cannot be told: it is tried again without these first.
        """
        culprit, skipped = fate.profile if case.name == fate.case else None, self.of(case)
        if culprit is None:
            return []
        there = [name for name in asked if name not in skipped]
        whose = _controlled(there, device) if culprit == CONTROL and there else culprit
        suspects = [] if is_users(whose) else [name for name in there if is_users(name)]
        if suspects:
            reason = (
                f"the measuring process {fate.reason} on the turn of {culprit}, which is measured again without it, as "
                "whose deed it was cannot be told; see worker.log in the run's folder"
            )
            return [_failed(fate, case, name, reason) for name in suspects]
        if culprit in (*asked, CONTROL) and culprit not in skipped:
            return failures(fate, case, asked, [culprit], device)
        return []

    def liars(self, case: Case, measurements: Sequence[Measurement]) -> list[Measurement]:
        """Users' contestants beside which our clock contradicts the worker's: all are measured again without them.

        In one process a clock that lies does so for everybody; whose deed it was cannot be told, so that of several
        such contestants none is believed.
        """
        if not any(m.code is Code.TIMER and m.status is Status.WRONG and m.series for m in measurements):
            return []
        return [
            _liar(m).model_copy(update={"series": []})
            for m in measurements
            if is_users(m.profile) and m.status in (Status.OK, Status.WRONG)
            if (case.name, m.profile) not in self.skip
        ]


def _liar(told: Measurement) -> Measurement:
    if told.status is Status.WRONG:
        return told
    reason = "beside it the process's own clock and the parent's disagree"
    return told.model_copy(update={"status": Status.WRONG, "code": Code.TIMER, "reason": reason})


def failures(fate: Fate, case: Case, asked: Sequence[str], lost: Sequence[str], device: str) -> list[Measurement]:
    """Rows of the profiles that a worker's death cost, on this case or before it; `asked`: all that serve the case."""
    where = "on" if case.name == fate.case else "before"
    reason = f"the measuring process {fate.reason} {where} this case; see worker.log in the run's folder"
    original = _controlled(asked, device) if CONTROL in lost else None
    return [_failed(fate, case, name, reason, original if name == CONTROL else None) for name in lost]


def _controlled(names: Sequence[str], device: str) -> str:
    return backends.controlled(names, device.partition(":")[0])


def _failed(fate: Fate, case: Case, profile: str, reason: str, control_of: str | None = None) -> Measurement:
    return Measurement(
        case=case.name,
        profile=profile,
        status=Status.FAILED,
        code=fate.code,
        reason=reason,
        control_of=control_of,
    )
