"""Every trick is found, by the one who played it; whoever is honest passes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from contest import CASE, CPU, EFFORT, Table, bits

from norm_fusion.backends.builtin import prepare
from norm_fusion.measure import timing
from norm_fusion.measure.clocks import tampered
from norm_fusion.measure.examine import Examiner
from norm_fusion.measure.inputs import draw_input, draw_operands
from norm_fusion.measure.ring import Contestant, Lost
from norm_fusion.records import Code
from norm_fusion.spec import ITEMSIZE, Case, Effort, Op, Pass

Launch = Callable[[torch.Tensor], Any]
# Calls on one input before timing: two on poisoned memory after one each that compiles, and one read at once.
BEFORE = 5


@pytest.fixture(autouse=True)
def _inference_and_clocks() -> Iterator[None]:
    with torch.inference_mode():
        yield
    tampered()


def whole_life(table: Table, launch: Launch, *others: Contestant) -> list[tuple[str, str]]:
    """What is found wrong with a contestant from its preparation to the end, stopping where it leaves the ring."""
    table.examiner.before("it", launch)
    if not table.wrong("it"):
        it = Contestant("it", launch)
        ring = table.ring(it, *others)
        with suppress(Lost):
            timing.wall(ring)
            timing.wall(ring, cache="hot")
            table.examiner.after(it)
    return table.wrong("it")


# A contestant is made of an honest one; the second word says by when it has to be found, the third how.
Trick = Callable[[Launch], Launch]
TRICKS: dict[str, tuple[Trick, str, str]] = {}


def trick(when: str, code: str = "wrong-output") -> Callable[[Trick], Trick]:
    def register(make: Trick) -> Trick:
        TRICKS[make.__name__] = make, when, code
        return make

    return register


@trick("before timing")
def returns_the_first_output_again(honest: Launch) -> Launch:
    kept: list[Any] = []

    def launch(x: torch.Tensor) -> Any:
        kept.append(honest(x))
        return kept[0]

    return launch


@trick("read at once, in stream order")
def returns_the_output_before(honest: Launch) -> Launch:
    kept: list[Any] = []

    def launch(x: torch.Tensor) -> Any:
        kept.append(honest(x).clone())
        return kept[max(0, len(kept) - 2)]

    return launch


@trick("before timing")
def remembers_by_address(honest: Launch) -> Launch:
    known: dict[int, Any] = {}

    def launch(x: torch.Tensor) -> Any:
        if x.data_ptr() not in known:
            known[x.data_ptr()] = honest(x)
        return known[x.data_ptr()]

    return launch


@trick("a timed call")
def remembers_by_address_later(honest: Launch) -> Launch:
    known: dict[int, Any] = {}
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls <= BEFORE:
            return honest(x)
        if x.data_ptr() not in known:
            known[x.data_ptr()] = honest(x)
        return known[x.data_ptr()]

    return launch


def beside(honest: Launch, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The output at once, and its content a moment later, from another thread."""

    def work() -> None:
        time.sleep(0.03)
        with torch.inference_mode():
            y.copy_(honest(x))

    threading.Thread(target=work, daemon=True).start()
    return y


@trick("before timing")
def works_beside_its_caller(honest: Launch) -> Launch:
    def launch(x: torch.Tensor) -> Any:
        return beside(honest, x, torch.empty_like(x))

    return launch


@trick("read at once, in stream order")
def works_beside_its_caller_at_times(honest: Launch) -> Launch:
    """Honest while memory is poisoned."""
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls < BEFORE:
            return honest(x)
        return beside(honest, x, torch.zeros_like(x))

    return launch


