"""When an arm is taken back: a candidate that fails, is slow, or lets through what the control would have denied.

Every guardrail is looked at again and again, every few seconds, so its evidence is of a kind that holds however often
one looks: where the bound is kept, the chance that it is ever called broken is at most `ALPHA`. What both arms suffer
blames neither: no candidate is held to a bound that the control itself may not keep.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from libs.exposures.counts import ArmCounts
from libs.exposures.evidence import independent, turned_beyond, worse_than_both
from libs.llm.experiments import Experiment, bounds_of

ALPHA: Final = 0.01
NEEDED: Final = 1 / ALPHA
"""The evidence at which a guardrail is broken."""
SLOW_SHARE: Final = 0.05
"""The share of answers that may be slower than a 95th percentile."""


@dataclass(frozen=True, slots=True)
class GuardrailState:
    """One guardrail of one candidate.

    `bound` is as configured: a rate, or milliseconds for `p95_latency_ms`. `observed` is the rate of answers that were
    invalid, of calls that ran out of time, of answers slower than the bound, or how much more often the candidate
    allows than the control; None without data. `n` is what the rate is of. `evidence` against "it keeps the bound, or
    is no worse than the control" ends at `evidence.MOST_EVIDENCE`; the guardrail is `breached` from `NEEDED` on.
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
    """Every guardrail that is on, for every candidate that has weight.

    Rates are weighed by unit where the units were counted, else as if all exposures were independent; see `to_weigh`.
    """
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


def to_weigh(experiment: Experiment, counts: Mapping[str, ArmCounts]) -> set[str]:
    """The guardrails whose evidence hangs on how units were counted, which costs several times as much as the rest.

    For a rate, that is where exposures would be evidence enough if each were independent; for `deny_to_allow`, where
    the arms are further apart than is allowed. Elsewhere units could not break it.
    """
    return {state.name for state in evaluate(experiment, counts) if state.breached or _apart(state)}


def _apart(state: GuardrailState) -> bool:
    return state.name not in RATES and state.observed is not None and state.observed > state.bound


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
    mine, its = (hits, n), (its_hits, its_n)
    if name in candidate.units:
        mine = independent(hits, n, candidate.units[name])
        its = independent(its_hits, its_n, control.units.get(name))
    allowed = SLOW_SHARE if name == "p95_latency_ms" else bound
    words = "nothing to judge by yet"
    if n:
        beside = f", of the control {its_hits} of {its_n} ({its_hits / its_n:.1%})" if its_n else ""
        words = f"{hits} of {n} {rate.words.format(bound=bound)} ({hits / n:.1%}){beside}; {allowed:.1%} are allowed"
        words += "" if mine == (hits, n) else f"; by units they tell as much as {mine[0]} of {mine[1]} independent ones"
    return _state(
        name,
        candidate.arm,
        bound=bound,
        observed=hits / n if n else None,
        n=n,
        evidence=worse_than_both(mine, its, bound=allowed),
        words=words,
    )


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
        evidence=turned_beyond(_decisions(candidate), _decisions(control), bound=bound),
        words=words,
    )


def _decisions(counts: ArmCounts) -> tuple[int, int]:
    return independent(counts.allowed, counts.decided, counts.units.get("deny_to_allow"))


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
