"""Who is compared with whom, what asks for a rerun, and the width that a run stops by."""

from collections.abc import Sequence

import pytest
from made import CASE, COLD, CPU, DEVICE, FUSED, HOST, WALL, concluded, control, manifest, measured, recorded

from norm_fusion import metrics
from norm_fusion.evidence.claims import fastest, needs_rerun, widest
from norm_fusion.records import Cache, Call, Label, Measurement, Status, Timer
from norm_fusion.spec import CONTROL, ROOF, Case

PEER = "liger-rmsnorm"


def claimed(
    *contestants: Measurement, profiles: Sequence[str] = ("torch-eager", FUSED), case: Case = CASE
) -> set[object]:
    made = recorded([contestants] * 3, case=case)
    found = concluded(made, manifest(profiles=list(profiles), cases=[case.name])).calls
    assert len({call.claim for call in found}) == len(found)
    return {(call.profile, call.baseline) for call in found}


def test_who_is_judged_over_whom() -> None:
    names = ["torch-eager", "torch-native", "torch-compile", FUSED, PEER, ROOF]
    found = claimed(*(measured(name, 0.1) for name in names), control(0.1, of="torch-compile"))
    torch = names[:3]
    assert found == {
        *((mine, base) for mine in (FUSED, PEER) for base in torch),
        *((mine, "torch-eager") for mine in torch[1:]),
        (CONTROL, "torch-compile"),
    }


def test_the_baseline_depends_on_the_operator() -> None:
    layer = Case.parse("layernorm-1024x1024-float16")
    found = claimed(*(measured(name, 0.1) for name in ("torch-eager", "torch-native", "torch-compile")), case=layer)
    assert found == {("torch-eager", "torch-native"), ("torch-compile", "torch-native")}


def test_without_pytorch_the_first_that_was_asked_for_is_the_baseline() -> None:
    rows = [measured(name, 0.1) for name in (PEER, FUSED, ROOF)]
    assert claimed(*rows, control(), profiles=(FUSED, PEER)) == {(PEER, FUSED), (CONTROL, FUSED)}
    # The first of all serves another operator: the first that is there counts.
    assert claimed(*rows, profiles=("triton-fused-layernorm", PEER, FUSED)) == {(FUSED, PEER)}


def test_where_pytorch_was_asked_for_and_is_missing_nothing_takes_its_place() -> None:
    gone = measured("torch-eager", None, status=Status.UNAVAILABLE, reason="r")
    assert claimed(gone, measured(FUSED, 0.1), measured(PEER, 0.1)) == set()
    assert claimed(measured(FUSED, 0.1), measured(PEER, 0.1)) == set()


def test_two_that_failed_claim_nothing_of_each_other() -> None:
    failed = [measured(name, None, status=Status.FAILED, reason="r") for name in ("torch-eager", FUSED)]
    assert claimed(*failed) == set()


def test_every_series_that_both_have_is_judged_and_enqueueing_never() -> None:
    every = dict.fromkeys((COLD, DEVICE, WALL, HOST, ("device", "hot"), ("wall", "hot")), 0.1)
    made = recorded([[measured("torch-eager", every), measured(FUSED, {**every, ("graph", "hot"): 0.1})]] * 3)
    found = {(call.timer, call.cache) for call in concluded(made).calls}
    assert found == {COLD, DEVICE, WALL, ("device", "hot"), ("wall", "hot")}


def call(label: Label, timer: Timer = "graph", cache: Cache = "cold", **more: object) -> Call:
    fields = {"case": CASE.name, "profile": FUSED, "baseline": "torch-eager", "timer": timer, "cache": cache}
    return Call.model_validate(fields | {"label": label, "code": "x", "reason": "x", "rule": 1} | more)


@pytest.mark.parametrize(
    ("calls", "reruns"),
    [
        ([call(Label.RERUN_NOISE)], True),
        ([call(Label.RERUN_NOISE, "wall")], True),  # a CPU: there is no graph
        ([call(Label.SUPPORTED), call(Label.RERUN_NOISE, "wall"), call(Label.RERUN_NOISE, "device")], False),
        ([call(Label.RERUN_NOISE, "device", "hot"), call(Label.RERUN_NOISE, "wall", "hot")], False),
        ([call(Label.RERUN_NOISE, profile=CONTROL)], False),
        ([call(Label.RERUN_NOISE, profile="torch-native")], True),
        ([call(Label.INCONCLUSIVE), call(Label.INVALID, profile=PEER)], False),
        ([], False),
    ],
)
def test_a_rerun_is_for_the_claims_that_an_answer_rests_on(calls: list[Call], reruns: bool) -> None:
    assert needs_rerun(calls) == ([CASE.name] if reruns else [])


