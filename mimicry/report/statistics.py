"""The statistics of the report: few, paired by artist, and seeded where chance has a part."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

# An odd number, as Simpson's rule needs it.
_POINTS = 1001


def t_probability(t: float, freedom: int) -> float:
    """Return P(T <= t) for `freedom` degrees of freedom, a whole number of at least 1.

    Source: the finite series of Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3
    and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    # Odd: 1, 2/3, 2*4/(3*5), ... times odd powers of the cosine. Even: 1, 1/2, 1*3/(2*4), ... times even.
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 0.0)
    first = 1 if freedom % 2 else 0
    for power in range(first, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    between = math.sin(angle) * total
    if freedom % 2:
        between = 2 / math.pi * (angle + between)
    return 0.5 + between / 2


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return t with P(T <= t) = `probability`, which is above 0.5 and below 1."""
    return _where(lambda t: t_probability(t, freedom), probability, halvings=200)


def _where(function: Callable[[float], float], value: float, *, halvings: int) -> float:
    """Return the argument above zero at which a growing function has a value, by halving an interval."""
    low, high = 0.0, 1.0
    while function(high) < value:
        high *= 2
    for _ in range(halvings):
        middle = (low + high) / 2
        if function(middle) < value:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def paired_t_power(effect_size: float, pairs: int, level: float = 0.05) -> float:
    """Return the probability that a two-sided paired t test finds an effect.

    Under the alternative the statistic has a noncentral t distribution with `pairs` - 1 degrees of freedom
    and noncentrality effect_size * sqrt(pairs). Source: Cohen, Statistical Power Analysis for the Behavioral
    Sciences (1988), chapter 2. The distribution is computed from its definition, (Z + noncentrality) divided
    by the root of a chi-square over its degrees of freedom, by integrating over the latter with Simpson's
    rule.

    Args:
        effect_size: mean of the differences over their standard deviation, Cohen's d_z.
        pairs: at least 2.
    """
    freedom = pairs - 1
    critical = t_quantile(1 - level / 2, freedom)
    noncentrality = effect_size * math.sqrt(pairs)
    # The root of a chi-square over its degrees of freedom is near 1, within about 1/sqrt(2 freedom).
    roots = np.linspace(1e-9, 1 + 12 / math.sqrt(2 * freedom), _POINTS)
    logarithm = (freedom - 1) * np.log(roots) - freedom * roots**2 / 2
    weights = np.exp(logarithm - logarithm.max())
    weights[1:-1:2] *= 4
    weights[2:-1:2] *= 2
    weights /= weights.sum()
    missed = [
        _normal_probability(critical * root - noncentrality)
        - _normal_probability(-critical * root - noncentrality)
        for root in roots.tolist()
    ]
    return float(1 - np.dot(missed, weights))


@cache
def detectable_effect_size(pairs: int, power: float = 0.8, level: float = 0.05) -> float:
    """Return the effect size that a paired t test on so many pairs finds with probability `power`."""
    return _where(lambda size: paired_t_power(size, pairs, level), power, halvings=40)


def _normal_probability(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


LEVEL = 0.05
RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_261
# Of fewer values there are too few different resamples for an interval to mean anything.
FEWEST_FOR_BOOTSTRAP = 5


@dataclass(frozen=True)
class Interval:
    """An interval that holds the mean with 95% confidence."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the values of several artists say together. None stands for what so few values cannot say.

    All but the tests and `effect_size` have the unit of the values.
    """

    count: int
    mean: float
    deviation: float | None
    bootstrap: Interval | None
    t_interval: Interval | None
    wilcoxon: float | None
    sign_test: float | None
    positive: int

    @property
    def effect_size(self) -> float | None:
        """The mean over the standard deviation between artists, Cohen's d_z."""
        return self.mean / self.deviation if self.deviation else None

    @property
    def interval(self) -> Interval | None:
        """The bootstrap's interval; that of the t distribution where there are too few values for it."""
        return self.bootstrap or self.t_interval


def summarize(values: Sequence[float]) -> Summary | None:
    """Return what one value for each artist says of all artists; None without any."""
    if not values:
        return None
    count = len(values)
    several = count > 1
    return Summary(
        count=count,
        mean=math.fsum(values) / count,
        deviation=standard_deviation(values) if several else None,
        bootstrap=bootstrap_interval(values) if count >= FEWEST_FOR_BOOTSTRAP else None,
        t_interval=t_interval(values) if several else None,
        wilcoxon=wilcoxon_test(values) if several else None,
        sign_test=sign_test(values) if several else None,
        positive=sum(value > 0 for value in values),
    )


def standard_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation with n - 1; of at least two values."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float]) -> Interval:
    """Return mean +- t s / sqrt(n), of at least two values. Source: Student, Biometrika 6 (1908)."""
    mean = math.fsum(values) / len(values)
    reach = t_quantile(1 - LEVEL / 2, len(values) - 1) * standard_deviation(values) / math.sqrt(len(values))
    return Interval(mean - reach, mean + reach)


def bootstrap_interval(values: Sequence[float], seed: int = BOOTSTRAP_SEED) -> Interval:
    """Return the percentile interval of the mean, drawing artists with replacement.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. The generator is
    numpy's Philox with `seed`, so that the same values give the same interval on every machine.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = np.asarray(values, dtype=np.float64)[
        generator.integers(0, len(values), size=(RESAMPLES, len(values)))
    ]
    low, high = np.quantile(drawn.mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return Interval(float(low), float(high))


def wilcoxon_test(values: Sequence[float]) -> float | None:
    """Return the exact two-sided p of Wilcoxon's signed-rank test; None where all values are zero.

    Zeros are left out, and equal sizes share their middle rank. The distribution of the rank sum over all
    signs is counted, not approximated, with shared ranks too. Source: Wilcoxon, Biometrics Bulletin 1 (1945);
    Pratt and Gibbons, Concepts of Nonparametric Theory (1981), chapter 3.
    """
    kept = [value for value in values if value]
    if not kept:
        return None
    # Middle ranks are whole or half numbers, so that twice of them are whole.
    ranks = _twice_middle_ranks([abs(value) for value in kept])
    observed = sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0)
    ways = [1] + [0] * sum(ranks)
    for rank in ranks:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    smaller = min(observed, sum(ranks) - observed)
    return min(1.0, 2 * sum(ways[: smaller + 1]) / (1 << len(ranks)))


def _twice_middle_ranks(sizes: Sequence[float]) -> list[int]:
    ordered = sorted(sizes)
    first = {size: ordered.index(size) + 1 for size in set(sizes)}
    count = {size: ordered.count(size) for size in set(sizes)}
    return [2 * first[size] + count[size] - 1 for size in sizes]


def sign_test(values: Sequence[float]) -> float | None:
    """Return the exact two-sided p of the sign test; zeros are left out, None where all values are zero.

    Source: Dixon and Mood, Journal of the American Statistical Association 41 (1946).
    """
    signs = [value > 0 for value in values if value]
    if not signs:
        return None
    smaller = min(sum(signs), len(signs) - sum(signs))
    ways = sum(math.comb(len(signs), count) for count in range(smaller + 1))
    return min(1.0, 2 * ways / (1 << len(signs)))


def holm(probabilities: Sequence[float | None]) -> list[float | None]:
    """Return the p values of several tests, raised so that one false alarm among all stays within the level.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979). None, a test that was not done, stays None.
    """
    known = sorted((p, place) for place, p in enumerate(probabilities) if p is not None)
    adjusted: list[float | None] = [None] * len(probabilities)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Spread:
    """A standard deviation pooled over groups, and its degrees of freedom."""

    deviation: float
    freedom: int


def pooled_spread(groups: Iterable[Sequence[float]]) -> Spread | None:
    """Return the standard deviation within groups, pooled over them; None where no group has two values.

    The root of the mean of the groups' variances, weighted by their degrees of freedom. Source: Snedecor and
    Cochran, Statistical Methods (1989), chapter 6.
    """
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return None
    squares = math.fsum(standard_deviation(group) ** 2 * (len(group) - 1) for group in several)
    return Spread(math.sqrt(squares / freedom), freedom)
