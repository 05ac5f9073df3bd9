"""Hardware counters on a terminal and a page: each row its figures, each profile its sentence, each gap why."""

import io

from manifests_of_counters import CASE, MATMUL, counters, manifest
from rich.console import Console

from norm_fusion.records import KernelCounters, Status
from norm_fusion.report import counters as shown
from norm_fusion.report.page import render
from norm_fusion.spec import ROOF


def printed(*rows: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    shown.show_counters(console, rows)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_profile_has_its_figures_and_the_kind_of_its_limit() -> None:
    text = printed(counters("torch-eager", dram_pct=50.0), counters(ROOF, dram_pct=57.0))
    eager = next(line for line in text.splitlines() if "torch-eager" in line)
    assert eager.split() == ["torch-eager", "1", "50.0%", "33.6", "MB", "0.50x", "memory", "roof", "60.0%", "50.0%",
                             "40", "30.0%", "20.0", "µs", "19.0", "µs"]  # fmt: skip


def test_nothing_is_wider_than_the_terminal() -> None:
    rows = [counters("triton-fused-layernorm", case=MATMUL), counters("torch-compile-max"), counters(ROOF)]
    tables = [line for line in printed(*rows, width=80).splitlines() if not line.startswith(("-", "Hardware"))]
    assert max(map(len, tables)) <= 80


def test_what_was_counted_and_traced_is_compared() -> None:
    apart = counters("torch-compile-max", duration_ms=0.0145, traced_ms=0.0097)
    assert "counted and traced were not the same kernels" in printed(apart)
    assert "not the same kernels" not in printed(counters("torch-compile-max", duration_ms=0.0145, traced_ms=0.012))
    assert "over needed below 1: what L2 still held" in printed(apart)


def test_many_short_kernels_that_are_replayed_alone_are_still_the_same() -> None:
    eight = [KernelCounters(name=f"k{i}", duration_ms=0.004) for i in range(8)]
    short = counters("torch-eager", kernels=eight, duration_ms=0.032, traced_ms=0.020)
    assert "not the same kernels" not in printed(short)
    assert "not the same kernels" in printed(short.model_copy(update={"kernels": eight[:1]}))


def test_our_kernels_get_their_sentence_and_the_page_has_everybodys() -> None:
    rows = [counters("triton-fused-rmsnorm", dram_pct=55.0), counters("torch-native"), counters(ROOF, dram_pct=57.0)]
    text = printed(*rows)
    assert "- triton-fused-rmsnorm at" in text and "memory roof: DRAM at 55% of its peak is 0.96 of" in text
    assert "- torch-native at" not in text
    page = render(manifest(rows), [], counters=rows)
    assert page.count('class="why"') == 2
    assert "DRAM at 55% of its peak is 0.96 of what a copy of the same bytes reaches (57%)" in page
    assert "the yardstick" in page


def test_a_matrix_product_brings_the_tensor_pipes() -> None:
    assert "tensor" not in printed(counters("torch-native")).splitlines()[2]
    text = printed(counters("torch-matmul", case=MATMUL, tensor_pct=90.0, dram_pct=20.0))
    assert "tensor" in text.splitlines()[2] and "90.0%" in text and "tensor pipe" in text


def test_what_was_not_collected_says_why_once() -> None:
    bare = {"kernels": [], "status": Status.UNAVAILABLE, "remedy": "do this", "dram_pct": None, "traced_kernels": None}
    rows = [counters(name, reason="not collected: denied", traced_reason="no CUDA", **bare) for name in ("a", "b")]
    text = printed(*rows)
    assert text.split("\n")[1:4] == [
        "- hardware counters of all 2 were not collected: denied; do this",
        "- kernels were not traced: no CUDA",
        "",
    ]
    one = printed(rows[0], counters("torch-native"))
    assert f"hardware counters of a at {CASE} were not collected: denied; do this" in one


def test_no_counters_no_table() -> None:
    assert printed() == ""
    assert 'id="h-counters"' not in render(manifest([]), [])


def test_counters_stand_in_the_order_that_was_asked() -> None:
    rows = [counters(ROOF), counters("torch-eager"), counters("torch-native")]
    asked = manifest([rows[2], rows[1], rows[0]])
    assert [one.profile for one in shown.ordered(rows, asked)] == ["torch-native", "torch-eager", ROOF]
