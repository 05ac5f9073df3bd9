"""What an experiment says in a line, who wins a case, and the pages of suites that no run speaks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from built import ROOT, Site, asked
from made import CASE, COLD, FUSED, WALL, concluded, manifest, measured, recorded
from playwright.sync_api import Browser
from speaking import COMPILE, EAGER, NATIVE, SPREAD, kept
from visiting import dead_links, visited

from norm_fusion.evidence.archive import Kept
from norm_fusion.report.rows import Row, rows_of
from norm_fusion.site import runs
from norm_fusion.site.build import build
from norm_fusion.site.findings import BASE, OWN, answered, winner
from norm_fusion.site.pages import Pages
from norm_fusion.spec import Case

LAYER = Case.parse("layernorm-1024x1024-float16")
APART_SLOWER = (0.155, 0.165, 0.15, 0.16, 0.17)  # than 0.15: by 7%, give or take 5
APART = (0.08, 0.09, 0.1, 0.11, 0.12)
Times = Mapping[str, float | Sequence[float]]


def rows(graph: Times, wall: Times = {}, case: Case = CASE) -> list[Row]:  # noqa: B006
    """Of five processes; `wall` of eager calls, where they were timed."""

    def ms(times: Times, name: str, process: int) -> float:
        said = times[name]
        return said * SPREAD[(process + len(name)) % 5] if isinstance(said, float) else said[process]

    each = [
        [
            measured(name, {COLD: ms(graph, name, i)} | ({WALL: ms(wall, name, i)} if name in wall else {}))
            for name in graph
        ]
        for i in range(5)
    ]
    told = manifest(cases=[case.name], profiles=list(graph), processes=5)
    return rows_of(concluded(recorded(each, case=case), told), told)


@pytest.mark.parametrize(
    ("times", "word", "names"),
    [
        ({EAGER: 0.2, NATIVE: 0.15, COMPILE: 0.12, FUSED: 0.1}, "", [FUSED]),
        ({EAGER: 0.2, NATIVE: 0.15, COMPILE: 0.09, FUSED: 0.1}, "", [COMPILE]),
        ({EAGER: 0.2, NATIVE: 0.15, COMPILE: 0.0999, FUSED: 0.1}, "tie", [COMPILE, FUSED]),
        ({EAGER: 0.2, NATIVE: 0.1, COMPILE: 0.15, FUSED: 0.0999}, "tie", [FUSED, NATIVE]),
        ({EAGER: 0.2, NATIVE: 0.15, COMPILE: APART, FUSED: 0.0999}, "undecided", [FUSED, COMPILE]),
        ({EAGER: 0.2, NATIVE: 0.1, COMPILE: APART, FUSED: 0.0999}, "undecided", [FUSED, NATIVE, COMPILE]),
    ],
    ids=["ours", "theirs", "a tie behind", "a tie ahead", "undecided", "a tie, and undecided"],
)
def test_no_winner_is_named_that_no_call_names(times: Times, word: str, names: list[str]) -> None:
    found = winner(rows(times))
    assert found.word == word
    assert found.names[0][0] == names[0]
    assert {name for name, _ in found.names} == {*names}
    assert all(key.startswith(f"{CASE.name}.{name}.graph.cold") for name, key in found.names)


def test_where_nothing_was_timed_nobody_wins() -> None:
    assert winner([]).names == []


@pytest.mark.parametrize(
    ("graph", "wall", "plain"),
    [
        (0.1, 0.1, [("Yes in CUDA graphs", "in 1 of 1, than"), ("yes in eager calls", "in 1 of 1")]),
        (0.1, 0.4, [("Yes in CUDA graphs", "in 1 of 1, than"), ("no in eager calls", "in 0 of 1")]),
        (0.15, 0.15, [("Not shown in CUDA graphs", "in 0 of 1, than"), ("not shown in eager calls", "in 0 of 1")]),
        (
            0.1,
            APART_SLOWER,
            [("Yes in CUDA graphs", "in 1 of 1, than"), ("probably not in eager calls", "slower in 1")],
        ),
        (0.4, 0.1, [("No in CUDA graphs", "in 0 of 1, than"), ("yes in eager calls", "in 1 of 1")]),
    ],
    ids=["both", "graphs alone", "no difference", "too wide to be called", "calls alone"],
)
def test_the_answer_is_what_the_calls_say(
    graph: float, wall: float | Sequence[float], plain: list[tuple[str, str]]
) -> None:
    others = {EAGER: 0.3, NATIVE: 0.15, COMPILE: 0.2}
    (one,) = answered(rows(others | {FUSED: graph}, others | {FUSED: wall}))
    assert [bold for bold, _ in one.plain] == [bold for bold, _ in plain]
    assert all(count in said for (_, said), (_, count) in zip(one.plain, plain, strict=True))
    assert f"than {OWN} in" in one.plain[0][1]


def test_an_operator_that_is_the_baseline_has_its_verdict_twice() -> None:
    fused = "triton-fused-layernorm"
    (one,) = answered(rows({EAGER: 0.3, NATIVE: 0.15, COMPILE: 0.2, fused: 0.1}, case=LAYER))
    by = dict(zip((BASE, OWN), one.verdicts, strict=False))
    assert by[BASE] == by[OWN]
    assert by[BASE] is not None and by[BASE].figure == "1.50x"
    assert [bold for bold, _ in one.plain] == ["Yes in CUDA graphs"]


def test_a_suite_without_runs_has_a_page_that_says_why_and_how(tmp_path: Path) -> None:
    kept(tmp_path / "runs", "few", cases=[Case.parse("rmsnorm-512x1024-float16")], processes=3)
    build(asked(tmp_path / "site", tmp_path / "runs"))
    text = (tmp_path / "site/experiments/normalization-fusion.html").read_text()
    assert 'class="status blocked"' in text
    assert "few measured it in 3 processes, 5 are needed (1 case)" in text
    assert "./scripts/benchmark --run-id &lt;run-id&gt;" in text and "torch-compile-max" in text
    planned = (tmp_path / "site/experiments/backward.html").read_text()
    assert 'class="status planned"' in planned and "Why no run speaks" not in planned
    assert dead_links(tmp_path / "site") == []


def test_a_run_that_cannot_be_shown_is_named_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path / "runs", "fine")
    kept(tmp_path / "runs", "odd")
    case = runs._case

    def drawn(pages: Pages, run: Kept, *more: object) -> None:
        case(pages, run, *more)  # type: ignore[arg-type]
        if run.name == "odd":
            raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(runs, "_case", drawn)
    made = build(asked(tmp_path / "site", tmp_path / "runs"))
    assert any("odd cannot be shown: ZeroDivisionError: float division" in said for said in made.left_out)
    page = (tmp_path / "site/runs/odd/index.html").read_text()
    assert "Nothing of it can be judged" in page and str(tmp_path) not in page
    assert "triton-fused-rmsnorm" in (tmp_path / "site/runs/fine/index.html").read_text()
    assert dead_links(tmp_path / "site") == []


def test_what_older_runs_say_stands_beside_a_row(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, "decisions/fused-rmsnorm.html") as page:
        claim = page.locator(".claim", has=page.locator("#claim-native-eager"))
        row = claim.locator("tr", has_text="RMSNorm 4096x4096 float16")
        said = row.locator("td").last
        assert said.inner_text().startswith("does not hold in ")
        assert "h200-sweep" in (said.locator("span").first.get_attribute("title") or "")
        assert "by the older h200-4096x4096" in page.locator("#h-boundary + ul").inner_text()


def test_figures_of_examples_and_checks_lead_to_their_files(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, "decisions/decoder-block.html") as page:
        link = page.locator("#claim-eager-graph ~ div td a").first
        target = (site.path / "decisions" / (link.get_attribute("href") or "")).resolve()
    assert target.read_bytes() == (ROOT / "evidence/examples/h200-block.json").read_bytes()
    with visited(browser, site.path, "runs/index.html") as page:
        links = page.locator("table", has=page.locator("#c-harness")).locator("td a")
        files = {(site.path / "runs" / (a.get_attribute("href") or "")).resolve() for a in links.all()}
    kept_ = {path.read_bytes() for path in (ROOT / "evidence").glob("*/harness.json")}
    assert {file.read_bytes() for file in files} == kept_


def test_a_grouped_table_sorts_within_its_groups(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, "runs/h200-live/index.html") as page:
        table = page.locator("table.counters")
        groups = table.locator("tbody")
        titles = [groups.nth(i).locator("tr").first.inner_text() for i in range(groups.count())]
        table.get_by_role("columnheader", name="DRAM").get_by_role("button").click()
        for i in range(groups.count()):
            rows = groups.nth(i).locator("tr")
            assert rows.first.inner_text() == titles[i]
            kinds = [rows.nth(k).get_attribute("class") or "" for k in range(rows.count())]
            assert all(kinds[k - 1] != "case" for k, kind in enumerate(kinds) if kind == "why")
            shares = [
                float(text.rstrip("%"))
                for text in groups.nth(i).locator("tr:not(.case):not(.why) td:nth-of-type(2)").all_inner_texts()
                if text.endswith("%")
            ]
            assert len(shares) > 1 and shares == sorted(shares)


def test_samples_lead_to_their_file_and_their_whole_hash(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, "runs/h200-live/rmsnorm-4096x4096-float16.html") as page:
        page.locator("details", has=page.locator("#c-single")).locator("summary").click()
        link = page.locator("table", has=page.locator("#c-single")).locator(".id a").first
        target = (site.path / "runs/h200-live" / (link.get_attribute("href") or "")).resolve()
        title = link.get_attribute("title") or ""
    found = (ROOT / "evidence/h200-live/samples" / target.name).read_bytes()
    assert target.read_bytes() == found
    sums = (ROOT / "evidence/h200-live/SHA256SUMS").read_text()
    assert f"{title.rpartition('SHA-256 ')[2]}  samples/{target.name}" in sums
