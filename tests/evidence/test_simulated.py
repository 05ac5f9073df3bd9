"""The rule on simulated runs: how often it errs, and that stopping by width alone does not make it err more."""

import math
import random

from made import FUSED, concluded, control, manifest, measured, recorded

from norm_fusion import metrics
from norm_fusion.evidence.verdicts import verdict
from norm_fusion.records import Label


def simulated(rng: random.Random, processes: int, effect: float = 1.0) -> list[float]:
    """The speedups of processes: a 0.3% offset each on either side, and what 400 samples of 1.5% noise leave."""
    return [
        effect * math.exp(rng.gauss(0, 0.003) - rng.gauss(0, 0.003) + rng.gauss(0, 0.0015)) for _ in range(processes)
    ]


def test_a_kernel_against_itself_is_excluded_in_a_twentieth_and_never_mislabelled() -> None:
    rng = random.Random(20260101)
    trials = [metrics.interval(simulated(rng, 5)) for _ in range(3000)]
    excluded = sum(not low <= 1 <= high for low, high in trials)
    assert 0.035 < excluded / len(trials) < 0.065
    labels = [verdict(*trial)[0] for trial in trials]
    assert not {Label.SUPPORTED, Label.REGRESSION} & set(labels)
    assert labels.count(Label.NO_DIFFERENCE) / len(labels) > 0.9


def test_stopping_by_width_keeps_the_exclusions() -> None:
    """Stopping once 1 is excluded would raise them to a fifth: the rule must not look at it."""
    rng = random.Random(7)
    by_width = by_significance = 0
    for _ in range(1500):
        ratios = simulated(rng, 15)
        ends = [metrics.interval(ratios[:k]) for k in range(5, 16)]
        low, high = next((e for e in ends if metrics.half_width(*e) <= 0.004), ends[-1])
        by_width += not low <= 1 <= high
        by_significance += any(not low <= 1 <= high for low, high in ends)
    assert by_width / 1500 < 0.08
    assert by_significance / 1500 > 0.1


def test_a_true_difference_of_five_percent_is_found() -> None:
    rng = random.Random(3)
    trials = [verdict(*metrics.interval(simulated(rng, 5, 1.05)))[0] for _ in range(300)]
    assert trials.count(Label.SUPPORTED) >= 285


def test_sixty_cases_of_a_control_have_no_false_label() -> None:
    rng = random.Random(11)
    for _ in range(60):
        ratios = simulated(rng, 5)
        run = [[measured(FUSED, 0.1 * r), control(0.1)] for r in ratios]
        (call,) = concluded(recorded(run), manifest(profiles=[FUSED])).calls
        assert call.label in (Label.NO_DIFFERENCE, Label.INCONCLUSIVE)
