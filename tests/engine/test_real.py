"""The real worker, verifier and engine on a CPU, with a user's contestants: one honest, one that ends its process.

Two workers and a verifier import PyTorch here: everything is asked of one run.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workers import Watching, plan, run

from norm_fusion import engine
from norm_fusion.engine import host, processes
from norm_fusion.records import Code, Record, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import CONTROL, ROOF, Case, Effort

CASE = Case.parse("rmsnorm-96x512-float32")
HONEST, CRASHES = "users_honest_kernels:rms_norm", "norm_fusion.backends.saboteurs:crashes"
USERS = """
import os
import torch.nn.functional as F
print("printed by a contestant")
os.write(1, b"written below Python\\n")

def rms_norm(x, shape, weight, eps):
    return F.rms_norm(x, shape, weight, eps)
"""
EFFORT = Effort(rounds=4, block=5, warmup_s=0.0, settle_s=0.0)

Found = tuple[engine.Outcome, RunStore, Watching, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("real")
    (folder / "users_honest_kernels.py").write_text(USERS)
    verdicts: list[dict[str, Any]] = []
    judge = processes.Verifier.judge

    def watched(self: processes.Verifier, request: dict[str, Any]) -> dict[str, Any]:
        verdict = judge(self, request)
        verdicts.append({k: request[k] for k in ("profile", "when", "rows")} | verdict)
        return verdict

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        # Tests run on busy machines: threads that wait for each other take a hundred times as long there.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(processes.Verifier, "judge", watched)
        asked = plan("torch-native", HONEST, CRASHES, cases=(CASE,), timeout_s=120.0)
        asked = replace(asked, shard=replace(asked.shard, yardsticks=True, effort=EFFORT))
        listener = Watching()
        outcome, store = run(folder, asked, listener)
        yield outcome, store, listener, verdicts


def by_profile(store: RunStore, cache: str = "cold") -> dict[str, Record]:
    return {r.profile: r for r in store.records() if r.cache in (cache, "none")}


def test_the_crash_costs_its_own_row(real: Found) -> None:
    outcome, store, listener, _ = real
    assert outcome.exit_code == 1 and outcome.problem is None
    found = by_profile(store)
    assert set(found) == {"torch-native", HONEST, CRASHES, CONTROL, ROOF}
    crashed = found.pop(CRASHES)
    assert (crashed.status, crashed.code) == (Status.FAILED, Code.CRASHED)
    assert "was killed by SIGSEGV on this case" in str(crashed.reason)
    assert {record.status for record in found.values()} == {Status.OK}
    assert [told[0] for told in listener.of("process")] == [1, 1], "one worker for it, and one for the others"


def test_the_others_are_measured_in_both_series(real: Found) -> None:
    _, store, _, _ = real
    for cache in ("cold", "hot"):
        found = by_profile(store, cache)
        for name in ("torch-native", HONEST, CONTROL, ROOF):
            record = found[name]
            samples = store.samples(record)
            assert (record.timer, record.n_samples) == ("wall", 20)
            assert len(samples.blocks) == len(samples.probes_ms) == 4
            assert all(0 < sample < 1000 for block in samples.blocks for sample in block)
            assert record.probe is not None and 0.2 < record.probe < 5
    assert found[CONTROL].control_of == found[HONEST].profile
    assert found[HONEST].resolved_backend == found[CONTROL].resolved_backend == HONEST


def test_what_is_honest_is_shown_to_the_verifier_and_right_there(real: Found) -> None:
    _, _, _, verdicts = real
    shown = {(verdict["profile"], verdict["when"]) for verdict in verdicts}
    assert shown == {(p, when) for p in ("torch-native", HONEST, CONTROL) for when in ("a timed call", "after timing")}
    assert {verdict["wrong"] for verdict in verdicts} == {None}
    assert {len(set(verdict["rows"])) for verdict in verdicts} == {host.SHOWN_ROWS}
    assert len({tuple(verdict["rows"]) for verdict in verdicts}) > 1, "which rows are shown is drawn each time"


def test_everyone_was_timed_by_the_parents_clock_too(real: Found) -> None:
    found = by_profile(real[1])
    for name in ("torch-native", HONEST, CONTROL, ROOF):
        outside = found[name].outside_ms
        assert outside is not None and outside > 0.001


def test_the_ceiling_comes_with_the_roof(real: Found) -> None:
    record = by_profile(real[1])["torch-native"]
    assert record.read_gbps is not None and record.read_gbps > 0.1
    assert record.write_gbps is not None and record.write_gbps > 0.1
    assert record.roof_share is not None


def test_as_many_steps_as_were_told_beforehand(real: Found) -> None:
    _, _, listener, _ = real
    last = max(i for i, told in enumerate(listener.told) if told[0] == "process")
    steps = [told for told in listener.told[last:] if told[0] == "step"]
    assert len(steps) == listener.told[last][5]
    assert [what for _, _, what in steps][-2:] == ["time wall", "time wall, hot"]


def test_what_contestants_print_is_in_the_log_and_not_in_the_protocol(real: Found) -> None:
    log = (real[1].path / "worker.log").read_text()
    assert "printed by a contestant" in log and "written below Python" in log


def test_the_run_says_where_it_was(real: Found) -> None:
    manifest = real[1].manifest()
    assert manifest.state == "finished" and manifest.notes == []
    assert manifest.environment is not None and manifest.environment.device == "cpu"
    assert manifest.before is not None and manifest.after is not None
    assert {r.fingerprint for r in real[1].records()} == {manifest.environment.fingerprint}
    assert Path(real[1].path / "conditions.jsonl").stat().st_size > 0
