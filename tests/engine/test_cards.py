"""Several cards of one machine: who measures what, and what is left when a card's process is gone."""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from elsewhere import CARD, IMPORTS_S, asked, bound_s, cost_s, manifest_of, run_of, running, shards_do
from workers import Watching

from norm_fusion import engine
from norm_fusion.engine import cards, messages
from norm_fusion.engine.cards import Cards, Here, split
from norm_fusion.records import Record
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import Case

CASES = tuple(Case.parse(f"rmsnorm-{rows}x8-float32") for rows in (1, 2, 3, 4, 5, 6))
NAMES = [case.name for case in CASES]


def uuids(store: RunStore) -> dict[str, str | None]:
    """On which card each case was measured."""
    manifest = store.manifest()
    found = {r.case: manifest.environment_of(r.fingerprint) for r in store.records()}
    return {case: e.device_uuid if e is not None else None for case, e in found.items()}


def test_cases_are_dealt_and_no_ratio_spans_two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_do(tmp_path / "site", monkeypatch, "time.sleep(0.2)")
    watching = Watching()
    plan = asked(CASES, fewest=3, most=3)
    (outcome,) = engine.carry_out([run_of(tmp_path, plan, watching)], Cards(["GPU-one", "GPU-two"]))
    store = RunStore(tmp_path / "a")
    assert outcome.exit_code == 0 and outcome.kept
    manifest = store.manifest()
    assert (manifest.state, sorted(manifest.done)) == ("finished", NAMES)
    assert sorted(str(e.device_uuid) for e in manifest.environments) == ["GPU-one", "GPU-two"]
    where = uuids(store)
    assert Counter(where.values()) == {"GPU-one": 3, "GPU-two": 3}
    by_case: dict[str, set[str]] = {}
    for record in store.records():
        by_case.setdefault(record.case, set()).add(record.fingerprint)
    assert {len(prints) for prints in by_case.values()} == {1}, "all processes of a case are on one card"
    assert Counter(r.case for r in store.records()) == dict.fromkeys(NAMES, 3)


def test_a_shard_in_a_process_of_its_own_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_do(tmp_path / "site", monkeypatch, imports_s=IMPORTS_S)
    assert cost_s(tmp_path, lambda: Cards(["GPU-one"]), CASES[:1]) < bound_s(1.0)


@pytest.mark.parametrize("held_up_s", [1.0, 5.0])
def test_a_disk_that_holds_us_up_costs_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_up_s: float
) -> None:
    """What came meanwhile is heard before anybody is called silent; and who could not listen calls nobody so."""
    shards_do(tmp_path / "site", monkeypatch, "time.sleep(0.3)", beat_s=0.3)
    monkeypatch.setattr(cards, "SILENT_S", 2.0)
    monkeypatch.setattr(cards, "HELD_UP_S", held_up_s)
    slow: list[str] = []

    def listener(where: str, message: messages.Message) -> None:
        if message.kind == "measured" and not slow:
            slow.append(where)
            time.sleep(3.0)

    (outcome,) = engine.carry_out([run_of(tmp_path, asked(CASES), listener)], Cards(["GPU-one", "GPU-two"]))
    assert slow and outcome.exit_code == 0
    manifest = RunStore(tmp_path / "a").manifest()
    assert (manifest.state, manifest.notes) == ("finished", [])


def test_both_cards_work_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_do(tmp_path / "site", monkeypatch, "time.sleep(1.0)")
    order: list[tuple[str, str]] = []
    engine.carry_out(
        [run_of(tmp_path, asked(CASES), lambda where, message: order.append((message.kind, where)))],
        Cards(["GPU-one", "GPU-two"]),
    )
    first_done = next(i for i, (kind, _) in enumerate(order) if kind == "done")
    assert {where for kind, where in order[:first_done] if kind == "measured"} == {"cuda:0", "cuda:1"}


