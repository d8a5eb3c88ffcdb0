"""The figures of one version on the clean cases. Twins have sections of their own.

No answer counts for nobody, except in `answered`. An invalid answer lets no entry through, at the gate as here: it
counts as a deny wherever decisions are compared with something. What came from the cache says nothing about times,
tokens, cost and a first attempt (only what was valid in the end is kept), and is left out there.
"""

import math
from typing import Any, Final

import numpy as np

from libs.evaluation.figures.columns import OK, Columns, Small
from libs.evaluation.figures.estimates import (
    Cells,
    Figure,
    Numbers,
    Truths,
    mean,
    quantile_of,
    rate,
    rate_of_cases,
)
from libs.evaluation.running.plan import Prices
from libs.judgement.assess import POLICY

NAMES: Final = (
    "answered", "validity", "first_validity", "allow_rate", "deny_rate", "target_agreement", "wrongly_allowed",
    "wrongly_blocked", "rules_agreement", "grounded", "brier", "brier_realised", "return_allowed", "return_blocked",
    "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "first_token_p50_ms", "first_token_p95_ms", "tokens_in",
    "tokens_out", "cost_usd", "repeat_agreement", "cached_rate",
)  # fmt: skip
LEAST_FOR_P99 = 1_000
"""With fewer cases hardly ten lie above, and the largest of them is anyone's guess."""
QUANTILES: Final = {
    "latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99,
    "first_token_p50_ms": 0.5, "first_token_p95_ms": 0.95,
}  # fmt: skip

Figures = dict[str, Figure | None]


class Part:
    """One version's answers to the clean cases: arrays are (cases, repeats)."""

    def __init__(self, columns: Columns, version: int) -> None:
        chosen = columns.clean
        self.prompt = columns.plan.versions[version].prompt
        self.status: Small = columns.status[chosen, version]
        self.asked: Truths = self.status > 0
        self.ok: Truths = self.status == OK
        self.answered: Truths = columns.answered[chosen, version]
        self.allowed: Truths = columns.allowed[chosen, version]
        self.decided: Truths = columns.allow[chosen, version] >= 0
        self.rules: Small = columns.rules_allow[chosen, version]
        self.grounded: Small = columns.grounded[chosen, version]
        self.first_valid: Truths = columns.first_valid[chosen, version]
        self.cached: Truths = columns.cached[chosen, version]
        self.fresh: Truths = self.answered & ~self.cached
        self.timed: Truths = columns.timed[chosen, version]
        self.latency_ms: Numbers = columns.latency_ms[chosen, version]
        self.first_token_ms: Numbers = columns.first_token_ms[chosen, version]
        self.tokens_in: Numbers = columns.tokens_in[chosen, version]
        self.tokens_out: Numbers = columns.tokens_out[chosen, version]
        self.said = columns.said[chosen, version]
        self.target: Small = columns.cases.target[chosen]
        self.won: Small = columns.cases.won[chosen]
        self.made: Numbers = columns.cases.made[chosen]
        self.cells: Cells = columns.cases.cells.at(chosen)


def figures_of(part: Part, *, cost: Numbers | None) -> Figures:
    """Every figure of `NAMES`, None where there is nothing to make it of. `cost` is in USD for each answer."""
    found: Figures = dict.fromkeys(NAMES)
    found |= _answers(part) | _times(part) | _spent(part, cost)
    if part.prompt == POLICY:
        found |= _decisions(part) | _outcomes(part)
    return found


def allow_shares(part: Part, truth: Small) -> tuple[Numbers, Numbers, Truths]:
    """The probability of an allow for each case, as the share of its answers; the truth; and which cases have both."""
    answers = part.answered.sum(axis=1)
    chosen: Truths = (answers > 0) & (truth >= 0)
    shares = (part.allowed & part.answered).sum(axis=1)[chosen] / answers[chosen]
    return shares, truth[chosen].astype(np.float64), chosen


def confusion(part: Part) -> dict[str, int] | None:
    """How many answers are right and wrong in which way; None where no case has a target."""
    if part.prompt != POLICY or not (part.target >= 0).any():
        return None
    to_allow, to_deny = (part.answered & (part.target == wanted)[:, None] for wanted in (1, 0))
    return {
        "right_allow": int((to_allow & part.allowed).sum()),
        "right_deny": int((to_deny & ~part.allowed).sum()),
        "wrongly_allowed": int((to_deny & part.allowed).sum()),
        "wrongly_blocked": int((to_allow & ~part.allowed).sum()),
    }


