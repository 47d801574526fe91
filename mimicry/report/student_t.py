"""Student's t distribution and the power of the paired t test, for whole degrees of freedom."""

import math
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
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if t_probability(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def paired_t_power(effect_size: float, pairs: int, level: float = 0.05) -> float:
    """Return the probability that a two-sided paired t test finds an effect.

    Under the alternative the statistic has a noncentral t distribution with `pairs` - 1 degrees of freedom
    and noncentrality effect_size * sqrt(pairs). Source: Cohen, Statistical Power Analysis for the Behavioral
    Sciences (1988), chapter 2. The distribution is computed from its definition, (Z + noncentrality) divided
    by the root of a chi-square over its degrees of freedom, by
    integrating over the latter with Simpson's rule.

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
    low, high = 0.0, 1.0
    while paired_t_power(high, pairs, level) < power:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        if paired_t_power(middle, pairs, level) < power:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _normal_probability(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
