"""The page of a run, opened as a reader opens it: from a file, in a browser, without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import executable
from example_runs import CPU, GPU, PROFILES, gpu_measurements, manifest, stored
from playwright.sync_api import Browser
from reading import HOSTILE, NAMED, PHONE, WORDS, Reader, drawn, opened, plot, texts

from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import Label, Status
from norm_fusion.report import chart, page, panels
from norm_fusion.report.rows import join
from norm_fusion.runs.order import in_order
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import DEFAULT_CASES


@pytest.fixture(params=["gpu_page", "cpu_page", "five_page"])
def either(request: pytest.FixtureRequest) -> Path:
    made: Path = request.getfixturevalue(request.param)
    return made


def edited(store: RunStore, parent: Path, change: Callable[[dict[str, object]], None]) -> RunStore:
    """A copy of a run whose records were changed by hand."""
    copy = RunStore.create(parent, "edited")
    copy.write_manifest(store.manifest())
    for record in store.records():
        data = record.model_dump(mode="json", by_alias=True)
        change(data)
        (copy.path / "records" / f"{record.key}.json").write_text(json.dumps(data))
    return copy


def test_one_file_without_addresses(either: Path) -> None:
    text = either.read_text()
    assert len(text.encode()) < 2_000_000
    addresses = re.findall(r"https?://[^\s\"'<>`\\)]*", text)
    assert [a for a in addresses if not a.startswith(NAMED)] == []
    reader = Reader()
    reader.feed(text)
    fetching = [found for found in reader.attributes if found[1] in ("src", "href", "srcset", "data")]
    assert fetching == []
    assert "@import" not in text
    assert "url(" not in page.asset("style.css")


def test_well_formed_and_accessible(either: Path) -> None:
    reader = Reader()
    reader.feed(either.read_text())
    assert reader.faults == []
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.headings[0] == 1
    assert reader.headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(reader.headings, reader.headings[1:], strict=False))
    assert ("html", "lang", "en") in reader.attributes


def test_nothing_absent_is_printed(browser: Browser, either: Path) -> None:
    with opened(browser, either) as reader:
        reader.locator("details").evaluate("node => node.open = true")
        words = reader.locator("body").inner_text()
    assert re.findall(r"\b(?:None|nan|inf|undefined|null|NaN)\b", words) == []


def test_every_dash_has_its_reason(browser: Browser, either: Path) -> None:
    with opened(browser, either) as reader:
        reasons = reader.locator("td .none").evaluate_all("dashes => dashes.map(dash => dash.title)")
        assert reasons
        assert all(reasons)
        bare = [text for text in reader.locator("td").all_text_contents() if text.strip() == "\N{EN DASH}"]
    assert bare == []


def test_plots_draw_every_timed_row(browser: Browser, gpu: RunStore, gpu_page: Path) -> None:
    timed = sum(row.latency is not None and row.profile != "copy" for row in join(gpu.records()))
    with opened(browser, gpu_page) as reader:
        shown = [panel.title for panel in panels.PANELS if panel.title != "Every process"]
        assert texts(reader, ".plots figure h3") == shown
        expected = {
            "Speedup over PyTorch": timed - len(DEFAULT_CASES),
            "Latency": timed,
            "Throughput against the measured copy": timed,
            "What one call costs its caller": timed * 2,
            "Error against tolerance": timed,
            "Noise": timed,
        }
        for title, count in expected.items():
            mark = "rect" if title.startswith("Throughput") else "symbol"
            assert reader.locator(f"{plot(title)} .mark-{mark}.role-mark path").count() == count, title
        boxes = reader.locator(f"{plot('Latency')} .mark-symbol.role-mark path").evaluate_all(
            "paths => paths.map(p => p.getBoundingClientRect().x)"
        )
        assert len({round(x) for x in boxes}) > timed / 2
        labels = drawn(reader, f"{plot('Latency')} .role-axis-label text")
    assert {*PROFILES, "17.6 µs", "229 µs"} <= {*labels}
    assert "11.7 µs (graph)" in labels


def test_dark_and_light_differ_and_stay_legible(browser: Browser, gpu_page: Path) -> None:
    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: float, other: float) -> float:
        return (max(one, other) + 0.05) / (min(one, other) + 0.05)

    marks = re.findall(r"--(\w+)", " ".join([*chart.COLOURS.values(), *chart.PEER_COLOURS]))
    names = ["page", "wash", "ink", "muted", "alert", "good", "bad", *marks]
    computed = """(dot, names) => names.map(name => {
        dot.style.color = `var(--${name})`;
        return getComputedStyle(dot).color;
    })"""
    grounds = set()
    assert {*chart.LABEL_COLOURS} == {*Label}
    assert {colour[6:-1] for colour in chart.LABEL_COLOURS.values()} <= {*WORDS}
    for scheme in ("light", "dark"):
        with opened(browser, gpu_page, color_scheme=scheme) as reader:
            colours = reader.locator(".dot").first.evaluate(computed, names)
            label = reader.locator(f"{plot('Latency')} .role-axis-label text").first.evaluate(
                "node => getComputedStyle(node).fill"
            )
        shade = dict(zip(names, map(luminance, colours), strict=True))
        words = {(w, on): contrast(shade[w], shade[on]) for w in WORDS for on in ("page", "wash")}
        assert {pair: seen for pair, seen in words.items() if seen < 4.5} == {}, scheme
        assert {name: seen for name in marks if (seen := contrast(shade[name], shade["page"])) < 3} == {}, scheme
        assert contrast(luminance(label), shade["page"]) >= 4.5
        grounds.add(shade["page"])
    assert len(grounds) == 2


def test_no_sideways_scrolling_on_a_phone(browser: Browser, either: Path) -> None:
    with opened(browser, either, viewport=PHONE) as reader:
        assert reader.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        table = reader.locator(".scroll", has=reader.locator(".results"))
        assert table.evaluate("node => node.scrollWidth > node.clientWidth")
        outside = reader.locator(".plot svg").evaluate_all(
            "nodes => nodes.filter(n => n.getBoundingClientRect().right > innerWidth).length"
        )
    assert outside == 0


def test_without_javascript_the_plots_are_there(browser: Browser, either: Path) -> None:
    with opened(browser, either, java_script_enabled=False, viewport=PHONE) as reader:
        plots = reader.locator("noscript svg").all()
        assert len(plots) == reader.locator("figure").count() >= 4
        assert all((box := plot.bounding_box()) and box["width"] > 200 and box["height"] > 60 for plot in plots)


def test_hostile_strings_do_nothing(browser: Browser, gpu: RunStore, tmp_path: Path) -> None:
    environment = GPU.model_copy(
        update={
            "device_name": HOSTILE[0],
            "driver": HOSTILE[1],
            "peers": {HOSTILE[2]: HOSTILE[3]},
            "commit": HOSTILE[4],
        }
    )
    before = gpu.manifest()
    assert before.before is not None
    hostile = before.model_copy(
        update={
            "environment": environment,
            "title": HOSTILE[2],
            "question": HOSTILE[0],
            "command": list(HOSTILE),
            "notes": list(HOSTILE),
            "started_at": HOSTILE[1],
            "suite": HOSTILE[3],
            "before": before.before.model_copy(update={"throttle_reasons": HOSTILE[1], "at": HOSTILE[0]}),
        }
    )

    def poison(data: dict[str, object]) -> None:
        data["notes"] = list(HOSTILE)
        data["resolved_backend"] = data["samples_file"] = data["samples_sha256"] = HOSTILE[0]
        if data["profile"] == "torch-compile":
            data["profile"] = HOSTILE[3]
        if data["profile"] == "torch-native":
            data |= {"status": "failed", "reason": HOSTILE[0], "remedy": HOSTILE[1], "profile": HOSTILE[2]}
        if data["case"] == "rmsnorm-512x1024-float16":
            data["case"] = HOSTILE[0]
            data["op"] = HOSTILE[1]

    records = in_order(edited(gpu, tmp_path, poison).records(), hostile)
    path = tmp_path / "hostile.html"
    path.write_text(page.render(hostile, join(records)), encoding="utf-8")
    for javascript in (True, False):
        with opened(browser, path, java_script_enabled=javascript) as reader:
            assert reader.locator("img, [onload], [onerror], iframe, object, a").count() == 0
            assert reader.locator("script").count() == 2
            assert HOSTILE[0] in reader.locator("body").inner_text()
            if javascript:
                assert reader.evaluate("window.hacked") is None
                shown = " ".join(drawn(reader, ".plot text"))
                assert "alert(1)" in shown
                assert "</noscript></title>" in shown


def test_policy_stops_what_escapes(browser: Browser, gpu_page: Path, tmp_path: Path) -> None:
    """Should an escape ever fail, the page's own policy still runs nothing and asks for nothing."""
    path = tmp_path / "injected.html"
    injected = "<script>window.hacked = 1</script><img src=https://example.com/x onerror='window.hacked = 2'>"
    path.write_text(gpu_page.read_text().replace("<main>", f"<main>{injected}", 1))
    with browser.new_context() as context:
        reader = context.new_page()
        asked: list[str] = []
        reader.on("requestfinished", lambda request: asked.append(request.url))
        reader.goto(path.as_uri())
        reader.wait_for_selector(".plot svg")
        assert reader.evaluate("window.hacked") is None
        assert asked == [path.as_uri()]


