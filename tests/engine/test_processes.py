"""The process that measures: what it leaves behind, and where it does not die."""

import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from workers import worker

from norm_fusion.engine import processes


def test_nothing_has_to_be_cleaned_up_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed cleans nothing up: so there is no file with a name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    worker(monkeypatch, early=r"open(os.environ['NORM_FUSION_CRUMB'], 'r+b').write(b'a-case\na-profile'); sys.exit(3)")
    one = processes.Worker()
    assert not list(tmp_path.iterdir())
    assert one.end() == processes.Remains(3, "", ("a-case", "a-profile"))


def test_one_that_is_stuck_in_a_driver_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch)
    one = processes.Worker()
    ended = one.process.wait

    def stuck(seconds: float | None = None) -> int:
        assert seconds is not None, "would wait for ever"
        raise subprocess.TimeoutExpired("worker", seconds)

    monkeypatch.setattr(one.process, "wait", stuck)
    began = time.monotonic()
    assert one.end().code == -9
    assert time.monotonic() - began < 5
    ended()
