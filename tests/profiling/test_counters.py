"""Reports as rows, rows as kernels, kernels as totals: from two real reports of an H200, cut down to what is read.

direct.csv is what ncu printed while it profiled, imported.csv of a report: rms_norm of ours, the same as eager PyTorch,
and a product of matrices, each in a range of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import UNITS, make_module, make_ncu

from norm_fusion.profiling import ncu, problems, read
from norm_fusion.profiling.counters import METRICS, NAME_CHARACTERS, Label, Row, by_call, fastest, kernel_of, totals
from norm_fusion.records import KernelCounters

HERE = Path(__file__).parent
NORM, PRODUCT = "rmsnorm-4096x4096-float16", "matmul-4096"


def kernels(name: str) -> dict[tuple[str, str], list[KernelCounters]]:
    calls = by_call(read.parsed((HERE / name).read_text()))
    assert all(list(variants) == [0] for variants in calls.values())
    return {call: variants[0] for call, variants in calls.items()}


@pytest.mark.parametrize("name", ["direct.csv", "imported.csv"])
def test_a_report_of_ncu_is_read_by_range(name: str) -> None:
    calls = kernels(name)
    assert {call: len(found) for call, found in calls.items()} == {
        (NORM, "triton"): 1,
        (NORM, "eager"): 8,
        (PRODUCT, "torch"): 1,
    }
    assert calls[NORM, "triton"][0].name == "rms_norm_rows"
    assert calls[PRODUCT, "torch"][0].name.startswith("nvjet_sm90_hsh")
    assert all(kernel.name.startswith("void at::") for kernel in calls[NORM, "eager"])


def test_a_row_of_a_report_has_every_counter_in_the_records_units() -> None:
    (found,) = kernels("direct.csv")[NORM, "triton"]
    assert found.model_dump() == {
        "name": "rms_norm_rows",
        "grid": (4096, 1, 1),
        "block": (256, 1, 1),
        "registers": 38,
        "duration_ms": pytest.approx(0.016992),
        "dram_read_bytes": 33_571_584,
        "dram_write_bytes": 11_558_400,
        "dram_pct": 55.31,
        "occupancy_pct": 66.32,
        "l2_hit_pct": 49.83,
        "sm_pct": 30.37,
        "tensor_pct": 0.0,
    }
    (product,) = kernels("imported.csv")[PRODUCT, "torch"]
    assert (product.tensor_pct, product.grid, product.duration_ms) == (90.35, (2, 66, 1), pytest.approx(0.179776))


def test_totals_are_sums_means_by_duration_and_the_most_registers() -> None:
    found = totals(kernels("imported.csv")[NORM, "eager"])
    assert found["duration_ms"] == pytest.approx(0.25232)
    assert found["dram_bytes"] == 569_053_952
    assert found["registers"] == 32
    assert found["dram_pct"] == pytest.approx(46.914, abs=0.001)
    assert found["occupancy_pct"] == pytest.approx(81.567, abs=0.001)


@pytest.mark.parametrize("lost", [name for name in METRICS if name != "registers"])
def test_a_total_over_a_kernel_that_lacks_a_value_is_null(lost: str) -> None:
    whole = kernels("direct.csv")[NORM, "eager"]
    short = totals([whole[0].model_copy(update={lost: None}), *whole[1:]])
    of = {"dram_read_bytes": "dram_bytes", "dram_write_bytes": "dram_bytes"}.get(lost, lost)
    assert short[of] is None
    spoiled = {name for name, value in short.items() if value is None}
    assert spoiled == ({of} if lost != "duration_ms" else {name for name in short if name.endswith(("_ms", "_pct"))})


def test_registers_of_one_unknown_kernel_are_unknown() -> None:
    whole = kernels("direct.csv")[NORM, "eager"]
    assert totals([*whole, whole[0].model_copy(update={"registers": None})])["registers"] is None


def test_of_no_kernels_there_are_no_totals() -> None:
    assert set(totals([]).values()) == {None}


@pytest.mark.parametrize(
    ("value", "unit", "ms"),
    [(5000.0, "ns", 0.005), (5.0, "us", 0.005), (5.0, "msecond", 5.0), (5.0, "s", 5000.0), (5.0, "cycle", None)],
)
def test_a_value_is_taken_in_its_own_unit_or_not_at_all(value: float, unit: str, ms: float | None) -> None:
    found = kernel_of(Row("", "k", {"gpu__time_duration.sum": (value, unit)}))
    assert found.duration_ms == (None if ms is None else pytest.approx(ms))
    assert found.grid is None and found.dram_pct is None


def test_megabytes_are_bytes_and_long_names_are_cut() -> None:
    found = kernel_of(Row("", "k" * 999, {"dram__bytes_read.sum": (1.5, "Mbyte")}))
    assert found.dram_read_bytes == 1_500_000
    assert found.name == "k" * NAME_CHARACTERS


@pytest.mark.parametrize(
    "label",
    [
        Label("rmsnorm-4x4-float16", "torch-eager"),
        Label("rmsnorm-4x4-float16", "copy", 3),
        Label("rmsnorm-4x4-float16", "rmsnorm=mine.kernels:fast"),
    ],
)
def test_a_label_survives_its_text_and_ncus_column(label: Label) -> None:
    assert Label.parse(str(label)) == label
    column = f'12  "<default domain>:{label}:none:none:none:none:none:none" '
    (found,) = read.NAMED.finditer(column)
    assert Label.parse(found["message"]) == label


@pytest.mark.parametrize("text", ["", "cell:", "cell:a", "cell:|b", "cell:a|", "cell:a|b|c", "other:a|b"])
def test_what_is_no_label_has_no_cell(text: str) -> None:
    assert Label.parse(text) is None
    assert by_call([Row(text, "k")]) == {}


def test_the_fastest_variant_is_by_the_sum_and_never_one_of_unknown_time() -> None:
    def call(*durations: float | None) -> list[KernelCounters]:
        return [KernelCounters(name="k", duration_ms=ms) for ms in durations]

    assert fastest({0: call(1.0, 2.0), 1: call(2.5), 2: call(3.0)}) == 1
    assert fastest({0: call(None), 1: call(9.0)}) == 1
    assert fastest({0: call(1.0), 1: call(1.0)}) == 0


def test_what_others_print_between_the_lines_of_a_report_is_left_out() -> None:
    lines = (HERE / "direct.csv").read_text().splitlines()
    spoiled = "\n".join(
        ['a library, "quoted"', *lines[:-1], "==PROF== Disconnected", "words of, the application", lines[-1]]
    )
    assert by_call(read.parsed(spoiled)) == by_call(read.parsed("\n".join(lines)))
    assert list(read.parsed("==ERROR== no report\n")) == []


def test_values_that_are_not_there_are_null() -> None:
    text = (HERE / "direct.csv").read_text().replace('"55.31"', '"n/a"').replace('"33,571,584"', '""')
    (found,) = by_call(read.parsed(text))[NORM, "triton"][0]
    assert (found.dram_pct, found.dram_read_bytes, found.dram_write_bytes) == (None, None, 11_558_400)


def test_both_readers_find_the_same(tmp_path: Path) -> None:
    program, report = make_ncu(tmp_path), tmp_path / "report.ncu-rep"
    report.write_text(",".join(UNITS) + f"\n{NORM} a 0\n{NORM} copy 1\n")
    by_csv, how = read.rows(report, str(program))
    assert (how, len(by_csv)) == (read.BY_CSV, 4)
    make_module(tmp_path)
    by_module, how = read.rows(report, str(program))
    assert how == read.BY_MODULE
    assert len(by_module) == 5  # one is of no cell: it ran outside of all ranges
    assert by_call(by_module) == by_call(by_csv)
    assert set(by_call(by_csv)) == {(NORM, "a"), (NORM, "copy")}


def test_the_module_is_found_beside_ncu_and_behind_a_link(tmp_path: Path) -> None:
    home = tmp_path / "nsight-compute" / "2025.3.1"
    home.mkdir(parents=True)
    program, place = make_ncu(home), make_module(home)
    assert read.modules_beside(str(program)) == [place]
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "ncu"
    link.symlink_to(program)
    assert read.modules_beside(str(link)) == [place]
    deep = home / "target" / "linux-desktop-glibc_2_11_3-x64"
    deep.mkdir(parents=True)
    assert read.modules_beside(str(make_ncu(deep))) == [place]


def test_the_module_of_a_toolkit_is_found_beside_its_bin(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = make_ncu(tmp_path / "bin")
    assert read.modules_beside(str(program)) == []
    places = [make_module(tmp_path / f"nsight-compute-{version}") for version in ("2024.1", "2025.3")]
    assert read.modules_beside(str(program)) == places[::-1]


def test_a_module_that_takes_its_process_down_leaves_the_csv(tmp_path: Path) -> None:
    program, report = make_ncu(tmp_path), tmp_path / "report.ncu-rep"
    report.write_text(",".join(UNITS) + f"\n{NORM} a 0\n")
    place = make_module(tmp_path)
    (place / "ncu_report.py").write_text("import os\nos.abort()\n")
    found, how = read.rows(report, str(program))
    assert how == read.BY_CSV and len(found) == 2


def test_a_report_of_no_kernels_is_no_failure_of_the_module(tmp_path: Path) -> None:
    program, report = make_ncu(tmp_path), tmp_path / "report.ncu-rep"
    report.write_text(",".join(UNITS) + "\n")
    with pytest.raises(read.Unreadable, match="ncu_report: .*; ncu -i printed no kernel"):
        read.rows(report, str(program))
    make_module(tmp_path)
    assert by_call(read.rows(report, str(program))[0]) == {}


def test_the_reading_process_prints_rows_as_json(tmp_path: Path) -> None:
    report = tmp_path / "report.ncu-rep"
    report.write_text(",".join(UNITS) + f"\n{NORM} a 0\n")
    command = [sys.executable, "-m", "norm_fusion.profiling.read", str(report)]
    env = os.environ | {"PYTHONPATH": str(make_module(tmp_path))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    outside, first, _ = json.loads(done.stdout)
    assert outside["range"] == ""
    assert (first["range"], first["name"]) == (f"cell:{NORM}|a", "kernel_0")
    assert first["values"]["gpu__time_duration.sum"] == [10000.0, "ns"]


def test_the_command_line_counts_cold_calls_and_leaves_the_clocks_alone(tmp_path: Path) -> None:
    words = ncu.command("/opt/ncu", tmp_path, ["a.sum", "b.pct"])
    options = dict(pairwise(words))
    assert words[0] == "/opt/ncu" and "--nvtx" in words
    assert options["--clock-control"] == "none"
    assert options["--cache-control"] == "all"
    assert options["--replay-mode"] == "kernel"
    assert options["--metrics"] == "a.sum,b.pct"
    assert options["--target-processes"] == "application-only"
    assert options["--nvtx-include"] == "regex:cell.*/"
    assert options["--export"] == str(tmp_path / "report")
    assert words[-4:] == [sys.executable, "-m", "norm_fusion.profiling.cells", str(tmp_path)]


def test_an_ncu_of_no_version_is_one_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_ncu(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ncu.find() == ncu.Ncu(str(program), "2025.3.1.0")
    program.write_text("#!/bin/sh\nexit 1\n")
    found = ncu.find()
    assert found == ncu.Ncu(str(program), None) and str(found) == "ncu of unknown version"


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("", ""),
        ("a warning\nTraceback\nImportError: no torch\n==PROF== Disconnected", "ImportError: no torch"),
        ("noise\n==ERROR== An error was reported by the driver:\n==ERROR== the cause\n", "the cause"),
        (
            '==ERROR== the cause\n==ERROR== Failed to profile "k"\n==ERROR== The application returned an error code.',
            "the cause",
        ),
        ("==ERROR== The application returned an error code (9).\n", "The application returned an error code (9)."),
        ("\x1b[31mred\u2028\n", "?[31mred"),
    ],
)
def test_the_last_words_are_the_cause(printed: str, said: str) -> None:
    assert problems.last_words(printed) == said


def test_an_unknown_metric_is_told_from_one_whose_name_begins_alike() -> None:
    printed = r"==ERROR== Failed to find metric regex:^sm__throughput\.(sum|min|max|avg|pct|ratio|max_rate)$"
    metrics = ["sm__throughput.avg.pct", "sm__throughput_internal.avg", "dram__throughput.avg"]
    assert problems.unknown(metrics, printed) == ["sm__throughput.avg.pct"]
    assert problems.unknown(metrics, printed.replace("Failed", "Managed")) == []