def test_rows_that_are_not_ok_give_a_reason_and_no_speedup(browser: Browser, cpu_page: Path) -> None:
    with opened(browser, cpu_page) as reader:
        for status in ("wrong", "failed", "unavailable", "checked"):
            rows = texts(reader, f".results tr.{status}")
            assert rows, status
            assert not any(re.search(r"\d+\.\d+x", row) for row in rows), rows
        assert "relative error 3.1e-02" in texts(reader, ".results tr.wrong .said")[0]
        assert "apt-get install g++" in texts(reader, ".results tr.unavailable .said")[0]
        assert len(texts(reader, ".results tr.checked")) == len(DEFAULT_CASES)
        assert drawn(reader, f"{plot('Latency')} .role-mark text").count("wrong: not quoted") == 1
        missing = texts(reader, ".nothing")
    assert [text for text in missing if text.startswith("Speedup over PyTorch.")]
    assert [text for text in missing if "no device and no host series" in text]


def test_wrong_row_with_a_speedup_in_its_file_shows_none(browser: Browser, gpu: RunStore, tmp_path: Path) -> None:
    def spoil(data: dict[str, object]) -> None:
        if data["profile"] in ("triton-fused-rmsnorm", "torch-compile"):
            data |= {"status": "wrong", "correct": False, "reason": "off by 0.5 at row 3"}

    copy = edited(gpu, tmp_path, spoil)
    assert any(record.speedup for record in copy.records() if record.status is Status.WRONG)
    # What follows from such records, were they believed.
    made = conclude(copy.records(), copy.samples, copy.manifest())
    with opened(browser, page.write(copy, tmp_path / "page.html", made)) as reader:
        wrong = texts(reader, ".results tr.wrong")
        assert wrong
        assert all("off by 0.5 at row 3" in row for row in wrong)
        assert not any(re.search(r"\d+\.\d+x| µs", row) for row in wrong), wrong
        assert [text.split(" DRAM")[0] for text in texts(reader, ".glance tbody th")] == ["LayerNorm 4096x4096 float32"]
        plotted = drawn(reader, f"{plot('Speedup over PyTorch')} .role-mark text")
        assert not any("RMSNorm" in text for text in plotted)
        # Nobody is compared with a wrong row either.
        assert not any("over torch-compile " in text for text in texts(reader, ".claims tbody tr"))


