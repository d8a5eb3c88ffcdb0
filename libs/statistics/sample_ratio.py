"""Whether the arms of an experiment got the shares they were meant to get.

A share that is off beyond chance means that something between the assignment and the count depends on the arm. Then no
comparison of the arms can be trusted, however narrow its interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum

from scipy.special import bdtr, bdtrc, chdtrc

ALARM_BELOW = 0.001
"""As is usual. It holds for one look: looked at after each of a hundred batches, some two sound experiments of 100 ever
raise an alarm. A real mismatch soon is far below, and stays there."""

LEAST_EXPECTED = 5.0
"""Below, the chi-square distribution is no good guide: W. G. Cochran (1954), Biometrics 10, 417-451."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """How far the counts are from their shares: the statistic, its degrees of freedom, the chance of as much."""

    chi_square: float
    freedom: int
    p_value: float

    @property
    def alarm(self) -> bool:
        """Whether chance is no explanation."""
        return self.p_value < ALARM_BELOW


def sample_ratio(counts: Mapping[str, int], weights: Mapping[str, float]) -> SampleRatio | None:
    """Pearson's chi-square of counted units against the configured weights, which need not add up to anything.

    None where there is nothing to compare: fewer than two arms with weight, or no units. Where an arm may expect fewer
    than five units, p is exact instead: twice the smaller binomial tail of the arm that is furthest off, times the
    number of arms where there are more than two. Units in an arm without weight cannot be chance: p is 0 then.
    Source: K. Pearson (1900), Philosophical Magazine 50, 157-175; for experiments, Fabijan et al. (2019), Diagnosing
    sample ratio mismatch in online controlled experiments, KDD '19, 2156-2164.
    """
    arms = [arm for arm, weight in weights.items() if weight > 0]
    units = sum(counts.values())
    if len(arms) < 2 or units <= 0:
        return None
    whole = fsum(weights[arm] for arm in arms)
    shares = {arm: weights[arm] / whole for arm in arms}
    chi_square = fsum((counts.get(arm, 0) - units * share) ** 2 / (units * share) for arm, share in shares.items())
    freedom = len(arms) - 1
    if any(n for arm, n in counts.items() if arm not in shares):
        p_value = 0.0
    elif units * min(shares.values()) < LEAST_EXPECTED:
        furthest = min(_two_tails(counts.get(arm, 0), units, share=share) for arm, share in shares.items())
        p_value = min(1.0, furthest * (1 if len(arms) == 2 else len(arms)))
    else:
        p_value = float(chdtrc(freedom, chi_square))
    return SampleRatio(chi_square, freedom, p_value)


def _two_tails(hits: int, n: int, *, share: float) -> float:
    """Twice the smaller of the chances of so few and of so many hits in n, at most 1."""
    few = float(bdtr(hits, n, share))
    many = float(bdtrc(hits - 1, n, share)) if hits else 1.0
    return min(1.0, 2 * min(few, many))