@trick("before timing")
def skips_rows(honest: Launch) -> Launch:
    def launch(x: torch.Tensor) -> Any:
        y = torch.empty_like(x)
        y[: len(x) // 2] = honest(x[: len(x) // 2])
        return y

    return launch


@trick("a timed call")
def leaves_rows_as_they_were_later(honest: Launch) -> Launch:
    """What lies in its own memory is the right result of an earlier call, until the input changes."""
    kept: dict[int, torch.Tensor] = {}
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        y = honest(x)
        if calls > BEFORE and x.data_ptr() in kept:
            y[len(x) // 2 :] = kept[x.data_ptr()][len(x) // 2 :]
        kept[x.data_ptr()] = y
        return y

    return launch


@trick("a timed call")
def turns_lazy(honest: Launch) -> Launch:
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        return honest(x) if calls <= BEFORE else torch.zeros_like(x)

    return launch


@trick("a timed call")
def writes_one_element_wrong(honest: Launch) -> Launch:
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        y = honest(x)
        if calls > BEFORE:
            y[-1, -1] += 1e-3
        return y

    return launch


@trick("before timing", "mutated-input")
def changes_its_input(honest: Launch) -> Launch:
    def launch(x: torch.Tensor) -> Any:
        y = honest(x)
        x[5, 0] += 1
        return y

    return launch


@trick("while it was timed", "mutated-input")
def changes_its_input_later(honest: Launch) -> Launch:
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        y = honest(x)
        if calls > BEFORE + 20:
            x.copy_(y)
        return y

    return launch


@trick("before timing", "wrong-kind")
def returns_half_the_bytes(honest: Launch) -> Launch:
    return lambda x: honest(x).half()


@trick("before timing", "wrong-kind")
def returns_a_row_too_few(honest: Launch) -> Launch:
    return lambda x: honest(x)[:-1]


@trick("before timing", "wrong-kind")
def returns_no_tensor(honest: Launch) -> Launch:
    return lambda x: [honest(x)]


@trick("before timing", "wrong-kind")
def returns_nothing(honest: Launch) -> Launch:
    return lambda x: None


@trick("a timed call", "wrong-kind")
def returns_half_the_bytes_at_times(honest: Launch) -> Launch:
    """Not in the call that is examined: its neighbours' kind is looked at too."""
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        return honest(x) if calls <= BEFORE or not (calls - BEFORE - 1) % EFFORT.block else honest(x).half()

    return launch


@trick("before timing", "timer")
def replaces_a_clock(honest: Launch) -> Launch:
    def launch(x: torch.Tensor) -> Any:
        time.perf_counter_ns = lambda: 0
        return honest(x)

    return launch


@trick("a timed call", "timer")
def replaces_a_clock_later(honest: Launch) -> Launch:
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls > BEFORE:
            torch.cuda.Event.elapsed_time = lambda self, end: 1e-3
        return honest(x)

    return launch


@pytest.mark.parametrize("name", TRICKS)
def test_each_trick_is_found_in_time(name: str) -> None:
    make, when, code = TRICKS[name]
    table = Table()
    found = whole_life(table, make(table.honest()))
    assert found, "it was not found"
    assert found[0] == (code, when)


def test_a_replaced_clock_is_put_back_at_once() -> None:
    table, honest_clock = Table(), time.perf_counter_ns
    whole_life(table, replaces_a_clock(table.honest()))
    assert time.perf_counter_ns is honest_clock


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("dtype", list(ITEMSIZE))
@pytest.mark.parametrize("profile", ["torch-eager", "torch-native"])
@pytest.mark.parametrize("pass_", list(Pass))
def test_who_is_honest_passes_everything(op: Op, dtype: str, profile: str, pass_: Pass) -> None:
    with torch.inference_mode(False), torch.no_grad():
        table = Table(Case(op, 300, 130, dtype, pass_))
        found = whole_life(table, prepare(profile, table.operands, CPU).launch)
    if pass_ is Pass.BACKWARD and op.centred and profile == "torch-native" and dtype != "float32":
        assert found, "PyTorch's LayerNorm backward sums dw and db in 16 bits on a CPU"
        return
    assert found == []
    assert [when for _, _, when in table.found] == [
        *["before timing"] * 2,
        "read at once, in stream order",
        "a timed call",
        "after timing",
    ]
    shown = [("it", "a timed call", None), ("it", "after timing", None)]
    assert table.parent.verdicts == shown, "shown elsewhere too, and right there"
    assert table.examiner.inputs_intact()


@pytest.mark.parametrize("sets", [1, 2, 5, 20])
def test_what_inputs_hold_is_known_whatever_was_done_to_them(sets: int) -> None:
    table = Table(sets=sets, effort=Effort(rounds=4, block=3, warmup_s=0.0, settle_s=0.0))
    contestants = [Contestant(name, table.honest()) for name in "abc"]
    for contestant in contestants:
        table.examiner.before(contestant.name, contestant.launch)
        assert table.examiner.inputs_intact()
    ring = table.ring(*contestants)
    drawn = [x.clone() for x in table.inputs]
    timing.wall(ring)
    assert table.examiner.inputs_intact()
    kept = [torch.equal(bits(x), bits(was)) for x, was in zip(table.inputs, drawn, strict=True)]
    assert not all(kept), "none was drawn anew"
    timing.wall(ring, cache="hot")
    assert table.examiner.inputs_intact()
    last = []
    for contestant in contestants:
        table.examiner.after(contestant)
        assert table.examiner.inputs_intact()
        last.append(table.inputs[-1].clone())
    assert not any(torch.equal(one, other) for i, one in enumerate(last) for other in [*last[:i], *drawn])
    assert [wrong for _, _, wrong in table.parent.verdicts] == [None] * 6, "or the verifier would have drawn another"
    assert all(check.wrong is None for _, check, _ in table.found)


def test_the_content_of_an_input_is_its_seed_and_the_change_that_the_parent_chose_last() -> None:
    table = Table()
    contestant = Contestant("it", table.honest(), outputs=[None] * 3)
    assert table.examiner.drawn == [(2, None), (3, None), (4, None)]
    table.examiner.set_up(contestant, 1)
    table.examiner.set_up(contestant, 2)
    table.examiner.set_up(contestant, 1)
    assert table.examiner.drawn == [(2, None), (3, 1002), (4, 1001)]
    assert torch.equal(table.inputs[2], draw_input(CASE, CPU, 4, change=1001))
    assert table.examiner.inputs_intact()
    table.inputs[1][63, 255] += 1
    assert not table.examiner.inputs_intact()


def test_whoever_changes_an_input_is_the_one_who_leaves_and_the_others_find_it_whole() -> None:
    table = Table()
    guilty = Contestant("guilty", changes_its_input_later(table.honest()))
    others = [Contestant(name, table.honest()) for name in "abc"]
    table.examiner.before("guilty", guilty.launch)
    with pytest.raises(Lost, match="changed its input") as caught:
        timing.wall(table.ring(others[0], guilty, *others[1:]))
    assert caught.value.contestant is guilty
    assert table.examiner.inputs_intact(), "they were not restored"
    timing.wall(table.ring(*others))
    for other in others:
        table.examiner.after(other)
    assert {name for name, check, _ in table.found if check.wrong} == {"guilty"}
    assert {wrong for name, _, wrong in table.parent.verdicts if name != "guilty"} == {None}


@pytest.mark.parametrize("timed", [False, True], ids=["before-timing", "while-it-was-timed"])
@pytest.mark.parametrize("what", ["weight", "shape"])
def test_whoever_changes_a_parameter_or_a_shape_is_the_one_who_leaves(what: str, timed: bool) -> None:
    table = Table()
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        out = table.honest()(x)
        if calls == (12 if timed else 2):
            if what == "weight":
                table.examiner.operands.weight.mul_(1.5)
            x.resize_(1, 256) if what == "shape" else x.neg_()
        return out

    guilty, other = Contestant("guilty", launch), Contestant("other", table.honest())
    table.examiner.before("guilty", launch)
    if timed:
        with pytest.raises(Lost) as caught:
            timing.wall(table.ring(other, guilty))
        assert caught.value.contestant is guilty
    assert {check.code for name, check, _ in table.found if name == "guilty" and check.wrong} == {Code.MUTATED_INPUT}
    table.examiner.before("other", other.launch)
    timing.wall(table.ring(other))
    table.examiner.after(other)
    assert table.wrong("other") == [] and table.examiner.inputs_intact(), "what it was given was not restored"


def test_a_change_in_a_hot_series_names_its_contestant_too() -> None:
    table = Table()
    calls = 0

    def launch(x: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls > 30:
            x.neg_()
        return table.honest()(x)

    guilty, other = Contestant("guilty", launch), Contestant("other", table.honest())
    ring = table.ring(other, guilty)
    timing.wall(ring)
    before = calls
    calls = 30
    with pytest.raises(Lost) as caught:
        timing.wall(ring, cache="hot")
    assert before < 30 and caught.value.contestant is guilty
    assert table.wrong("guilty") == [("mutated-input", "while it was timed")]
    assert table.wrong("other") == [] and table.examiner.inputs_intact()


@pytest.mark.parametrize("in_place", [False, True])
def test_who_changes_its_input_at_last_is_named_for_that(in_place: bool) -> None:
    """Its output is wrong by what the input holds now, and right by what it held: the change is what is wrong."""
    table, honest = Table(), Table().honest()

    def launch(x: torch.Tensor) -> Any:
        y = honest(x)
        x.copy_(y)
        return x if in_place else y

    table.examiner.after(Contestant("guilty", launch))
    assert table.wrong("guilty")[0] == ("mutated-input", "after timing")
    assert len(table.wrong("guilty")) == 1 + in_place
    assert table.examiner.inputs_intact()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[1].neg_(),
        lambda x: x.copy_(x.roll(1, 1)),
        lambda x: None,
    ],
    ids=["a-row-that-is-not-watched", "a-permutation", "nothing"],
)
def test_a_change_that_no_checksum_sees_is_seen_at_the_end(change: Callable[[torch.Tensor], Any]) -> None:
    table = Table()
    contestant = Contestant("it", table.honest())
    before = table.inputs[0].clone()
    change(table.inputs[0])
    table.examiner.left(contestant)
    assert table.examiner.inputs_intact() == torch.equal(before, table.inputs[0])


@pytest.mark.parametrize(("sets", "watched"), [(1, 1), (8, 8), (9, 5), (16, 8), (512, 8)])
def test_up_to_eight_inputs_are_watched(sets: int, watched: int) -> None:
    c = Case(Op.RMSNORM, 40, 8, "float16")
    given = [draw_input(c, CPU, i) for i in range(sets)]
    examiner = Examiner(c, given, draw_operands(c, CPU, 0), 0, Table().parent, lambda *_: None)  # type: ignore[arg-type]
    assert len(examiner.watched) == watched
    assert {len(x) for x in examiner.watched} == {3}, "on a CPU every sixteenth row"


def test_the_memory_of_the_last_output_is_poisoned_before_a_call_that_is_examined() -> None:
    table = Table()
    kept = [torch.ones(64, 256) for _ in range(3)]
    table.examiner.set_up(Contestant("it", table.honest(), outputs=list(kept)), 1)
    assert torch.isnan(kept[1]).all()
    assert (kept[0] == 1).all() and (kept[2] == 1).all()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.view(-1), lambda x: x[3:]], ids=["same", "view", "rows"])
