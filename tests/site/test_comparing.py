"""The page that compares any two runs: it says what `norm-fusion compare` says, of real runs and of made ones."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Collection, Sequence
from itertools import combinations, permutations
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "report"))
sys.path.append(str(Path(__file__).parents[1] / "evidence"))

from comparisons import ROWS, Site, go, kept, made, odd_sides, opened, renamed, says
from made import FUSED, GPU, manifest, measured
from playwright.sync_api import Browser, expect
from reading import HOSTILE, PHONE, Reader
from scipy.special import stdtrit

from norm_fusion.evidence import compare
from norm_fusion.evidence.archive import Archive, Kept
from norm_fusion.evidence.compare import MUST_MATCH, Side, Unlike, check_alike
from norm_fusion.evidence.stored import with_records
from norm_fusion.records import Manifest, Status
from norm_fusion.site import comparing
from norm_fusion.site.pages import LONGEST, Pages
from norm_fusion.site.runs import addresses
from norm_fusion.spec import FEWEST, ROOF, SpecError

EVIDENCE = Path(__file__).parents[2] / "evidence"
NAMES = ("h200-live", "h200-sweep", "h200-seed", "h200-live-two", "h200-4096x4096")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Of the committed runs, and of each what the command compares."""
    archive, pages = Archive([EVIDENCE]), Pages(tmp_path_factory.mktemp("site"))
    at = addresses(archive.runs)
    comparing.write(pages, archive.runs, at)
    sides = {}
    for run in archive.runs:
        made, records, _ = with_records(run.store, run.manifest)
        sides[run.name] = Side(run.manifest, made.pooled, records)
    return Site(pages.output, sides, at)


def test_every_pair_of_real_runs_is_as_the_command_says(browser: Browser, site: Site) -> None:
    with opened(browser, site) as page:
        for a, b in permutations(NAMES, 2):
            go(page, site.hash(a, b, "all"))
            says(page, compare.summary(site.told(a, b), a, b))
            assert page.evaluate(ROWS) == site.rows(a, b), (a, b)


def test_unlike_runs_are_refused_by_the_same_names_and_compared_when_each_is_allowed(
    browser: Browser, site: Site
) -> None:
    with opened(browser, site) as page:
        for a, b in combinations(["h200-live", "h200-live-ray", "h200-seed", "h200-sweep", "h200-converged"], 2):
            sides = site.sides[a].manifest, site.sides[b].manifest
            odd = [name for name in MUST_MATCH if refused(*sides, MUST_MATCH.keys() - {name})]
            go(page, site.hash(a, b))
            if not odd:
                says(page, compare.summary(site.told(a, b), a, b))
                expect(page.locator("#unlike")).to_be_hidden()
                continue
            says(page, f"{b} and {a} differ in {', '.join(odd)}: they are not compared unless you allow it.")
            expect(page.locator("#found")).to_be_hidden()
            assert [text.strip() for text in page.locator("#unlike dt").all_inner_texts()] == odd
            for name in odd:
                expect(page.locator("#found")).to_be_hidden()
                page.get_by_label(name, exact=True).check()
                expect(page.get_by_label(name, exact=True)).to_be_focused()
            says(page, compare.summary(site.told(a, b), a, b))
            page.get_by_label(odd[0], exact=True).uncheck()
            expect(page.locator("#found")).to_be_hidden()
            page.go_back()
            expect(page.locator("#found")).to_be_visible()


def refused(a: Manifest, b: Manifest, allowed: Collection[str]) -> bool:
    try:
        check_alike(a, b, allowed)
    except Unlike:
        return True
    return False


def test_a_difference_says_what_each_run_has(browser: Browser, site: Site) -> None:
    with opened(browser, site, site.hash("h200-converged", "h200-4096x4096")) as page:
        told = page.locator("#unlike dd").all_inner_texts()
    assert "inductor autotune_local_cache True / False" in told[1]
    assert all(" / " in text for text in told)


