"""Runs on disk that may speak for a case, or may not, and decisions in TOML that rest on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from made import CASE, COLD, FUSED, GPU, manifest, measured, recorded

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.deciding import Judged, decide
from norm_fusion.evidence.decisions import load
from norm_fusion.evidence.examples import examples
from norm_fusion.evidence.standing import Evidence
from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Counters, DecidedRow, Environment, Event, Record, Samples, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case, SpecError

SUITE = "normalization-fusion"
CLEAN = GPU.model_copy(update={"commit": "c" * 40, "dirty": False, "triton": "3"})
OTHER = CLEAN.model_copy(update={"device_name": "another GPU"})
EAGER, NATIVE, COMPILE = "torch-eager", "torch-native", "torch-compile"
# Milliseconds: a kernel that is twice as fast as the composition, 1.5x as the operator, and as fast as compiled code.
USUAL = {EAGER: 0.2, NATIVE: 0.15, COMPILE: 0.1, FUSED: 0.1}
HOT = Event(kind="thermal", detail="throttled")
SPREAD = (1.0, 1.001, 0.999, 1.0005, 0.9995)

Times = float | Sequence[float]


def kept(
    parent: Path,
    run_id: str,
    times: Mapping[str, Times] = USUAL,
    *,
    day: int = 20,
    cases: Sequence[Case] = (CASE,),
    of: Environment | Mapping[str, Environment] = CLEAN,
    processes: int = 5,
    series: Sequence[tuple[str, str]] = (COLD,),
    odd: Mapping[str, Mapping[str, Any]] | None = None,
    counters: Mapping[str, Mapping[str, Any]] | None = None,
    counted: Sequence[str] = (),
    **changes: Any,
) -> RunStore:
    """A finished run of November 2026.

    Args:
        times: of each contestant, or of it in each process, in every one of `series`.
        of: the card, or that of each case by name.
        odd: what else a contestant's measurement says.
        counters: of each profile, in every case, or in those of the names `counted`.
    """
    cards = of if isinstance(of, Mapping) else {case.name: of for case in cases}
    store = RunStore.create(parent, run_id)
    first, *further = {card.fingerprint: card for card in cards.values()}.values()
    told = {
        "run_id": run_id,
        "cases": [case.name for case in cases],
        "profiles": list(times),
        "started_at": f"2026-11-{day:02}T10:00:00+00:00",
        "state": "finished",
        "processes": processes,
        "further": further,
        "profiled": [(case, name) for case in counted or cards for name in counters or {}],
    }
    made_of = manifest(first, **told | changes)
    store.write_manifest(made_of)
    for case in cases:
        made = _recorded(case, cards[case.name], times, processes, series, odd or {})
        for replicate in range(processes):
            store.keep(case.name, 0, replicate, [pair for pair in made if pair[0].replicate == replicate])
    for case_name in counted or cards:
        for name, said in (counters or {}).items():
            fields = {"run_id": run_id, "case": case_name, "profile": name, "status": Status.OK, "compulsory_bytes": 1}
            fields |= {"fingerprint": cards.get(case_name, first).fingerprint}
            store.keep_counters(Counters.model_validate(fields | dict(said)))
    store.write_conclusions(conclude(store.records(), store.samples, made_of))
    return store


_MADE: dict[str, list[tuple[Record, Samples | None]]] = {}


def _recorded(
    case: Case,
    of: Environment,
    times: Mapping[str, Times],
    processes: int,
    series: Sequence[tuple[str, str]],
    odd: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Record, Samples | None]]:
    """Made once: most runs of most tests are the same."""
    key = repr((case, of.fingerprint, times, processes, series, odd))
    if key not in _MADE:
        each = [
            [
                measured(name, {one: _at(ms, i, len(name)) for one in series}, **dict(odd.get(name, {})))
                for name, ms in times.items()
            ]
            for i in range(processes)
        ]
        _MADE[key] = recorded(each, case=case, of=of)
    return _MADE[key]


def _at(ms: Times, process: int, shift: int) -> float:
    return ms * SPREAD[(process + shift) % len(SPREAD)] if isinstance(ms, float) else ms[process]


def summed(store: RunStore) -> None:
    """SHA256SUMS of the files as they are now: whoever edits one may write its hash, too."""
    files = [path for name in ("records", "samples", "counters") for path in sorted((store.path / name).glob("*"))]
    lines = [f"{sha256(path.read_bytes()).hexdigest()}  {path.parent.name}/{path.name}" for path in files]
    store.write_sum_lines(lines)


def example(parent: Path, name: str = "block", processes: int = 5, **changes: Any) -> Path:
    """A kept example: patched takes 0.5 ms in a graph and 1.0 ms a call, original 1.0 ms either way."""

    def samples(times: Mapping[str, Times], i: int) -> dict[str, list[list[float]]]:
        return {
            name: [[(ms if isinstance(ms, float) else ms[i]) * (1 + (i + j) / 5000) for j in range(4)]] * 2
            for name, ms in times.items()
        }

    graph = changes.pop("graph", {"patched": 0.5, "original": 1.0})
    wall = {"patched": 1.0, "original": 1.0}
    data = {
        "command": "python examples/decoder_block.py --json",
        "asked": {"model": "llama", "hidden": 64, "tokens": 8, "backward": False, "quick": False},
        "runs": [{"samples": {"graph": samples(graph, i), "wall": samples(wall, i)}} for i in range(processes)],
        "environment": json.loads(CLEAN.model_dump_json()),
    }
    path = parent / "examples" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data | changes))
    return path


OF_EXAMPLE = {"example": "block", "cases": None, "profile": "patched", "baseline": "original"}


HEAD = f"""\
title = "Fused"
domain = "D"
statement = "Use it."
owner = "kernels"
experiments = ["{SUITE}"]

[expires]
when = ["gpu", "driver", "torch", "triton"]
days = 100
"""


def toml(**claims: Mapping[str, object]) -> str:
    """A decision with these claims; each is of rmsnorm, of the fused kernel over the baseline of the experiment."""
    text = HEAD
    for name, changes in claims.items():
        usual = {"says": f"{name} is so", "cases": ["rmsnorm-*x*-*"], "profile": "fused", "baseline": "torch-baseline"}
        fields = {key: value for key, value in (usual | dict(changes)).items() if value is not None}
        text += f"\n[claims.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
    return text


def evidence(*parents: Path) -> Evidence:
    return Evidence(Archive(parents), examples(parents)[0])


def judged(parent: Path, **claims: Mapping[str, object]) -> Judged:
    """A decision with these claims, decided by the runs of a folder."""
    path = parent.parent / "fused.toml"
    path.write_text(toml(**claims))
    return decide(load(path, [SUITE]), evidence(parent))


def rows(parent: Path, **changes: object) -> list[DecidedRow]:
    """Of a decision of one claim."""
    return judged(parent, a=changes).decided.claims[0].rows


def row(parent: Path, **changes: object) -> DecidedRow:
    (one,) = rows(parent, **changes)
    return one


def refusal(parent: Path, **changes: object) -> str:
    with pytest.raises(SpecError) as caught:
        judged(parent, a=changes)
    return str(caught.value)
