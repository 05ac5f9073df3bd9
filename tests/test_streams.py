"""What the commands write to may go away: a pipe into head, a terminal, a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from norm_fusion.cli.streams import Lasting

EVIDENCE = Path(__file__).parents[1] / "evidence"


def broken() -> Lasting:
    """A stream into a pipe that nobody reads any more."""
    reads, writes = os.pipe()
    os.close(reads)
    return Lasting(os.fdopen(writes, "w"), lambda error: isinstance(error, BrokenPipeError))


def test_what_nobody_reads_goes_nowhere() -> None:
    stream = broken()
    for _ in range(3):
        assert stream.write("x" * 100_000) == 100_000
        stream.flush()
    assert not stream.isatty() and stream.encoding, "otherwise it is the stream that it was"
    stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        stream = Lasting(full, lambda error: isinstance(error, BrokenPipeError))
        with pytest.raises(OSError, match="No space"):
            stream.write("x" * 100_000)
        stream.bears = lambda error: True
        stream.flush()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_command_ends_as_if_it_was_heard(name: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")  # what is told on stderr, with exit code 1
    words = ["runs", "--output", str(tmp_path if name == "stderr" else EVIDENCE)]
    reads, writes = os.pipe()
    os.close(reads)
    others = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {name: writes}
    done = subprocess.run([sys.executable, "-m", "norm_fusion", *words], text=True, check=False, **others)  # type: ignore[call-overload]
    os.close(writes)
    assert done.returncode == (1 if name == "stderr" else 0)
    assert not (done.stderr if name == "stdout" else done.stdout)
