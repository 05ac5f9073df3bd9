"""The arithmetic, against values worked out by hand."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from norm_fusion import metrics
from norm_fusion.metrics import Noise


def test_percentiles_are_linear_and_pooled_over_blocks() -> None:
    assert metrics.percentile([[1.0, 2.0], [3.0, 4.0]], 50) == 2.5
    assert metrics.percentile([[1.0, 2.0], [3.0], [4.0]], 95) == pytest.approx(3.85)


def test_rates_have_their_units() -> None:
    assert metrics.gbps(1_000_000_000, 1.0) == 1000.0  # a gigabyte in a millisecond
    assert metrics.tflops(10**12, 1000.0) == 1.0


def test_the_original_experiments_bytes_lie_under_its_cards_roof() -> None:
    # It published 648.9 GB/s on a 600 GB/s card, by counting the row twice.
    from norm_fusion.spec import Case

    assert metrics.gbps(Case.parse("rmsnorm-4096x8192-float16").compulsory_bytes, 0.3103) == pytest.approx(
        432.6, abs=0.1
    )


@pytest.mark.parametrize(
    ("p50", "p95", "label"),
    [
        (1.0, 1.05, Noise.GOOD),
        (1.0, 1.06, Noise.WARN),
        (1.0, 1.15, Noise.WARN),
        (1.0, 1.16, Noise.RERUN),
        (0.002, 0.00225, Noise.GOOD),  # a timer tick is allowed under 10 us
        (0.002, 0.0024, Noise.RERUN),
        (0.010, 0.01151, Noise.RERUN),
    ],
)
def test_noise_labels(p50: float, p95: float, label: Noise) -> None:
    assert metrics.noise_gate(p50, p95) is label


def test_speedup_is_the_middle_log_ratio_of_paired_block_medians() -> None:
    assert metrics.speedup([[2.0, 2.0, 90.0], [8.0]], [[1.0], [2.0]]) == pytest.approx((2.0 * 4.0) ** 0.5)


def test_samples_of_equally_many_are_evened_to_themselves() -> None:
    assert metrics.evened([[[3.0, 1.0], [0.1]], [[7.0, 5.0, 6.0]]]) == [[0.1, 1.0, 3.0], [5.0, 6.0, 7.0]]
    assert metrics.evened([[[1.0, 2.0, 9.0]], [[4.0, 8.0]]]) == [[1.0, 2.0, 9.0], [4.0, 6.0, 8.0]]


def test_a_round_in_five_that_was_disturbed_hardly_moves_a_speedup() -> None:
    quiet = [[1.0], [1.02], [0.98], [1.01], [0.99]] * 4
    disturbed = [[3.0 * block[0]] if i % 5 == 2 else block for i, block in enumerate(quiet)]
    assert metrics.speedup(quiet, [[1.0]] * 20) == pytest.approx(1.0, abs=0.001)
    assert metrics.speedup(disturbed, [[1.0]] * 20) == pytest.approx(1.0, abs=0.015)
    assert metrics.speedup([[1.0]] * 20, disturbed) == pytest.approx(1.0, abs=0.015)


def test_speedup_is_blind_to_a_drift_that_both_sides_share() -> None:
    drift = [1.0, 2.0, 4.0, 8.0]
    assert metrics.speedup([[3.0 * d] for d in drift], [[2.0 * d] for d in drift]) == pytest.approx(1.5)


def test_speedup_leaves_out_rounds_that_one_side_lacks() -> None:
    assert metrics.speedup([[2.0], [2.0], [100.0]], [[1.0], [1.0]]) == pytest.approx(2.0)
    assert metrics.speedup([[2.0], []], [[1.0], [5.0]]) == pytest.approx(2.0)


def test_geometric_mean() -> None:
    assert metrics.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("p50", "p95", "label"),
    [(1.0, 1.25, Noise.GOOD), (1.0, 1.26, Noise.WARN), (1.0, 2.0, Noise.WARN), (1.0, 2.01, Noise.RERUN)],
)
def test_a_shared_cpu_is_given_longer_tails(p50: float, p95: float, label: Noise) -> None:
    assert metrics.noise_gate(p50, p95, "wall") is label


def test_the_interval_is_students_on_logs() -> None:
    # By hand: logs -0.1, 0, 0.1 have s = 0.1; t(2) at 97.5% is 4.302653; 4.302653 * 0.1 / sqrt(3) = 0.248414.
    low, high = metrics.interval([math.exp(-0.1), 1.0, math.exp(0.1)])
    assert (math.log(low), math.log(high)) == (pytest.approx(-0.248414, abs=1e-6), pytest.approx(0.248414, abs=1e-6))


def test_one_ratio_has_no_interval() -> None:
    with pytest.raises(ValueError, match="needs 2 or more ratios, here is 1"):
        metrics.interval([1.0])
    with pytest.raises(ValueError, match="needs 2 or more times on each side, here are 1 and 2"):
        metrics.welch([1.0], [1.0, 2.0])


ratios = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=15)


@settings(deadline=None)  # the first call imports scipy.stats
@given(ratios, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_agrees_with_scipy(values: list[float], level: float) -> None:
    from scipy import stats

    assume(max(values) / min(values) > 1.001)  # scipy has no interval where nothing differs
    logs = [math.log(value) for value in values]
    expected = stats.t.interval(level, len(logs) - 1, loc=sum(logs) / len(logs), scale=stats.sem(logs))
    found = metrics.interval(values, level)
    assert [math.log(end) for end in found] == [pytest.approx(end, rel=1e-9, abs=1e-9) for end in expected]


def test_ratios_that_are_all_the_same_have_a_point_for_an_interval() -> None:
    assert metrics.interval([2.0, 2.0, 2.0]) == (pytest.approx(2.0), pytest.approx(2.0))
    assert metrics.welch([6.0, 6.0], [3.0, 3.0]) == (pytest.approx(2.0),) * 3


@settings(deadline=None)
@given(ratios)
def test_an_interval_turns_over_with_its_ratios_and_holds_their_mean(values: list[float]) -> None:
    low, high = metrics.interval(values)
    assert low <= metrics.geometric_mean(values) * (1 + 1e-12) and metrics.geometric_mean(values) <= high * (1 + 1e-12)
    over = metrics.interval([1 / value for value in values])
    assert over == (pytest.approx(1 / high), pytest.approx(1 / low))


def test_the_half_width_is_a_share() -> None:
    assert metrics.half_width(1 / 1.01, 1.01) == pytest.approx(0.01)
    assert metrics.half_width(5 / 1.01, 5 * 1.01) == pytest.approx(0.01)
    assert metrics.half_width(3.0, 3.0) == 0.0


@settings(deadline=None)
@given(ratios, ratios)
def test_welch_agrees_with_scipy(over: list[float], under: list[float]) -> None:
    from scipy import stats

    assume(max(over) / min(over) > 1.001 and max(under) / min(under) > 1.001)
    logs = [[math.log(value) for value in side] for side in (over, under)]
    found = metrics.welch(over, under)
    assert math.log(found[0]) == pytest.approx(sum(logs[0]) / len(logs[0]) - sum(logs[1]) / len(logs[1]), abs=1e-9)
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert [math.log(end) for end in found[1:]] == [pytest.approx(end, rel=1e-6, abs=1e-6) for end in expected]
