"""Examples that were kept: samples of contestants that are no profile of the lab, as rows of a claim."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import CPU
from speaking import CLEAN, OF_EXAMPLE, example, judged, refusal, row

from norm_fusion.evidence.examples import examples
from norm_fusion.records import (
    DecisionStatus,
    Standing,
)

HOLDS, SHOWN, OPEN, FAILS = Standing.HOLDS, Standing.SHOWN, Standing.OPEN, Standing.FAILS


@pytest.mark.parametrize(
    ("changes", "asked", "standing", "label"),
    [
        ({}, {}, HOLDS, "supported"),
        ({}, {"series": "eager"}, FAILS, "no difference"),
        ({}, {"profile": "original", "baseline": "patched"}, FAILS, "regression"),
        ({}, {"at_least": 2.5}, FAILS, "supported"),
        ({"processes": 4}, {}, SHOWN, None),
        ({"processes": 2}, {}, OPEN, None),
        ({"processes": 4}, {"at_least": 2.5}, FAILS, None),
        ({"asked": {"quick": True}}, {}, SHOWN, None),
        ({"environment": json.loads(CLEAN.model_copy(update={"dirty": None}).model_dump_json())}, {}, SHOWN, None),
        ({"environment": json.loads(CLEAN.model_copy(update={"commit": None}).model_dump_json())}, {}, SHOWN, None),
        (
            {"environment": json.loads(CPU.model_copy(update={"commit": "c", "dirty": False}).model_dump_json())},
            {},
            SHOWN,
            None,
        ),
        ({"graph": {"patched": (0.98, 0.9, 1.02, 0.99, 0.93), "original": 1.0}}, {}, OPEN, "inconclusive"),
    ],
)
def test_a_row_of_an_example(
    tmp_path: Path, changes: dict[str, Any], asked: dict[str, Any], standing: Standing, label: str | None
) -> None:
    example(tmp_path / "runs", **changes)
    one = row(tmp_path / "runs", **OF_EXAMPLE | asked)
    assert (one.standing, one.label) == (standing, label)
    assert (one.run, one.processes) == ("block", changes.get("processes", 5))
    if standing is SHOWN:
        assert one.value == pytest.approx(2.0, rel=0.01) and "; it " in one.reason
        assert judged(tmp_path / "runs", a=OF_EXAMPLE | asked).decided.status is DecisionStatus.MEASURED


def test_an_example_that_is_noisy_is_undecided(tmp_path: Path) -> None:
    path = example(tmp_path / "runs")
    data = json.loads(path.read_text())
    for run in data["runs"][:3]:
        run["samples"]["graph"]["original"] = [[0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0]] * 2
    path.write_text(json.dumps(data))
    one = row(tmp_path / "runs", **OF_EXAMPLE)
    assert (one.standing, one.label) == (OPEN, "rerun noise")
    assert one.reason == "p95/p50 of original is above 1.15 in most processes: too noisy for a precise claim"
    data["runs"][0]["samples"] = data["runs"][4]["samples"]
    path.write_text(json.dumps(data))
    assert row(tmp_path / "runs", **OF_EXAMPLE).standing is HOLDS, "two of five are not most"


def test_a_missing_example_or_contestant_is_named_with_file_and_key(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    path = example(parent)
    where = f"{tmp_path / 'fused.toml'}, line "
    said = refusal(parent, **OF_EXAMPLE | {"example": "blocks"})
    assert said.startswith(where) and "key 'claims.a.example' names 'blocks', and the evidence has block" in said
    said = refusal(parent, **OF_EXAMPLE | {"profile": "compiled"})
    assert (
        said.startswith(where) and "key 'claims.a' compares 'compiled', and the example has original, patched" in said
    )
    data = json.loads(path.read_text())
    data["runs"][3]["samples"]["graph"]["original"] = None  # not captured, in one process
    path.write_text(json.dumps(data))
    assert "compares 'original', and the example has patched" in refusal(parent, **OF_EXAMPLE)
    del data["runs"][3]["samples"]["graph"]
    path.write_text(json.dumps(data))
    assert "and the example has nobody in this series" in refusal(parent, **OF_EXAMPLE)


def _sample(value: object) -> Callable[[dict[str, Any]], None]:
    def damage(data: dict[str, Any]) -> None:
        data["runs"][0]["samples"]["graph"]["patched"][0][0] = value

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *[_sample(value) for value in (0, -1.0, float("nan"), float("inf"), 1e300, 1e-300, "x", None, 10**400)],
        lambda data: data["runs"][0]["samples"]["graph"].update(patched=[[]]),
        lambda data: data["runs"].clear(),
        lambda data: data.update(environment={}),
        lambda data: data["environment"].update(torch="x" * 10**6),
        lambda data: data["asked"].update(model="\ud800"),
        lambda data: data.pop("asked"),
    ],
)
def test_a_damaged_example_is_named_and_left_out(tmp_path: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    path = example(tmp_path)
    example(tmp_path, "good")
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    found, unreadable = examples([tmp_path])
    assert [*found] == ["good"]
    assert len(unreadable) == 1 and unreadable[0].startswith(f"{path} is not a readable example: ")
    assert len(unreadable[0]) < len(str(path)) + 400


def test_examples_have_one_name_and_what_holds_no_samples_is_none(tmp_path: Path) -> None:
    example(tmp_path / "a")
    path = example(tmp_path / "b")
    for text in ('{"asked": {}}', "[]", '{"runs": [3]}', "3"):
        (tmp_path / "a" / "examples" / f"{len(text)}.json").write_text(text)
    (tmp_path / "a" / "examples" / "cut.json").write_text('{"runs": [')
    found, unreadable = examples([tmp_path / "a", tmp_path / "b", tmp_path / "a" / ".." / "a"])
    assert [*found] == ["block"]
    assert [said.partition(" ")[0] for said in unreadable] == [str(tmp_path / "a/examples/cut.json"), str(path)]


def test_what_was_asked_of_an_example_is_told_in_few_words(tmp_path: Path) -> None:
    example(tmp_path / "runs", asked={"model": "m" * 10**6, "hidden": [1] * 1000, "tokens": 8, "backward": 1})
    one = row(tmp_path / "runs", **OF_EXAMPLE)
    assert one.case.endswith("8 tokens, forward and backward") and len(one.case) < 250
