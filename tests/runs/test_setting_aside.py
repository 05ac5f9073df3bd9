"""A retry, whose counters are set aside, that ends in between; and one for which nothing is amiss."""

from pathlib import Path

import pytest
from test_resume import FIRST, SECOND, THIRD, asked, kept, left

from norm_fusion.records import Counters, Status
from norm_fusion.runs.store import RunStore

CELLS = [(name, "torch-eager") for name in (FIRST, SECOND, THIRD)]


@pytest.fixture
def finished(tmp_path: Path) -> RunStore:
    """A run whose cases are done, and whose counters were not to be had but for the first."""
    made = RunStore.create(tmp_path, "a")
    for case, profile in CELLS:
        kept(made, case)
        told = {"run_id": "a", "case": case, "profile": profile, "compulsory_bytes": 1, "fingerprint": "0" * 16}
        made.keep_counters(Counters(**told, status=Status.OK if case == FIRST else Status.UNAVAILABLE))
    made.write_manifest(asked(done=[FIRST, SECOND, THIRD], profiled=CELLS, state="finished", worked_s=7.5))
    return made


class Killed(BaseException):
    """What no handler of ours catches."""


def killed(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("moved", [0, 1, 2])
@pytest.mark.parametrize("retry", [False, True])
def test_a_kill_between_any_two_steps_leaves_a_run_that_goes_on(
    finished: RunStore, monkeypatch: pytest.MonkeyPatch, moved: int, retry: bool
) -> None:
    with monkeypatch.context() as patch:
        replace, count = Path.replace, [0]

        def some(self: Path, target: Path) -> Path:
            if self.parent.name == "counters":
                count[0] += 1
                if count[0] > moved:
                    raise Killed
            return replace(self, target)

        patch.setattr(Path, "replace", some)
        if moved == 2:  # all of them: it is the hashes that are not rewritten any more
            patch.setattr(RunStore, "write_sum_lines", killed)
        with pytest.raises(Killed):
            left(finished, asked(profiled=CELLS), retry_failed=True)
    found = left(finished, asked(profiled=CELLS), retry_failed=retry)
    assert found.cases == ()
    assert set(found.profiled) >= set(CELLS[1 : 1 + moved]) and CELLS[0] not in found.profiled
    if retry:
        assert set(found.profiled) == set(CELLS[1:])


def test_a_retry_of_a_run_in_which_nothing_is_amiss_leaves_it_as_it_is(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "a")
    for case in (FIRST, SECOND, THIRD):
        kept(store, case)
    store.write_manifest(asked(done=[FIRST, SECOND, THIRD], state="finished"))
    before = (store.path / "manifest.json").read_bytes()
    assert left(store, retry_failed=True).manifest.state == "finished"
    assert (store.path / "manifest.json").read_bytes() == before


def test_the_time_between_is_none_that_it_was_worked_on(finished: RunStore) -> None:
    assert left(finished, asked(profiled=CELLS), retry_failed=True).manifest.took_s == 7.5