def test_an_output_that_is_its_input_is_not_poisoned_but_found(view: Launch) -> None:
    table = Table()
    table.examiner.set_up(Contestant("it", view, outputs=[None, view(table.inputs[1]), None]), 1)
    assert table.examiner.inputs_intact()
    assert whole_life(table, view)[0][1] == "before timing"


def test_an_output_that_cannot_be_poisoned_is_left_alone() -> None:
    table = Table()
    for kept in (None, [1], torch.ones(2, dtype=torch.int32)):
        table.examiner.set_up(Contestant("it", table.honest(), outputs=[kept] * 3), 0)


def test_what_is_of_the_wrong_kind_is_told_and_not_sent() -> None:
    table = Table()
    table.examiner.show("it", 0, torch.ones(64, 256).half(), "a timed call")
    assert [event for event, _ in table.parent.sent] == ["output"]
    kind = {"type": "Tensor", "shape": [64, 256], "dtype": "float16", "device": "cpu"}
    assert table.parent.sent[0][1]["kind"] == [kind]


def test_the_breadcrumb_names_who_is_called() -> None:
    table = Table()
    seen: list[Any] = []
    it = Contestant("it", lambda x: (seen.append(table.parent.on), table.honest()(x))[1])
    table.examiner.before("it", it.launch)
    table.examiner.entered(Contestant("other", table.honest()))
    table.examiner.after(it)
    assert set(seen) == {(CASE.name, "it")}


def test_a_contestant_that_is_right_here_and_wrong_in_other_eyes_is_found_there() -> None:
    """One that fools this process, by replacing what checks it, is judged in another."""
    table = Table()
    wrong = torch.zeros(64, 256)
    table.examiner.set_up(Contestant("it", table.honest(), outputs=[None] * 3), 0)
    table.examiner.show("it", 0, wrong, "a timed call")
    ((_, when, said),) = table.parent.verdicts
    assert when == "a timed call" and "by a process apart" in str(said)
