"""What README.md and docs/ quote of the runs in evidence/. Cog calls it from comments in these files:

cog -r -I docs README.md docs/*.md    # quote again; with --check instead of -r: is all of it as the runs say?
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path

from norm_fusion.evidence.ledger import stored
from norm_fusion.evidence.stored import concluded
from norm_fusion.records import HarnessReport, Manifest, Status, tally
from norm_fusion.report.counters import limits, ordered
from norm_fusion.report.quotes import quote
from norm_fusion.report.rows import Row, Series, baseline_of, cases, fastest_torch, fused, rows_of
from norm_fusion.runs.store import RunStore
from norm_fusion.site.findings import AGAINST, Verdict, answered

sys.path.append(str(Path(__file__).parent))
from draw import asked, plots

ROOT = Path(__file__).parents[1]
COLUMNS = 100
sys.path.append(str(ROOT / "examples"))


def shown(run: str) -> str:
    """A run's command, and what it prints, as a block of code."""
    return _block(_store(run).manifest().command, "show", run)


def compared(a: str, b: str, *words: str) -> str:
    """How two runs compare, as a block of code."""
    command = ["compare", f"evidence/{a}", f"evidence/{b}", *words]
    return _block(["norm-fusion", *command], *command)


def made(*runs: str) -> str:
    """A table of runs: the command that made each, its commit, how long it took."""
    table = ["| run | made by | commit | took |", "|---|---|---|---:|"]
    for run in runs:
        check = ROOT / "evidence" / run / "harness.json"
        whole = check.is_file()
        told = HarnessReport.model_validate_json(check.read_bytes()) if whole else _store(run).manifest()
        assert told.environment is not None
        commit = (told.environment.commit or "")[:10]
        table.append(f"| `{run}` | `{' '.join(told.command)}` | {commit} | {_seconds(told):.0f} s |")
    return "\n".join(table) + "\n"


def verdict() -> str:
    """What the seed's experiment found: a line for each operator, and a table over all baselines."""
    page = asked()
    found = list(answered(page.rows))
    lines = [f"- {one.label}: {'; '.join(f'**{bold}**: {said}' for bold, said in one.plain)}." for one in found]
    table = [f"| {page.gpu} | {' | '.join(f'over {over}' for over in AGAINST)} |", "|---" * (1 + len(AGAINST)) + "|"]
    for answer in found:
        said = ["-" if one is None else f"**{one.figure}** {one.within}<br>{_calls(one)}" for one in answer.verdicts]
        count = answer.cases
        table.append(f"| {answer.label}, {count} case{'' if count == 1 else 's'} | {' | '.join(said)} |")
    return "\n".join([*lines, "", *table]) + "\n"


def _calls(one: Verdict) -> str:
    worst = f"; {one.worst}" if one.worst else ""
    return ", ".join(said for _, said in one.calls) + worst


def decided() -> str:
    """A table of the decisions, as they were decided last."""
    ledger = stored(ROOT / "decisions")
    assert ledger is not None
    table = ["| decision | status | rests on | its boundary |", "|---|---|---|---|"]
    for one in ledger.decisions:
        said = [tally(rows) if (rows := one.rows(boundary)) else "-" for boundary in (False, True)]
        table.append(
            f"| [{one.title}](decisions/{one.name}.toml): {one.statement} | {one.status.value} | {' | '.join(said)} |"
        )
    return "\n".join(table) + "\n"


def picture(name: str) -> str:
    """A plot that docs/draw.py has drawn, for light and dark pages."""
    plot = plots()[name]
    light, dark = (f"docs/plots/{name}-{scheme}.svg" for scheme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{plot.title}: {plot.explanation}" src="{light}"></picture>\n\n*{plot.title}. {plot.explanation}*\n'
    )


def live(*runs: str) -> str:
    """A table of a suite's runs: their cards, how much was measured and counted, how long it took."""
    heads = "run | cards | processes of a case | cells counted | took | of the first"
    table = [f"| {heads} |", "|---|---:|---:|---:|---:|---:|"]
    first = _seconds(_store(runs[0]).manifest())
    for run in runs:
        store = _store(run)
        told = store.manifest()
        each = Counter(case for case, _ in {(r.case, r.replicate) for r in store.records() if r.attempt == 0}).values()
        processes = " to ".join(str(count) for count in sorted({min(each), max(each)}))
        counted = [one.status is Status.OK for one in store.counters()]
        cards = len({one.device_uuid for one in told.environments})
        took = _seconds(told)
        cells = f"{sum(counted)} of {len(told.profiled)}"
        table.append(f"| `{run}` | {cards} | {processes} | {cells} | {took:.0f} s | {took / first:.2f} |")
    return "\n".join(table) + "\n"


def limited(run: str) -> str:
    """A table of what limits each profile on each case, by its counters, and shares of two peaks."""
    store = _store(run)
    counted = ordered(store.counters(), store.manifest())
    found = limits(counted)
    table = ["| case | profile | what limits it | DRAM | tensor pipes |", "|---|---|---|---:|---:|"]
    for one in counted:
        if (one.case, one.profile) in found:
            shares = ["-" if share is None else f"{share:.0f}%" for share in (one.dram_pct, one.tensor_pct)]
            table.append(f"| {one.case} | {one.profile} | {found[one.case, one.profile].kind} | {' | '.join(shares)} |")
    return "\n".join(table) + "\n"


