"""The arithmetic, against values worked out by hand."""

import pytest

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


def test_speedup_is_the_mean_log_ratio_of_paired_block_medians() -> None:
    assert metrics.speedup([[2.0, 2.0, 90.0], [8.0]], [[1.0], [2.0]]) == pytest.approx((2.0 * 4.0) ** 0.5)


def test_speedup_is_blind_to_a_drift_that_both_sides_share() -> None:
    drift = [1.0, 2.0, 4.0, 8.0]
    assert metrics.speedup([[3.0 * d] for d in drift], [[2.0 * d] for d in drift]) == pytest.approx(1.5)


def test_speedup_leaves_out_rounds_that_one_side_lacks() -> None:
    assert metrics.speedup([[2.0], [2.0], [100.0]], [[1.0], [1.0]]) == pytest.approx(2.0)
    assert metrics.speedup([[2.0], []], [[1.0], [5.0]]) == pytest.approx(2.0)


def test_geometric_mean() -> None:
    assert metrics.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
