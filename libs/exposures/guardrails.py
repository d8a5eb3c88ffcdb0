"""When an arm is taken back: a candidate that fails, is slow, or lets through what the control would have denied.

Every guardrail is looked at again and again, every few seconds, so its evidence is of a kind that holds however often
one looks: where the bound is kept, the chance that it is ever called broken is at most `ALPHA`. What both arms suffer
blames neither: no candidate is held to a bound that the control itself may not keep.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Final

from libs.exposures.counts import ArmCounts
from libs.llm.experiments import Experiment, bounds_of
from libs.statistics.sequential import rate_evidence

ALPHA: Final = 0.01
NEEDED: Final = 1 / ALPHA
"""The evidence at which a guardrail is broken."""
MOST_EVIDENCE: Final = 1e9
"""Where counting it ends: more would change nothing."""
SLOW_SHARE: Final = 0.05
"""The share of answers that may be slower than a 95th percentile."""
LEAST_WITHOUT_CONTROL: Final = 30
"""Judged exposures after which a control that was given nothing excuses nobody."""
_EDGE: Final = 1e-6  # a bound of 0 or 1 is one this near
_GRID: Final = 32
_THIRDS: Final = 12


@dataclass(frozen=True, slots=True)
class GuardrailState:
    """One guardrail of one candidate.

    `bound` is as configured: a rate, or milliseconds for `p95_latency_ms`. `observed` is the rate of answers that were
    invalid, of calls that ran out of time, of answers slower than the bound, or how much more often the candidate
    allows than the control; None without data. `n` is what the rate is of. `evidence` against "it keeps the bound, or
    is no worse than the control" ends at `MOST_EVIDENCE`; the guardrail is `breached` from `NEEDED` on.
    """

    name: str
    arm: str
    bound: float
    observed: float | None
    n: int
    evidence: float
    breached: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class _Rate:
    """A guardrail on how often something happens."""

    hits: Callable[[ArmCounts], int]
    n: Callable[[ArmCounts], int]
    words: str


RATES: Final[Mapping[str, _Rate]] = {
    "invalid_rate": _Rate(lambda arm: arm.invalid, lambda arm: arm.judged, "answers were invalid"),
    "timeout_rate": _Rate(lambda arm: arm.timed_out, lambda arm: arm.judged, "calls ran out of time"),
    "p95_latency_ms": _Rate(lambda arm: arm.slow, lambda arm: arm.answered, "answers took longer than {bound:g} ms"),
}


def evaluate(experiment: Experiment, counts: Mapping[str, ArmCounts]) -> list[GuardrailState]:
    """Every guardrail that is on, for every candidate that has weight."""
    control = counts.get(experiment.control, ArmCounts(experiment.control))
    bounds = bounds_of(experiment.guardrails)
    states: list[GuardrailState] = []
    for arm, weight in experiment.arms:
        if arm == experiment.control or weight <= 0:
            continue
        candidate = counts.get(arm, ArmCounts(arm))
        for name, bound in bounds.items():
            if bound is not None and name in RATES:
                states.append(_rate(name, candidate, control, bound=bound))
            elif bound is not None:
                states.append(_turned(name, candidate, control, bound=bound))
    return states


def arms_without(
    arms: Sequence[tuple[str, float]], gone: Collection[str], *, active: str
) -> tuple[tuple[str, float], ...]:
    """The arms when some are taken back: the share of each goes to the active version, the others keep theirs.

    () where nobody but the active version has weight then.
    """
    left: dict[str, float] = {}
    for version, weight in arms:
        heir = active if version in gone else version
        left[heir] = left.get(heir, 0) + weight
    return tuple(left.items()) if any(weight > 0 for version, weight in left.items() if version != active) else ()


def _rate(name: str, candidate: ArmCounts, control: ArmCounts, *, bound: float) -> GuardrailState:
    rate = RATES[name]
    hits, n = rate.hits(candidate), rate.n(candidate)
    its_hits, its_n = rate.hits(control), rate.n(control)
    allowed = SLOW_SHARE if name == "p95_latency_ms" else bound
    words = "nothing to judge by yet"
    if n:
        beside = f", of the control {its_hits} of {its_n} ({its_hits / its_n:.1%})" if its_n else ""
        words = f"{hits} of {n} {rate.words.format(bound=bound)} ({hits / n:.1%}){beside}; {allowed:.1%} are allowed"
    return _state(
        name,
        candidate.arm,
        bound=bound,
        observed=hits / n if n else None,
        n=n,
        evidence=worse_than_both((hits, n), (its_hits, its_n), bound=allowed),
        words=words,
    )


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
    at most p + bound" times that against "mine is p or more". Without data of both there is none.
    """
    (hits, n), (its_hits, its_n) = candidate, control
    if not n or not its_n or bound >= 1:
        return 1.0

    def at(p: float) -> float:
        return rate_evidence(hits, n, bound=p + bound) * _evidence_below(its_hits, its_n, bound=p)

    high = 1 - bound - _EDGE
    likely = (n * (hits / n - bound) + its_hits) / (n + its_n)
    return min(MOST_EVIDENCE, _least(at, low=_EDGE, high=high, guess=likely))


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


