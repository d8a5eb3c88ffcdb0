"""The rules in code: what must hold before the model's word counts. Pure; the model can only narrow what they allow.

A rule is PASS, DENY, or UNKNOWN where its datum is missing, stale or nonsense; UNKNOWN denies like DENY and says so
with `UNKNOWN_<RULE>`. Thresholds and the rules a feed goes without are data: `configs/rules.yaml`. `docs/rules.md`
documents each rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from math import fsum, isfinite, sqrt
from pathlib import Path
from typing import Literal, TypeAlias

from libs.judgement.thresholds import MaxAgeDays, Rule, RulesFile, Thresholds, read_rules_file
from libs.judgement.types import Fact, Inputs, RulesVerdict

Borrow: TypeAlias = Literal["available", "none"]
MacroRegime: TypeAlias = Literal["risk_on", "risk_off", "neutral"]

RULES_FILE = Path("configs/rules.yaml")
LEAST_FACTORS = 3
UNKNOWN_PREFIX = "UNKNOWN_"


class Finding(Enum):
    """What one rule says."""

    PASS = "pass"  # noqa: S105 - a finding, not a password
    DENY = "deny"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class KnownFacts:
    """What the facts say at `as_of`, None where a fact is missing, stale or unreadable."""

    earnings_in_days: int | None
    borrow: Borrow | None
    macro_regime: MacroRegime | None


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules with their thresholds. Every method is total: it answers for any `Inputs` and never raises."""

    thresholds: Thresholds
    max_age_days: MaxAgeDays
    off: Mapping[str, frozenset[Rule]]

    @classmethod
    def load(cls, path: Path) -> "Rules":
        """Read `configs/rules.yaml`. Raises `RulesError` naming the file and the entry that is wrong."""
        return cls.of(read_rules_file(path))

    @classmethod
    def of(cls, file: RulesFile) -> "Rules":
        """The rules that a checked file describes."""
        off = {family: frozenset(names) for family, names in file.off.items()}
        return cls(thresholds=file.thresholds, max_age_days=file.max_age_days, off=off)

    def switched_off(self, feed: str) -> tuple[str, ...]:
        """The rules a feed goes without; a feed's family is its name up to the first colon ("replay:1" is "replay")."""
        off = self.off.get(feed.partition(":")[0], frozenset())
        return tuple(rule.value for rule in Rule if rule in off)

    def judge(self, inputs: Inputs, feed: str) -> RulesVerdict:
        """Every rule that is not off for this feed; allowed only when all pass."""
        off = self.switched_off(feed)
        findings = {rule: CHECKS[rule](inputs, self) for rule in Rule if rule.value not in off}
        reasons = tuple(reason_code(rule, finding) for rule, finding in findings.items() if finding is not Finding.PASS)
        return RulesVerdict(allow=not reasons, reasons=reasons)

    def known(self, inputs: Inputs) -> KnownFacts:
        """What may be relied on at `as_of`; the prompts are told the same."""
        earnings = self.fresh(inputs, "earnings_date", self.max_age_days.earnings_date)
        borrow = self.fresh(inputs, "borrow", self.max_age_days.borrow)
        regime = self.fresh(inputs, "macro_regime", self.max_age_days.macro_regime)
        days = inputs.earnings_in_days
        return KnownFacts(
            earnings_in_days=days if earnings is not None and days is not None and days >= 0 else None,
            borrow=borrow_of(borrow.value) if borrow is not None else None,
            macro_regime=regime_of(regime.value) if regime is not None else None,
        )

    def fresh(self, inputs: Inputs, name: str, max_age_days: float) -> Fact | None:
        """The fact of that name, unless it is too old at `as_of` or was not known then."""
        fact = inputs.facts.get(name)
        if fact is None or (fact.as_of.tzinfo is None) is not (inputs.as_of.tzinfo is None):
            return None
        age = inputs.as_of - fact.as_of
        return fact if timedelta(0) <= age <= timedelta(days=max_age_days) else None


