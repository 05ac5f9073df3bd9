"""The ring: its balanced order, its rotation, its warm-up, whom it loses, and what an interrupted series keeps."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any

import pytest
import torch

from norm_fusion.measure import ring as ring_module
from norm_fusion.measure.ring import Contestant, Interrupted, Lost, Ring, sets_in_rotation, williams
from norm_fusion.records import Timer
from norm_fusion.spec import Effort

EFFORT = Effort(rounds=6, block=4, warmup_s=0.0, settle_s=0.0)
Samples = Callable[[Contestant, int], list[float]]


class Watching:
    """An examiner that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.examined: list[tuple[str, int, Any]] = []

    def entered(self, contestant: Contestant) -> None:
        self.told.append(("entered", contestant.name))

    def set_up(self, contestant: Contestant, i: int) -> None:
        self.told.append(("set up", contestant.name))

    def left(self, contestant: Contestant) -> None:
        self.told.append(("left", contestant.name))

    def examine(self, contestant: Contestant, i: int, output: Any) -> None:
        self.told.append(("examined", contestant.name))
        self.examined.append((contestant.name, i, output))


def ring_of(*names: str, sets: int = 3, **changes: Any) -> Ring:
    inputs = [torch.full((4,), float(i)) for i in range(sets)]
    settings = {"effort": EFFORT, "rng": random.Random(0), "stop": lambda: False} | changes
    return Ring([Contestant(name, torch.clone) for name in names], inputs, **settings)


def sampled(ring: Ring, samples: Samples = lambda contestant, size: [1.0] * size, cache: str = "cold") -> list[str]:
    """Rounds of made-up samples; the names of the contestants, block by block."""
    blocks: list[str] = []

    def block(contestant: Contestant, sink: list[float], size: int, picked: int | None) -> Any:
        blocks.append(contestant.name)
        ring.probe.enqueue()
        for _ in range(size):
            contestant.call(ring.inputs)
        sink += samples(contestant, size)
        return picked

    ring.rounds("wall", cache, ring.contestants, block)  # type: ignore[arg-type]
    return blocks


@pytest.mark.parametrize("n", range(2, 12))
def test_each_contestant_follows_each_other_equally_often(n: int) -> None:
    square = williams(n)
    assert len(square) == (n if n % 2 == 0 else 2 * n)
    assert all(sorted(row) == list(range(n)) for row in square)
    follows = Counter(pair for row in square for pair in pairwise(row))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) == 1
    places = Counter((place, position) for row in square for position, place in enumerate(row))
    assert len(places) == n * n and len(set(places.values())) == 1, "and has each place equally often"


def test_one_contestant_has_one_order() -> None:
    assert williams(1)[0] == [0]


def test_rotation_exceeds_the_cache_and_is_bounded() -> None:
    l2 = 60 * 2**20
    for set_bytes in (2 * 2**20, 3 * 2**20 + 5, 50 * 2**20):
        sets = sets_in_rotation(set_bytes, l2)
        assert (sets - 1) * set_bytes < 4 * l2 <= sets * set_bytes
    assert sets_in_rotation(2**30, l2) == 1
    assert sets_in_rotation(4, l2) == 512
    assert sets_in_rotation(2**30, l2, room=5) == 5
    assert sets_in_rotation(2**30, l2, room=99) == 16
    assert sets_in_rotation(2**20, l2, room=0) == 4 * 60, "cold it has to be in any case"


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("rounds", [1, 10, 40])
def test_a_series_has_whole_squares(n: int, rounds: int) -> None:
    orders = ring_of("a").orders(n, rounds)
    assert rounds <= len(orders) < rounds + 2 * n
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(set(follows.values())) <= 1


