"""What is kept of decisions, and what became another since: told with the reason."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from made import CASE, FUSED
from speaking import (
    CLEAN,
    COMPILE,
    EAGER,
    NATIVE,
    OF_EXAMPLE,
    OTHER,
    SUITE,
    USUAL,
    evidence,
    example,
    judged,
    kept,
    toml,
)

from norm_fusion.evidence.deciding import DECIDING, Judged, decide, ledger
from norm_fusion.evidence.decisions import load
from norm_fusion.evidence.ledger import LEDGER, alike, changes, stored, unlike
from norm_fusion.evidence.selection import SELECTION
from norm_fusion.evidence.verdicts import RULE
from norm_fusion.records import (
    Decided,
    DecisionStatus,
    Ledger,
    Standing,
)
from norm_fusion.runs.files import StoreError, as_json

HOLDS, SHOWN, OPEN, FAILS = Standing.HOLDS, Standing.SHOWN, Standing.OPEN, Standing.FAILS


def decided(tmp_path: Path, **claims: Mapping[str, object]) -> Ledger:
    return ledger([judged(tmp_path / "runs", **claims)])


def test_a_decision_tells_of_its_evidence(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "late", day=22, of=OTHER.model_copy(update={"torch": "3"}))
    kept(tmp_path / "runs", "early", started_at="2026-11-21T01:00:00+02:00")
    example(tmp_path / "runs")
    one: Judged = judged(tmp_path / "runs", a={}, b=OF_EXAMPLE)
    made = one.decided
    assert (made.name, made.title, made.domain, made.statement, made.owner) == (
        "fused",
        "Fused",
        "D",
        "Use it.",
        "kernels",
    )
    assert (made.status, made.why) == (
        DecisionStatus.SUPPORTED,
        "every claim holds in every row, 3 of what it rests on",
    )
    assert made.software == {"gpu": ["a GPU", "another GPU"], "driver": ["1"], "torch": ["2", "3"], "triton": ["3"]}
    assert (made.oldest, made.latest) == ("2026-11-21T01:00:00+02:00", "2026-11-22T10:00:00+00:00")
    assert [claim.baseline for claim in made.claims] == ["torch-baseline", "original"]
    assert {(each.run.name, each.case) for each in one.selected} == {("late", CASE.name), ("early", CASE.name)}
    whole = ledger([one])
    assert (whole.deciding, whole.selection, whole.rule) == (DECIDING, SELECTION, RULE)
    assert Ledger.model_validate_json(as_json(whole)) == whole


def test_what_became_another_decision_is_told_with_the_reason(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "old", day=1)
    before = decided(tmp_path, a={}, gone={"baseline": NATIVE})
    assert list(changes(before, before)) == unlike(before, before) == []
    slower = CLEAN.model_copy(update={"driver": "2"})
    kept(tmp_path / "runs", "new", USUAL | {FUSED: 0.4}, day=2, of=slower)
    after = decided(tmp_path, a={"says": "another", "at_least": 1.5}, added={"baseline": COMPILE})
    where, was = f"{CASE.name} on a GPU", f"it was holds (supported) over {EAGER} by old"
    assert list(changes(before, after)) == [
        "Fused is Rejected, it was Supported: does not hold in 1 of 1 row: “another”",
        "Fused, a: its says is 'another', it was 'a is so'",
        "Fused, a: its threshold is 1.5, it was 1.02",
        f"Fused, a, {where}: does not hold (regression) over {EAGER} by new, {was}",
        f"Fused, added, {where} is new: does not hold",
        f"Fused, gone, {where} is gone",
        "Fused: driver 2, it was 1",
    ]
    assert unlike(before, after) == list(changes(before, after))


def test_rules_and_decisions_that_came_and_went_are_told(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run")
    now = decided(tmp_path, a={})
    (one,) = now.decisions
    was = now.model_copy(
        update={
            "deciding": 0,
            "selection": 0,
            "rule": 0,
            "decisions": [one.model_copy(update={"name": "old", "title": "Old", "status": DecisionStatus.CAVEATED})],
        }
    )
    assert list(changes(was, now)) == [
        f"the rule of decisions is version {DECIDING}, it was 0",
        f"the rule of selected runs is version {SELECTION}, it was 0",
        f"the rule of calls is version {RULE}, it was 0",
        "Fused is new: Supported",
        "Old is gone; it was Caveated",
    ]
    assert list(changes(None, now)) == unlike(None, now) == ["nothing was decided before"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("statement", "Do not.", "its statement was written anew"),
        ("owner", "nobody", "its owner was written anew"),
        ("unheard", ["No run may speak for x."], "No run may speak for x, which is so no more"),
        ("why", "because", "what it says is not what follows"),
        ("latest", "2020-01-01", "what it says is not what follows"),
        ("status", DecisionStatus.REJECTED, "Fused is Supported, it was Rejected: every claim holds in every row"),
        ("software", {"gpu": ["x"]}, "gpu a GPU, it was x"),
    ],
)
def test_whatever_is_edited_is_seen(tmp_path: Path, field: str, value: object, says: str) -> None:
    kept(tmp_path / "runs", "run")
    now = decided(tmp_path, a={})
    was = now.model_copy(update={"decisions": [now.decisions[0].model_copy(update={field: value})]})
    found = unlike(was, now)
    assert found and says in found[0]


def test_figures_that_were_edited_are_seen_and_last_digits_are_not(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "run")
    now = decided(tmp_path, a={})

    def edited(**changes: object) -> Ledger:
        one: Decided = now.decisions[0]
        first = one.claims[0]
        rows = [first.rows[0].model_copy(update=changes)]
        claims = [first.model_copy(update={"rows": rows})]
        return now.model_copy(update={"decisions": [one.model_copy(update={"claims": claims})]})

    low = now.decisions[0].claims[0].rows[0].low
    assert low is not None
    assert unlike(edited(low=low * (1 + 1e-12)), now) == []
    assert unlike(edited(low=low * 1.001), now) == [
        f"Fused, a, {CASE.name} on a GPU: its figures are others, and the run has the same name"
    ]
    assert unlike(edited(processes=6), now) == ["what it says is not what follows"]
    assert unlike(now.model_copy(update={"schema_version": 3}), now) == []
    assert alike([1.0, {"a": (2, None)}], [1.0 + 1e-13, {"a": (2, None)}])
    assert not alike([1.0], [1.0, 1.0]) and not alike({"a": 1}, {"b": 1}) and not alike(1.0, None)


def test_what_was_decided_last_is_read_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert stored(tmp_path) is None
    kept(tmp_path / "runs", "run")
    now = decided(tmp_path, a={})
    (tmp_path / LEDGER).write_bytes(as_json(now))
    assert stored(tmp_path) == now
    for text in ("{", "[]", as_json(now).decode().replace('"schema_version": 4', '"schema_version": 9'), "NaN"):
        (tmp_path / LEDGER).write_text(text)
        with pytest.raises(StoreError, match=f"{LEDGER} .*; bring it back, or delete it and decide with --write"):
            stored(tmp_path)


def test_the_evidence_of_several_folders_is_one(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "old", day=1)
    kept(tmp_path / "more", "new", day=2)
    example(tmp_path / "more")
    path = tmp_path / "fused.toml"
    path.write_text(toml(a={}, b=OF_EXAMPLE))
    one = decide(load(path, [SUITE]), evidence(tmp_path / "runs", tmp_path / "more"))
    assert [row.run for claim in one.decided.claims for row in claim.rows] == ["new", "block"]
    assert [(run.name, why) for run, why in one.selected[0].passed_over] == [("old", "older than new")]
