"""The page of a run of five processes: every interval, label, regime and rerun is there, and stays harmless."""

from __future__ import annotations

import re
from pathlib import Path

from example_runs import LABELS, MINE, WRONG
from playwright.sync_api import Browser, Page
from reading import HOSTILE, drawn, opened, plot, texts

from norm_fusion.records import Conclusions
from norm_fusion.report import page
from norm_fusion.report.quotes import quote
from norm_fusion.report.rows import fused, rows_of
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import DEFAULT_CASES


def claims_of(reader: Page, case: str) -> dict[str, list[str]]:
    """The cells of the fused kernel's claims at a case, by baseline."""
    body = reader.locator(".claims tbody", has=reader.locator("th[scope=rowgroup]", has_text=case))
    found = {}
    for line in body.locator("tr.fused", has_text="triton-fused").all():
        name = " ".join(line.locator("th").inner_text().split()).split(" over ")[1].split()[0]
        found[name] = [" ".join(text.split()) for text in line.locator("td").all_inner_texts()]
    return found


def test_every_claim_stands_with_interval_label_and_what_is_left_of_it_in_eager_calls(
    browser: Browser, five: RunStore, five_page: Path
) -> None:
    made = five.conclusions()
    assert made is not None
    rows = rows_of(made, five.manifest())
    with opened(browser, five_page) as reader:
        for (case, baseline), label in LABELS.items():
            row = fused([row for row in rows if row.case == case])
            assert row is not None
            one, eager, hot = (quote(row, baseline, s) for s in (None, ("wall", "cold"), ("device", "hot")))
            assert one is not None and eager is not None and hot is not None
            assert one.label is not None and one.label.value == label
            title = f"{'LayerNorm' if 'layer' in case else 'RMSNorm'} {case.split('-', 1)[1].replace('-', ' ')}"
            cells = claims_of(reader, title)[baseline]
            assert cells[0] + " " + cells[2] == one.words
            assert (cells[1], cells[3]) == (label, "5")
            assert (cells[4], cells[5]) == (f"{eager.speedup:.2f}x", eager.label and eager.label.value)
            assert (cells[7], cells[8]) == (f"{hot.speedup:.2f}x", hot.label and hot.label.value)


def test_an_invalid_claim_has_no_figure_and_a_reason(browser: Browser, five_page: Path) -> None:
    with opened(browser, five_page) as reader:
        lines = [text for text in texts(reader, ".claims tbody tr") if "invalid" in text]
        assert len(lines) == 4 and all(MINE in line for line in lines)
        assert not any(re.search(r"\d\.\d\dx", line) for line in lines)
        reasons = texts(reader, ".reasons li")
        assert any(reason.startswith("Invalid (wrong-output): 4 claims") and WRONG in reason for reason in reasons)
        assert texts(reader, ".results tr.wrong .said")[0].startswith(f"wrong-output: {WRONG}")


def test_reruns_regimes_control_and_events_are_on_the_page(browser: Browser, five: RunStore, five_page: Path) -> None:
    made = five.conclusions()
    assert made is not None
    again = next(c for c in made.calls if c.earlier and c.profile.startswith("triton") and c.timer == "graph")
    assert len(again.earlier) in (1, 2)
    with opened(browser, five_page) as reader:
        reasons = " ".join(texts(reader, ".reasons li"))
        each = ", ".join(f"{one.speedup:.2f}x {one.label.value}" for one in again.earlier)
        assert f"over {again.baseline} {each}, then {again.speedup:.2f}x {again.label.value}" in reasons
        assert "Control (A/A): triton-fused-rmsnorm, measured a second time, differs from itself by" in reasons
        assert "Rerun noise (thermal): 2 claims" in reasons
        assert re.match(r"5 processes; the widest interval", texts(reader, ".effort")[0])
        assert {"launch-bound", "L2-resident", "DRAM-bound"} >= {
            text for text in texts(reader, ".results td.word") if "none" not in text
        }
        assert [text.split()[-1] for text in texts(reader, ".glance tbody th")].count("launch-bound") == 2
        control = [text for text in texts(reader, ".claims tr.aside") if text.startswith("control (A/A) of triton-")]
        assert len(control) == len(DEFAULT_CASES) and all("no difference" in text for text in control)


