"""A run as one HTML page that needs nothing but itself: the answer, the figures, the plots, the conditions, the limits.

`render` is pure. What records hold is data: the template escapes text, charts get it as JSON with `<` escaped, and the
page's own policy allows no script but the one written here and no request at all.
"""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from norm_fusion import metrics, nvml
from norm_fusion.evidence.cards import short
from norm_fusion.evidence.stored import concluded
from norm_fusion.evidence.verdicts import DELTA
from norm_fusion.records import Conclusions, Conditions, Counters, Label, Manifest
from norm_fusion.report import counters as counted
from norm_fusion.report.answer import alone, answers
from norm_fusion.report.cells import MARKS, Timers, entry, glance, headings, shown, subjects, traffic
from norm_fusion.report.chart import specified
from norm_fusion.report.limits import limits
from norm_fusion.report.notes import apart, controls, effort, happened, reruns, undecided
from norm_fusion.report.panels import PANELS
from norm_fusion.report.rows import Row, case_title, cases, duration, processes, rows_of, usual
from norm_fusion.report.strips import strips
from norm_fusion.runs.files import StoreError, write_whole
from norm_fusion.runs.store import RunStore

STATIC_PX = 400  # width of a plot, its names and figures excepted, that a reader without JavaScript sees

# What a reader of the answer is after, figures and labels; split on, every second part is one.
TELLING = re.compile(rf"(?<!worst )(\b\d+\.\d+x|{'|'.join(label.value for label in Label)})")


def write(store: RunStore, path: Path, conclusions: Conclusions | None = None) -> Path:
    """The page of a stored run, written to `path` whole or not at all. `conclusions`: those to show, else the run's."""
    manifest = store.manifest()
    made = concluded(store, manifest)[0] if conclusions is None else conclusions
    conditions: list[Conditions] = []
    unread = ""
    try:
        conditions += store.conditions()
    except StoreError as error:
        unread = str(error)
    page = render(manifest, rows_of(made, manifest), conditions, unread, made.rule, list(store.counters()))
    write_whole(path, page.encode())
    return path


def render(
    manifest: Manifest,
    rows: Sequence[Row],
    conditions: Iterable[Conditions] = (),
    unread: str = "",
    rule: int | None = None,
    counters: Sequence[Counters] = (),
) -> str:
    """The page of a run: HTML that works from a file, without a network. `unread`: why there are no conditions."""
    script = Markup(_script())
    plots = [(panel, _figure(f"plot-{i}", panel.draw(rows))) for i, panel in enumerate(PANELS)]
    weather = [
        {"title": title, "said": said} | _figure(f"strip-{i}", chart)
        for i, (title, said, chart) in enumerate(weathered(list(conditions), manifest))
    ]
    drawn = [{"panel": panel} | figure for panel, figure in plots if figure["spec"]]
    return _template().render(
        told(manifest, rows, rule, counters),
        policy=f"default-src 'none'; script-src 'sha256-{hashed(script)}'; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(asset("style.css")),
        script=script,
        specs={figure["id"]: figure["spec"] for figure in (*drawn, *weather)},
        figures=drawn,
        undrawn=[panel for panel, figure in plots if not figure["spec"]],
        weather=weather,
        unread=unread,
        records=[record for row in rows for record in row.series.values()],
    )


def told(
    manifest: Manifest, rows: Sequence[Row], rule: int | None = None, counters: Sequence[Counters] = ()
) -> dict[str, Any]:
    """What the parts of a run's page are filled with, plots and raw records excepted."""
    counters = counted.ordered(counters, manifest)
    timers = Timers(usual(row.latency for row in rows), usual(row.ratio for row in rows))
    claimed = subjects(rows, timers)
    return {
        "manifest": manifest,
        "answers": [list(coloured(said)) for said in answers(rows)],
        "alone": alone(rows),
        "took": _took(manifest),
        "command": shlex.join(manifest.command),
        "glance": list(glance(rows, timers)),
        "headings": headings(rows),
        "groups": [
            (case_title(case), traffic(case), [entry(row, group, rows, timers) for row in _aside_last(group)])
            for case, group in cases(rows).items()
        ],
        "claims": claimed,
        "shown": shown(claimed),
        "effort": effort(manifest, rows),
        "controls": list(controls(rows)),
        "reasons": [*reruns(rows), *apart(rows), *undecided(rows), *happened(rows)],
        "processes": processes(rows),
        "rule": rule,
        "delta": DELTA,
        "timers": timers,
        "limits": list(limits(manifest, rows, timers)),
        "counted": counted.cells(counters),
        "counted_heads": [head for head, _ in counted.COLUMNS],
        "uncounted": counted.missing(counters),
        "counters_title": counted.TITLE,
        "metrics": metrics,
        "record_url": None,  # this page is one file: nothing to link to
        "case_url": None,
        "counters_url": None,
    }