def _turned(name: str, candidate: ArmCounts, control: ArmCounts, *, bound: float) -> GuardrailState:
    """How much more often the candidate allows than the control.

    Units are drawn by chance, so that is the net share of decisions that the candidate turns from deny to allow.
    """
    words, observed = "nothing to judge by yet", None
    if candidate.judged and not candidate.decided:
        words = "no decisions to judge by"
    if candidate.decided and control.decided:
        mine, its = candidate.allowed / candidate.decided, control.allowed / control.decided
        observed = mine - its
        words = (
            f"it allows {mine:.1%} of {candidate.decided}, the control {its:.1%} of {control.decided}: "
            f"{100 * observed:+.1f} points; {100 * bound:g} more are allowed"
        )
    return _state(
        name,
        candidate.arm,
        bound=bound,
        observed=observed,
        n=candidate.decided,
        evidence=turned_beyond(independent(candidate), independent(control), bound=bound),
        words=words,
    )


def independent(counts: ArmCounts) -> tuple[int, int]:
    """Allowed and decided, as many as independent decisions would tell as much; (0, 0) where units were not counted.

    An arm is given to a unit as a whole, so the decisions of a unit may hang together. The design effect is the
    variance of the rate clustered by unit, the sum of (t - n * rate)^2 over the square of all decisions times
    G / (G - 1), over that of independent decisions, and at least 1; where all decisions are the same, a unit counts
    once. Rounded down. Sources: Korn and Graubard (1998), Survey Methodology 24, 193-201; Cameron and Miller (2015),
    Journal of Human Resources 50, 317-372.
    """
    n, units = counts.decided, counts.units
    if not n or units is None or units.nn <= 0:
        return 0, 0
    rate, clusters = counts.allowed / n, n * n / units.nn
    effect = units.nn / n
    if 0 < rate < 1 and clusters > 1:
        squares = units.tt - 2 * rate * units.nt + rate * rate * units.nn
        effect = max(1.0, squares / (n * rate * (1 - rate)) * clusters / (clusters - 1))
    if units.units == n:
        return counts.allowed, n
    return int(counts.allowed / effect), int(n / effect)


def _state(
    name: str, arm: str, *, bound: float, observed: float | None, n: int, evidence: float, words: str
) -> GuardrailState:
    broken = evidence >= NEEDED
    verdict = f", and the evidence is {evidence:.3g} where {NEEDED:g} is enough" if broken else ""
    return GuardrailState(
        name=name,
        arm=arm,
        bound=bound,
        observed=observed,
        n=n,
        evidence=evidence,
        breached=broken,
        sentence=f"{arm}, {name}: {words}{verdict}",
    )
