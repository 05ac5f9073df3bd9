"""Processes made one: every figure by hand, and the worst of them speaks for all."""

import math
from pathlib import Path

import pytest
from made import (
    CASE,
    COLD,
    CPU,
    DEVICE,
    FUSED,
    GPU,
    HOST,
    WALL,
    concluded,
    control,
    manifest,
    measured,
    reader,
    recorded,
    series,
)

from norm_fusion import metrics
from norm_fusion.evidence.pool import pool, quoted, standing
from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Code, Environment, Event, Measurement, Record, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import BASELINE, ROOF

OLD = Path(__file__).parents[1] / "stored"


def pooled(*processes: list[Measurement], environment: Environment = GPU) -> dict[str, Record]:
    made = recorded(processes)
    found = pool([record for record, _ in made], reader(made), environment)
    return {record.profile: record for record in found}


def test_percentiles_are_over_all_samples_of_all_processes() -> None:
    one, two = series(1.0, blocks=[[1.0, 1.0], [3.0]]), series(1.0, blocks=[[4.0, 2.0, 3.0]])
    row = pooled([measured(FUSED, None, series=[one])], [measured(FUSED, None, series=[two])])[FUSED]
    assert (row.p50_ms, row.p95_ms) == (2.5, pytest.approx(3.75))  # 1 1 2 3 3 4
    assert (row.noise_ratio, row.noise) == (pytest.approx(1.5), "rerun")
    assert (row.replicate, row.processes, row.n_samples) == (None, 2, 6)
    assert row.process_spread == 3.0  # medians 1 and 3
    assert row.gbps == pytest.approx(metrics.gbps(CASE.compulsory_bytes, 2.5))
    assert row.tflops == pytest.approx(metrics.tflops(CASE.flops, 2.5))
    assert (row.samples_file, row.samples_sha256) == (None, None)


def test_a_process_with_many_samples_does_not_outweigh_the_others() -> None:
    slow = [[measured(FUSED, None, series=[series(1.0, blocks=[[10.0] * 10])])] for _ in range(4)]
    fast = [measured(FUSED, None, series=[series(1.0, blocks=[[1.0] * 500])])]
    row = pooled(*slow, fast)[FUSED]
    assert (row.p50_ms, row.n_samples) == (10.0, 540)


def test_a_single_process_needs_no_samples() -> None:
    made = recorded([[measured("torch-eager", 1.0), measured(FUSED, 0.5)]])
    rows = [record for record, _ in made]

    def missing(record: Record) -> None:
        raise AssertionError(record.key)

    found = pool(rows, missing, GPU)  # type: ignore[arg-type]
    kept = {"replicate", "processes", "samples_file", "samples_sha256"}
    for before, after in zip(rows, found, strict=True):
        assert before.model_dump(exclude=kept) == after.model_dump(exclude=kept)
    assert (found[0].processes, found[0].process_spread, found[0].interval) == (1, None, {})


def test_old_runs_pool_as_one_process_and_have_no_calls() -> None:
    store = RunStore.open("schema-1", OLD)
    records = list(store.records())
    made = conclude(records, store.samples, store.manifest())
    assert made.calls == []
    assert len(made.pooled) == len(records)
    derived = {"replicate", "processes", "samples_file", "samples_sha256", "regime", "noise"}
    before = {(r.case, r.profile, r.timer): r.model_dump(exclude=derived) for r in records}
    for record in made.pooled:
        after = record.model_dump(exclude=derived)
        expected = before[record.case, record.profile, record.timer]
        assert after == {
            name: pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            for name, value in expected.items()
        }
    assert {r.regime for r in made.pooled if r.profile == "torch-eager"} == {"DRAM-bound"}


def test_ceilings_are_medians_and_shares_are_of_pooled_figures() -> None:
    def process(roof_ms: float, read: float) -> list[Measurement]:
        return [measured(FUSED, 0.5), measured(ROOF, roof_ms, read_gbps=read, write_gbps=read - 1)]

    rows = pooled(process(0.4, 10.0), process(0.4, 11.0), process(0.4, 30.0))
    row = rows[FUSED]
    assert (row.read_gbps, row.write_gbps) == (11.0, 10.0)
    assert row.roof_gbps == rows[ROOF].gbps == pytest.approx(2 * CASE.input_bytes / 0.4 / 1e6)
    assert row.roof_share == pytest.approx(row.gbps / row.roof_gbps)  # type: ignore[operator]
    assert (rows[ROOF].roof_gbps, rows[ROOF].regime, rows[ROOF].correct) == (None, None, None)


