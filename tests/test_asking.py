"""What is asked of a cluster, before any is joined; one run id twice at the same time; a part of a suite."""

import subprocess
import sys
from pathlib import Path

import pytest

from norm_fusion.cli.launch import Cluster, asked_cluster
from norm_fusion.runs.store import RunStore
from norm_fusion.spec import SpecError

ADDRESS = "10.0.0.4:6379"


def test_the_cards_of_this_machine_or_a_clusters() -> None:
    assert asked_cluster(None, [], None, "cuda:1") is None
    asked = asked_cluster(ADDRESS, ["A10G", "H200", "A10G"], 4, "auto")
    assert asked == Cluster(ADDRESS, ("A10G", "H200"), 4)
    assert asked_cluster(ADDRESS, [], None, "cpu") == Cluster(ADDRESS, (), None)


@pytest.mark.parametrize(
    ("address", "models", "shards", "device", "says"),
    [
        (None, ["A10G"], None, "auto", "--gpu-model is for a cluster: give its --address too"),
        (None, [], 2, "auto", "--shards is for a cluster"),
        (ADDRESS, [], None, "cuda:3", "--device cuda:3 is a card of this machine"),
        (ADDRESS, ["A10G"], None, "cpu", "--gpu-model is of GPUs, and --device cpu of CPUs"),
        (ADDRESS, ["../../evil", "A10G"], None, "auto", "'../../evil' is no name of a model"),
        (ADDRESS, [""], None, "auto", "'' is no name of a model"),
        (ADDRESS, ["a" * 200], None, "auto", "is no name of a model"),
    ],
)
def test_what_contradicts_itself_is_refused(
    address: str | None, models: list[str], shards: int | None, device: str, says: str
) -> None:
    with pytest.raises(SpecError) as caught:
        asked_cluster(address, models, shards, device)
    assert says in str(caught.value)


def test_two_at_once_on_a_new_run_id_are_one_run_and_a_refusal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "norm_fusion", "run", _suite(tmp_path), "--quick", "--device", "cpu"]
    command += ["--run-id", "one", "--output", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    assert "run 'one' is being measured by another process" in said[codes.index(2)]


def test_a_part_of_a_suite_whose_budget_ends_is_gone_on_with(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "norm_fusion", "run", _suite(tmp_path), "--case", "*-8x64-*", "--processes", "2"]
    command += ["--device", "cpu", "--run-id", "part", "--output", str(tmp_path)]

    def call(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = call("--budget", "0.1")
    assert "2 processes need about" in said
    assert "the budget had room for 1 process of at least 2; the same command goes on with --run-id part" in said
    said = call()
    assert "the budget" not in said
    manifest = RunStore.open("part", tmp_path).manifest()
    assert (manifest.cases, manifest.processes) == (["rmsnorm-8x64-float32"], 2)


def _suite(folder: Path) -> str:
    path = folder / "small.toml"
    path.write_text(
        'title = "T"\nquestion = "Q"\nwhy = "W"\nproject = "P"\nfocus = "F"\n'
        'profiles = ["torch-native"]\ncases = ["rmsnorm-4x64-float32", "rmsnorm-8x64-float32"]\n'
    )
    return str(path)
