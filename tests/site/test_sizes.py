"""The plots over shapes: what their cells, lines and names say is what the rows and their calls hold, and no more."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import altair as alt
import pytest
import vl_convert

sys.path.append(str(Path(__file__).parents[1] / "report"))
sys.path.append(str(Path(__file__).parents[1] / "evidence"))

import example_runs
from made import concluded, manifest, measured, recorded

from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Call, Label, Record, Status
from norm_fusion.report.chart import CONFIG, LABEL_COLOURS, specified
from norm_fusion.report.quotes import quote
from norm_fusion.report.rows import Row, baseline_of, cases, duration, fastest_torch, fused, join, rows_of
from norm_fusion.runs.store import RunStore
from norm_fusion.site import heatmap, sizes, stack
from norm_fusion.spec import CONTROL, ITEMSIZE, ROOF, Case, Op, Pass

MIB = 2**20
FUSED = "triton-fused-rmsnorm"
HOSTILE = "</script><script>alert('x')</script>\"'|datum.x|{{ 7 * 7 }}\\"


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return _rows(example_runs.five(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    made = example_runs.manifest("gpu", example_runs.GPU)
    return _rows(example_runs.stored(tmp_path_factory.mktemp("runs"), made, example_runs.gpu_measurements))


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    made = example_runs.manifest("cpu", example_runs.CPU)
    return _rows(example_runs.stored(tmp_path_factory.mktemp("runs"), made, example_runs.cpu_measurements))


def _rows(store: RunStore) -> list[Row]:
    made = store.manifest()
    return rows_of(conclude(store.records(), store.samples, made), made)


def timed(names: Iterable[str], ms: float = 0.1, fused_: str = FUSED) -> list[Row]:
    """Rows of cases, each by torch-eager at twice `ms`, the fused kernel and the copy, in one process."""
    made = []
    for name in names:
        case = Case.parse(name)
        profiles = {"torch-eager": 2 * ms, fused_: ms, ROOF: 0.9 * ms}
        made += recorded([[measured(profile, each, case=name) for profile, each in profiles.items()]], case=case)
    return join(concluded(made, manifest(cases=list(names))).pooled)


class Drawn:
    """A chart's layers: the mark, the channels and the data of each."""

    def __init__(self, chart: alt.LayerChart | None) -> None:
        assert chart is not None
        self.spec: dict[str, Any] = chart.to_dict()
        data = self.spec["datasets"]
        self.layers = [(one["mark"], one["encoding"], data[one["data"]["name"]]) for one in self.spec["layer"]]

    def marks(self, kind: str, **how: Any) -> list[dict[str, Any]]:
        """The data of the layers of this mark, that are drawn so."""
        return [
            datum
            for mark, _, values in self.layers
            if mark["type"] == kind and all(mark.get(name) == value for name, value in how.items())
            for datum in values
        ]

    @property
    def headings(self) -> list[dict[str, Any]]:
        return self.marks("text", color="var(--ink)", fontWeight=600)

    @property
    def remarks(self) -> list[str]:
        found = [values for mark, channels, values in self.layers if channels["x"].get("value", 0) < -8]
        return [datum["text"] for datum in found[1]]

    def facet(self, y: float) -> str:
        return max((one for one in self.headings if one["y"] <= y), key=lambda one: one["y"])["text"]

    def cells(self) -> dict[tuple[str, int, int], tuple[str, str]]:
        """Facet, what stands at the left and above: the speedup and the word."""
        found: dict[tuple[str, int, int], dict[str, str]] = {}
        sides = [one for one in self.marks("text", align="right") if one["text"].isdigit()]
        boxes = self.marks("rect")
        for mark, _, values in self.layers:
            if mark["type"] != "text" or mark.get("align") != "center" or mark.get("fontSize") in (10, 11):
                continue
            what = "text" if mark.get("fontWeight") == 600 else "word"
            for datum in values:
                box = next(b for b in boxes if b["x"] == datum["x"] and b["y"] < datum["y"] < b["y2"])
                side = next(one for one in sides if box["y"] < one["y"] < box["y2"])
                key = self.facet(datum["y"]), int(side["text"]), int(datum["x"])
                found.setdefault(key, {})[what] = datum["text"]
        assert len(found) == len(boxes)
        return {key: (one.get("text", ""), one.get("word", "")) for key, one in found.items()}

    def lines(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {}
        for datum in self.marks("line"):
            found.setdefault(datum["line"], []).append(datum)
        return found

    def svg(self, width: int) -> str:
        return vl_convert.vegalite_to_svg(self.spec | {"config": CONFIG, "width": width}, allowed_base_urls=[])


@pytest.mark.parametrize("over", ["fastest", "baseline"])
def test_a_cell_says_the_speedup_and_the_call_of_its_claim(five: list[Row], over: heatmap.Over) -> None:
    cells = Drawn(heatmap.speedups(five, over)).cells()
    groups = cases(five)
    assert len(cells) == len(groups) == 4
    for name, group in groups.items():
        case, row, best = Case.parse(name), fused(group), fastest_torch(group)
        assert row is not None and best is not None
        one = quote(row, best.profile if over == "fastest" else baseline_of(case.op) or "")
        assert one is not None and one.label is not None
        title = f"{'LayerNorm' if case.op is Op.LAYERNORM else 'RMSNorm'} {case.dtype}"
        assert cells[title, case.rows, case.cols] == (f"{one.speedup:.2f}x", one.label.value)


def called(rows: Iterable[Row], label: Label) -> list[Row]:
    """The same, the fused kernel's claim over torch-eager called so."""
    told = {"baseline": "torch-eager", "timer": "graph", "cache": "cold", "code": "x", "reason": "x", "rule": 1}
    told |= {"profile": FUSED, "label": label, "speedup": 1.5}
    return [replace(row, calls=[Call.model_validate({"case": row.case} | told)]) for row in rows]


@pytest.mark.parametrize("label", Label)
def test_a_cell_has_the_word_and_the_colour_of_its_label(label: Label) -> None:
    drawn = Drawn(heatmap.speedups(called(timed(["rmsnorm-64x128-float16"]), label), "fastest"))
    figure = "" if label is Label.INVALID else "1.50x"
    assert drawn.cells() == {("RMSNorm float16", 64, 128): (figure, label.value)}
    assert [one["colour"] for one in drawn.marks("rect")] == [LABEL_COLOURS[label]]


def test_what_one_process_measured_is_muted_and_has_no_word() -> None:
    drawn = Drawn(heatmap.speedups(timed(["rmsnorm-64x128-float16", "rmsnorm-64x1024-float16"]), "fastest"))
    assert drawn.cells() == {("RMSNorm float16", 64, cols): ("2.00x", "") for cols in (128, 1024)}
    marks = [*drawn.marks("rect"), *drawn.marks("text", fontWeight=600, align="center")]
    assert {one["colour"] for one in marks} == {"var(--muted)"}
    assert drawn.remarks[0].endswith("without a word: one process alone")


def test_rows_and_columns_are_headed_in_the_order_of_their_numbers_and_what_was_not_measured_is_blank() -> None:
    names = [f"rmsnorm-{shape}-float16" for shape in ("1024x4096", "64x1024", "64x128", "128x4096")]
    drawn = Drawn(heatmap.speedups(timed(names), "baseline"))
    rect = next(channels for mark, channels, _ in drawn.layers if mark["type"] == "rect")
    assert rect["x"]["scale"]["domain"] == ["128", "1024", "4096"]
    assert [one["text"] for one in drawn.marks("text", fontSize=11, align="center")] == ["128", "1024", "4096"]
    sides = sorted(drawn.marks("text", align="right"), key=lambda one: one["y"])
    assert [one["text"] for one in sides] == ["rows", "64", "128", "1024"]
    assert {key[1:] for key in drawn.cells()} == {(1024, 4096), (64, 1024), (64, 128), (128, 4096)}


def test_more_columns_than_a_telephone_has_room_for_go_down_the_page() -> None:
    shapes = list(product((64, 128), (128, 256, 512, 1024, 2048, 4096)))
    drawn = Drawn(heatmap.speedups(timed(f"rmsnorm-{r}x{c}-float16" for r, c in shapes), "fastest"))
    assert drawn.remarks[0].startswith("cols down, rows across")
    assert {key[1:] for key in drawn.cells()} == {(c, r) for r, c in shapes}


def test_of_a_wrong_row_no_figure_is_drawn(five: list[Row]) -> None:
    wrong = [
        replace(
            row,
            calls=(),
            series={key: r.model_copy(update={"status": Status.WRONG}) for key, r in row.series.items()},
        )
        if row.profile.startswith("triton-")
        else row
        for row in five
    ]
    for over in ("fastest", "baseline"):
        assert set(Drawn(heatmap.speedups(wrong, over)).cells().values()) == {("", "wrong")}
    for chart in (sizes.latency(wrong), sizes.throughput(wrong)):
        text = json.dumps(Drawn(chart).spec)
        assert "triton" not in text and "torch-eager" in text


def test_a_case_without_its_baseline_says_so_and_where_none_has_one_there_is_no_plot() -> None:
    rows = timed(["rmsnorm-64x128-float16", "rmsnorm-64x256-float16"])
    lone = [row for row in rows if row.profile != "torch-eager" or row.case == rows[0].case]
    assert set(Drawn(heatmap.speedups(lone, "fastest")).cells().values()) == {("2.00x", ""), ("", "no baseline")}
    assert heatmap.speedups([row for row in rows if row.profile != "torch-eager"], "fastest") is None


def test_nothing_is_drawn_without_rows_or_of_the_copy_alone(five: list[Row], cpu: list[Row]) -> None:
    for rows in ([], [row for row in five if row.profile in (ROOF, CONTROL)]):
        assert all(panel.draw(rows) is None for panel in sizes.panels(MIB))
    # Checked in the interpreter, never timed.
    assert heatmap.speedups(cpu, "fastest") is None and heatmap.speedups(cpu, "baseline") is None


@pytest.mark.parametrize("name", ["matmul-64x64x64-float16", "rmsnorm-0x4-float16", "rmsnorm-064x128-float16", HOSTILE])
def test_a_case_that_is_named_like_none_is_left_out(name: str) -> None:
    rows = timed(["rmsnorm-64x128-float16", "rmsnorm-128x128-float16"])
    odd = [replace(row, case=name) if row.case == "rmsnorm-128x128-float16" else row for row in rows]
    good = [row for row in rows if row.case == "rmsnorm-64x128-float16"]
    for panel in sizes.PANELS:
        assert Drawn(panel.draw(odd)).spec == Drawn(panel.draw(good)).spec
        assert panel.draw([row for row in odd if row.case == name]) is None


def test_names_of_records_stay_data() -> None:
    rows = [
        replace(row, profile=HOSTILE) if row.profile == "torch-eager" else row
        for row in timed(["rmsnorm-64x128-float16", "rmsnorm-128x256-float16"])
    ]
    for chart in (sizes.latency(rows), sizes.throughput(rows, MIB)):
        drawn = Drawn(chart)
        assert HOSTILE in [one["text"] for one in drawn.marks("text")]
        del drawn.spec["datasets"]
        assert "alert" not in json.dumps(drawn.spec)
        assert "<script" not in Drawn(chart).svg(400)


def test_the_cache_ends_where_its_bytes_lie_on_the_axis() -> None:
    small, large = "rmsnorm-64x1024-float16", "rmsnorm-65536x1024-float16"
    rows = timed([small, large])
    drawn = Drawn(sizes.throughput(rows, 60 * MIB))
    assert [one["x"] for one in drawn.marks("rule", strokeDash=[3, 3])] == [60 * MIB]
    assert "L2 60 MiB" in [one["text"] for one in drawn.marks("text")]
    dots = {one["x"] for one in drawn.marks("line")}
    assert dots == {Case.parse(small).compulsory_bytes, Case.parse(large).compulsory_bytes}
    assert min(dots) < 60 * MIB < max(dots)
    # Beyond all cases it is on the axis still.
    domain = next(channels["x"]["scale"]["domain"] for mark, channels, _ in drawn.layers if mark["type"] == "line")
    assert domain[0] < min(dots) and max(dots) < domain[1]
    wide = Drawn(sizes.throughput(rows, 2**40))
    assert next(c["x"]["scale"]["domain"][1] for mark, c, _ in wide.layers if mark["type"] == "line") > 2**40
    assert not Drawn(sizes.throughput(rows)).marks("rule", strokeDash=[3, 3])


def test_the_cache_of_a_processor_is_not_called_l2(cpu: list[Row]) -> None:
    assert "cache 32 MiB" in [one["text"] for one in Drawn(sizes.throughput(cpu, 32 * MIB)).marks("text")]


def test_a_line_joins_cases_that_grow_in_rows_and_columns_alike(five: list[Row]) -> None:
    drawn = Drawn(sizes.latency(five))
    assert [one["text"] for one in drawn.headings] == ["RMSNorm float16", "LayerNorm 4096x4096 float32"]
    assert max(len(points) for points in drawn.lines().values()) == 3


def test_numbers_of_rows_that_are_no_chain_have_facets_of_their_own() -> None:
    shapes = list(product((64, 8192), (128, 1024, 4096)))
    drawn = Drawn(sizes.latency(timed(f"rmsnorm-{r}x{c}-bfloat16" for r, c in shapes)))
    titles = ["RMSNorm bfloat16, 64 rows", "RMSNorm bfloat16, 8192 rows"]
    assert [one["text"] for one in drawn.headings] == titles
    for points in drawn.lines().values():
        rows = {drawn.facet(one["y"]).split(", ")[1] for one in points}
        assert len(points) == 3 and len(rows) == 1
        assert all(a["x"] < b["x"] for a, b in pairwise(points))


def test_a_lone_case_has_dots_and_whiskers_and_is_named_whole(five: list[Row]) -> None:
    rows = [row for row in five if row.case == "layernorm-4096x4096-float32"]
    drawn = Drawn(sizes.latency(rows))
    assert [one["text"] for one in drawn.headings] == ["LayerNorm 4096x4096 float32"]
    assert len(drawn.marks("rule", strokeWidth=2)) == len(drawn.lines()) == 6
    assert "NaN" not in drawn.svg(120) and "NaN" not in drawn.svg(900)


def test_dots_and_bands_lie_at_p50_and_p95_between_the_ticks_that_are_written(five: list[Row]) -> None:
    drawn = Drawn(sizes.latency(five))
    ticks = {one["text"]: one["y"] for one in drawn.marks("text", align="right") if one["y"] < drawn.headings[1]["y"]}
    decade = ticks["10 µs"] - ticks["100 µs"]
    assert decade > 20
    for name in ("rmsnorm-512x1024-float16", "rmsnorm-4096x4096-float16"):
        records = [row.latency for row in five if row.case == name and row.profile != CONTROL]
        expected = {
            tuple(round(ticks["10 µs"] - decade * math.log10(ms / 0.010)) for ms in (r.p50_ms, r.p95_ms))
            for r in records
            if r is not None and r.p50_ms is not None and r.p95_ms is not None
        }
        nbytes = Case.parse(name).compulsory_bytes
        found = {(one["y"], one["y2"]) for one in drawn.marks("area") if one["x"] == nbytes}
        assert len(expected) > 3
        for y, y2 in expected:
            assert any(abs(y - a) < 1 and abs(y2 - b) < 1 for a, b in found)


def test_what_fell_back_to_another_series_is_a_ring(gpu: list[Row]) -> None:
    rings = Drawn(sizes.latency(gpu)).marks("point", strokeWidth=1.6)
    fell = [row for row in gpu if row.latency is not None and row.latency.timer != "device"]
    assert [row.case for row in fell] == ["rmsnorm-2048x4096-float16"]
    assert [one["x"] for one in rings] == [Case.parse(fell[0].case).compulsory_bytes]


def test_the_names_of_a_facets_lines_do_not_overlap_and_stay_beside_it() -> None:
    case = "rmsnorm-64x128-float16"
    profiles = [f"mine:norm{i}" for i in range(14)]
    measurements = [measured(name, 0.1 + 1e-5 * i, case=case) for i, name in enumerate(["torch-eager", *profiles])]
    made = recorded([measurements], case=Case.parse(case))
    rows = join(concluded(made, manifest(cases=[case], profiles=["torch-eager", *profiles])).pooled)
    drawn = Drawn(sizes.latency(rows))
    names = sorted(one["y"] for one in drawn.marks("text", dx=15))
    assert len(names) == 15
    assert all(b - a >= sizes.NAME_PX - 0.2 for a, b in pairwise(names))
    down = drawn.marks("rule", color="var(--rule)")
    top, foot = min(one["y"] for one in down), max(one["y2"] for one in down if "y2" in one)
    assert top <= names[0] and names[-1] <= foot


def test_spread_moves_no_more_than_it_has_to() -> None:
    assert stack.spread([10, 40, 80], 14, 0, 100) == [10, 40, 80]
    assert stack.spread([50, 50], 14, 0, 100) == [43, 57]
    assert stack.spread([50, 49], 14, 0, 100) == [56.5, 42.5]
    assert stack.spread([0, 0, 0], 14, 7, 100) == [7, 21, 35]
    assert stack.spread([], 14, 0, 100) == []
    random.seed(7)
    for _ in range(200):
        wanted = [random.choice((random.uniform(0, 132), 60.0)) for _ in range(random.randint(1, 9))]
        placed = stack.spread(wanted, 14, 7, 125)
        ordered = [placed[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
        assert all(b - a >= 13.8 for a, b in pairwise(ordered))
        assert ordered[0] >= 7 and ordered[-1] <= 125.1


def test_facets_beyond_the_most_are_counted_in_the_chart() -> None:
    keys = list(product(Op, Pass, ITEMSIZE))
    names = [Case(op, 64, cols, dtype, way).name for op, way, dtype in keys for cols in (128, 1024)]
    lone = Case(Op.RMSNORM, 64, 1024, "float16").name
    rows = timed([name for name in names if name != lone])
    for chart in (heatmap.speedups(rows, "fastest"), sizes.latency(rows)):
        drawn = Drawn(chart)
        titles = [one["text"] for one in drawn.headings]
        assert len(titles) == stack.MOST < len(keys)
        assert drawn.remarks[-1] == f"{len(keys) - stack.MOST} more, of fewer cases, are not drawn: see the table"
        assert not any("RMSNorm" in title and "float16" in title and title.startswith("RMSNorm 64") for title in titles)
    assert "more" not in Drawn(sizes.latency(rows[:9])).remarks[-1]


def _many(rows: Sequence[Row]) -> list[Row]:
    """The rows of a case, at 40 shapes."""
    made = []
    for r, c in product((64, 1024, 8192, 65536), (2**k for k in range(7, 17))):
        case = Case(Op.RMSNORM, r, c, "float16")
        of: dict[str, Any] = {"case": case.name, "rows": r, "cols": c}

        def scaled(r: Record, by: float = case.compulsory_bytes / MIB, of: dict[str, Any] = of) -> Record:
            return r.model_copy(update=of | {"p50_ms": (r.p50_ms or 1) * by, "p95_ms": (r.p95_ms or 1) * by})

        made += [replace(row, case=case.name, series={k: scaled(v) for k, v in row.series.items()}) for row in rows]
    return made


def test_forty_cases_take_less_than_80_kilobytes_a_chart_and_20_of_addresses(five: list[Row]) -> None:
    rows = _many([row for row in five if row.case == "rmsnorm-4096x4096-float16"])
    for panel in sizes.panels(60 * MIB):
        chart = panel.draw(rows)
        assert chart is not None
        drawn = chart.to_dict()
        assert len(json.dumps(specified(drawn), separators=(",", ":"))) < 80_000
        assert len(json.dumps(drawn, separators=(",", ":"))) < 100_000  # with the keys of records that marks lead to


def test_a_mark_says_its_case_its_name_and_its_figures(five: list[Row]) -> None:
    row = next(row for row in five if row.case == "rmsnorm-4096x4096-float16" and row.profile == "torch-native")
    assert row.latency is not None and row.latency.p50_ms is not None and row.ratio is not None
    tips = [data["tip"] for data in every(sizes.latency(five)) if "tip" in data]
    assert any(
        "RMSNorm 4096x4096 float16" in tip and "torch-native" in tip and duration(row.latency.p50_ms) in tip
        for tip in tips
    )
    rates = [data["tip"] for data in every(sizes.throughput(five)) if "tip" in data]
    assert any("GB/s" in tip and "of the copy" in tip for tip in rates)
    best = fastest_torch([other for other in five if other.case == row.case])
    mine = fused([other for other in five if other.case == row.case])
    assert best is not None and mine is not None
    one = quote(mine, best.profile)
    assert one is not None
    said = [data["tip"] for data in every(heatmap.speedups(five, "fastest")) if "tip" in data]
    assert any(f"{one.words} over {best.profile}" in tip for tip in said)


def every(chart: alt.LayerChart | None) -> list[dict[str, Any]]:
    """All data of a chart."""
    assert chart is not None
    spec = chart.to_dict()
    return (
        [data for values in spec["datasets"].values() for data in values]
        if "datasets" in spec
        else [data for layer in spec["layer"] for data in layer["data"].get("values", [])]
    )


def test_every_plot_can_be_drawn(five: list[Row]) -> None:
    for panel in sizes.panels(60 * MIB):
        drawn = Drawn(panel.draw(five))
        assert drawn.spec["width"] == "container"
        svg = drawn.svg(110)
        assert "NaN" not in svg and "undefined" not in svg


def test_a_cell_too_narrow_for_its_word_has_a_shorter_one() -> None:
    rows = timed(f"rmsnorm-64x{cols}-float16" for cols in (128, 256, 512, 1024, 2048))
    drawn = Drawn(heatmap.speedups(called(rows, Label.INCONCLUSIVE), "fastest"))
    narrow, wide = drawn.svg(280), drawn.svg(800)
    assert narrow.count(">inconcl.<") == 5 and ">inconclusive<" not in narrow
    assert wide.count(">inconclusive<") == 5 and ">inconcl.<" not in wide


def test_each_panel_has_an_explanation_a_key_that_is_drawn_and_a_sentence_for_its_absence() -> None:
    parts = (Path(__file__).parents[2] / "src/norm_fusion/report/templates/parts.html").read_text()
    assert len({panel.title for panel in sizes.PANELS}) == len(sizes.PANELS) == 4
    for panel in sizes.panels(MIB):
        assert panel.explanation.endswith(".") and panel.otherwise.endswith(".")
        assert all(f'kind == "{mark}"' in parts for mark, _ in panel.key)
    assert "gate" in dict(sizes.panels(MIB)[-1].key) and "gate" not in dict(sizes.PANELS[-1].key)