def test_orders_are_shuffled_by_the_rings_own_generator() -> None:
    one, same, other = (ring_of("a", rng=random.Random(seed)).orders(6, 12) for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(one) == sorted(other)


def test_an_empty_ring_has_no_rounds() -> None:
    assert ring_of("a").orders(0, 10) == []


def test_samples_and_probes_are_kept_block_by_block_in_time_order() -> None:
    ring = ring_of("a", "b")
    clock = iter(range(1, 1000))
    given: dict[str, list[float]] = {"a": [], "b": []}

    def samples(contestant: Contestant, size: int) -> list[float]:
        made = [float(next(clock)) for _ in range(size)]
        given[contestant.name] += made
        return made

    order = sampled(ring, samples)
    a, b = (contestant.series["wall", "cold"] for contestant in ring.contestants)
    for name, series in (("a", a), ("b", b)):
        assert [len(block) for block in series.blocks] == [EFFORT.block] * EFFORT.rounds
        assert list(chain(*series.blocks)) == given[name]
        assert len(series.probes_ms) == len(series.positions) == EFFORT.rounds
        assert all(probe > 0 for probe in series.probes_ms)
        assert series.positions == [order[2 * r : 2 * r + 2].index(name) for r in range(EFFORT.rounds)]
        assert series.began_s is not None and series.ended_s is not None
        assert 0 < series.ended_s - series.began_s < 60
        assert (series.rotation, series.calls_per_sample) == (3, 1)
    assert Counter(a.positions) == {0: 3, 1: 3}


def test_a_hot_series_has_one_set_and_nothing_in_it_is_examined() -> None:
    watching = Watching()
    ring = ring_of("a", "b", examiner=watching)
    sampled(ring, cache="hot")
    assert {c.series["wall", "hot"].rotation for c in ring.contestants} == {1}
    assert watching.examined == []
    assert ("left", "a") in watching.told, "whether the input was changed is looked at all the same"


def test_inputs_and_outputs_rotate_together() -> None:
    taken: list[int] = []
    ring = ring_of("a")
    ring.contestants[0].launch = lambda x: (taken.append(int(x[0])), x.clone())[1]
    sampled(ring)
    assert len(taken) == 24
    assert all((y - x) % 3 == 1 for x, y in pairwise(taken)), "an input was used twice in a row"
    outputs = ring.contestants[0].outputs
    assert len({out.data_ptr() for out in outputs}) == 3, "as many outputs are alive as inputs"
    assert [int(out[0]) for out in outputs] == [0, 1, 2]


def test_each_output_is_let_go_before_its_successor_is_made() -> None:
    contestant = Contestant("a", torch.clone, outputs=[torch.zeros(1)])
    seen: list[Any] = []
    contestant.launch = lambda x: (seen.append(contestant.outputs[0]), x.clone())[1]
    contestant.call([torch.zeros(1)])
    assert seen == [None]


@pytest.mark.parametrize("seed", range(5))
def test_one_call_of_each_contestant_is_examined_and_it_is_its_blocks_last(seed: int) -> None:
    watching = Watching()
    ring = ring_of("a", "b", "c", examiner=watching, rng=random.Random(seed))
    ring.contestants[2].judged = False
    sampled(ring)
    assert sorted(name for name, _, _ in watching.examined) == ["a", "b"]
    for name, i, output in watching.examined:
        at = [told for told in watching.told if told[1] == name].index(("examined", name))
        # Of each block there are two words, of one that is examined four; before it there were whole blocks of four.
        assert [told for told, who in watching.told if who == name][at - 3 : at + 1] == [
            "entered",
            "set up",
            "left",
            "examined",
        ]
        calls = (at - 3) // 2 * EFFORT.block + EFFORT.block
        assert i == output == (calls - 1) % 3


def test_which_call_is_examined_is_drawn() -> None:
    def first(seed: int) -> int:
        watching = Watching()
        sampled(ring_of("a", examiner=watching, rng=random.Random(seed)))
        return watching.told.index(("examined", "a"))

    assert len({first(seed) for seed in range(8)}) > 2


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")], ids=["zero", "negative", "nan", "infinite"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_sample_that_is_no_duration_names_its_contestant(bad: float, place: int) -> None:
    ring = ring_of("a", "b")

    def samples(contestant: Contestant, size: int) -> list[float]:
        made = [1.0] * size
        if contestant.name == "b":
            made[place] = bad
        return made

    with pytest.raises(Lost, match="is no duration: a clock jumped") as caught:
        sampled(ring, samples)
    assert caught.value.contestant is ring.contestants[1]


def test_a_clock_that_stands_still_in_warm_up_names_its_contestant() -> None:
    ring = ring_of("a", "b")

    def block(contestant: Contestant, sink: list[float], size: int, picked: int | None) -> None:
        sink.append(0.0 if contestant.name == "b" else 1.0)

    with pytest.raises(Lost) as caught:
        ring.warm_up(ring.contestants, block)
    assert caught.value.contestant.name == "b"


def test_a_contestant_that_raises_is_lost_and_named_and_its_error_kept() -> None:
    ring = ring_of("a", "b")
    error = ValueError("bad shape\nand more")

    def samples(contestant: Contestant, size: int) -> list[float]:
        if contestant.name == "b":
            raise error
        return [1.0] * size

    with pytest.raises(Lost) as caught:
        sampled(ring, samples)
    assert caught.value.contestant is ring.contestants[1]
    assert caught.value.error is error


def test_an_interrupted_series_keeps_its_rounds_and_garbage_is_collected_again() -> None:
    import gc

    rounds = iter(range(100))
    ring = ring_of("a", "b", stop=lambda: next(rounds) >= 2)
    with pytest.raises(Interrupted):
        sampled(ring)
    assert [len(c.series["wall", "cold"].blocks) for c in ring.contestants] == [2, 2]
    assert [len(c.series["wall", "cold"].probes_ms) for c in ring.contestants] == [2, 2]
    assert gc.isenabled()


def test_an_interruption_inside_a_block_is_nobodys_fault() -> None:
    ring = ring_of("a")

    def samples(contestant: Contestant, size: int) -> list[float]:
        raise Interrupted

    with pytest.raises(Interrupted):
        sampled(ring, samples)


class Passes:
    """A clock, and blocks that move it: pass after pass as long as told, the last length for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ms: float) -> None:
        self.now, self.ms, self.count = 0, list(ms), 0
        monkeypatch.setattr(ring_module, "perf_counter_ns", lambda: self.now)

    def block(self, contestant: Contestant, sink: list[float], size: int, picked: int | None) -> None:
        assert size == 1
        took = self.ms[min(self.count, len(self.ms) - 1)]
        self.count += 1
        self.now += int(took * 1e6)
        sink.append(took)


def warmed(monkeypatch: pytest.MonkeyPatch, effort: Effort, *ms: float) -> tuple[Ring, Passes]:
    ring, passes = ring_of("a", effort=effort), Passes(monkeypatch, *ms)
    ring.warm_up(ring.contestants, passes.block)
    return ring, passes


def test_warm_up_lasts_as_long_as_asked_even_where_it_settles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, passes = warmed(monkeypatch, Effort(6, 4, warmup_s=0.2, settle_s=2.0), 10.0)
    assert (ring.settled, passes.count) == (True, 20)
    assert ring.warmup == {"a": [10.0] * 20}


def test_warm_up_ends_when_three_passes_agree_within_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = Effort(6, 4, warmup_s=0.0, settle_s=2.0)
    ring, passes = warmed(monkeypatch, effort, 30.0, 20.0, 20.3, 20.1, 20.2, 20.1)
    assert (ring.settled, passes.count) == (True, 5), "20.0 and 20.3 are more than one percent apart"


@pytest.mark.parametrize(
    ("ms", "fill_s", "least", "timer", "scheduled"),
    [
        (10.0, None, 0, "wall", (6, 4)),
        (10.0, 0.5, 0, "graph", (6, 4)),
        (10.0, 0.5, 0, "wall", (12, 4)),
        (0.1, 0.5, 0, "host", (100, 4)),
        (30.0, 0.5, 0, "wall", (8, 2)),
        (500.0, 0.5, 0, "wall", (6, 1)),
        (500.0, 0.5, 16, "wall", (6, 3)),
    ],
    ids=["not-asked", "device-clock", "filled", "bounded", "smaller-blocks", "slow", "slow-and-alone"],
)
def test_a_series_lasts_about_as_long_as_asked_whatever_a_call_takes(
    ms: float,
    fill_s: float | None,
    least: int,
    timer: Timer,
    scheduled: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    effort = Effort(6, 4, warmup_s=0.0, settle_s=0.0, fill_s=fill_s, least=least)
    ring, _ = warmed(monkeypatch, effort, ms)
    orders, size = ring._schedule(timer, 1)
    assert (len(orders), size) == scheduled


def test_what_does_not_settle_in_time_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = Effort(6, 4, warmup_s=0.1, settle_s=0.5)
    ring, passes = warmed(monkeypatch, effort, *(ms for _ in range(50) for ms in (10.0, 20.0)))
    assert ring.settled is False
    assert 0.5 <= passes.now / 1e9 < 0.53
    sampled(ring)
    series = ring.contestants[0].series["wall", "cold"]
    assert series.settled is False
    assert len(series.warmup) == passes.count, "warm-up samples are kept too, with the series that they were for"
    assert ring.warmup == {}


def test_warm_up_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False, False, True])
    ring = ring_of("a", stop=lambda: next(asked), effort=Effort(6, 4, 10.0, 10.0))
    with pytest.raises(Interrupted):
        ring.warm_up(ring.contestants, Passes(monkeypatch, 1.0).block)
    assert len(ring.warmup["a"]) == 2


def test_release_lets_go_of_outputs() -> None:
    ring = ring_of("a", "b")
    sampled(ring)
    ring.release()
    assert [c.outputs for c in ring.contestants] == [[], []]


@pytest.mark.parametrize(("sets", "calls"), [(1, 8), (3, 9), (8, 8), (9, 9), (512, 512)])
def test_a_graph_holds_whole_rotations_and_at_least_eight_calls(sets: int, calls: int) -> None:
    assert ring_of("a", sets=sets).calls_per_replay == calls