def test_a_speedup_is_the_mean_log_of_the_processes_own() -> None:
    ratios = [2.0, 2.2, 2.1]
    rows = pooled(*([measured("torch-eager", ratio), measured(FUSED, 1.0)] for ratio in ratios))
    row = rows[FUSED]
    assert row.speedup == {name: pytest.approx((2.0 * 2.2 * 2.1) ** (1 / 3)) for name in ("torch-eager", BASELINE)}
    low, high = row.interval["torch-eager"]
    assert (low, high) == (pytest.approx(metrics.interval(ratios)[0]), pytest.approx(metrics.interval(ratios)[1]))
    assert row.interval[BASELINE] == (low, high)
    assert rows["torch-eager"].speedup[FUSED] == pytest.approx(1 / row.speedup["torch-eager"])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_worst_process_speaks_for_all(order: tuple[int, int, int]) -> None:
    ok = [measured("torch-eager", 1.0), measured(FUSED, 0.5)]
    failed = [measured("torch-eager", 1.0), measured(FUSED, None, status=Status.FAILED, code=Code.HUNG, reason="hung")]
    wrong = [
        measured("torch-eager", 1.0),
        measured(FUSED, 0.5, status=Status.WRONG, code=Code.MUTATED_INPUT, reason="it wrote", max_rel_error=3.0),
    ]
    rows = pooled(*[[ok, failed, wrong][i] for i in order])
    row = rows[FUSED]
    assert (row.status, row.code, row.correct) == (Status.WRONG, Code.MUTATED_INPUT, False)
    assert row.reason == "it wrote (in 1 of 3 processes)"
    assert row.max_rel_error == 3.0
    assert row.processes == 2
    assert row.speedup == row.interval == {}
    assert rows["torch-eager"].speedup == {}
    rows = pooled(ok, failed, ok)
    assert (rows[FUSED].status, rows[FUSED].code, rows[FUSED].timer) == (Status.FAILED, Code.HUNG, "graph")
    assert rows[FUSED].speedup == rows["torch-eager"].speedup == {}


def test_what_all_processes_say_is_said_plainly() -> None:
    missing = [measured(FUSED, None, status=Status.UNAVAILABLE, reason="no GPU", remedy="get one", max_rel_error=None)]
    row = pooled(missing, missing)[FUSED]
    assert (row.status, row.reason, row.remedy, row.timer) == (Status.UNAVAILABLE, "no GPU", "get one", "none")
    assert (row.p50_ms, row.processes, row.n_samples) == (None, 2, 0)


def test_a_process_that_was_interrupted_says_nothing_of_what_it_did_not_come_to() -> None:
    cut = measured(FUSED, None, status=Status.UNAVAILABLE, code=Code.INTERRUPTED, reason="interrupted")
    rows = pooled([measured(FUSED, 0.5)], [measured(FUSED, 0.5)], [cut])
    assert (rows[FUSED].status, rows[FUSED].reason, rows[FUSED].processes) == (Status.OK, None, 2)
    assert pooled([cut])[FUSED].code is Code.INTERRUPTED


def test_notes_and_events_are_united_and_settled_means_all() -> None:
    hot, power = Event(kind="thermal", detail="x"), Event(kind="power", detail="y")
    rows = pooled(
        [measured(FUSED, 1.0, notes=["a"], events=[hot], resolved_backend="one")],
        [measured(FUSED, 1.0, notes=["a", "b"], events=[hot, power], resolved_backend="two")],
        [measured(FUSED, None, series=[series(1.0, settled=False)], resolved_backend="one")],
    )
    row = rows[FUSED]
    assert (row.notes, row.events, row.settled) == (["a", "b"], [hot, power], False)
    assert row.resolved_backend == "one; two"


def test_the_probe_is_the_median_process() -> None:
    def process(probe: float) -> list[Measurement]:
        one = measured(FUSED, None, series=[series(1.0, probes_ms=[probe])])
        return [one, measured("torch-eager", None, series=[series(1.0, probes_ms=[1.0, 1.0])])]

    assert pooled(process(1.0), process(1.3), process(1.1))[FUSED].probe == pytest.approx(1.1)


