"""The list of runs on a terminal: what fits stands side by side, what does not goes on below."""

import io

import pytest
from rich.console import Console

from norm_fusion.report.listing import show_runs
from norm_fusion.runs.listing import Listed

RUN = Listed(
    run_id="one[red]",
    state="interrupted",
    suite="normalization-fusion",
    devices=("2 x NVIDIA H200", "NVIDIA A10G"),
    cases=6,
    done=4,
    processes=3,
    started_at="2026-11-28T14:44:18+00:00",
    finished_at="2026-11-28T14:47:38+00:00",
    took_s=200.0,
    path="runs/one",
)


@pytest.mark.parametrize(("width", "parts"), [(80, 2), (140, 1)])
def test_a_list_fits(width: int, parts: int) -> None:
    out = io.StringIO()
    show_runs(Console(file=out, width=width), [RUN])
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("one[red]") == parts
    for word in ("interrupted", "4/6", " 3 ", "2026-11-28 14:44", "200 s", "2 x NVIDIA H200, NVIDIA A10G", RUN.suite):
        assert str(word) in text
