"""The order of contestants, the rotation, and what an interrupted series keeps. Wall time on a CPU."""

import random
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from norm_fusion.measure import timing
from norm_fusion.measure.timing import Bench, Contestant, Interrupted, first_line, sets_in_rotation, williams
from norm_fusion.spec import Effort

EFFORT = Effort(rounds=6, block=4, warmup_s=0.0, settle_s=0.0)


@pytest.mark.parametrize("n", range(2, 9))
def test_each_contestant_follows_each_other_equally_often(n: int) -> None:
    square = williams(n)
    assert all(sorted(row) == list(range(n)) for row in square)
    follows = Counter(pair for row in square for pair in pairwise(row))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) == 1


def test_one_contestant_has_one_order() -> None:
    assert williams(1)[0] == [0]


def test_rotation_exceeds_the_cache_and_is_bounded() -> None:
    l2 = 60 * 2**20
    assert sets_in_rotation(2 * 2**20, l2) * 2 * 2**20 >= 3 * l2
    assert sets_in_rotation(2**30, l2) == 1
    assert sets_in_rotation(4, l2) == 512


def bench(*contestants: Contestant, sets: int = 3, **changes: object) -> Bench:
    inputs = [torch.full((4,), float(i)) for i in range(sets)]
    settings = {"effort": EFFORT, "rng": random.Random(0), "stop": lambda: False, "verify": lambda *_: None} | changes
    return Bench(list(contestants), inputs, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("rounds", [1, 10, 40])
def test_a_series_has_whole_squares(n: int, rounds: int) -> None:
    orders = bench(*[Contestant(str(i), torch.clone) for i in range(n)])._orders(n, rounds)
    assert rounds <= len(orders) < rounds + 2 * n
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(set(follows.values())) == 1


def test_an_empty_ring_has_no_rounds() -> None:
    assert bench(Contestant("a", torch.clone))._orders(0, 10) == []


def test_every_sample_is_kept_in_rounds() -> None:
    a, b = Contestant("a", torch.clone), Contestant("b", torch.clone)
    bench(a, b).wall()
    for contestant in (a, b):
        series = contestant.series["wall"]
        assert [len(block) for block in series.blocks] == [EFFORT.block] * EFFORT.rounds
        assert len(series.positions) == EFFORT.rounds
        assert all(sample > 0 for block in series.blocks for sample in block)
        assert series.warmup, "warm-up samples are kept too"
    assert Counter(a.series["wall"].positions) == Counter(b.series["wall"].positions) == {0: 3, 1: 3}


def test_inputs_and_outputs_rotate_together() -> None:
    taken = []

    def launch(x: torch.Tensor) -> torch.Tensor:
        taken.append(int(x[0]))
        return x.clone()

    a = Contestant("a", launch)
    bench(a).wall()
    assert all((y - x) % 3 == 1 for x, y in pairwise(taken)), "an input was used twice in a row"
    assert len({out.data_ptr() for out in a.outputs}) == 3, "as many outputs are alive as inputs"
    assert [int(out[0]) for out in a.outputs] == [0, 1, 2]


def test_a_timed_call_of_each_contestant_is_verified() -> None:
    seen = []
    a, b = Contestant("a", torch.clone), Contestant("b", torch.neg)
    bench(a, b, verify=lambda contestant, i, out: seen.append((contestant.name, i, out[0].item()))).wall()
    assert sorted(name for name, _, _ in seen) == ["a", "b"]
    assert all(out == (i if name == "a" else -i) for name, i, out in seen)


def test_an_interrupted_series_keeps_its_rounds() -> None:
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 4

    a = Contestant("a", torch.clone)
    with pytest.raises(Interrupted):
        bench(a, stop=stop).wall()
    assert 1 <= len(a.series["wall"].blocks) < EFFORT.rounds


def test_a_contestants_own_error_is_not_swallowed() -> None:
    def launch(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("bad shape\nand more")

    with pytest.raises(ValueError, match="bad shape") as caught:
        bench(Contestant("a", launch)).wall()
    assert first_line(caught.value) == "ValueError: bad shape"


def kernels(*names: str) -> list[SimpleNamespace]:
    """A trace: one kernel after another, 2 us each."""
    return [
        SimpleNamespace(
            name=name,
            device_type=DeviceType.CUDA,
            is_user_annotation=False,
            time_range=SimpleNamespace(start=3.0 * i, end=3.0 * i + 2),
        )
        for i, name in enumerate(names)
    ]


def test_what_scrubs_the_cache_is_not_taken_for_a_call() -> None:
    mark, scrub = "spin_kernel(long)", "reduce_kernel"
    trace = kernels("before", mark, scrub, mark, "norm", "norm", mark, scrub, scrub, mark, "norm", "norm")
    replays = timing._replays(trace[::-1])
    assert [[name for name, _, _ in replay] for replay in replays] == [["norm", "norm"]] * 2
    assert timing._call_intervals(replays[0], 2) == pytest.approx([0.002, 0.002])


def test_a_call_lasts_from_its_first_kernel_to_its_last() -> None:
    (replay,) = timing._replays(kernels("spin_kernel", "spin_kernel", "mean", "scale", "mean", "scale"))
    assert timing._call_intervals(replay, 2) == pytest.approx([0.005, 0.005])
    assert timing._call_intervals(replay, 3) is None
    assert timing._call_intervals(replay, 4) is None