SMALL, LARGE = {"cache_bytes": 2**21}, {"cache_bytes": 2**22}  # one call reads 2 MiB and writes 2 MiB


@pytest.mark.parametrize(
    ("environment", "times", "regime"),
    [
        (GPU.model_copy(update=SMALL), {HOST: 0.01, DEVICE: 0.01}, "launch-bound"),
        (GPU.model_copy(update=SMALL), {HOST: 0.009, DEVICE: 0.01}, "DRAM-bound"),
        (GPU.model_copy(update=LARGE), {HOST: 0.009, DEVICE: 0.01}, "L2-resident"),
        (GPU.model_copy(update=LARGE), {HOST: 0.01}, None),
        (GPU.model_copy(update=LARGE), {DEVICE: 0.01, COLD: 0.01}, None),
        (GPU.model_copy(update=LARGE), {("host", "hot"): 0.01, DEVICE: 0.01}, None),
        (CPU.model_copy(update=SMALL), {WALL: 0.01}, "DRAM-bound"),
        (CPU.model_copy(update=LARGE), {WALL: 0.01}, "cache-resident"),
        (CPU.model_copy(update=LARGE), {HOST: 0.01}, None),
    ],
)
def test_regimes(environment: Environment, times: dict[tuple[str, str], float], regime: str | None) -> None:
    rows = pooled([measured(FUSED, times), measured(ROOF, times)], environment=environment)
    assert (rows[FUSED].regime, rows[ROOF].regime) == (regime, None)


def test_only_what_is_right_has_a_regime() -> None:
    row = measured(FUSED, {HOST: 1.0, DEVICE: 1.0}, status=Status.WRONG, reason="r")
    assert pooled([row])[FUSED].regime is None


def test_the_newest_attempt_stands_unless_it_was_cut_short() -> None:
    def attempt(number: int, processes: int) -> list[Record]:
        made = recorded([[measured(FUSED, {HOST: 1.0, DEVICE: 1.0})]] * processes, attempt=number)
        return pool([record for record, _ in made], reader(made), GPU)

    whole, again, cut = attempt(0, 5), attempt(1, 3), attempt(2, 2)
    assert standing(whole + again) == {CASE.name: 1}
    assert standing(whole + again + cut) == {CASE.name: 1}
    assert standing(whole + attempt(1, 1)) == {CASE.name: 0}
    assert standing(attempt(0, 2) + attempt(1, 2)) == {CASE.name: 1}
    assert quoted(whole + again) == again


def test_only_the_attempt_that_stands_has_a_regime() -> None:
    rows = [[measured(FUSED, {HOST: 1.0, DEVICE: 1.0})]] * 3
    made = concluded(recorded(rows) + recorded(rows, attempt=1), manifest())
    assert {(record.attempt, record.regime) for record in made.pooled} == {(0, None), (1, "launch-bound")}


def test_speedups_do_not_depend_on_the_order_of_records() -> None:
    made = recorded([[measured("torch-eager", r), measured(FUSED, 1.0)] for r in (1.1, 1.2, 1.3)])
    forth = pool([record for record, _ in made], reader(made), GPU)
    back = pool([record for record, _ in reversed(made)], reader(made), GPU)
    by_key = {record.key: record.speedup for record in back}
    assert all(math.isclose(r.speedup[n], by_key[r.key][n]) for r in forth for n in r.speedup)


def test_what_fails_as_its_own_control_has_failed() -> None:
    good = [measured(FUSED, 0.1), control(0.1)]
    bad = [measured(FUSED, 0.1), control(0.1).model_copy(update={"status": Status.FAILED, "reason": "boom"})]
    row = pooled(good, bad, good)[FUSED]
    assert row.status is Status.FAILED
    assert row.reason == "boom (measured a second time, as the control) (in 1 of 3 processes)"
    assert row.speedup == {}


def test_a_rerun_is_no_pardon() -> None:
    first = recorded([[measured(FUSED, 0.1, status=Status.WRONG, reason="zeros")], *[[measured(FUSED, 0.1)]] * 2])
    again = recorded([[measured(FUSED, 0.1)]] * 3, attempt=1)
    found = pool([record for record, _ in (*first, *again)], reader([*first, *again]), GPU)
    assert [(row.attempt, row.status) for row in found] == [(0, Status.WRONG), (1, Status.WRONG)]
    assert found[1].reason == "zeros (in attempt 1) (in 1 of 3 processes)"
