"""The terminal's table and the one-sentence answer: nothing cut, nothing claimed that was not measured."""

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from norm_fusion.records import Record, Status
from norm_fusion.report.answer import answer
from norm_fusion.report.rows import Row, fastest_torch, join
from norm_fusion.report.table import show
from norm_fusion.runs.store import RunStore, in_order
from norm_fusion.spec import BASELINE


def rows_of(store: RunStore) -> list[Row]:
    return join(in_order(store.records(), store.manifest()))


def printed(store: RunStore, width: int) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width), store.manifest(), rows_of(store))
    return out.getvalue()


def changed(rows: Sequence[Row], profile: str, **update: object) -> list[Row]:
    def series(row: Row) -> dict[str, Record]:
        return {timer: record.model_copy(update=update) for timer, record in row.series.items()}

    return [replace(row, series=series(row)) if row.profile == profile else row for row in rows]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_figure_is_cut(gpu: RunStore, width: int) -> None:
    text = printed(gpu, width)
    assert "…" not in text
    for head in ("p50", "p95", "host", "wall", "native", "max", "GB/s", "of copy", "TFLOP/s", "max rel", "verdict"):
        assert head in text
    assert "NVIDIA H200" in text
    assert "triton 3" in text


def test_a_wide_terminal_has_one_table_and_a_narrow_one_three(gpu: RunStore) -> None:
    assert printed(gpu, 200).count("case / profile") == 1
    assert printed(gpu, 80).count("case / profile") == 3


def test_the_answer_quotes_both_baselines(gpu: RunStore) -> None:
    said = answer(rows_of(gpu))
    assert "the speed of torch-baseline (torch-eager)" in said
    assert "the speed of torch-baseline (torch-native)" in said
    assert said.count("the fastest correct PyTorch") == 2
    assert "geometric mean of 3 cases; worst" in said


def test_a_wrong_kernel_has_no_speed_in_the_answer(gpu: RunStore) -> None:
    rows = changed(rows_of(gpu), "triton-fused-rmsnorm", status=Status.WRONG, speedup={})
    said = answer(rows)
    assert "Fused RMSNorm runs" not in said
    assert "Wrong, and left out: triton-fused-rmsnorm at 512x1024 float16" in said
    wrong = next(row for row in rows if row.status is Status.WRONG)
    assert wrong.latency is None
    assert wrong.ratio is None


def test_a_wrong_pytorch_is_not_the_fastest(gpu: RunStore) -> None:
    rows = [row for row in rows_of(gpu) if row.case == "rmsnorm-4096x4096-float16"]
    best = fastest_torch(rows)
    assert best is not None
    second = fastest_torch(changed(rows, best.profile, status=Status.WRONG))
    assert second is not None
    assert second.profile != best.profile


def test_the_fastest_is_chosen_within_one_series(gpu: RunStore) -> None:
    rows = [row for row in rows_of(gpu) if row.case == "rmsnorm-4096x4096-float16"]
    eager = next(row for row in rows if row.profile == "torch-eager")
    fallen = {"wall": eager.series["wall"].model_copy(update={"p50_ms": 1e-9})}
    best = fastest_torch([replace(row, series=fallen) if row is eager else row for row in rows])
    assert best is not None
    assert best.profile != "torch-eager"


def test_a_cpu_run_claims_nothing_for_triton(cpu: RunStore) -> None:
    said = answer(rows_of(cpu))
    assert "a CPU cannot time it" in said
    assert "Fused" not in said
    assert "right*" in printed(cpu, 100)


def test_what_would_steer_the_terminal_is_dropped(gpu: RunStore) -> None:
    from norm_fusion.report.table import notes

    rows = changed(rows_of(gpu), "torch-eager", status=Status.FAILED, reason="\x1b[31mred\x07")
    assert not any(ord(c) < 32 for note in notes(rows) for c in note)


def test_the_noise_of_the_series_that_is_quoted_is_said(gpu: RunStore) -> None:
    from norm_fusion.report.table import notes

    rows = rows_of(gpu)
    loud = [
        replace(row, series=dict(row.series) | {"graph": row.series["graph"].model_copy(update={"noise": "rerun"})})
        if row.profile == "triton-fused-layernorm"
        else row
        for row in rows
    ]
    assert any("triton-fused-layernorm at layernorm-4096x4096-float32 (graph)" in note for note in notes(loud))


def test_one_pytorch_alone_is_compared_with_nothing(gpu: RunStore) -> None:
    rows = [row for row in rows_of(gpu) if row.profile in ("torch-native", "copy") and row.any.op == "layernorm"]
    said = answer(rows)
    assert "torch-native has nothing to be compared with" in said
    assert "1.00x" not in said


def test_without_a_baseline_the_answer_says_what_there_is(gpu: RunStore) -> None:
    rows = [row for row in rows_of(gpu) if row.profile.startswith("triton-")]
    assert "no PyTorch to compare with was timed" in answer(rows)
    rows = [row for row in rows_of(gpu) if row.profile not in ("torch-eager",) and row.any.op == "rmsnorm"]
    without = [
        replace(
            row,
            series={
                timer: record.model_copy(
                    update={"speedup": {k: v for k, v in record.speedup.items() if k not in ("torch-eager", BASELINE)}}
                )
                for timer, record in row.series.items()
            },
        )
        for row in rows
    ]
    assert BASELINE not in answer(without)
    assert "the fastest correct PyTorch" in answer(without)