def test_interrupted_run_says_so_and_names_what_is_missing(browser: Browser, tmp_path: Path) -> None:
    made = manifest("stopped", GPU, state="interrupted", after=None)
    store = stored(tmp_path, made, gpu_measurements, DEFAULT_CASES[:1])
    with opened(browser, page.write(store, tmp_path / "page.html")) as reader:
        assert texts(reader, ".notice")[0].startswith("Interrupted.")
        limits = " ".join(texts(reader, "main .prose li"))
        assert "Not measured: RMSNorm 2048x4096 float16; RMSNorm 4096x4096 float16" in limits
        after = reader.locator(".conditions tbody tr").first.locator("td").nth(1).locator(".none")
        assert "before its conditions after were read" in (after.get_attribute("title") or "")


def test_run_without_records_is_a_page() -> None:
    made = manifest("nothing", CPU, state="running", finished_at=None, before=None, after=None)
    text = page.render(made.model_copy(update={"environment": None}), [])
    assert "Nothing was measured, so there is no answer." in text
    assert all(panel.otherwise.replace("'", "&#39;") in text for panel in panels.PANELS)


def test_limits_name_noise_fallback_and_dirt(browser: Browser, gpu_page: Path, cpu_page: Path) -> None:
    with opened(browser, cpu_page) as reader:
        limits = " ".join(texts(reader, "main .prose li"))
        assert "torch-eager at RMSNorm 512x1024 float16" in limits
        assert "A CPU does not time Triton" in limits
        assert "uncommitted changes" in limits
        assert "no confidence interval and no call" in limits
    with opened(browser, gpu_page) as reader:
        limits = " ".join(texts(reader, "main .prose li"))
        assert "another series than device: torch-compile-max at RMSNorm 2048x4096 float16" in limits
        assert "its kernels do not repeat from call to call" in limits
        assert reader.locator(".results td.fell").count() == 2
        assert "no intervals and no calls" in texts(reader, ".claims caption")[0]


