"""The list of runs: what state each is in, where it was, and what is no run."""

from pathlib import Path

import pytest
from manifests import CARD, manifest

from norm_fusion.runs import resume
from norm_fusion.runs.listing import listed
from norm_fusion.runs.store import RunStore


def made(folder: Path, name: str, **changes: object) -> RunStore:
    store = RunStore.create(folder, name)
    store.write_manifest(manifest(name, **changes))
    return store


def test_the_newest_is_first_and_devices_are_counted(tmp_path: Path) -> None:
    made(tmp_path, "old", started_at="2026-01-01T00:00:00+00:00", state="finished", done=["a", "b"])
    two = [CARD, CARD.model_copy(update={"device_uuid": "two"})]
    made(
        tmp_path, "new", started_at="2026-02-01T00:00:00+00:00", state="partial", done=["a"], environment=two[0],
        further=two[1:],
    )  # fmt: skip
    new, old = listed(tmp_path)[0]
    assert (new.run_id, new.state, new.done, new.cases, new.devices) == ("new", "partial", 1, 2, ("2 x NVIDIA A10G",))
    assert (old.run_id, old.state, old.done, old.devices) == ("old", "finished", 2, ())


def test_one_card_with_other_software_is_one_card(tmp_path: Path) -> None:
    made(tmp_path, "a", environment=CARD, further=[CARD.model_copy(update={"commit": "c" * 40})])
    assert listed(tmp_path)[0][0].devices == ("NVIDIA A10G",)


def test_running_is_what_a_process_holds(tmp_path: Path) -> None:
    store = made(tmp_path, "a", state="running")
    assert listed(tmp_path)[0][0].state == "interrupted", "its process ended suddenly"
    held = resume.lock(store)
    assert listed(tmp_path)[0][0].state == "running"
    held.release()
    assert listed(tmp_path)[0][0].state == "interrupted"


def test_a_run_of_before_cases_were_ticked_off_is_whole(tmp_path: Path) -> None:
    made(tmp_path, "a", state="finished", schema_version=3)
    assert (listed(tmp_path)[0][0].done, listed(tmp_path)[0][0].cases) == (2, 2)


def test_models_of_one_run_and_what_is_no_run(tmp_path: Path) -> None:
    made(tmp_path / "two", "A10G", state="finished")
    made(tmp_path / "two", "H200", state="blocked")
    made(tmp_path / "check", "aa-all", state="finished")
    (tmp_path / "check" / "harness.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "again").symlink_to(tmp_path)
    assert [one.run_id for one in listed(tmp_path)[0]] == ["two/A10G", "two/H200"]


def test_a_run_that_cannot_be_read_is_named_and_hides_no_other(tmp_path: Path) -> None:
    made(tmp_path, "good", state="finished")
    made(tmp_path, "bad", state="finished").path.joinpath("manifest.json").write_text("{")
    found, unreadable = listed(tmp_path)
    assert [one.run_id for one in found] == ["good"]
    assert len(unreadable) == 1 and "bad/manifest.json is not a readable manifest" in unreadable[0]


def test_no_folder_holds_no_runs(tmp_path: Path) -> None:
    assert listed(tmp_path / "none") == ([], [])


@pytest.mark.parametrize("state", ["finished", "interrupted", "partial", "blocked"])
def test_a_state_that_was_written_down_stands(tmp_path: Path, state: str) -> None:
    made(tmp_path, "a", state=state)
    assert listed(tmp_path)[0][0].state == state
