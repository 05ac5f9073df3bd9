"""The terminal's table and the one-sentence answer: nothing cut, nothing claimed that was not measured."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from example_runs import LABELS, MINE, THROTTLED, WRONG
from rich.console import Console

from norm_fusion import metrics
from norm_fusion.evidence.stored import concluded
from norm_fusion.records import Conclusions, Label, Record, Status
from norm_fusion.report import rows
from norm_fusion.report.answer import answer
from norm_fusion.report.notes import notes
from norm_fusion.report.quotes import Overall, Quote, overall, quote
from norm_fusion.report.rows import WALL, Row, Series, fastest_torch, fused, join
from norm_fusion.report.table import show
from norm_fusion.runs.order import in_order
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import BASELINE

GRAPH: Series = ("graph", "cold")


def rows_of(store: RunStore) -> list[Row]:
    return join(in_order(store.records(), store.manifest()))


def printed(store: RunStore, width: int) -> str:
    out = io.StringIO()
    manifest = store.manifest()
    show(Console(file=out, width=width), manifest, rows.rows_of(concluded(store, manifest)[0], manifest))
    return out.getvalue()


def changed(rows: Sequence[Row], profile: str, **update: object) -> list[Row]:
    def series(row: Row) -> dict[Series, Record]:
        return {timer: record.model_copy(update=update) for timer, record in row.series.items()}

    return [replace(row, series=series(row)) if row.profile == profile else row for row in rows]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_figure_is_cut(gpu: RunStore, width: int) -> None:
    text = printed(gpu, width)
    assert "…" not in text
    for head in ("p50", "p95", "host", "wall", "regime", "kernel", "eager", "GB/s", "of copy", "TFLOP/s", "max rel"):
        assert head in text
    assert "NVIDIA H200" in text
    assert "triton 3" in text


def test_cards_that_are_alike_are_told_once(gpu: RunStore) -> None:
    told = gpu.manifest()
    assert told.environment is not None
    others = [told.environment.model_copy(update={"device_uuid": uuid, "device_index": 1}) for uuid in ("two", "three")]
    odd = others[0].model_copy(update={"device_name": "NVIDIA H100", "device_uuid": "four"})
    for further, heads in ((others, ["3 x NVIDIA H200"]), ([others[0], odd], ["2 x NVIDIA H200", "NVIDIA H100"])):
        out = io.StringIO()
        show(Console(file=out, width=100), told.model_copy(update={"further": further}), [])
        firsts = [line.partition(" · ")[0] for line in out.getvalue().splitlines() if " SMs " in line]
        assert firsts == heads


def test_a_hundred_columns_hold_three_tables_and_eighty_continue_them(five: RunStore) -> None:
    wide, narrow = printed(five, 100), printed(five, 80)
    assert "continued" not in wide
    assert narrow.count(", continued") == 3
    for text, width in ((wide, 100), (narrow, 80)):
        tables = text[text.index("Time of a call") : text.index("\n- ")]
        assert max(len(line) for line in tables.splitlines() if not line.startswith(("Time", "Speedup"))) <= width


def test_the_answer_quotes_both_baselines(gpu: RunStore) -> None:
    said = answer(rows_of(gpu))
    assert re.search(r"\d\.\d\dx over torch-baseline \(torch-eager\)", said)
    assert re.search(r"\d\.\d\dx over torch-baseline \(torch-native\)", said)
    assert said.count("the fastest correct PyTorch") == 2
    assert "Fused RMSNorm, geometric mean of 3 cases" in said
    assert said.count("worst") == 3


def test_a_wrong_kernel_has_no_speed_in_the_answer(gpu: RunStore) -> None:
    rows = changed(rows_of(gpu), "triton-fused-rmsnorm", status=Status.WRONG, speedup={})
    said = answer(rows)
    assert "Fused RMSNorm" not in said
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
    fallen = {WALL: eager.series[WALL].model_copy(update={"p50_ms": 1e-9})}
    best = fastest_torch([replace(row, series=fallen) if row is eager else row for row in rows])
    assert best is not None
    assert best.profile != "torch-eager"


def test_a_cpu_run_claims_nothing_for_triton(cpu: RunStore) -> None:
    said = answer(rows_of(cpu))
    assert "a CPU cannot time it" in said
    assert "Fused" not in said
    assert "checked" in printed(cpu, 100)


def test_what_would_steer_the_terminal_is_dropped(gpu: RunStore) -> None:
    hostile = "\x1b[31mred\x07"
    rows = changed(rows_of(gpu), "torch-eager", status=Status.FAILED, reason=hostile, notes=[hostile])
    assert any("[31mred" in note for note in notes(gpu.manifest(), rows))
    assert not any(ord(c) < 32 for note in notes(gpu.manifest(), rows) for c in note)


def test_a_case_during_which_a_setting_became_another_is_named(gpu: RunStore) -> None:
    rows, told = rows_of(gpu), "settings changed during the run"
    was = gpu.manifest().environment
    assert was is not None
    same = [changed([row], row.profile, fingerprint=was.fingerprint)[0] for row in rows]
    assert not [note for note in notes(gpu.manifest(), same) if told in note]
    odd = changed(same[:1], same[0].profile, fingerprint=f"{was.fingerprint}, then 0") + same[1:]
    (note,) = (note for note in notes(gpu.manifest(), odd) if told in note)
    assert note.endswith(f": {rows[0].case}")


def test_the_noise_of_the_series_that_is_quoted_is_said(gpu: RunStore) -> None:
    rows = rows_of(gpu)
    loud = [
        replace(row, series=dict(row.series) | {GRAPH: row.series[GRAPH].model_copy(update={"noise": "rerun"})})
        if row.profile == "triton-fused-layernorm"
        else row
        for row in rows
    ]
    assert any(
        "triton-fused-layernorm at layernorm-4096x4096-float32 (graph)" in note for note in notes(gpu.manifest(), loud)
    )


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


# Several processes: intervals, calls, regimes, reruns, the control


@pytest.fixture(scope="module")
def judged(five: RunStore) -> list[Row]:
    made = five.conclusions()
    assert made is not None
    return rows.rows_of(made, five.manifest())


def blocks(text: str, title: str) -> dict[str, list[str]]:
    """The lines of each case in the table of that title."""
    found: dict[str, list[str]] = {}
    lines = text[text.index(title) :].splitlines()
    for line in lines[3:]:
        if line.startswith(("-", "Speedup", "Effective")):
            break
        if line and not line.startswith(" "):
            found[line] = []
        elif line and found:
            found[list(found)[-1]].append(line)
    return found


def test_every_claim_of_the_fused_kernel_has_its_interval_and_its_label(five: RunStore, judged: list[Row]) -> None:
    shown = blocks(printed(five, 100), "Speedup, 95% interval over 5 processes, and call")
    for (case, baseline), label in LABELS.items():
        row = fused([row for row in judged if row.case == case])
        assert row is not None
        one = quote(row, baseline)
        assert one is not None and one.speedup is not None
        line = next(line for line in shown[case] if re.match(rf" +{baseline}[, ]", line))
        assert (
            f"{one.speedup:.2f}x  {one.width}  {label}".split()
            == line.replace(", baseline", "").replace(", fastest", "").split()[1 : 3 + len(label.split())]
        )
    assert {*LABELS.values()} | {"invalid"} == {label.value for label in Label}


def test_a_win_that_disappears_in_eager_calls_is_seen_beside_it(five: RunStore) -> None:
    claims = blocks(printed(five, 100), "Speedup,")["rmsnorm-2048x4096-float16"]
    line = next(line for line in claims if "native" in line)
    assert re.search(r"1\.3\dx +±0\.\d% +supported +0\.9\dx +±0\.\d% +regression", line)
    times = blocks(printed(five, 100), "Time of a call")
    assert "launch-bound" in next(line for line in times["rmsnorm-2048x4096-float16"] if "triton" in line)
    assert "DRAM-bound" in next(line for line in times["rmsnorm-4096x4096-float16"] if "eager" in line)
    said = answer([row for row in rows.rows_of(*both(five)) if row.case == "rmsnorm-2048x4096-float16"])
    assert re.search(
        r"In eager calls it is 0\.9\dx \[0\.\d+, 0\.\d+\] over torch-native, regression \(launch-bound\)", said
    )


def both(store: RunStore) -> tuple[Conclusions, object]:
    made = store.conclusions()
    assert made is not None
    return made, store.manifest()


def test_hot_figures_stand_beside_cold_ones_and_never_in_their_place(judged: list[Row]) -> None:
    for row in judged:
        if row.profile == MINE and row.any.op == "layernorm":
            assert (row.latency, row.ratio, row.hot, row.regime) == (None, None, None, None)
            continue
        assert row.latency is not None and row.latency.cache == "cold"
        assert row.hot is not None and row.hot.cache == "hot"
        assert row.hot.p50_ms is not None and row.hot.p50_ms < (row.latency.p50_ms or 0.0)


def test_an_invalid_claim_quotes_no_speedup_and_gives_its_reason(five: RunStore, judged: list[Row]) -> None:
    text = printed(five, 200)
    shown = blocks(text, "Speedup,")["layernorm-4096x4096-float32"]
    mine = shown[next(i for i, line in enumerate(shown) if MINE in line) + 1 :][:4]
    assert all("invalid" in line and "x " not in line.replace("max ", "") for line in mine), mine
    assert f"{MINE} wrong (wrong-output) at layernorm-4096x4096-float32: {WRONG}" in text
    assert f"Wrong, and left out: {MINE} at 4096x4096 float32" in text


def test_every_attempt_is_told_with_its_label_and_speedup(five: RunStore, judged: list[Row]) -> None:
    text = printed(five, 200)
    row = fused([row for row in judged if row.case == "rmsnorm-512x1024-float16"])
    assert row is not None
    call = row.call("torch-native")
    assert call is not None and len(call.earlier) == 2
    each = ", ".join(f"{one.speedup:.2f}x {one.label.value}" for one in call.earlier)
    assert f"over torch-native {each}, then {call.speedup:.2f}x rerun noise" in text
    assert re.search(
        r"measured 2 times, all kept: triton-fused-rmsnorm at rmsnorm-2048x4096-float16: over torch-native "
        r"1\.\d\dx rerun noise, then 1\.\d\dx supported; 3 without noise",
        text,
    )


def test_the_notes_name_processes_precision_control_events_and_reasons(five: RunStore) -> None:
    text = printed(five, 200)
    assert re.search(r"- 5 processes; the widest interval that the answer rests on is ±\d\.\d% \(asked: ±1\.0%\)", text)
    assert "control (A/A): triton-fused-rmsnorm, measured a second time, differs from itself by" in text
    assert f"rerun noise (thermal): 2 claims, of triton-fused-rmsnorm at rmsnorm-512x1024-float16; {MINE}" in text
    assert THROTTLED in text
    assert "rerun noise (noise): 2 claims" in text
    assert text.count("\n- ") < 15


def test_whoever_is_another_kernel_in_another_process_is_named(
    five: RunStore, gpu: RunStore, judged: list[Row]
) -> None:
    apart = [replace(row, series=steady(row)) for row in judged]
    told = "differs from process to process"
    assert not [note for note in notes(five.manifest(), apart) if told in note]
    tuned = changed(apart, "torch-compile-max", process_spread=1.22)
    (note,) = (note for note in notes(five.manifest(), tuned) if told in note)
    assert "torch-compile-max at rmsnorm-512x1024-float16 by 22%" in note and "triton" not in note
    assert not [note for note in notes(gpu.manifest(), rows_of(gpu)) if told in note], "one process is no other"


def steady(row: Row) -> dict[Series, Record]:
    return {key: record.model_copy(update={"process_spread": 1.01}) for key, record in row.series.items()}


def test_the_control_is_shown_with_its_call_and_is_no_contestant(five: RunStore, judged: list[Row]) -> None:
    lines = [line for group in blocks(printed(five, 100), "Speedup,").values() for line in group if "control" in line]
    assert len(lines) == 4
    assert all("no difference" in line for line in lines)
    assert "control" not in answer(judged)


def test_the_mean_over_cases_is_of_the_processes_and_counts_the_calls(judged: list[Row]) -> None:
    rms = [row for row in judged if row.any.op == "rmsnorm" and row.profile == "triton-fused-rmsnorm"]
    found = overall(quote(row, "torch-compile-max") for row in rms)
    assert isinstance(found, Overall) and found.interval is not None
    means = [metrics.geometric_mean([one.ratios[k] for one in found.quotes]) for k in range(5)]
    assert found.interval == pytest.approx(metrics.interval(means))
    assert found.called == "supported in 1 of 3 cases, no difference in 1, inconclusive in 1"
    low, high = found.interval
    assert (
        f"{found.speedup:.2f}x [{low:.3f}, {high:.3f}] over the fastest correct PyTorch (torch-compile-max)"
        in answer(judged)
    )


def test_a_mean_over_cases_of_unequal_processes_keeps_its_point_and_its_width(judged: list[Row]) -> None:
    rms = [row for row in judged if row.any.op == "rmsnorm" and row.profile == "triton-fused-rmsnorm"]
    quotes = [one for row in rms if (one := quote(row, "torch-compile-max")) is not None]
    assert quotes[0].call is not None
    more = quotes[0].call.model_copy(update={"ratios": [*quotes[0].call.ratios, 1.2, 1.2]})
    unequal = overall([replace(quotes[0], call=more), *quotes[1:]])
    equal = overall(quotes)
    assert equal is not None and unequal is not None
    assert unequal.interval == pytest.approx(equal.interval)
    assert overall([replace(quotes[0], call=None), *quotes[1:]]).interval is None  # type: ignore[union-attr]


def test_a_quick_run_says_plainly_that_there_are_no_intervals(gpu: RunStore) -> None:
    out = io.StringIO()
    quick = gpu.manifest().model_copy(update={"quick": True})
    show(Console(file=out, width=100), quick, rows_of(gpu))
    assert "- quick: one process, so no intervals and no calls" in out.getvalue()
    assert "One process measured this: there are no intervals and no calls." in " ".join(out.getvalue().split())
    assert "±" not in out.getvalue()
    assert not any(label.value in out.getvalue() for label in Label)


def test_the_attempt_that_is_quoted_is_the_one_of_the_conclusions(five: RunStore, judged: list[Row]) -> None:
    assert {row.any.attempt for row in judged if row.case == "rmsnorm-512x1024-float16"} == {2}
    made = five.conclusions()
    assert made is not None
    assert {record.attempt for record in made.pooled if record.case == "rmsnorm-512x1024-float16"} == {0, 1, 2}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.331, 1.349, "[1.33, 1.35]"),
        (1.0291, 1.0336, "[1.029, 1.034]"),
        (0.17952, 0.17964, "[0.180, 0.180]"),
        (5.4, 11.3, "[5.40, 11.30]"),
    ],
)
def test_an_interval_is_written_with_as_many_places_as_it_needs(low: float, high: float, words: str) -> None:
    assert rows.span(low, high) == words


def test_a_width_is_written_as_people_read_it() -> None:
    assert [rows.give_or_take(1 / w, w) for w in (1.004, 1.15, 2.5)] == ["±0.4%", "±15%", ">±100%"]


def test_a_quote_without_a_call_has_no_label(gpu: RunStore) -> None:
    row = fused([row for row in rows_of(gpu) if row.case == "rmsnorm-4096x4096-float16"])
    assert row is not None
    one = quote(row, "torch-native")
    assert isinstance(one, Quote)
    assert (one.label, one.interval, one.width, list(one.ratios)) == (None, None, "", [])