def test_labels_intervals_and_processes_are_drawn(browser: Browser, five_page: Path) -> None:
    with opened(browser, five_page) as reader:
        spoken = drawn(reader, f"{plot('Speedup over PyTorch')} .role-mark text")
        assert {*LABELS.values(), "invalid", "no figure: wrong-output", "baseline", "fastest"} <= {*spoken}
        whiskers = reader.locator(f"{plot('Speedup over PyTorch')} .mark-rule.role-mark line[stroke-width='7']")
        valid = 4 * (4 + 4) - 4 + 4  # four claims each of two kernels in four cases, less the invalid ones; the control
        assert whiskers.count() == valid
        dots = reader.locator(f"{plot('Every process')} .mark-symbol.role-mark path")
        assert dots.count() == valid * 5
        assert reader.locator(f"{plot('Speedup over PyTorch')} .mark-rect.role-mark path").count() == 1


def test_conditions_are_drawn_over_time_with_what_held_the_clock_back(browser: Browser, five_page: Path) -> None:
    with opened(browser, five_page) as reader:
        assert texts(reader, ".strips h4") == ["SM clock, MHz", "Temperature, °C", "Power, W"]
        assert texts(reader, ".strips p")[0] == "median 1,980, from 1,410 to 1,980; limit 1,980"
        assert reader.locator("#strip-0 .mark-rule.role-mark line, #strip-0 .mark-rect.role-mark path").count() > 1
        assert reader.locator(".strips .mark-line path").count() == 3


def test_conditions_that_cannot_be_read_are_said(five: RunStore, tmp_path: Path) -> None:
    copy = RunStore.create(tmp_path, "copy")
    copy.write_manifest(five.manifest())
    (copy.path / "conditions.jsonl").write_text('{"at": "now"}\nnonsense\n{}\n')
    made = five.conclusions()
    text = page.write(copy, tmp_path / "page.html", made).read_text()
    assert "The readings while it ran are not shown: " in text
    assert "conditions.jsonl line 2 is not a reading" in text


def test_a_page_without_stored_calls_is_judged_from_records(five: RunStore, tmp_path: Path) -> None:
    kept = (five.path / "calls.json").read_bytes()
    whole = page.write(five, tmp_path / "whole.html").read_bytes()
    try:
        (five.path / "calls.json").unlink()
        assert page.write(five, tmp_path / "again.html").read_bytes() == whole
    finally:
        (five.path / "calls.json").write_bytes(kept)


def test_hostile_calls_do_nothing(browser: Browser, five: RunStore, tmp_path: Path) -> None:
    made = five.conclusions()
    assert made is not None

    def poisoned(data: object) -> object:
        if isinstance(data, list):
            return [poisoned(item) for item in data]
        if not isinstance(data, dict):
            return data
        swapped = {"rmsnorm-4096x4096-float16": HOSTILE[3], MINE: HOSTILE[4]}
        changed = {key: poisoned(item) for key, item in data.items()}
        if "label" in changed:
            changed |= {"reason": HOSTILE[0], "code": HOSTILE[1]}
        if "detail" in changed:
            changed["detail"] = HOSTILE[2]
        for key in ("case", "profile", "baseline"):
            changed |= {key: swapped.get(str(changed[key]), changed[key])} if key in changed else {}
        return changed

    evil = Conclusions.model_validate(poisoned(made.model_dump(mode="json", by_alias=True)))
    text = page.render(five.manifest(), rows_of(evil, five.manifest()), unread=HOSTILE[0])
    path = tmp_path / "hostile.html"
    path.write_text(text, encoding="utf-8")
    for javascript in (True, False):
        with opened(browser, path, java_script_enabled=javascript) as reader:
            assert reader.locator("img, [onload], [onerror], iframe, object, a").count() == 0
            assert reader.locator("script").count() == 2
            assert HOSTILE[0] in reader.locator(".reasons").inner_text()
            if javascript:
                assert reader.evaluate("window.hacked") is None
                assert HOSTILE[3] in " ".join(drawn(reader, ".plot text"))
