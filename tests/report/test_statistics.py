"""The statistics, against scipy and against counting by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mimicry.report.statistics import (
    FEWEST_FOR_BOOTSTRAP,
    bootstrap_interval,
    detectable_effect_size,
    holm,
    paired_t_power,
    pooled_spread,
    sign_test,
    standard_deviation,
    summarize,
    t_interval,
    t_probability,
    t_quantile,
    wilcoxon_test,
)

SAMPLES = [
    [0.3, -0.1],
    [0.011, 0.02, -0.004, 0.013, 0.017],
    [1.5, -2.25, 3.125, 0.5, -0.75, 4.0, 2.0, -1.0],
    np.random.default_rng(7).normal(0.3, 1, 26).tolist(),
]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 25, 100])
def test_the_t_distribution_is_that_of_scipy(freedom: int) -> None:
    for t in (-3.5, -0.2, 0.0, 0.7, 2.0, 8.0):
        assert t_probability(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)
    for probability in (0.6, 0.975, 0.999):
        assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


@pytest.mark.parametrize("pairs", [2, 3, 5, 10, 26, 80])
@pytest.mark.parametrize("effect_size", [0.0, 0.2, 0.57, 1.0, 2.5])
def test_the_power_is_that_of_the_noncentral_t(pairs: int, effect_size: float) -> None:
    critical, shift = stats.t.ppf(0.975, pairs - 1), effect_size * math.sqrt(pairs)
    # Where a tail is next to nothing, scipy has no number for it.
    tails = [1 - stats.nct.cdf(critical, pairs - 1, shift), stats.nct.cdf(-critical, pairs - 1, shift)]
    wanted = np.nansum(tails)

    assert paired_t_power(effect_size, pairs) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("pairs", [3, 10, 26])
def test_what_is_detectable_has_the_power(pairs: int) -> None:
    assert paired_t_power(detectable_effect_size(pairs), pairs) == pytest.approx(0.8, abs=1e-6)


def test_the_normal_approximation_is_near_for_many_pairs() -> None:
    assert detectable_effect_size(200) == pytest.approx(math.sqrt(7.84 / 200), rel=0.01)


@pytest.mark.parametrize("values", SAMPLES)
def test_intervals_and_tests_are_those_of_scipy(values: list[float]) -> None:
    interval = t_interval(values)
    wanted = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))

    assert (interval.low, interval.high) == pytest.approx(tuple(map(float, wanted)), rel=1e-9)
    assert standard_deviation(values) == pytest.approx(float(np.std(values, ddof=1)))
    assert wilcoxon_test(values) == pytest.approx(float(stats.wilcoxon(values, method="exact").pvalue))
    positive = sum(value > 0 for value in values)
    assert sign_test(values) == pytest.approx(float(stats.binomtest(positive, len(values)).pvalue))


def test_shared_ranks_are_counted_over_all_signs() -> None:
    values = [1.0, 1.0, -1.0, 2.0, 2.0, 0.0, -3.0, 3.0]
    kept = [value for value in values if value]
    ranks = stats.rankdata([abs(value) for value in kept])
    middle = sum(ranks) / 2
    observed = abs(sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0) - middle)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(kept))
    ]

    assert wilcoxon_test(values) == pytest.approx(
        sum(abs(total - middle) >= observed for total in sums) / 2 ** len(kept)
    )


def test_only_zeros_say_nothing() -> None:
    assert wilcoxon_test([0.0, 0.0]) is None
    assert sign_test([0.0]) is None


def test_the_bootstrap_is_near_that_of_scipy_and_always_the_same() -> None:
    values = SAMPLES[-1]
    ours = bootstrap_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)

    assert ours == bootstrap_interval(values)
    assert ours != bootstrap_interval(values, seed=1)
    width = ours.high - ours.low
    assert ours.low == pytest.approx(float(theirs.confidence_interval.low), abs=width / 20)
    assert ours.high == pytest.approx(float(theirs.confidence_interval.high), abs=width / 20)


def test_holm_raises_what_was_tested_together() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_spread_is_pooled_over_groups_of_several() -> None:
    groups = [[1.0, 2.0, 4.0], [10.0, 10.5], [7.0]]
    spread = pooled_spread(groups)

    assert spread is not None
    variance = (2 * np.var(groups[0], ddof=1) + np.var(groups[1], ddof=1)) / 3
    assert spread.deviation == pytest.approx(math.sqrt(float(variance)))
    assert spread.freedom == 3
    assert pooled_spread([[1.0], [2.0]]) is None


def test_what_few_values_cannot_say_is_left_out() -> None:
    assert summarize([]) is None
    one = summarize([0.2])
    two = summarize([0.2, 0.4])
    enough = summarize([0.1 * number for number in range(1, FEWEST_FOR_BOOTSTRAP + 1)])

    assert one is not None and two is not None and enough is not None
    assert (one.mean, one.interval, one.wilcoxon, one.sign_test, one.effect_size) == (
        0.2,
        None,
        None,
        None,
        None,
    )
    assert two.bootstrap is None
    assert two.interval == two.t_interval
    assert enough.interval == enough.bootstrap
    assert enough.positive == enough.count


def test_equal_values_have_no_effect_size() -> None:
    same = summarize([0.25, 0.25, 0.25])

    assert same is not None
    assert same.effect_size is None
