"""The plots of one case: no sample is lost or moved, warm-up and what is wrong are not drawn, names stay data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
import vl_convert

sys.path.append(str(Path(__file__).parents[1] / "report"))
sys.path.append(str(Path(__file__).parents[1] / "evidence"))

from made import CASE, FUSED, measured, recorded
from manifests_of_counters import counters

from norm_fusion.records import Record, Samples, Status
from norm_fusion.report.chart import CONFIG
from norm_fusion.report.counters import limits
from norm_fusion.site import series
from norm_fusion.spec import ROOF

HOSTILE = "</script><script>alert('x')</script>\"'|datum.x|{{ 7 * 7 }}\\"
Kept = list[tuple[Record, Samples]]


def kept(processes: Sequence[Sequence[float]], profile: str = FUSED, block: int = 10, **more: Any) -> Kept:
    """A profile's records and samples in the series device cold: of each process its samples, in ms."""
    made: Kept = []
    changes = {name: more.pop(name) for name in ("status", "attempt", "replicate") if name in more}
    for replicate, values in enumerate(processes):
        ((record, raw),) = recorded([[measured(profile, {("device", "cold"): 0.1})]])
        assert raw is not None
        blocks = [list(values[i : i + block]) for i in range(0, len(values), block)]
        of = record.model_copy(update={"replicate": replicate} | changes)
        made.append((of, raw.model_copy(update={"blocks": blocks} | more)))
    return made


def noisy(n: int, seed: int = 0, ms: float = 0.02) -> list[float]:
    return (ms * np.exp(np.random.default_rng(seed).normal(0, 0.03, n))).tolist()


