"""What a site makes of runs that mean harm, or are damaged: nothing runs, nothing escapes, nothing is missed."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from built import ROOT, asked
from made import CASE, GPU, control, manifest, ratio_run, recorded
from playwright.sync_api import Browser
from reading import HOSTILE
from visiting import dead_links, draw_all, visited

from norm_fusion.evidence.verdicts import conclude
from norm_fusion.records import SCHEMA, Counters, Status
from norm_fusion.runs.store import RunStore
from norm_fusion.site.build import MARK, build
from norm_fusion.spec import SpecError

LIVE = ROOT / "evidence" / "h200-live"
LONG = 10_000_000


def changed(run: Path, **fields: object) -> None:
    """Edit a manifest by hand."""
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def reasoned(run: Path) -> None:
    """Give every record hostile words, as a worker could have told them, and write the sums anew."""
    sums = []
    for path in sorted((run / "records").glob("*.json")):
        records = json.loads(path.read_text())
        for i, record in enumerate(records):
            record["notes"] = [*HOSTILE, "n" * LONG] if i == 0 and "r0" in path.name else [HOSTILE[i % len(HOSTILE)]]
            record["resolved_backend"] = HOSTILE[i % len(HOSTILE)]
        path.write_text(json.dumps(records))
    for folder in ("records", "samples"):
        for path in sorted((run / folder).iterdir()):
            sums.append(f"{sha256(path.read_bytes()).hexdigest()}  {folder}/{path.name}")
    (run / "SHA256SUMS").write_text("".join(f"{line}\n" for line in sums))
    (run / "calls.json").unlink(missing_ok=True)


def small(folder: Path, **told: object) -> RunStore:
    """A run of one case and five processes, as small as a run can be."""
    store = RunStore(folder)
    (folder / "records").mkdir(parents=True)
    (folder / "samples").mkdir()
    commit = GPU.model_copy(update={"commit": "c0ffee", "dirty": False})
    store.write_manifest(
        manifest(commit, started_at="2026-11-22T12:40:00+00:00", state="finished", processes=5, **told)
    )
    made = recorded(ratio_run([1.2, 1.21, 1.22, 1.2, 1.21], control()), of=commit)
    for replicate in range(5):
        store.keep(CASE.name, 0, replicate, [pair for pair in made if pair[0].replicate == replicate])
    return store


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that mean harm, by their names and by all that they hold."""
    runs = tmp_path_factory.mktemp("runs")
    for name in ("<img src=x onerror=alert(1)>", "..%2f..%2fescaped", "a' onclick='alert(1)", "index"):
        store = small(runs / name)
        before = store.manifest()
        assert before.environment is not None
        harm = {"device_name": HOSTILE[0], "driver": HOSTILE[1], "peers": {HOSTILE[2]: HOSTILE[3]}}
        hostile = before.model_copy(
            update={
                "run_id": "../../escaped",
                "title": HOSTILE[2],
                "question": HOSTILE[0] + "q" * LONG,
                "command": list(HOSTILE),
                "notes": [*HOSTILE, "n" * LONG],
                "suite": HOSTILE[3],
                "environment": before.environment.model_copy(update=harm),
            }
        )
        store.write_manifest(hostile)
        reasoned(store.path)
        (store.path / "records" / "..%2f.json").write_text("[]")
        (store.path / "samples" / "linked.json.gz").symlink_to("/etc/hostname")
    return runs


def test_hostile_runs_do_nothing(harmful: Path, browser: Browser, tmp_path: Path) -> None:
    output = tmp_path / "inside" / "site"
    built = build(asked(output, harmful))
    assert built.runs == 4
    assert any("..%2f.json" in said for said in built.left_out)
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["site"], "nothing is written beside it"
    assert not [path for path in output.rglob("*") if path.is_symlink() or "escaped" in path.name or "<" in path.name]
    assert dead_links(output) == []
    pages = sorted(output.rglob("*.html"))
    assert max(path.stat().st_size for path in pages) < 600_000, "a text of 10 MB is cut"
    for path in pages:
        with visited(browser, output, path.relative_to(output).as_posix()) as page:
            draw_all(page)
            assert page.evaluate("window.hacked") is None
            # What holds a plot's picture is ours; nothing else is an image, and nothing has a handler.
            assert (
                page.locator("img, [onload], [onerror], [onclick], iframe, object, [href^='javascript:']").count() == 0
            )
    texts = "".join(path.read_text() for path in pages)
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in texts, "it is shown, as what it is"
    assert "10,000,0" in texts, "and how long what was cut is"


