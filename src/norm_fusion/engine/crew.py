"""Runs that are to be made, who measures their shards, and who keeps what these tell."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from norm_fusion.engine.cards import Here, Job
from norm_fusion.engine.keeper import Keeper, Listener, Outcome
from norm_fusion.engine.messages import Made, Task
from norm_fusion.records import Manifest
from norm_fusion.runs.plan import Plan
from norm_fusion.runs.store import RunStore

__all__ = ["Crew", "Listener", "Outcome", "Plan", "Run", "carry_out", "run"]


class Crew(Protocol):
    """Who measures shards: the cards of this machine, or a cluster's."""

    def tasks(self, plan: Plan, manifest: Manifest, earlier: Sequence[Made]) -> list[Task]:
        """The plan as shards, one at least; `earlier` is what was measured of it before."""

    def work(self, jobs: Sequence[Job]) -> None:
        """Measure shards, and hand what each tells to its taker. Returns when nothing more will be told."""

    def stop(self, number: int) -> None:
        """A signal: the first asks for an early end, the second ends it."""


@dataclass(frozen=True)
class Run:
    """A run to be made, or gone on with: `create` makes its folder, or gives the one that is there.

    `earlier`: what was measured of the plan's cases before it was interrupted.
    """

    plan: Plan
    manifest: Manifest
    create: Callable[[], RunStore]
    listener: Listener
    earlier: Sequence[Made] = ()


def run(plan: Plan, manifest: Manifest, create: Callable[[], RunStore], listener: Listener) -> Outcome:
    """Measure a plan on one card, in this process. The folder is made once a worker accepted the shard.

    Raises:
        SpecError: no worker can run the plan; nothing was kept.
    """
    return carry_out([Run(plan, manifest, create, listener)], Here())[0]


def carry_out(runs: Sequence[Run], crew: Crew) -> list[Outcome]:
    """Measure several runs at the same time, each of which is kept apart: of two models of GPU, say.

    Raises:
        SpecError: no worker can run a plan; nothing of it was kept.
    """
    keepers = [Keeper(one.manifest, one.create, one.listener) for one in runs]
    with _signals_to(crew, keepers):
        try:
            crew.work(
                [
                    (task, keeper.take)
                    for one, keeper in zip(runs, keepers, strict=True)
                    for task in crew.tasks(one.plan, one.manifest, one.earlier)
                ]
            )
        except OSError as error:  # a full disk, say: what is in memory is still shown
            for keeper in keepers:
                keeper.failed(error)
        for keeper in keepers:
            keeper.finish()
    return [keeper.outcome for keeper in keepers]


@contextmanager
def _signals_to(crew: Crew, keepers: Sequence[Keeper]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that is gone (SIGHUP) stop the crew instead of this process, while it lasts."""

    def stop(received: int, frame: object) -> None:
        for keeper in keepers:
            keeper.outcome.interrupted = received
        crew.stop(received)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # nohup
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
