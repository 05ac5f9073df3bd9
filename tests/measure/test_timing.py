"""Wall time on a CPU: cold by rotation, hot on an input written anew; and calls back to back."""

import time
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from contest import Table

from norm_fusion.measure import timing
from norm_fusion.measure.ring import Contestant, Lost
from norm_fusion.spec import Effort

EFFORT = Effort(rounds=4, block=3, warmup_s=0.0, settle_s=0.0)


def slow(x: torch.Tensor) -> torch.Tensor:
    time.sleep(0.002)
    return x.clone()


def unjudged(name: str, launch: Any) -> Contestant:
    return Contestant(name, launch, judged=False)


def test_a_wall_sample_is_a_calls_time_in_ms() -> None:
    table = Table(effort=EFFORT)
    a, b = unjudged("a", slow), unjudged("b", torch.clone)
    timing.wall(table.ring(a, b))
    samples = [list(chain(*c.series["wall", "cold"].blocks)) for c in (a, b)]
    assert [len(each) for each in samples] == [12, 12]
    assert 2 <= min(samples[0]) < 20
    assert 0 < min(samples[1]) < 2
    assert len(a.series["wall", "cold"].warmup) == 1
    assert a.series["wall", "cold"].settled is False


def test_cold_calls_take_the_inputs_in_turn() -> None:
    table, taken = Table(effort=EFFORT), []
    at = {x.data_ptr(): i for i, x in enumerate(table.inputs)}
    a = unjudged("a", lambda x: (taken.append(at[x.data_ptr()]), x.clone())[1])
    timing.wall(table.ring(a))
    assert all((y - x) % 3 == 1 for x, y in pairwise(taken))


def test_hot_calls_have_one_input_which_is_written_before_each() -> None:
    table, taken = Table(effort=EFFORT), []
    before = table.inputs[0].clone()

    def launch(x: torch.Tensor) -> torch.Tensor:
        taken.append((x.data_ptr(), x._version))
        return x.clone()

    a = unjudged("a", launch)
    ring = table.ring(a)
    timing.wall(ring)
    taken.clear()
    timing.wall(ring, cache="hot")
    assert {where for where, _ in taken} == {table.inputs[0].data_ptr()}
    versions = [version for _, version in taken]
    assert len(versions) == 12, "what is warm already is not warmed up again"
    assert all(later > earlier for earlier, later in pairwise(versions)), "its producer has not written it"
    assert torch.equal(table.inputs[0], before)
    assert a.series["wall", "hot"].rotation == 1
    assert set(a.series) == {("wall", "cold"), ("wall", "hot")}


def test_the_producers_time_is_not_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(effort=EFFORT)
    real = torch.Tensor.copy_

    def dawdle(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)
        return real(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", dawdle)
    a = unjudged("a", torch.clone)
    timing.wall(table.ring(a), cache="hot")
    assert min(min(block) for block in a.series["wall", "hot"].blocks) < 4


def test_an_examined_output_is_what_the_caller_found_on_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contestant that works on beside its caller is caught with what was not ready, though it is when looked at."""
    table, pending = Table(effort=EFFORT), []

    def finish() -> None:
        for out, of in pending:
            out.copy_(table.honest()(of))
        pending.clear()

    def later(x: torch.Tensor) -> torch.Tensor:
        finish()
        pending.append((torch.zeros_like(x), x))
        return pending[0][0]

    left = table.examiner.left
    monkeypatch.setattr(table.examiner, "left", lambda contestant: (finish(), left(contestant))[1])
    with pytest.raises(Lost):
        timing.wall(table.ring(Contestant("later", later)))
    assert table.wrong("later") == [("wrong-output", "a timed call")]


def test_blocks_have_a_probe_each() -> None:
    table = Table(effort=EFFORT)
    a = unjudged("a", torch.clone)
    timing.wall(table.ring(a))
    probes = a.series["wall", "cold"].probes_ms
    assert len(probes) == EFFORT.rounds and len(set(probes)) > 1
    assert all(0.01 < probe < 100 for probe in probes)


def test_back_to_back_is_so_many_calls_in_rotation_and_nothing_else() -> None:
    table, taken = Table(effort=EFFORT), []
    a = unjudged("a", lambda x: (taken.append(x.data_ptr()), x)[1])
    assert timing.back_to_back(table.ring(a), a, 7)[0] == 7
    where = [x.data_ptr() for x in table.inputs]
    assert taken == (where * 3)[:7]
    assert table.parent.on is None and a.series == {}


def test_back_to_back_is_timed_by_our_own_clock_as_a_whole() -> None:
    a = unjudged("a", slow)
    start = time.perf_counter_ns()
    _, told_ms = timing.back_to_back(Table().ring(a), a, 10)
    assert 20 <= told_ms <= (time.perf_counter_ns() - start) / 1e6
