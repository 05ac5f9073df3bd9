"""The site of the committed evidence, built once, and the browser that reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("report", "evidence")]

from built import ROOT, Site, asked

from norm_fusion.site.build import build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Of everything that is committed."""
    output = tmp_path_factory.mktemp("site")
    return Site(output, build(asked(output, ROOT / "evidence", decisions=ROOT / "decisions")))
