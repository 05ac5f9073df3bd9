"""Before anything imports Triton: its interpreter runs the kernels here, on CPU tensors. Imports no torch itself.

With NORM_FUSION_GPU_TESTS=1 nothing is interpreted, and `pytest` runs tests/gpu alone, on a machine with a GPU.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

if os.environ.get("NORM_FUSION_GPU_TESTS") == "1":
    collect_ignore = [path.name for path in Path(__file__).parent.iterdir() if path.name not in ("gpu", "conftest.py")]
else:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["NORM_FUSION_FORCE_TRITON"] = "1"
    collect_ignore = ["gpu"]
sys.path.append(str(Path(__file__).parent / "kernels"))  # aot, accuracy, gradients
sys.path.append(str(Path(__file__).parent / "ops"))  # control, ranks, test_autograd's chain of operators
sys.path.append(str(Path(__file__).parent / "report"))  # chromium, example_runs, reading


@pytest.fixture(scope="module")
def passes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Fails a test if one of its file's checks (`ranks`) did, on either of two processes that run them all once."""
    from ranks import run_both

    complaints = run_both(str(request.path), tmp_path_factory.mktemp("ranks"), "cpu")

    def passes(name: str) -> None:
        if said := complaints(name):
            pytest.fail(said, pytrace=False)

    return passes


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Debian's chromium, headless, with a new profile; one for all tests of a process."""
    from chromium import executable
    from playwright.sync_api import sync_playwright

    quiet = ("no-first-run", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync")
    path = executable()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", *(f"--{name}" for name in quiet)]
        )
        yield launched
        launched.close()
