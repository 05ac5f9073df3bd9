"""Where the browser is that opens the pages."""

from __future__ import annotations

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def executable(path: Path = CHROMIUM) -> Path:
    """The browser, or a failure that says how to get it: a page that nobody opened is not tested."""
    if not path.is_file():
        pytest.fail(f"{path} is missing: install Debian's package chromium (apt-get install chromium)")
    return path
