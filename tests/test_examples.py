"""The examples run, with our kernels in the interpreter, and their numbers are what a reader takes them for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


SMALL = ("--device", "cpu", "--hidden", "64", "--layers", "1", "--batch", "2", "--length", "12", "--steps", "8")


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("train.py", *SMALL, "--json"))
    return found


def test_a_patched_model_learns_the_same(trained: dict[str, Any]) -> None:
    original, patched = trained["original"]["losses"], trained["patched"]["losses"]
    assert len(original) == len(patched) == 8
    assert original[-1] < original[0] - 0.2
    assert patched == pytest.approx(original, rel=1e-4)
    assert trained["patched"]["report"].startswith("3 norms replaced")
    assert trained["original"]["report"] == ""


def test_losses_time_and_memory_stand_side_by_side(trained: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "train.json"
    kept.write_text(json.dumps(trained))
    lines = run("train.py", "--again", str(kept)).splitlines()
    assert f"torch {trained['environment']['torch']}" in lines[1]
    assert lines[2] == "Llama, 1 layers of 64, 2 x 12 bytes a step"
    table = [line.split() for line in lines if line and line.split()[0].isdigit()]
    assert [row[0] for row in table if len(row) == 3][-1] == "8"
    step = next(line for line in lines if line.split()[:2] == ["a", "step"])
    assert step.endswith("ms   on a CPU, which says nothing about the kernels")
    assert lines[-1].split()[0] == "memory"


@pytest.mark.parametrize(
    ("example", "words", "error"),
    [
        ("train.py", "--steps 5", "--steps 5: more than 5 are needed"),
        ("train.py", "--length 99999", "--length 99999: the text has 11,358 bytes"),
        ("train.py", "--batch 0", "--batch 0: at least 1"),
        ("train.py", "--device tpu", "device 'tpu' is unknown: choose auto, cpu, cuda or cuda:N"),
        ("decoder_block.py", "--device cuda:99", "--device cuda:99: "),
        ("decoder_block.py", "--hidden 100", "choose a multiple of 128"),
        ("decoder_block.py", "--processes 0", "--processes 0: at least 1"),
    ],
)
def test_what_cannot_run_is_refused(example: str, words: str, error: str) -> None:
    command = [sys.executable, str(EXAMPLES / example), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and error in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [(), ("--backward", "--model", "qwen3")], ids=["forward", "backward"])
def test_a_decoder_block_is_measured_eager_and_compiled(words: tuple[str, ...], tmp_path: Path) -> None:
    few = ("--device", "cpu", "--hidden", "128", "--tokens", "8", "--processes", "1", "--quick", "--json")
    kept = tmp_path / "block.json"
    kept.write_text(run("decoder_block.py", *few, *words))
    (made,) = json.loads(kept.read_text())["runs"]
    assert set(made["samples"]) == {"wall"}
    assert made["errors"]["patched"] == pytest.approx(made["errors"]["original"], rel=0.5)
    lines = run("decoder_block.py", "--again", str(kept)).splitlines()
    assert lines[2].endswith(", 1 process")
    for way in ("eager", "compiled"):
        line = next(line.split() for line in lines if line.split()[:1] == [way])
        assert all(float(ms) > 0 for ms in (line[1], line[3])) and line[-1].endswith("x"), "no interval of one process"