def test_answer_and_glance_agree_with_the_records(browser: Browser, gpu: RunStore, gpu_page: Path) -> None:
    fused = {row.case: row for row in join(gpu.records()) if row.profile.startswith("triton-")}
    with opened(browser, gpu_page) as reader:
        assert texts(reader, ".answer p")[0].startswith("Fused RMSNorm, geometric mean of 3 cases: ")
        assert texts(reader, ".answer .alone") == ["One process measured this: there are no intervals and no calls."]
        for i, case in enumerate(DEFAULT_CASES):
            cells = texts(reader, f".glance tbody tr:nth-child({i + 1}) td")
            ratio = fused[case.name].ratio
            assert ratio is not None
            assert ratio.roof_share is not None
            assert cells[0].startswith(f"{ratio.speedup['torch-baseline']:.2f}x")
            assert cells[4] == f"{ratio.roof_share:.1%}"
        assert texts(reader, ".results .case th")[0].startswith("RMSNorm 512x1024 float16")
        last = texts(reader, ".results tbody:nth-of-type(1) tr th[scope=row]")[-1]
    assert last == "copy (the roof)"


def test_colour_of_a_profile_is_the_same_everywhere(browser: Browser, gpu_page: Path) -> None:
    with opened(browser, gpu_page) as reader:
        dots = reader.locator(".results tr.fused .dot").evaluate_all("nodes => nodes.map(n => n.style.background)")
    assert {*dots} == {"var(--accent)"}
    assert len({chart.colour(name) for name in PROFILES}) == len(PROFILES) - 1  # the two fused kernels share theirs
    assert chart.colour("liger-rmsnorm") in chart.PEER_COLOURS


def test_page_is_written_whole_and_is_stable(cpu: RunStore, cpu_page: Path, tmp_path: Path) -> None:
    again = page.write(cpu, tmp_path / "again.html")
    assert again.read_bytes() == cpu_page.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_missing_browser_is_a_failure_that_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="install Debian's package chromium"):
        executable(tmp_path / "chromium")


def test_cpu_example_goes_through_the_real_derivation(cpu: RunStore) -> None:
    statuses = {record.status for record in cpu.records()}
    assert statuses == set(Status)
    assert all(not record.speedup for record in cpu.records() if record.status is not Status.OK)
