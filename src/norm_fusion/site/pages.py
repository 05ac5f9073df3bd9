"""What all pages of the site share: templates, the policy, and plots with the pictures that stand in for them.

What records hold is data. Templates escape it and cut what is longer than a reader reads; plots get it as JSON; names
of files are made here, never taken from it; and a page's policy runs no script but the site's own and asks for nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from norm_fusion.report.chart import Link, specified
from norm_fusion.report.page import asset, bundled, hashed, templates
from norm_fusion.runs.files import write_whole
from norm_fusion.runs.store import RUN_ID

LONGEST = 1000  # characters of a text on a page; who wants the rest has the record
IN_PLOTS = 120  # and in a plot
PICTURE_PX = 640  # width of a plot as a picture, names and figures excepted
CHARTS = "assets/charts.js"


@dataclass(frozen=True)
class Figure:
    """A plot: for the script as a specification, for readers without one as pictures, light and dark."""

    id: str
    title: str
    explanation: str
    key: Sequence[tuple[str, str]]
    spec: dict[str, Any]
    light: str  # paths within the site
    dark: str


class Pages:
    """Writes pages below a folder. `made`: the paths of what was written, or was there and is the same.

    `folders`: where runs lie; pages tell their names, and not where on the machine that makes the site they are.
    """

    def __init__(self, output: Path, folders: Sequence[Path] = ()) -> None:
        self.output = output
        self._absolute = [folder for folder in folders if folder.is_absolute()]
        self.made: set[str] = set()

    def write(
        self,
        path: str,
        template: str,
        drawn: Sequence[Figure] = (),
        scripts: Sequence[str] = ("site.js",),
        **context: Any,
    ) -> None:
        """A page: `path` within the site; `drawn`: its plots; `scripts`: the site's own that it runs."""
        page, script = _templates().get_template(template), _script(tuple(scripts))
        text = page.render(
            **context,
            up=up(path),
            policy=policy(script),
            style=Markup(asset("style.css") + _own("site.css")),
            script=Markup(script),
            specs={figure.id: figure.spec for figure in drawn},
        )
        self.put(path, text.encode())

    def put(self, path: str, data: bytes) -> None:
        """A file, if it is not there as it should be."""
        self.made.add(path)
        target = self.output / path
        for folder in self._absolute if target.suffix in (".html", ".js") else ():
            data = data.replace(f"{folder}/".encode(), f"{folder.name}/".encode())
        try:
            if target.stat().st_size == len(data) and target.read_bytes() == data:
                return
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)

    def figure(
        self,
        name: str,
        title: str,
        explanation: str,
        key: Sequence[tuple[str, str]],
        chart: alt.LayerChart | None,
        link: Link | None = None,
    ) -> Figure | None:
        """A plot and its pictures, drawn where they are not there yet, or None of no chart. `link`: of its marks."""
        if chart is None:
            return None
        whole = chart.to_dict()
        spec = _short(specified(whole))
        told = sha256(json.dumps([spec, PICTURE_PX], sort_keys=True).encode()).hexdigest()[:16]
        paths = {scheme: f"plots/{told}-{scheme}.svg" for scheme in ("light", "dark")}
        self.made.update(paths.values())
        if not all((self.output / path).is_file() for path in paths.values()):
            for scheme, svg in pictures(spec).items():
                self.put(paths[scheme], svg.encode())
        return Figure(name, title, explanation, key, _short(specified(whole, link)), paths["light"], paths["dark"])


def pictures(spec: Mapping[str, Any], width: int = PICTURE_PX) -> dict[str, str]:
    """A specification drawn as SVG, with the colours of the light scheme and of the dark one."""
    drawn = vl_convert.vegalite_to_svg({"width": width, **spec} | {"width": width}, allowed_base_urls=[])
    return {scheme: coloured(drawn, colours) for scheme, colours in schemes().items()}


def coloured(svg: str, colours: Mapping[str, str]) -> str:
    """With colours in place of the names that a page's style has for them: a picture has no page."""
    return re.sub(r"var\(--([a-z]+)\)", lambda found: colours[found[1]], svg)


@cache
def schemes() -> dict[str, dict[str, str]]:
    """The colours of both schemes, by name, from the style sheet."""
    light, dark = asset("style.css").split("@media (prefers-color-scheme: dark)", 1)
    found = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", part.partition("}")[0])) for part in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def up(path: str) -> str:
    """From a page to the site's root."""
    return "../" * path.count("/")


def policy(script: str) -> str:
    """That script, what it loads from the site's own files, and no request elsewhere."""
    return (
        f"default-src 'none'; script-src 'sha256-{hashed(script)}' 'strict-dynamic'; style-src 'unsafe-inline'; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )


@cache
def charts() -> bytes:
    """Vega, Vega-Lite and vega-embed in one file, which all pages share."""
    return bundled(_own("charts.js")).encode()


def charts_of() -> str:
    """What that file is made of, without making it."""
    return f"{version('vl-convert-python')} {sha256(_own('charts.js').encode()).hexdigest()}"


def slug(name: str, taken: set[str]) -> str:
    """A name for files and addresses, unlike any in `taken`; one that could mean something else there is hashed."""
    made = name.replace("/", ".")
    if RUN_ID.fullmatch(made) is None or ".." in made or made.casefold() in taken:
        made = f"x-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    taken.add(made.casefold())
    return made


def clipped(value: object) -> object:
    """What a template shows of a value: of a long text its beginning, and how long it is."""
    if isinstance(value, str) and not isinstance(value, Markup) and len(value) > LONGEST:
        return f"{value[:LONGEST]}… ({len(value):,} characters)"
    return value


def _short(value: Any) -> Any:
    """A specification whose texts from records are no longer than a plot shows."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, str) and len(value) > 3 * IN_PLOTS:
        return f"{value[:IN_PLOTS]}…"
    return value


@cache
def _templates() -> jinja2.Environment:
    found = templates(
        jinja2.ChoiceLoader([jinja2.PackageLoader("norm_fusion.site"), jinja2.PackageLoader("norm_fusion.report")])
    )
    found.finalize = clipped
    return found


@cache
def _script(names: tuple[str, ...]) -> str:
    return "".join(_own(name) for name in names)


def _own(name: str) -> str:
    return (files("norm_fusion.site") / "templates" / name).read_text(encoding="utf-8")