def history(run: str) -> str:
    """A table of what happened in a run, and when: the same things that follow each other count as one."""
    told = _store(run).events()
    began = datetime.fromisoformat(told[0]["at"])
    table = ["| after | what |", "|---:|---|"]
    for what, group in groupby(told, key=lambda event: str(event["event"])):
        these = list(group)
        ends = dict.fromkeys((datetime.fromisoformat(event["at"]) - began).seconds for event in (these[0], these[-1]))
        more = f" x {len(these)}" if len(these) > 1 else ""
        if what == "resumed":
            more = f": {these[0]['cases']} cases left, of which {these[0]['records']} records are there"
        table.append(f"| {' to '.join(map(str, ends))} s | {what}{more} |")
    return "\n".join(table) + "\n"


def tried(run: str) -> str:
    """What a check of the harness found: its machine, its verdict, its table."""
    lines = (ROOT / "evidence" / run / "harness.md").read_text().splitlines()
    ended = next(i for i, line in enumerate(lines) if line.startswith("## "))
    return "\n".join(lines[2:ended]).strip() + "\n"


def example(kept: str) -> str:
    """What an example printed, on the machine that it was run on, as a block of code."""
    path = _example(kept)
    command = shlex.split(json.loads(path.read_bytes())["command"])
    told = _printed(str(ROOT / command[1]), "--again", str(path))
    return "\n".join(["```", f"$ {shlex.join(word for word in command if word != '--json')}", told, "```"]) + "\n"


def patched_block(kept: str, series: str, way: str) -> str:
    """How a patched decoder block compares with the original, "1.120x [1.112, 1.128]"."""
    from decoder_block import compared as measured

    found = measured(json.loads(_example(kept).read_bytes())["runs"], series, way)
    assert found is not None
    return "{:.2f}x [{:.2f}, {:.2f}]".format(found["speedup"], *found["interval"])


def claims(*runs: str) -> str:
    """A table of the fused kernels: share of the copy, speedup over either baseline with interval and label."""
    heads = "run | case | of copy | over torch-baseline | over the fastest PyTorch | the same, single kernels"
    table = [f"| {heads} |", "|---|---|---:|---|---|---|"]
    for run in runs:
        for case, group in cases(_rows(run)).items():
            mine, best = fused(group), fastest_torch(group)
            assert mine is not None and mine.ratio is not None and best is not None  # noqa: PT018
            named = baseline_of(mine.any.op) or ""
            over = [_told(mine, named), f"{_told(mine, best.profile)} ({best.profile})"]
            over.append(_told(mine, best.profile, ("device", "cold")))
            table.append(f"| {run} | {case} | {mine.ratio.roof_share:.3f} | {' | '.join(over)} |")
    return "\n".join(table) + "\n"


def widths(run: str) -> str:
    """A table of the half-widths of the fused kernels' intervals over each PyTorch, by graph."""
    torch = ("torch-eager", "torch-native", "torch-compile", "torch-compile-max")
    table = [f"| {run}, over | {' | '.join(torch)} |", "|---|" + "---:|" * len(torch)]
    for case, group in cases(_rows(run)).items():
        mine = fused(group)
        quotes = [] if mine is None else [quote(mine, name) for name in torch]
        table.append(f"| {case} | {' | '.join('-' if one is None else one.width for one in quotes)} |")
    return "\n".join(table) + "\n"


def medians(profiles: Sequence[str], *runs: str) -> str:
    """A table of what a profile's call takes in each process, by graph."""
    table = ["| run | case | profile | us, a process each, in order of size |", "|---|---|---|---|"]
    for run in runs:
        found: dict[tuple[str, str], list[float]] = {}
        for r in _store(run).records():
            if (r.timer, r.cache) == ("graph", "cold") and r.profile in profiles and r.p50_ms is not None:
                found.setdefault((r.case, r.profile), []).append(r.p50_ms * 1e3)
        for (case, profile), each in found.items():
            table.append(f"| {run} | {case} | {profile} | {' '.join(f'{us:.1f}' for us in sorted(each))} |")
    return "\n".join(table) + "\n"


def _told(row: Row, baseline: str, series: Series | None = None) -> str:
    one = quote(row, baseline, series)
    return "-" if one is None else f"{one.words} {one.label.value if one.label else ''}".strip()


def _example(kept: str) -> Path:
    return ROOT / "evidence" / "examples" / f"{kept}.json"


def _rows(run: str) -> list[Row]:
    store = _store(run)
    manifest = store.manifest()
    return rows_of(concluded(store, manifest)[0], manifest)


def _store(run: str) -> RunStore:
    return RunStore.open(run, ROOT / "evidence")


def _seconds(told: Manifest | HarnessReport) -> float:
    if isinstance(told, Manifest):
        return told.took_s or 0.0
    began, ended = (datetime.fromisoformat(at or "") for at in (told.started_at, told.finished_at))
    return (ended - began).total_seconds()


def _block(command: Sequence[str], *words: str) -> str:
    lines = [f"$ {' '.join(command)}", *_printed("-m", "norm_fusion", *words, "--output", "evidence").splitlines()]
    # Tables fit: it is sentences that are wrapped.
    told = [
        part
        for line in lines
        for part in ([line] if len(line) <= COLUMNS else textwrap.wrap(line, COLUMNS, subsequent_indent=_indent(line)))
    ]
    return "\n".join(["```", *told, "```"]) + "\n"


def _indent(line: str) -> str:
    return "  " if line.startswith("- ") else ""


def _printed(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
