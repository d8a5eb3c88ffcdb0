"""Intervals and evidence that hold however often one looks, and whenever one stops.

A classical interval is right 95 times of 100 when it is looked at once, at a time fixed beforehand. Looked at after
every batch until it says something, it soon says something. These are wider by about half, and may be watched.

The confidence sequence is asymptotic: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit
theory and asymptotic confidence sequences, The Annals of Statistics 52 (2024), arXiv:2103.06476. It treats the mean of
t clusters as a random walk, by Robbins' normal mixture (1970, Annals of Mathematical Statistics 41, 1397-1409):
with g = t * rho^2, the truth leaves value +- error * sqrt(2 (1 + 1/g) ln(sqrt(1 + g) / alpha)) at any time with a
chance of at most alpha, once t is large enough. `LEAST_CLUSTERS` is what large enough is here.
"""

from math import exp, inf, log, log1p, sqrt

from scipy.special import betaincc, betaln

from libs.statistics.clustering import Clustered
from libs.statistics.intervals import LEVEL, Estimate

PEAK = 50.0
"""The number of clusters at which the sequence is tightest: some ten weeks of market days, when a desk would like to
know. It matters little: from 20 to 1,000 clusters its interval is at most a tenth wider than one tuned for them."""

LEAST_CLUSTERS = 20
"""With fewer clusters, the sequence of a difference is not to be looked at. Simulated experiments decided it, looked at
after every day, with strong effects of days and tickers, 5 and 50 tickers, rates near 0 and 1, skewed values, and arms
of a half, a tenth and a fiftieth. Arms without a difference were ever called different at most 3 times of 100 already
from 10 clusters on, where 5 may be. But a true difference was left out up to 6 times, and by a one-sided bound of 99 %
up to twice; from 20 on it was 3 times and once."""

LEAST_CLUSTERS_OF_A_MEAN = 100
"""The same for the mean of one arm, which is for reading and decides nothing. In a difference the skew of both arms
cancels, more or less; a mean has its days' weather whole, and misses the rare bad day until it has come. Where all of a
rate fails on one day in fifty, it was left out 4 times of 100, but 16 times from 20 clusters on."""

TUNED = 0.05
"""The alpha the mixture is tuned for. One for all levels, so that p <= alpha exactly where the interval of level
1 - alpha leaves zero out, whatever alpha is."""

_MOST = 690.0  # evidence is cut here, in logarithms: what is that strong need not be told apart, and JSON can hold it
_PRIOR = 0.5
_LOOSEST = 0.5  # one-sided sequences of level three quarters and less are tuned alike
_STEPS = 100_000  # more than sqrt(n) of any n there can be


def mixture_variance(peak: float, *, alpha: float = TUNED) -> float:
    """rho squared, such that the two-sided sequence of level 1 - alpha is about tightest at `peak` clusters.

    Waudby-Smith et al., section "Tuning Robbins' normal mixture"; the one-sided one takes twice its alpha.
    """
    doubled = -2 * log(alpha)
    return (doubled + log1p(doubled)) / peak


def confidence_sequence(found: Clustered, *, level: float = LEVEL, peak: float = PEAK) -> Estimate:
    """The estimate with an interval that holds the truth at all times at once with a chance of `level`.

    Waudby-Smith et al., equation 9, the variance of a cluster being error^2 times the number of clusters. Without any
    cluster the interval is the whole line.
    """
    if found.clusters <= 0:
        return Estimate(found.value, -inf, inf)
    grown = found.clusters * mixture_variance(peak)
    half = found.error * sqrt(2 * (1 + 1 / grown) * (log1p(grown) / 2 - log(1 - level)))
    return Estimate(found.value, found.value - half, found.value + half)


def lower_bound(found: Clustered, *, level: float, peak: float = PEAK) -> float:
    """What the truth never falls below at any time, with a chance of `level`: a one-sided sequence.

    Waudby-Smith et al., appendix on one-sided sequences: ln(1 + sqrt(1 + g) / (2 alpha)) in place of the logarithm
    above. It bounds that of Robbins' half-normal mixture from above, in closed form, since the normal distribution is
    at least 1 - exp(-x^2 / 2) / 2 for x above zero; at 99 % it lies within a thousandth from 20 clusters on.
    """
    if found.clusters <= 0:
        return -inf
    alpha = 1 - level
    grown = found.clusters * mixture_variance(peak, alpha=min(2 * alpha, _LOOSEST))
    return found.value - found.error * sqrt(2 * (1 + 1 / grown) * log1p(sqrt(1 + grown) / (2 * alpha)))


def always_valid_p(found: Clustered, *, peak: float = PEAK) -> float:
    """The least alpha whose confidence sequence leaves zero out, at most 1; below alpha ever with that chance at most.

    One over the mixture's likelihood ratio, exp(z^2/2 * g / (1 + g)) / sqrt(1 + g), with z = value / error.
    """
    if found.clusters <= 0 or found.value == 0:
        return 1.0
    if found.error <= 0:
        return 0.0
    grown = found.clusters * mixture_variance(peak)
    z = found.value / found.error
    return min(1.0, exp(log1p(grown) / 2 - z * z / 2 * grown / (1 + grown)))


def rate_evidence(hits: int, n: int, *, bound: float) -> float:
    """Evidence against "each has a chance of at most `bound` of being a hit, whatever came before": an e-process.

    While that is so, it ever reaches 1 / alpha with a chance of at most alpha, for any number of looks and any n, and
    without an appeal to large numbers (J. Ville, 1939). It is the likelihood ratio of a rate above the bound to the
    bound itself, mixed over such rates by Jeffreys' Beta(1/2, 1/2) cut off at the bound: each ratio grows by 1 on
    average at the bound and by less below it. Source: H. Robbins (1970), as above; Howard, Ramdas, McAuliffe and Sekhon
    (2021), The Annals of Statistics 49, 1055-1080, for beta mixtures. ValueError for a bound outside (0, 1) or hits
    outside 0..n.
    """
    if not 0 < bound < 1:
        raise ValueError(f"a bound lies between 0 and 1, not at {bound}")
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    a, b = hits + _PRIOR, n - hits + _PRIOR
    at_bound = hits * log(bound) + (n - hits) * log1p(-bound)
    found = _log_upper_beta(a, b, bound) - _log_upper_beta(_PRIOR, _PRIOR, bound) - at_bound
    return exp(min(_MOST, found))


def _log_upper_beta(a: float, b: float, x: float) -> float:
    """The logarithm of the integral of u^(a-1) (1-u)^(b-1) from x to 1."""
    above = float(betaincc(a, b, x))
    if above > 1e-280:
        return float(betaln(a, b)) + log(above)
    # So far out in the tail that floating point loses it: the factor in front, and a continued fraction.
    return a * log(x) + b * log1p(-x) - log(b) + log(_fraction(b, a, 1 - x))


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta integral from 0 to x, which is x^a (1-x)^b / a times it.

    It converges within some sqrt(a + b) steps where x is below a / (a + b). Source: NIST Digital Library of
    Mathematical Functions, 8.17.22, evaluated by Lentz's method as modified by Thompson and Barnett (1986), Journal of
    Computational Physics 64, 490-509.
    """
    front = 1.0
    back = 1 / (1 - (a + b) / (a + 1) * x)
    found = back
    for step in range(1, _STEPS):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        change = 1.0
        for term in (even, odd):
            back, front = 1 / (1 + term * back), 1 + term / front
            change = back * front
            found *= change
        if abs(change - 1) < 1e-14:
            break
    return found
