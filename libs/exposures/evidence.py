"""Evidence against a candidate beside a control, of a kind that may be looked at any time, and what units are worth."""

from collections.abc import Callable
from math import exp, log
from typing import Final

from libs.exposures.counts import UnitSums
from libs.statistics.sequential import rate_evidence

MOST_EVIDENCE: Final = 1e9
"""Where counting it ends: more would change nothing."""
LEAST_WITHOUT_CONTROL: Final = 30
"""Judged exposures after which a control that was given nothing excuses nobody."""
_EDGE: Final = 1e-6  # a bound of 0 or 1 is one this near
_GRID: Final = 32
_THIRDS: Final = 12


def worse_than_both(candidate: tuple[int, int], control: tuple[int, int], *, bound: float) -> float:
    """Evidence, at most `MOST_EVIDENCE`, against "the candidate's rate is at most the bound or that of the control".

    Both are given as (hits, n). Were the control's rate p known, the evidence would be that against "the candidate's is
    at most p", and more by as much as the control's own counts speak against "mine is p or more". The least of these
    products over all p from the bound to 1 is what is left whatever p is; at p = bound the control has no say. As the
    product of independent e-processes it holds at every look, by Ville's inequality: Ramdas, Grünwald, Vovk and Shafer
    (2023), Statistical Science 38, 576-601, sections 2 and 4. Before the control was given anything it may be as bad
    as can be, until the candidate was given so much more that it is plain that the control gets nothing.
    """
    (hits, n), (its_hits, its_n) = candidate, control
    if not n:
        return 1.0
    bound = min(max(bound, _EDGE), 1 - _EDGE)
    alone = rate_evidence(hits, n, bound=bound)
    if alone <= 1:
        return alone
    if not its_n:
        return min(MOST_EVIDENCE, alone) if n >= LEAST_WITHOUT_CONTROL else 1.0

    def at(p: float) -> float:
        return rate_evidence(hits, n, bound=p) * _evidence_below(its_hits, its_n, bound=p)

    likely = (hits + its_hits) / (n + its_n)
    return min(MOST_EVIDENCE, alone, _least(at, low=bound, high=1 - _EDGE, guess=likely))


def turned_beyond(candidate: tuple[int, int], control: tuple[int, int], *, bound: float) -> float:
    """Evidence, at most `MOST_EVIDENCE`, against "the candidate's rate is at most that of the control and the bound".

    As `worse_than_both`: the least, over all rates p the control may have, of the evidence against "the candidate's is
    at most p + bound" times that against "mine is p or more". Without data of both there is none, nor where the bound
    is so near 1 that nothing lies beyond it.
    """
    (hits, n), (its_hits, its_n) = candidate, control
    if not n or not its_n or bound >= 1 - 2 * _EDGE:
        return 1.0

    def at(p: float) -> float:
        return rate_evidence(hits, n, bound=p + bound) * _evidence_below(its_hits, its_n, bound=p)

    high = 1 - bound - _EDGE
    likely = (n * (hits / n - bound) + its_hits) / (n + its_n)
    return min(MOST_EVIDENCE, _least(at, low=_EDGE, high=high, guess=likely))


def independent(hits: int, n: int, units: UnitSums | None) -> tuple[int, int]:
    """`hits` of `n`, as many as independent ones would tell as much; (0, 0) where units were not counted.

    An arm is given to a unit as a whole, so what comes of a unit may hang together. The design effect is the variance
    of the rate clustered by unit, the sum of (t - n * rate)^2 over the square of n in all times G / (G - 1), over that
    of independent ones, and at least 1; where all came to the same, a unit counts once. Rounded down, and never to
    nothing. Sources: Korn and Graubard (1998), Survey Methodology 24, 193-201; Cameron and Miller (2015), Journal of
    Human Resources 50, 317-372.
    """
    if not n or units is None or units.nn <= 0:
        return 0, 0
    if units.units == n:
        return hits, n
    rate, clusters = hits / n, n * n / units.nn
    effect = units.nn / n
    if 0 < rate < 1 and clusters > 1:
        squares = units.tt - 2 * rate * units.nt + rate * rate * units.nn
        effect = max(1.0, squares / (n * rate * (1 - rate)) * clusters / (clusters - 1))
    return int(hits / effect), max(1, int(n / effect))


def _evidence_below(hits: int, n: int, *, bound: float) -> float:
    """Evidence against "the rate is at least `bound`"."""
    return rate_evidence(n - hits, n, bound=1 - bound)


def _least(at: Callable[[float], float], *, low: float, high: float, guess: float) -> float:
    """The least value of a product of evidence between two rates; any that is at most 1, as soon as one is found.

    A grid that is even in the logarithm of the odds finds the valley, thirds its ground.
    """
    found = at(min(max(guess, low), high))
    if found <= 1 or low >= high:
        return found
    first, last = log(low / (1 - low)), log(high / (1 - high))
    rates = [1 / (1 + exp(-(first + (last - first) * step / _GRID))) for step in range(_GRID + 1)]
    values = [at(min(max(rate, low), high)) for rate in rates]
    best = values.index(min(values))
    left, right = max(rates[max(best - 1, 0)], low), min(rates[min(best + 1, _GRID)], high)
    for _ in range(_THIRDS):
        third = (right - left) / 3
        if at(left + third) <= at(right - third):
            right -= third
        else:
            left += third
    return min(found, *values, at((left + right) / 2))