def damage(run: Path, how: str) -> str:
    """Damage a run; returns what of it has to be named."""
    record = next(iter(sorted((run / "records").glob("*.json"))))
    if how == "truncated record":
        record.write_bytes(record.read_bytes()[:1000])
    elif how == "edited record":
        record.write_text(record.read_text().replace('"p50_ms":0.1', '"p50_ms":0.2', 1))
    elif how == "newer record":
        record.write_text(record.read_text().replace(f'"schema_version":{SCHEMA}', f'"schema_version":{SCHEMA + 1}'))
    elif how == "not a number":
        record.write_text(record.read_text().replace('"p50_ms":', '"p50_ms":NaN,"was":', 1))
    elif how == "huge integer":
        record.write_text(record.read_text().replace('"n_samples":', '"n_samples":' + "9" * 6000, 1))
    elif how == "edited calls":
        path = run / "calls.json"
        path.write_text(path.read_text().replace('"supported"', '"regression"', 1))
        return path.name
    elif how == "edited counters":
        path = next(iter(sorted((run / "counters").glob("*.json"))))
        path.write_text(path.read_text().replace('"compulsory_bytes": ', '"compulsory_bytes": 9', 1))
        return path.name
    elif how == "newer manifest":
        changed(run, schema_version=SCHEMA + 1)
        return "manifest.json"
    elif how == "samples are gone":
        shutil.rmtree(run / "samples")
        return "samples"
    return record.name


@pytest.mark.parametrize(
    "how",
    [
        *("truncated record", "edited record", "newer record", "not a number", "huge integer"),
        *("edited calls", "edited counters", "newer manifest", "samples are gone"),
    ],
)
def test_what_is_damaged_is_named_and_left_out(tmp_path: Path, how: str) -> None:
    runs, output = tmp_path / "runs", tmp_path / "site"
    for name in ("damaged", "whole"):
        store = small(runs / name, profiled=[(CASE.name, "torch-eager")])
        store.keep_counters(counted("not collected: denied"))
        store.write_conclusions(conclude(store.records(), store.samples, store.manifest()))
    assert build(asked(output, runs)).left_out == []
    name = damage(runs / "damaged", how)
    built = build(asked(output, runs))
    assert any(name in said for said in built.left_out)
    told = "".join(path.read_text() for path in [output / "runs/index.html", *output.glob("runs/damaged/index.html")])
    assert name in told, "visibly"
    assert "Left out" in told
    assert dead_links(output) == []
    assert (output / "runs/whole" / f"{CASE.name}.html").is_file()


def test_a_damaged_run_speaks_for_nothing(tmp_path: Path) -> None:
    for name in ("damaged", "whole"):
        shutil.copytree(LIVE, tmp_path / "runs" / name)
    damage(tmp_path / "runs" / "damaged", "truncated record")
    build(asked(tmp_path / "site", tmp_path / "runs"))
    experiment = (tmp_path / "site/experiments/normalization-fusion.html").read_text()
    assert "../runs/whole/rmsnorm" in experiment
    assert "../runs/damaged/rmsnorm" not in experiment


def counted(reason: str, remedy: str | None = None, fingerprint: str = "f") -> Counters:
    """Counters that were not to be had."""
    return Counters(
        run_id="a",
        case=CASE.name,
        profile="torch-eager",
        status=Status.UNAVAILABLE,
        reason=reason,
        remedy=remedy,
        compulsory_bytes=1,
        fingerprint=fingerprint,
    )


def test_counters_that_say_hostile_things_are_words(tmp_path: Path, browser: Browser) -> None:
    store = small(tmp_path / "runs" / "a", profiled=[(CASE.name, "torch-eager")])
    told = counted(HOSTILE[0], HOSTILE[1], HOSTILE[2])
    store.keep_counters(told)
    build(asked(tmp_path / "site", store.path.parent))
    for path in (tmp_path / "site").rglob("runs/*/*.html"):
        with visited(browser, tmp_path / "site", path.relative_to(tmp_path / "site").as_posix()) as page:
            assert page.locator("img, [onload], [onerror]").count() == 0


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SpecError, match="holds something else than a site"):
        build(asked(tmp_path, ROOT / "evidence"))
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_what_an_edited_list_of_files_names_elsewhere_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    site, outside = tmp_path / "site", tmp_path / "precious.txt"
    outside.write_text("mine")
    build(asked(site, tmp_path / "runs"))
    mark = json.loads((site / MARK).read_text())
    (site / "stale.html").write_text("old")
    mark |= {"key": "", "made": [*mark["made"], "../precious.txt", "stale.html", str(outside)]}
    (site / MARK).write_text(json.dumps(mark))
    build(asked(site, tmp_path / "runs"))
    assert outside.read_text() == "mine"
    assert not (site / "stale.html").exists()