def test_swap_inverts_and_back_goes_back(browser: Browser, site: Site) -> None:
    a, b = "h200-seed", "h200-sweep"
    with opened(browser, site, site.hash(a, b)) as page:
        says(page, compare.summary(site.told(a, b), a, b))
        before = [float(row[2][:-1]) for row in page.evaluate(ROWS)]
        page.get_by_role("button", name="Swap").click()
        says(page, compare.summary(site.told(b, a), b, a))
        after = [float(row[2][:-1]) for row in page.evaluate(ROWS)]
        assert after == [pytest.approx(1 / ratio, abs=2e-3) for ratio in before]
        assert page.evaluate("location.hash") == site.hash(b, a)
        page.go_back()
        says(page, compare.summary(site.told(a, b), a, b))
        assert [page.locator(f"#{side}").input_value() for side in "ab"] == [a, b]
        page.go_forward()
        says(page, compare.summary(site.told(b, a), b, a))


def test_choosing_a_run_writes_the_address_and_the_first_pair_needs_no_leave(browser: Browser, site: Site) -> None:
    with opened(browser, site) as page:
        expect(page.locator("#pairs tbody tr").first).to_be_visible()
        expect(page.locator("#unlike")).to_be_hidden()
        shown = [page.locator(f"#{side}").input_value() for side in "ab"]
        processes = {address.slug: site.sides[name].manifest.processes for name, address in site.at.items()}
        assert all(processes[slug] >= FEWEST for slug in shown), "there are such pairs, and of fewer little is called"
        page.get_by_label("A the run before").select_option("h200-seed")
        page.get_by_label("B the run after").select_option("h200-sweep")
        says(page, compare.summary(site.told("h200-seed", "h200-sweep"), "h200-seed", "h200-sweep"))
        assert page.evaluate("location.hash") == site.hash("h200-seed", "h200-sweep")


def test_addresses_that_name_no_pair_are_told(browser: Browser, site: Site) -> None:
    with opened(browser, site, "#a=h200-seed&b=../../../etc/passwd") as page:
        says(page, "No run that can be compared has the address ../../../etc/passwd.")
        go(page, "#a=h200-seed&b=h200-seed")
        says(page, "h200-seed differs from itself in nothing: choose another run for A or B.")
        go(page, "#a=h200-seed")
        says(page, "Choose two runs.")
        go(page, site.hash("h200-seed", "h200-residual", "all"))
        says(page, "h200-residual and h200-seed have no row in common.")