SPREAD = {name: [1.0, 1.0 + by, 1.0 - by] for name, by in (("small", 0.001), ("large", 0.01), ("huge", 0.2))}


def width(ratios: Sequence[float]) -> float:
    return metrics.half_width(*metrics.interval(ratios))


def test_the_width_is_that_of_the_worst_headline_claim() -> None:
    """Over the baseline, and over the fastest PyTorch: how wide the others are is no matter."""

    def process(i: int) -> list[Measurement]:
        return [
            measured("torch-eager", 1.0 * SPREAD["small"][i]),
            measured("torch-native", 0.5 * SPREAD["large"][i]),
            measured("torch-compile", 0.7 * SPREAD["huge"][i]),
            measured(FUSED, {COLD: 0.4, DEVICE: 0.4 * SPREAD["huge"][i]}),
            control(0.4 * SPREAD["huge"][i]),
        ]

    pooled = concluded(recorded(process(i) for i in range(3))).pooled
    assert widest(pooled, CASE.name) == pytest.approx(width(SPREAD["large"]), rel=1e-6)
    assert widest(pooled, "another") is None


def test_the_fastest_is_the_one_over_which_the_speedup_is_smallest() -> None:
    """A median of all samples may belong to processes that tuned themselves well, and forget the others."""
    eager, steady = 10.0, [1.1, 1.1, 1.1]
    tuned = [1.0, 1.0, 2.0]
    made = recorded(
        [
            [measured("torch-eager", eager), measured("torch-native", a), measured("torch-compile", b)]
            for a, b in zip(steady, tuned, strict=True)
        ]
    )
    rows = {row.profile: row for row in concluded(made).pooled}
    assert (rows["torch-compile"].p50_ms or 0) < (rows["torch-native"].p50_ms or 0)
    assert fastest(rows) == "torch-native"
    del rows["torch-eager"]
    assert fastest(rows) == "torch-compile", "by p50 where there is nothing to be compared over"


def test_a_wrong_pytorch_is_not_the_fastest() -> None:
    made = recorded(
        [
            measured("torch-eager", 1.0 * SPREAD["small"][i]),
            measured("torch-native", 0.5, status=Status.WRONG, reason="r"),
            measured("torch-compile", 0.6 * SPREAD["large"][i]),
            measured(FUSED, 0.4),
        ]
        for i in range(3)
    )
    assert widest(concluded(made).pooled, CASE.name) == pytest.approx(width(SPREAD["large"]), rel=1e-6)


def test_on_a_cpu_the_width_is_that_of_pytorch_over_the_baseline() -> None:
    checked = measured(FUSED, None, status=Status.CHECKED, reason="r")
    made = recorded(
        (
            [
                measured("torch-eager", {WALL: 1.0}),
                measured("torch-native", {WALL: 0.9 * SPREAD["large"][i]}),
                measured("torch-compile", {WALL: 0.8 * SPREAD["small"][i]}),
                checked,
                control({WALL: 0.9 * SPREAD["huge"][i]}, of="torch-native"),
                measured(ROOF, {WALL: 0.1}),
            ]
            for i in range(3)
        ),
    )
    found = widest(concluded(made, manifest(CPU)).pooled, CASE.name)
    assert found == pytest.approx(width(SPREAD["large"]), rel=1e-6)


def test_without_pytorch_the_width_is_over_the_first() -> None:
    made = recorded(
        [measured(FUSED, 1.0), measured(PEER, SPREAD["large"][i]), measured(ROOF, SPREAD["huge"][i])] for i in range(3)
    )
    found = widest(concluded(made, manifest(profiles=[FUSED, PEER])).pooled, CASE.name)
    assert found == pytest.approx(width(SPREAD["large"]), rel=1e-6)


def test_the_width_is_that_of_the_newest_attempt_whatever_it_says() -> None:
    def attempt(number: int, spread: str, processes: int) -> list[object]:
        rows = ([measured("torch-eager", SPREAD[spread][i]), measured(FUSED, 0.1)] for i in range(processes))
        return list(recorded(rows, attempt=number))

    pooled = concluded([*attempt(0, "small", 3), *attempt(1, "large", 2)]).pooled  # type: ignore[list-item]
    for rows in (pooled, pooled[::-1]):
        assert widest(rows, CASE.name) == pytest.approx(width(SPREAD["large"][:2]), rel=1e-6)


def test_one_process_has_no_width() -> None:
    made = recorded([[measured("torch-eager", 1.0), measured(FUSED, 0.5)]])
    assert widest(concluded(made).pooled, CASE.name) is None