def weathered(conditions: Sequence[Conditions], manifest: Manifest) -> Iterator[tuple[str, str, alt.LayerChart]]:
    """The strips of each card; the readings of a run of one card may not say whose they are."""
    cards = manifest.environments
    if len(cards) < 2:
        yield from strips(conditions, manifest.environment)
        return
    for card in cards:
        mine = [reading for reading in conditions if reading.device_uuid == card.device_uuid]
        for title, said, chart in strips(mine, card):
            yield f"{title}, {short(card.device_uuid or card.device_name)}", said, chart


@cache
def _template() -> jinja2.Template:
    return templates(jinja2.PackageLoader("norm_fusion.report")).get_template("page.html")


def templates(loader: jinja2.BaseLoader) -> jinja2.Environment:
    """Templates that escape what they are given, refuse what they are not, and know how figures are written."""
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": _moment, "reading": _reading}
    return environment


def asset(name: str) -> str:
    return (files("norm_fusion.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """Vega, Vega-Lite and vega-embed, bundled offline with the few lines that draw this page's charts."""
    return bundled(asset("draw.js"))


def bundled(code: str) -> str:
    """JavaScript with what it imports, offline; it may stand in a page."""
    return vl_convert.javascript_bundle(code).replace("</script", "<\\/script").replace("<!--", "\\x3c!--")


def hashed(script: str) -> str:
    """SHA-256 as a page's policy names a script by it."""
    return b64encode(sha256(script.encode()).digest()).decode()


def _figure(name: str, chart: alt.LayerChart | None) -> dict[str, Any]:
    """A chart for the script, and the same chart as it stands for a reader without JavaScript."""
    if chart is None:
        return {"id": name, "spec": None, "svg": None}
    spec = specified(chart.to_dict())
    svg = vl_convert.vegalite_to_svg(spec | {"width": STATIC_PX}, allowed_base_urls=[])
    return {"id": name, "spec": spec, "svg": Markup(svg)}


def _aside_last(group: Sequence[Row]) -> list[Row]:
    return sorted(group, key=lambda row: not row.contestant)


def coloured(said: str) -> Iterator[tuple[str, str]]:
    """A sentence in parts: each with its class in the style sheet, empty for plain words."""
    kinds = {label.value: f"call {mark}" for label, mark in MARKS.items()}
    for i, words in enumerate(TELLING.split(said)):
        yield words, kinds.get(words, "figure") if i % 2 else ""


def _reading(value: float | str | None) -> str | None:
    """A condition as read: a number to two places at most, NVML's reasons by name."""
    if isinstance(value, str):
        try:
            bits = int(value, 16)
        except ValueError:
            return value
        return f"{', '.join(nvml.reason_names(bits)) or 'nothing'} ({bits:#x})"
    return None if value is None else f"{round(value, 2):,}"


def _moment(text: str) -> str:
    """`22 Nov 2026, 12:40:02 UTC`; what is no ISO 8601 time stands as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = "UTC" if moment.utcoffset() == timedelta(0) else moment.strftime("%z")
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} {zone}".strip()


def _took(manifest: Manifest) -> str:
    """`2 min 17 s`, or nothing where the run's end is not known."""
    if manifest.finished_at is None or manifest.took_s is None:
        return ""
    minutes, seconds = divmod(round(manifest.took_s), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