def test_rows_are_sorted_filtered_and_reasoned(browser: Browser, site: Site) -> None:
    a, b = "h200-live", "h200-sweep"
    told = site.told(a, b)
    with opened(browser, site, site.hash(a, b, "all")) as page:
        page.get_by_role("button", name="B speedup").click()
        ratios = [float(row[2][:-1]) for row in page.evaluate(ROWS)]
        assert ratios == sorted(ratios)
        page.get_by_role("button", name="Case and profile").click()
        assert page.evaluate(ROWS) == site.rows(a, b)
        page.get_by_role("button", name=re.compile(r"^\d+ faster$")).click()
        shown = page.locator("#pairs tbody tr:visible")
        expect(shown).to_have_count(sum(row.label == "supported" for row in told.rows))
        page.get_by_role("searchbox").fill("nothing is called so")
        expect(shown).to_have_count(0)
        page.get_by_role("button", name=re.compile(r"^\d+ faster$")).click()
        page.get_by_role("searchbox").fill("triton-fused-rmsnorm device hot")
        expect(shown).to_have_count(sum(row.profile == FUSED and row.cache == "hot" for row in told.rows))
        page.locator("#reasons details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        words = page.locator("#reasons").inner_text()
    for row in told.rows:
        assert f"{row.profile} at {row.case} ({row.timer} {row.cache}): {row.reason}" in words


def test_students_quantile_is_within_a_billionth() -> None:
    """By the cubic through the four nearest of the table, as the script has it."""
    table, steps, worst = comparing.quantiles(), comparing.STEPS, 0.0
    for freedom in (20_000 / k for k in range(1, 20_001)):
        place = steps / freedom
        first = min(max(int(place) - 1, 0), steps - 3)
        weights = [math.prod((place - first - m) / (k - m) for m in range(4) if m != k) for k in range(4)]
        found = math.exp(sum(table[first + k] * weights[k] for k in range(4)))
        worst = max(worst, abs(found / stdtrit(freedom, (1 + comparing.LEVEL) / 2) - 1))
    assert worst < 1e-9


def test_every_rule_speaks_as_in_python(browser: Browser, tmp_path: Path) -> None:
    site = kept(tmp_path, odd_sides())
    codes, lost = set(), []
    with opened(browser, site) as page:
        for a, b in permutations(site.sides, 2):
            if not {a, b} & {"good", "wrong", "slow clock", "whole"}:
                continue
            go(page, site.hash(a, b))
            try:
                told = site.told(a, b)
            except SpecError:
                says(page, f"{b} and {a} have no row in common.")
                continue
            says(page, compare.summary(told, a, b))
            assert page.evaluate(ROWS) == site.rows(a, b), (a, b)
            assert page.locator("#notices li").all_inner_texts() == list(told.lost)
            codes |= {row.code for row in told.rows}
            lost += told.lost
    invalid = {"wrong-output", "raised", "fingerprint", "above-ceiling"}
    noise = {"noise", "control", "power", "clock"}
    assert codes == {*invalid, *noise, "processes", "straddles", "above-delta", "below-delta", "within-delta"}
    assert any("no graph: it synchronizes" in said for said in lost)
    assert any("it has no record there" in said for said in lost)


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    long = "<b>" + "\N{EARTH GLOBE EUROPE-AFRICA}" * 3_000_000  # 12 MB
    good = [[measured(FUSED, 0.2), measured(ROOF, 0.1)]] * 3
    sides = {}
    for i, text in enumerate([*HOSTILE, "__proto__", "constructor", long]):
        short = text[:200]
        where = GPU.model_copy(update={"device_name": short, "torch": short, "peers": {text: text, "__proto__": "1"}})
        one = renamed(made(*good, of=manifest(where, started_at=text)), text, text)
        name = "".join(c for c in short if c.isprintable())
        sides |= {f"{name}{i}": one, f"{name}{i}, again": one}
    site = kept(tmp_path, sides)
    for path in (site.path / "compare").iterdir():
        assert path.stat().st_size < 200_000
    names = list(sides)
    with opened(browser, site) as page:
        for a, b in zip(names[::2], names[1::2], strict=True):
            go(page, site.hash(a, b))
            expect(page.locator("#a")).to_have_value(site.at[a].slug)
            expect(page.locator("#pairs tbody tr")).to_have_count(2)
            case = sides[a].manifest.cases[0]
            page.wait_for_function(  # the pair before had as many rows
                "begins => document.querySelector('#pairs th span').textContent.startsWith(begins)", arg=case[:50]
            )
            assert page.locator("#pairs th span").first.evaluate("node => node.textContent")[:LONGEST] == case[:LONGEST]
            assert page.locator("#pairs tbody .call").all_inner_texts() == ["no difference"] * 2
        go(page, site.hash(names[0], names[3]))
        expect(page.locator("#unlike")).to_be_visible()
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img, main script:not(#facts), main svg:not([aria-hidden])").count() == 0


def test_data_are_one_call_in_harmless_letters(site: Site) -> None:
    for name in NAMES:
        text = (site.path / comparing.path_of(site.at[name])).read_text("ascii")
        found = re.fullmatch(r"normFusionRun\(([^<>&\n]+)\);", text)
        assert found is not None
        assert json.loads(found[1])["name"] == name


def test_a_run_without_rows_is_listed_and_not_chosen(browser: Browser, tmp_path: Path) -> None:
    sides = odd_sides()
    empty = made([measured(FUSED, None, status=Status.FAILED, reason="r")])
    site = kept(tmp_path, {"good": sides["good"], "empty": empty, "wrong": sides["wrong"]})
    with opened(browser, site, site.hash("good", "empty")) as page:
        says(page, "No run that can be compared has the address empty.")
        option = page.locator("#a option", has_text="empty")
        assert option.is_disabled()
        page.get_by_text("1 run that cannot be compared").click()
        expect(page.get_by_text("it has no timed row")).to_be_visible()
        assert page.locator("details li a").get_attribute("href") == "../runs/empty/index.html"


def test_a_file_that_is_missing_is_named(browser: Browser, site: Site, tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "index.html").write_bytes(site.page.read_bytes())
    (tmp_path / "compare" / "h200-seed.js").write_text("0;")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto((tmp_path / "compare" / "index.html").as_uri() + site.hash("h200-seed", "h200-sweep"))
        expect(page.locator("#said")).to_contain_text(
            re.compile("compare/h200-(seed.js is damaged|sweep.js is missing)")
        )


def test_an_address_that_is_none_stops_nothing(browser: Browser, site: Site) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{site.page.as_uri()}#a=h200-seed%&b=h200-sweep")
        says(page, "No run that can be compared has the address h200-seed%.")


def test_data_that_are_there_are_not_made_again(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, pages = Archive([EVIDENCE]), Pages(tmp_path)
    pages.made |= {comparing.path_of(site.at[run.name]) for run in archive.runs}
    for path in pages.made:
        pages.put(path, (site.path / path).read_bytes())
    monkeypatch.setattr(Kept, "conclusions", None)
    monkeypatch.setattr(Kept, "records", None)
    comparing.write(pages, archive.runs, site.at)
    assert (tmp_path / "compare" / "index.html").read_bytes() == site.page.read_bytes()


def test_without_a_script_the_command_is_told(browser: Browser, site: Site) -> None:
    with opened(browser, site, java_script_enabled=False) as page:
        expect(page.locator("noscript p")).to_be_visible()
        assert "norm-fusion compare A B" in page.locator("noscript").inner_text()
        expect(page.locator("#compare")).to_be_hidden()


def test_well_formed_and_labelled(site: Site) -> None:
    reader = Reader()
    reader.feed(re.sub(r"<(input|path)([^>]*[^/])>", r"<\1\2/>", site.page.read_text()))
    assert reader.faults == []
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.headings[0] == 1
    assert {value for tag, name, value in reader.attributes if tag == "label" and name == "for"} == {"a", "b"}


@pytest.mark.parametrize("allowed", [(), ("all",)])
def test_no_sideways_scrolling_on_a_phone(browser: Browser, site: Site, allowed: Sequence[str]) -> None:
    after = site.hash("h200-converged", "h200-live", *allowed)
    with opened(browser, site, after, viewport=PHONE) as page:
        expect(page.locator("#found" if allowed else "#unlike")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_colours_of_both_schemes_can_be_read(browser: Browser, site: Site) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        with opened(browser, site, site.hash("h200-live", "h200-sweep", "all"), color_scheme=scheme) as page:
            for part in (
                ".chip.supported",
                ".chip.rerun-noise",
                ".pairs .call.inconclusive",
                ".pick .swap",
                ".pick select",
            ):
                words, ground = page.locator(part).first.evaluate(
                    "node => [getComputedStyle(node).color, getComputedStyle(document.body).backgroundColor]"
                )
                assert contrast(words, ground) >= 4.5, (scheme, part)
                grounds.add(ground)
    assert len(grounds) == 2


def contrast(*colours: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    one, other = sorted(map(luminance, colours))
    return (other + 0.05) / (one + 0.05)