def test_a_card_whose_process_dies_costs_its_own_cases_and_a_resume_measures_only_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards_do(
        tmp_path / "site",
        monkeypatch,
        before="if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-two': os.kill(os.getppid(), 9)",
    )
    plan = asked(CASES)
    (outcome,) = engine.carry_out([run_of(tmp_path, plan, Watching())], Cards(["GPU-one", "GPU-two"]))
    assert outcome.exit_code == 3, "not all of it was measured"
    store = RunStore(tmp_path / "a")
    manifest = store.manifest()
    assert manifest.state == "partial" and len(manifest.done) == 3
    assert any("the process of cuda:1 ended early (code -9)" in note for note in manifest.notes)
    before = {path.name: path.stat().st_mtime_ns for path in store.record_files()}
    shards_do(tmp_path / "site", monkeypatch)
    (outcome,) = engine.carry_out([run_of(tmp_path, plan, Watching())], Cards(["GPU-one", "GPU-two"]))
    assert outcome.exit_code == 0
    assert store.manifest().state == "finished"
    after = {path.name: path.stat().st_mtime_ns for path in store.record_files()}
    assert len(after) == 6 and {name: after[name] for name in before} == before, "what was finished is as it was"


def test_a_signal_ends_all_cards_and_keeps_what_they_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_do(
        tmp_path / "site",
        monkeypatch,
        "time.sleep(0.5)",
        before="import signal as s; s.signal(15, lambda *a: os._exit(0))",
    )
    told = 0

    def listener(where: str, message: messages.Message) -> None:
        nonlocal told
        told += isinstance(message, messages.Measured)
        if told == 2 and isinstance(message, messages.Measured):
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    (outcome,) = engine.carry_out([run_of(tmp_path, asked(CASES), listener)], Cards(["GPU-one", "GPU-two"]))
    assert time.monotonic() - began < 20
    assert outcome.exit_code == 130
    assert RunStore(tmp_path / "a").manifest().state == "interrupted"
    assert 2 <= len(outcome.records) < 6
    assert not children(), "no process is left"


def test_after_a_signal_no_shard_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SHARD", [sys.executable, "-c", "import sys; sys.exit('it was started')"])
    crew, told = Cards(["GPU-one", "GPU-two"]), []
    plan = asked(CASES)
    tasks = crew.tasks(plan, manifest_of(plan), [])
    crew.stop(signal.SIGINT)
    crew.work([(task, lambda where, message: told.append((where, message))) for task in tasks])
    assert told == []


def test_a_card_that_is_refused_does_not_keep_the_others_from_their_conclusions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of the others began, or after."""
    card = "if os.environ['CUDA_VISIBLE_DEVICES'] =="
    refused = f"{card} 'GPU-two':\n    send('refused', message='in use')\n    sys.exit(2)"
    slow = f"{card} 'GPU-one': time.sleep(3)"
    for run_id, before in (("a", f"{refused}\n{slow}"), ("b", f"{slow}\n{refused}")):
        shards_do(tmp_path / "site", monkeypatch, before=before)
        (outcome,) = engine.carry_out(
            [run_of(tmp_path, asked(CASES, run_id), Watching())], Cards(["GPU-one", "GPU-two"])
        )
        store = RunStore(tmp_path / run_id)
        manifest = store.manifest()
        assert (outcome.exit_code, manifest.state, len(manifest.done)) == (3, "partial", 3)
        assert manifest.notes == ["cuda:1: in use"]
        assert store.conclusions() == outcome.conclusions is not None


def test_a_shard_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SILENT_S", 2.0)
    silent = "import sys, time; sys.stdin.readline(); time.sleep(1000)"
    monkeypatch.setattr(cards, "SHARD", [sys.executable, "-c", silent])
    crew, told = Cards(["GPU-one", "GPU-two"]), []
    plan = asked(CASES)
    tasks = crew.tasks(plan, manifest_of(plan), [])
    crew.work([(task, lambda where, message: told.append((where, message))) for task in tasks])
    assert {where for where, _ in told} == {"cuda:0", "cuda:1"}
    assert all("ended early (code -9)" in message.text for _, message in told)


def test_a_shard_that_hangs_beside_one_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "SILENT_S", 2.0)
    code = """
