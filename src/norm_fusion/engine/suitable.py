"""Is a card what was asked for, and that on which a run's earlier records were measured? No torch."""

from __future__ import annotations

from collections.abc import Iterable

from norm_fusion.engine.messages import Task
from norm_fusion.records import Environment, Record, began_at


class Unsuitable(Exception):
    """The card is not what was asked for."""


class Elsewhere(Exception):
    """What there is of these cases was measured on another card, or by other software."""

    def __init__(self, cases: list[str], reason: str) -> None:
        super().__init__(reason)
        self.cases = cases


def check(task: Task, here: Environment) -> None:
    """Raise Unsuitable where the card is of another model than was asked for, or a CPU in the place of GPUs."""
    if task.model is not None and here.device == "cuda" and task.model.split("-")[0] not in here.device_name:
        raise Unsuitable(f"a GPU of model {task.model} was asked for, and the card is {here.device_name}")
    began = task.manifest.environment
    if began is not None and began.device != here.device:
        raise Unsuitable(
            f"the run was begun on {began.device_name}, and what there is here is {here.device_name}: "
            "another --run-id is for that"
        )


def compare(task: Task, records: Iterable[Record], here: Environment) -> None:
    """Raise Elsewhere for the cases of which a record was not measured here, by this software."""
    others = [record for record in records if began_at(record.fingerprint) != here.fingerprint]
    if others:
        known = [one for one in (task.environment, *task.manifest.environments) if one is not None]
        was = next((one for one in known if one.fingerprint == began_at(others[0].fingerprint)), None)
        reason = "it was measured elsewhere" if was is None else unlike(was, here)
        raise Elsewhere(list(dict.fromkeys(record.case for record in others)), reason)


def unlike(was: Environment, is_: Environment) -> str:
    """What of an environment is another, in words."""
    return ", ".join(f"{name} was {before}, is {now}" for name, (before, now) in was.unlike(is_).items())
