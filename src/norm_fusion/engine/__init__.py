"""Runs a plan on cards, here or elsewhere, and keeps what they tell as it arrives.

crew.py       runs, and who carries them out
session.py    one shard on one card, measured to its end: the lab's main path, with worker.py of measure
messages.py   what a session is asked and tells
keeper.py     what is told becomes files
cards.py      the cards of this machine: this process where it is one, a process each (shard.py) where there are more
cluster.py    Ray's cards, through the same process (joining.py lets us in, remote.py is what travels)
host.py       a worker's conversation, its clock seen from outside, its end
processes.py  the processes themselves: one measures, one judges rows
suitable.py   is the card the one that was meant, and the one of before?
absent.py     contestants that a run goes on without
monitor.py    clocks, heat, power and company beside the samples
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from norm_fusion.engine.crew import Crew, Listener, Outcome, Plan, Run, carry_out, run

__all__ = ["Crew", "Listener", "Outcome", "Plan", "Run", "carry_out", "run"]


def __getattr__(name: str) -> Any:
    # Lazy, so that a shard's process has its worker at work before it imports the rest.
    if name in __all__:
        value = globals()[name] = getattr(import_module("norm_fusion.engine.crew"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
