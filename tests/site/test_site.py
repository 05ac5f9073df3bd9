"""The site of the committed evidence, as a reader opens it: from files, without a network."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

import pytest
from built import ROOT, Site, asked
from playwright.sync_api import Browser
from visiting import PHONE, dead_links, draw_all, visited

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.ledger import stored
from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import DecisionStatus
from norm_fusion.runs.store import RunStore
from norm_fusion.site import experiments
from norm_fusion.site.build import build
from norm_fusion.site.pages import CHARTS

EXPERIMENT = "experiments/normalization-fusion.html"
CASE = "runs/h200-live/rmsnorm-4096x4096-float16.html"
DECISION = "decisions/fused-rmsnorm.html"
PAGES = ("index.html", EXPERIMENT, DECISION, "runs/index.html", "runs/h200-live/index.html", CASE, "compare/index.html")
MOST_BYTES = 1_500_000  # of a page with everything that it loads
LOADED_MS = 1000
SECTIONS = (  # the original page's, and what an engineer asks beside them
    *(
        "Why it matters",
        "Headline results",
        "Shape sweep",
        "Plots",
        "Samples, clock and heat",
        "Hardware counters",
        "Harness health",
    ),
    *("Evidence boundary", "Decisions that rest on it", "Run shape", "How to run", "Selected runs"),
)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_a_word_asks_for_nothing_outside_and_shuts_nobody_out(
    site: Site, browser: Browser, name: str, scheme: str
) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text()
    with visited(browser, site.path, name, color_scheme=scheme) as page:
        assert page.locator("h1").count() == 1
        assert (draw_all(page) > 10) == (name == EXPERIMENT)
        page.evaluate(axe)  # by the debugger: the page's own policy would not run it
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
        assert found["passes"]
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious] == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_a_telephone(site: Site, browser: Browser, name: str) -> None:
    with visited(browser, site.path, name, viewport=PHONE) as page:
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_page_is_light_and_there_at_once(site: Site, browser: Browser) -> None:
    charts = (site.path / CHARTS).stat().st_size
    for path in site.path.rglob("*.html"):
        assert path.stat().st_size + charts <= MOST_BYTES, path
    for name in PAGES:
        took = []
        for _ in range(3):  # the machine may be busy: what a page can do is its best
            with visited(browser, site.path, name) as page:
                took.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        assert 0 < min(took) < LOADED_MS, name


def test_every_link_leads_somewhere(site: Site) -> None:
    assert len(list(site.path.rglob("*.html"))) > 50
    assert dead_links(site.path) == []


def test_without_a_script_every_plot_is_a_picture_that_is_there(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, EXPERIMENT, java_script_enabled=False) as page:
        pictures = page.locator("noscript picture img, picture img")
        assert pictures.count() == len(re.findall('class="plot"', (site.path / EXPERIMENT).read_text()))
        for i in range(pictures.count()):
            pictures.nth(i).scroll_into_view_if_needed()
        sizes = [pictures.nth(i).bounding_box() for i in range(pictures.count())]
        assert all(size is not None and size["width"] > 200 and size["height"] > 40 for size in sizes)
        assert "var(--" not in "".join(path.read_text() for path in (site.path / "plots").glob("*.svg"))


def test_the_matrix_is_what_was_decided_and_links_lead_both_ways(site: Site, browser: Browser) -> None:
    ledger = stored(ROOT / "decisions")
    assert ledger is not None
    with visited(browser, site.path, "index.html") as page:
        heads = page.locator(".matrix thead th").all_inner_texts()[1:]
        assert heads == [status.value for status in DecisionStatus]
        for one in ledger.decisions:
            row = page.locator(".matrix tbody tr", has=page.get_by_role("rowheader", name=one.domain, exact=True))
            column = row.locator("td").nth(heads.index(one.status.value))
            assert column.get_by_role("link", name=one.title, exact=True).count() == 1
        page.locator(".matrix").get_by_role("link", name="Fused RMSNorm").click()
        assert page.locator("h1").inner_text().startswith("Fused RMSNorm")
        page.get_by_role("link", name="Normalization Fusion", exact=True).last.click()
        assert page.locator("h1").inner_text().startswith("Normalization Fusion")
        page.locator("section", has=page.locator("#h-decisions")).get_by_role("link", name="Fused RMSNorm").click()
        assert page.url == (site.path / DECISION).as_uri()


def test_an_experiment_has_what_the_original_page_had_and_more(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, EXPERIMENT) as page:
        headings = page.locator("main h2").all_inner_texts()
        assert set(SECTIONS) <= {*headings}
        text = page.locator("body").inner_text()
        for words in (
            *("How much does a fused Triton RMSNorm", "CUDA Kernel Lab", "Kernel fusion", "cases / 6 profiles"),
            *("small RMSNorm shape sweep point", "one fused Triton kernel", "effective GB/s"),
            *("benchmark-norms --backend all --device cuda", "./scripts/benchmark --run-id <run-id>", "Latest report"),
        ):
            assert words in text, words


def test_a_figure_leads_to_its_record(site: Site, browser: Browser) -> None:
    archive = Archive([ROOT / "evidence"])
    made = next(run for run in archive.runs if run.name == "h200-live").conclusions
    assert made is not None
    key = "rmsnorm-4096x4096-float16.triton-fused-rmsnorm.graph.cold"
    record = next(r for r in made.pooled if r.key == f"{key}.pooled")
    with visited(browser, site.path, EXPERIMENT) as page:
        row = page.locator("table", has=page.locator("#c-sweep")).locator("tr", has_text="RMSNorm 4096x4096 float16")
        said = f"{record.speedup['torch-eager']:.2f}x"
        row.get_by_role("link", name=said, exact=True).click()
        assert page.url == f"{(site.path / CASE).as_uri()}#{record.key}"
        line = page.locator(f"[id='{record.key}']")
        assert f"{record.n_samples}" in line.inner_text()
        single = page.locator(f"[id='{key}.r0']")
        assert not single.is_visible()
        page.evaluate("key => { location.hash = key }", f"{key}.r0")
        single.wait_for(state="visible")  # its list unfolds
        assert re.fullmatch(r"[0-9a-f]{12}", single.locator(".id").inner_text())


def test_a_mark_says_what_it_is_and_leads_to_its_record(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, EXPERIMENT) as page:
        draw_all(page)
        # A latency stands in the record's own line, a speedup among the claims of its case.
        for title, marks, inside in (
            ("Speedup by shape", ".mark-rect path", "main"),
            ("Latency against size", ".mark-symbol path", "[id='{key}']"),
        ):
            plot = page.locator("figure", has_text=title).first
            plot.scroll_into_view_if_needed()
            plot.locator(marks).last.hover(force=True)
            tip = page.locator("#vg-tooltip-element").inner_text()
            found = re.search(r"(.+?) · .*?(\d+\.\d+x|\d[\d.,]* [mµ]s)", tip)
            assert found is not None, tip
            case, figure = found.groups()
            plot.locator(marks).last.click(force=True)
            page.wait_for_url("**/runs/**")
            key = unquote(page.url.partition("#")[2])
            assert case in page.locator("h1").inner_text()
            assert page.locator(f"[id='{key}']").is_visible()
            assert figure in page.locator(inside.format(key=key)).inner_text()
            page.go_back()
            draw_all(page)


def test_tables_sort_by_number_and_back(site: Site, browser: Browser) -> None:
    with visited(browser, site.path, EXPERIMENT) as page:
        table = page.locator("table", has=page.locator("#c-sweep"))
        head = table.get_by_role("columnheader", name="Fused p50")
        before = table.locator("tbody th").all_inner_texts()
        head.get_by_role("button").click()
        rising = [sort_key(text) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
        assert rising == sorted(rising) and len(rising) > 5
        assert head.get_attribute("aria-sort") == "ascending"
        head.get_by_role("button").click()
        falling = [sort_key(text) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
        assert falling == rising[::-1]
        assert sorted(table.locator("tbody th").all_inner_texts()) == sorted(before)


def sort_key(text: str) -> float:
    number, unit = text.split()[:2]
    return float(number) * {"ns": 1e-3, "µs": 1.0, "ms": 1e3}[unit]


def test_the_files_behind_a_run_are_those_of_the_evidence(site: Site) -> None:
    for name in ("SHA256SUMS", "manifest.json", "calls.json"):
        assert (site.path / "data/h200-live" / name).read_bytes() == (ROOT / "evidence/h200-live" / name).read_bytes()
    sums = (ROOT / "evidence/h200-live/SHA256SUMS").read_text().splitlines()
    data = site.path / "data/h200-live"
    copied = {path.relative_to(data).as_posix() for path in data.rglob("*.*")}
    assert {line.split("  ")[1] for line in sums} <= copied
    assert not list((site.path / "data").rglob("worker.log"))


def test_nothing_of_this_machine_is_on_a_page(site: Site) -> None:
    told = str(Path.home())
    for path in site.path.rglob("*.html"):
        text = path.read_text()
        assert str(ROOT) not in text and (told == "/" or told not in text), path


def test_many_cases_and_several_models_have_pages_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "TOGETHER", 1)
    for name in ("one", "other"):
        shutil.copytree(ROOT / "evidence" / "h200-4096x4096", tmp_path / "runs" / name)
    path = tmp_path / "runs" / "other" / "manifest.json"
    path.write_text(path.read_text().replace("NVIDIA H200", "NVIDIA <B200>"))
    store = RunStore(path.parent)
    store.write_conclusions(conclude(store.records(), store.samples, store.manifest()))
    output = tmp_path / "site"
    build(asked(output, tmp_path / "runs"))
    for gpu in ("h200", "-b200-"):
        page = output / f"experiments/normalization-fusion-nvidia-{gpu}.html"
        assert "Speedup by shape" in page.read_text()
        slices = sorted(path.name for path in page.with_suffix("").glob("*.html"))
        assert slices == ["layernorm-forward-float16.html", "rmsnorm-forward-float16.html"]
        assert "Throughput against the measured copy" in (page.with_suffix("") / slices[0]).read_text()
    assert dead_links(output) == []