def layers(chart: alt.LayerChart | None) -> list[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    assert chart is not None
    spec = chart.to_dict()
    return [(one["mark"], one["encoding"], spec["datasets"][one["data"]["name"]]) for one in spec["layer"]]


def marks(chart: alt.LayerChart | None, kind: str, **how: Any) -> list[dict[str, Any]]:
    return [
        datum
        for mark, _, values in layers(chart)
        if mark["type"] == kind and all(mark.get(name) == value for name, value in how.items())
        for datum in values
    ]


def dots(chart: alt.LayerChart | None) -> list[dict[str, Any]]:
    return marks(chart, "point", size=7)


def texts(chart: alt.LayerChart | None) -> list[str]:
    return [datum["text"] for datum in marks(chart, "text")]


def heights(chart: alt.LayerChart | None) -> Callable[[float], float]:
    """Where a time lies in a chart of one strip, by the ticks that are written."""
    ticks = {float(one["text"].split()[0]): one["y"] for one in marks(chart, "text", align="right")}
    (a, ya), *_, (b, yb) = sorted(ticks.items())
    return lambda ms: ya + (ms * 1e3 - a) / (b - a) * (yb - ya)


def test_the_smallest_and_the_largest_of_samples_that_share_a_point_are_drawn_where_they_lie() -> None:
    values = noisy(5000)
    values[1234], values[4321] = 0.0132, 0.0301
    chart, said = series.samples({FUSED: kept([values])})
    ranges = dots(chart)
    assert len(ranges) <= series.BUCKETS and len(ranges) * 3 <= 600
    size = 5000 // series.BUCKETS
    assert f"the median of up to {size} in a row" in said and "no outlier is lost" in said
    parts = [values[i : i + size] for i in range(0, 5000, size)]
    assert len(ranges) == len(parts)
    at = heights(chart)
    for one, part in zip(ranges, parts, strict=True):
        for name, of in (("a", min), ("y", np.median), ("b", max)):
            assert one[name] == pytest.approx(at(float(of(part))), abs=0.3)
    assert "p50 " in " ".join(texts(chart)) and any("from 13.2 to 30.1" in text for text in texts(chart))
    assert not marks(chart, "point", shape="triangle-up")


def test_what_lies_beyond_the_edge_is_counted_written_and_marked_where_it_is() -> None:
    values = noisy(400)
    values[100] = 2.5
    chart, said = series.samples({FUSED: kept([noisy(400, 1), values])})
    (mark,) = marks(chart, "point", shape="triangle-up")
    assert mark["x"] == pytest.approx(1 + 100 / 400, abs=0.02)
    assert any(text.endswith("to 2,500; 1 beyond the edge") for text in texts(chart))
    assert "a triangle stands where samples lie beyond the edge" in said
    top = min(one["y"] for one in marks(chart, "rule", color="var(--muted)"))
    assert all(one["y"] >= top and one.get("b", top) >= top for one in dots(chart))


def test_few_samples_are_a_dot_each_in_time_order() -> None:
    ramp = [0.02 + 0.0001 * i for i in range(60)]
    chart, said = series.samples({FUSED: kept([ramp])})
    found = dots(chart)
    assert len(found) == 60 and "each dot is one" in said and said.startswith("60 samples")
    assert all(a["x"] < b["x"] and a["y"] > b["y"] for a, b in pairwise(found))
    assert not marks(chart, "rule", opacity=0.45)


def test_processes_stand_side_by_side_and_no_point_is_of_two() -> None:
    levels = [0.020, 0.023, 0.021]
    chart, _ = series.samples({FUSED: kept([noisy(1001, i, level) for i, level in enumerate(levels)])})
    assert [one["x"] for one in marks(chart, "rule", color="var(--muted)")] == [1, 2]
    assert [text for text in texts(chart) if text.startswith("p") and " " not in text] == ["p1", "p2", "p3"]
    medians = marks(chart, "rule", strokeWidth=1.2)
    assert [(one["x"], one["x2"]) for one in medians] == [(0, 1), (1, 2), (2, 3)]
    at, found = heights(chart), dots(chart)
    for place, level in enumerate(levels):
        mine = [one["y"] for one in found if place < one["x"] < place + 1]
        assert len(mine) > 50
        assert float(np.median(mine)) == pytest.approx(at(level), abs=1.5)


def test_rounds_that_were_measured_together_stand_below_each_other_whatever_their_samples() -> None:
    chart, _ = series.samples({FUSED: kept([noisy(40)] * 2), "torch-eager": kept([noisy(80)], "torch-eager")})
    ends = [max(datum["x"] for datum in values) for mark, _, values in layers(chart) if mark.get("size") == 7]
    assert ends == [pytest.approx(2, abs=0.03), pytest.approx(1, abs=0.03)]


def test_a_steady_series_looks_steady() -> None:
    values = [0.02 * (1 + 0.001 * (i % 2)) for i in range(40)]
    found = [one["y"] for one in dots(series.samples({FUSED: kept([values])})[0])]
    assert max(found) - min(found) < series.STRIP_PX / 40


def test_warm_up_is_neither_drawn_nor_forgotten() -> None:
    values = noisy(40)
    warm = kept([values, values], warmup=[7.0] * 6)
    chart, said = series.samples({FUSED: warm})
    assert "12 samples of warm-up are left out" in said
    bare, without = series.samples({FUSED: kept([values, values])})
    assert chart is not None and bare is not None and chart.to_dict() == bare.to_dict()
    assert "no samples of warm-up are kept" in without


def test_samples_of_many_calls_say_of_how_many() -> None:
    assert "mean of" not in series.samples({FUSED: kept([noisy(20)])})[1]
    made = {FUSED: kept([noisy(20)], calls_per_sample=16), ROOF: kept([noisy(20)], ROOF, calls_per_sample=1200)}
    assert "a sample is the mean of 16 to 1,200 calls" in series.samples(made)[1]


def test_another_series_and_what_is_not_correct_are_left_out() -> None:
    good, bad = kept([noisy(40)]), kept([noisy(40), noisy(40)], "torch-eager")
    bad[1] = (bad[1][0].model_copy(update={"status": Status.WRONG}), bad[1][1])
    chart, said = series.samples({FUSED: good, "torch-eager": bad})
    alone, _ = series.samples({FUSED: good})
    assert chart is not None and alone is not None and chart.to_dict() == alone.to_dict()
    assert said.endswith("nothing of what was not correct: torch-eager.")
    for none in ({FUSED: kept([noisy(40)], status=Status.FAILED)}, {}, {FUSED: kept([[]])}):
        drawn, why = series.samples(none)
        assert drawn is None and why.endswith("so there is nothing to draw.")
    assert series.samples({FUSED: good}, ("graph", "cold"))[0] is None


def test_reruns_stand_after_what_they_replace_and_are_named() -> None:
    both = kept([noisy(40)], attempt=1) + kept([noisy(40)])
    chart, said = series.samples({FUSED: both})
    assert [text for text in texts(chart) if text.startswith("p1")] == ["p1 a0", "p1 a1"]
    assert said.endswith("a1 and on are reruns.")


def test_names_of_records_stay_data_in_both_plots() -> None:
    strips, _ = series.samples({HOSTILE: kept([noisy(40)], "torch-eager")})
    counted = series.counters_chart([counters(HOSTILE), counters(ROOF, dram_pct=60.0)])
    for chart in (strips, counted):
        assert chart is not None
        spec = chart.to_dict()
        svg = vl_convert.vegalite_to_svg(spec | {"config": CONFIG, "width": 300}, allowed_base_urls=[])
        assert "<script" not in svg and "NaN" not in svg and "alert" in svg
        del spec["datasets"]
        for layer in spec["layer"]:  # the keys of a scale are data too
            layer["encoding"].get("y", {}).get("scale", {}).pop("domain", None)
        assert "alert" not in json.dumps(spec)
    assert HOSTILE in texts(strips)


def test_seven_profiles_of_fifteen_processes_take_less_than_60_kilobytes() -> None:
    made = {f"mine:norm{i}": kept([noisy(1000, k) for k in range(15)], f"mine:norm{i}") for i in range(7)}
    chart, _ = series.samples(made)
    assert chart is not None
    assert len(json.dumps(chart.to_dict(), separators=(",", ":"))) < 60_000


@pytest.mark.parametrize("ms", [0.0, 1e-6, 0.02, 0.9999, 37.0, 12_000.0])
def test_every_magnitude_has_an_axis_with_ticks_that_differ(ms: float) -> None:
    chart, _ = series.samples({FUSED: kept([[ms] * 20])})
    written = [one["text"] for one in marks(chart, "text", align="right")]
    assert 2 <= len(set(written)) == len(written) <= 6


def test_counters_are_drawn_as_they_were_collected_beside_what_limits_the_profile() -> None:
    made = [
        counters(FUSED, dram_pct=55.0, sm_pct=30.0, occupancy_pct=70.0),
        counters("torch-eager", dram_pct=20.0, sm_pct=130.0, occupancy_pct=None),
        counters(ROOF, dram_pct=57.5),
    ]
    chart = series.counters_chart(made)
    found = {datum["colour"]: datum for datum in marks(chart, "point", filled=True)}
    fused, eager = found["var(--accent)"], found["var(--grey)"]
    assert (fused["x"], fused["sm"], fused["occupancy"]) == (55, 30, 70)
    assert (eager["x"], eager["sm"]) == (20, 100) and "occupancy" not in eager
    for one in made[:2]:
        mark = fused if one.profile == FUSED else eager
        assert mark["y"].endswith(f"|{limits(made)[one.case, one.profile].kind}|{one.profile}")
    assert [datum["x"] for datum in marks(chart, "rule", color="var(--roof)")] == [57.5]
    assert not any(ROOF == datum["y"].split("|")[-1] for datum in marks(chart, "point"))


def test_what_was_not_collected_says_so_and_the_copy_alone_is_no_plot() -> None:
    blocked = counters("torch-eager", status=Status.UNAVAILABLE, kernels=[], dram_pct=None, reason="not permitted")
    chart = series.counters_chart([counters(FUSED), blocked, counters(ROOF)])
    assert [datum["text"] for datum in marks(chart, "text", fontStyle="italic")] == ["not collected"]
    assert len(marks(chart, "point", filled=True)) == 1
    assert series.counters_chart([]) is None
    assert series.counters_chart([counters(ROOF)]) is None
    assert series.counters_chart([blocked, counters(ROOF)]) is None


def test_each_case_has_the_roof_of_its_own_copy() -> None:
    other = "rmsnorm-64x128-float16"
    chart = series.counters_chart(
        [counters(FUSED), counters(ROOF, dram_pct=60.0), counters(FUSED, other), counters(ROOF, other, dram_pct=9.0)]
    )
    roofs = marks(chart, "rule", color="var(--roof)")
    assert [roof["x"] for roof in roofs] == [60, 9]
    lines = [datum["y"] for datum in marks(chart, "point", filled=True)]
    assert [(roof["y"], roof["y2"]) for roof in roofs] == [(line, line) for line in lines]
    assert "RMSNorm 64x128 float16" in texts(chart)
    assert CASE.name not in json.dumps(texts(chart))
