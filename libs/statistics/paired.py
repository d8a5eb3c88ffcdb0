"""Two answers to each of the same questions: whether they differ, and by how much.

What both got alike says nothing about a difference, whichever way it went; only the discordant pairs do. So two
versions on one data set are told apart by far fewer cases than two data sets would take.
"""

from math import sqrt

from scipy.special import bdtr

from libs.statistics.intervals import LEVEL, Estimate, normal_quantile

_HALVINGS = 60  # of an interval of at most length 2: below what a double can tell apart


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p value of "a pair is as likely to be only the first's as only the second's", two-sided.

    `only_first` pairs have a yes from the first alone. Given the discordant pairs, the yes of each is a fair coin's:
    twice the smaller binomial tail, at most 1; 1 where there are none. Source: Q. McNemar (1947), Psychometrika 12,
    153-157, in its exact form. ValueError for a count below zero.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts of pairs cannot be below zero: {only_first} and {only_second}")
    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5)))


def paired_difference(only_first: int, only_second: int, *, n: int, level: float = LEVEL) -> Estimate | None:
    """The first's rate of yes less the second's over n pairs, with its score interval; None without pairs.

    The interval holds every difference that a score test of these pairs does not refute: narrow where the two mostly
    agree, never outside -1 to 1, and wider than nothing where they never differ. Source: T. Tango (1998), Statistics in
    Medicine 17, 891-908; among those recommended by Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33,
    2850-2875. ValueError where there are more discordant pairs than pairs.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > n:
        raise ValueError(f"{only_first} and {only_second} discordant pairs of {n}")
    if n == 0:
        return None
    value = (only_first - only_second) / n
    z = normal_quantile(0.5 + level / 2)
    high = _end(only_first, only_second, n=n, z=z)
    return Estimate(value, -_end(only_second, only_first, n=n, z=z), high)


def _end(only_first: int, only_second: int, *, n: int, z: float) -> float:
    """The greatest difference that the score test does not refute: its statistic falls from 0 at the estimate on."""
    inside, outside = (only_first - only_second) / n, 1.0
    if inside >= 1 or _score(outside, only_first, only_second, n=n) >= -z:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if _score(middle, only_first, only_second, n=n) >= -z:
            inside = middle
        else:
            outside = middle
    return inside


def _score(difference: float, only_first: int, only_second: int, *, n: int) -> float:
    """How far off the pairs are, in standard errors, if the true difference is this.

    The standard error is that at the likeliest rate of pairs that are only the second's, given the difference: Tango's
    equations for the restricted estimate.
    """
    b = -only_first - only_second + (2 * n - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    only_seconds = (sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * only_seconds + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if only_first - only_second == n * difference else float("-inf")
    return (only_first - only_second - n * difference) / sqrt(variance)