import os, sys, time
sys.stdin.readline()
for _ in range(80):
    if os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-one":
        print('{"kind": "beat"}', flush=True)
    time.sleep(0.1)
print('{"kind": "finished"}', flush=True)
"""
    monkeypatch.setattr(cards, "SHARD", [sys.executable, "-c", code])
    told: list[tuple[float, str, messages.Message]] = []
    began = time.monotonic()
    work(told)
    ended = {where: at - began for at, where, message in told if message.kind in ("note", "finished")}
    assert ended["cuda:1"] < 6 < 7 < ended["cuda:0"]


def test_a_shard_that_ends_in_the_middle_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, sys
sys.stdin.readline()
print('{"kind": "beat"}', flush=True)
if os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-two":
    os.write(1, b'{"kind": "measured", "case": "rms')
    os.kill(os.getpid(), 9)
print('{"kind": "finished"}', flush=True)
"""
    monkeypatch.setattr(cards, "SHARD", [sys.executable, "-c", code])
    told: list[tuple[float, str, messages.Message]] = []
    work(told)
    assert [message.kind for _, where, message in told if where == "cuda:0"] == ["beat", "finished"]
    assert [message.kind for _, where, message in told if where == "cuda:1"] == ["beat", "note"]


def work(told: list[tuple[float, str, messages.Message]]) -> None:
    """Have two cards work, and write down when they told what."""
    crew, plan = Cards(["GPU-one", "GPU-two"]), asked(CASES)

    def take(where: str, message: messages.Message) -> None:
        told.append((time.monotonic(), where, message))

    crew.work([(task, take) for task in crew.tasks(plan, manifest_of(plan), [])])


def test_what_was_begun_goes_on_where_it_was() -> None:
    here = CARD.model_copy(update={"device_uuid": "two"})
    plan = asked(CASES)
    manifest = manifest_of(plan).model_copy(update={"environment": here})
    begun = Record(
        run_id="a", case=NAMES[0], op="rmsnorm", rows=1, cols=8, dtype="float32", profile="torch-eager", status="ok",
        fingerprint=here.fingerprint,
    )  # fmt: skip
    one, two = Cards(["GPU-one", "GPU-two"]).tasks(plan, manifest, [(begun, None)])
    assert NAMES[0] in [case.name for case in two.plan.cases] and two.environment == here
    assert not one.earlier and one.environment is None
    assert sorted(case.name for task in (one, two) for case in task.plan.cases) == NAMES
    assert len(one.plan.cases) in (3, 2)


def test_what_is_profiled_alone_goes_to_the_smallest_share() -> None:
    cells = ((NAMES[0], "torch-eager"), ("matmul-64x64x64-float16", "torch-matmul"), (NAMES[1], "torch-eager"))
    plan = asked(CASES[:3], profiled=cells)
    large, small = split(plan, [CASES[:2], CASES[2:3]])
    assert large.profiled == (cells[0], cells[2])
    assert small.profiled == (cells[1],)


def test_one_card_is_measured_by_this_process() -> None:
    plan = asked(CASES)
    (task,) = Here().tasks(plan, manifest_of(plan), [])
    assert task.plan == plan


def test_a_task_and_its_messages_survive_the_trip() -> None:
    plan = asked(CASES, profiled=((NAMES[0], "copy"),), budget_s=3.0)
    task = messages.Task(plan=plan, manifest=manifest_of(plan), environment=CARD, model="A10G")
    assert messages.Task.model_validate_json(task.model_dump_json(by_alias=True)) == task
    for message in (messages.Done(cases=NAMES), messages.Ended(number=1, took_s=2.0, widest=None), messages.Beat()):
        assert messages.read(message.model_dump_json()) == message
    with pytest.raises(ValueError, match="kind"):
        messages.read('{"kind": "dance"}')


def children() -> list[str]:
    """What runs below this process."""
    return [words for _, parent, words in running() if parent == os.getpid() and "norm_fusion" in words]
