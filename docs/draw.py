"""The plots that README.md shows, drawn from the runs in evidence/, light and dark.

python docs/draw.py    # draw them again; tests/test_docs.py says whether they are of what the runs say today
"""

from __future__ import annotations

import json
import re
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.experiments import experiment
from norm_fusion.report.chart import specified
from norm_fusion.report.panels import Panel
from norm_fusion.runs import suites
from norm_fusion.site import sizes
from norm_fusion.site.experiments import Page, pages_of
from norm_fusion.site.pages import pictures

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "plots"
SUITE = "normalization-fusion"
WIDTH_PX = 560


@cache
def asked() -> Page:
    """The experiment that README.md tells of."""
    (page,) = pages_of(experiment(suites.load(SUITE), Archive([ROOT / "evidence"])))
    return page


@cache
def plots() -> dict[str, Panel]:
    """What is drawn, by the name of its files."""
    fastest, _, _, throughput = sizes.panels(asked().selected[0].environment.cache_bytes)
    return {"speedup-by-shape": fastest, "throughput-against-size": throughput}


def spec(name: str) -> dict[str, Any]:
    """A plot's specification."""
    chart = plots()[name].draw(asked().rows)
    assert chart is not None
    return specified(chart.to_dict())


def told(name: str) -> str:
    """The hash of a plot's specification: fonts differ from machine to machine, and with them the picture."""
    return sha256(json.dumps(spec(name), sort_keys=True).encode()).hexdigest()


def drawn_of(path: Path) -> str | None:
    """The hash of the specification that a picture was drawn of."""
    found = re.search(r"<!-- of ([0-9a-f]{64}) -->", path.read_text())
    return found and found[1]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in plots():
        for scheme, svg in pictures(spec(name), WIDTH_PX).items():
            (FOLDER / f"{name}-{scheme}.svg").write_text(f"{svg}<!-- of {told(name)} -->\n")