def reason_code(rule: Rule, finding: Finding) -> str:
    """The code given for a rule that does not pass."""
    return rule.value if finding is Finding.DENY else f"{UNKNOWN_PREFIX}{rule.value}"


def borrow_of(value: object) -> Borrow | None:
    """A borrow fact's value, or None for anything but its two words."""
    words: dict[str, Borrow] = {"available": "available", "none": "none"}
    return words.get(value) if isinstance(value, str) else None


def regime_of(value: object) -> MacroRegime | None:
    """A macro regime fact's value, or None for anything but its three words."""
    words: dict[str, MacroRegime] = {"risk_on": "risk_on", "risk_off": "risk_off", "neutral": "neutral"}
    return words.get(value) if isinstance(value, str) else None


def deny_if(condition: bool) -> Finding:
    """DENY when the condition holds."""
    return Finding.DENY if condition else Finding.PASS


def no_signal(inputs: Inputs, rules: Rules) -> Finding:
    """There is nothing to enter when the forecast has no side."""
    del rules
    return deny_if(inputs.signal.side not in {"buy", "sell"})


def earnings(inputs: Inputs, rules: Rules) -> Finding:
    """No entry within `earnings_days` trading days before an announcement."""
    days = rules.known(inputs).earnings_in_days
    return Finding.UNKNOWN if days is None else deny_if(days <= rules.thresholds.earnings_days)


def factor_dispersion(inputs: Inputs) -> float | None:
    """Population standard deviation across the factors; None with fewer than three, or any that is not finite."""
    scores = tuple(inputs.factors.values())
    if len(scores) < LEAST_FACTORS or not all(isfinite(score) for score in scores):
        return None
    try:
        middle = fsum(scores) / len(scores)
        return sqrt(fsum((score - middle) ** 2 for score in scores) / len(scores))
    except OverflowError:
        return None


def dispersion(inputs: Inputs, rules: Rules) -> Finding:
    """No entry when the factors contradict each other too much."""
    spread = factor_dispersion(inputs)
    return Finding.UNKNOWN if spread is None else deny_if(not spread <= rules.thresholds.max_factor_dispersion)


def at_least(value: float | None, minimum: float) -> Finding:
    """DENY below the minimum, UNKNOWN without a number."""
    return Finding.UNKNOWN if value is None or not isfinite(value) else deny_if(value < minimum)


def coverage(inputs: Inputs, rules: Rules) -> Finding:
    """No entry on a history with too many holes."""
    return at_least(inputs.coverage_pct, rules.thresholds.min_coverage_pct)


def liquidity(inputs: Inputs, rules: Rules) -> Finding:
    """No entry into what hardly trades."""
    return at_least(inputs.liquidity_usd, rules.thresholds.min_liquidity_usd)


def borrow(inputs: Inputs, rules: Rules) -> Finding:
    """No short without shares to borrow; any other side needs none."""
    if inputs.signal.side != "sell":
        return Finding.PASS
    known = rules.known(inputs).borrow
    return Finding.UNKNOWN if known is None else deny_if(known == "none")


def macro(inputs: Inputs, rules: Rules) -> Finding:
    """No buy in a risk-off regime, no sell in a risk-on one."""
    known = rules.known(inputs).macro_regime
    if known is None:
        return Finding.UNKNOWN
    return deny_if((inputs.signal.side, known) in {("buy", "risk_off"), ("sell", "risk_on")})


CHECKS: Mapping[Rule, Callable[[Inputs, Rules], Finding]] = {
    Rule.NO_SIGNAL: no_signal,
    Rule.EARNINGS: earnings,
    Rule.DISPERSION: dispersion,
    Rule.COVERAGE: coverage,
    Rule.LIQUIDITY: liquidity,
    Rule.BORROW: borrow,
    Rule.MACRO: macro,
}