def caught_of(part: Part) -> tuple[int, int]:
    """How many answers to cases that are to be denied let nothing through, and how many of these are invalid."""
    caught = part.answered & (part.target == 0)[:, None] & ~part.allowed
    return int(caught.sum()), int((caught & ~part.ok).sum())


def cases_timed(part: Part) -> int:
    """How many cases have a time."""
    return int(part.timed.any(axis=1).sum())


def beyond(part: Part) -> list[str]:
    """The names of the quantiles that fall on questions without an answer, beyond any limit, and so have no figure."""
    return [name for name, found in _quantiles(part).items() if found is not None and math.isinf(found.value)]


def cost_of(part: Part, prices: Prices | None, *, hours_each: float) -> Numbers | None:
    """USD for each answer: its tokens by price per million, and its share of the machine's hours."""
    if prices is None:
        return None
    tokens = part.tokens_in * prices.in_per_mtok + part.tokens_out * prices.out_per_mtok
    return tokens / 1e6 + hours_each * prices.per_hour


def as_documents(figures: Figures) -> dict[str, Any]:
    """Figures as JSON."""
    return {name: None if found is None else found.document() for name, found in figures.items()}


def _answers(part: Part) -> Figures:
    return {
        "answered": rate(part.answered, part.asked),
        "validity": rate(part.ok, part.answered),
        "first_validity": rate(part.first_valid, part.fresh),
        "cached_rate": rate(part.cached, part.answered),
        "grounded": rate(part.grounded == 1, part.ok & (part.grounded >= 0)),
        "repeat_agreement": _repeat_agreement(part),
    }


def _repeat_agreement(part: Part) -> Figure | None:
    """The share of cases whose answers all say the same: the same decision, or for other prompts the same words."""
    said = np.where(part.allowed, 1, 0) if part.prompt == POLICY else part.said
    several: Truths = part.answered.sum(axis=1) > 1
    least = np.where(part.answered, said, np.iinfo(np.int64).max).min(axis=1)
    most = np.where(part.answered, said, np.iinfo(np.int64).min).max(axis=1)
    return rate_of_cases((least == most)[several])


def _decisions(part: Part) -> Figures:
    to_allow, to_deny = (part.answered & (part.target == wanted)[:, None] for wanted in (1, 0))
    right = np.where((part.target == 1)[:, None], part.allowed, ~part.allowed)
    return {
        "allow_rate": rate(part.allowed, part.answered),
        "deny_rate": rate(part.decided & ~part.allowed, part.answered),
        "target_agreement": rate(right, to_allow | to_deny),
        "wrongly_allowed": rate(part.allowed, to_deny),
        "wrongly_blocked": rate(~part.allowed, to_allow),
        "rules_agreement": rate(part.allowed == (part.rules == 1), part.answered),
    }


def _outcomes(part: Part) -> Figures:
    settled = part.answered & ~np.isnan(part.made)[:, None]
    made = np.broadcast_to(np.nan_to_num(part.made)[:, None], settled.shape)
    found: Figures = {
        "return_allowed": mean(made, settled & part.allowed, part.cells, unit="return"),
        "return_blocked": mean(made, settled & ~part.allowed, part.cells, unit="return"),
    }
    for name, truth in (("brier", part.target), ("brier_realised", part.won)):
        shares, wanted, chosen = allow_shares(part, truth)
        errors = ((shares - wanted) ** 2)[:, None]
        found[name] = mean(errors, np.ones_like(errors, dtype=np.bool_), part.cells.at(chosen), unit="score")
    return found


def _times(part: Part) -> Figures:
    return {
        name: None if found is None or math.isinf(found.value) else found for name, found in _quantiles(part).items()
    }


def _quantiles(part: Part) -> Figures:
    """The quantiles of times; infinite where they fall on what got no answer."""
    streamed: Truths = part.timed & (part.first_token_ms > 0)
    if not (streamed & part.answered).any():
        streamed = np.zeros_like(streamed)
    found: Figures = {}
    for name, probability in QUANTILES.items():
        times, of = (part.latency_ms, part.timed) if name.startswith("latency") else (part.first_token_ms, streamed)
        enough = probability < 0.99 or cases_timed(part) >= LEAST_FOR_P99
        found[name] = quantile_of(times, of, probability) if enough else None
    return found


def _spent(part: Part, cost: Numbers | None) -> Figures:
    return {
        "tokens_in": mean(part.tokens_in, part.fresh, part.cells, unit="tokens"),
        "tokens_out": mean(part.tokens_out, part.fresh, part.cells, unit="tokens"),
        "cost_usd": None if cost is None else mean(cost, part.fresh, part.cells, unit="usd"),
    }
