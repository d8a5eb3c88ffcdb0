"""What arms are compared by: for each metric the exposures it speaks of, and the value each of them has.

Only first answers count, so that an exposure speaks once. Only valid answers are kept in the reply cache, so validity
is a matter of those that were not: else an arm would look better for having been asked before. A version that cannot
be asked at all has an invalid answer, without a time and tokens. An answer of the policy that is not valid counts as a
deny, as the gate takes it: to leave it out would let an arm choose its own sample. What no answer came for counts for
nobody here; timeouts have a guardrail, and the sample-ratio check at outcome shows an arm that loses its answers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from libs.exposures.columns import Bools, Columns, Floats
from libs.llm.experiments import METRICS, worths_of

POLICY: Final = "policy"

Kind: TypeAlias = Literal["rate", "milliseconds", "tokens", "score", "return"]
Better: TypeAlias = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `says` is what it means in words; `better` is the better direction, None where neither is.

    `present` says which exposures have a value and `value` gives it; elsewhere it may be anything finite.
    `decides` marks what only the policy has.
    """

    name: str
    says: str
    kind: Kind
    better: Better | None
    present: Callable[[Columns], Bools]
    value: Callable[[Columns], Floats]
    decides: bool = True

    @property
    def worth(self) -> float:
        """The smallest difference worth having where the experiment names none, in the metric's own unit."""
        return METRICS[self.name]

    @property
    def settles(self) -> bool:
        """Whether it needs outcomes."""
        return self.name in {"brier", "return_allowed", "return_blocked"}

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return self.kind in {"rate", "score"}


def _answered(rows: Columns) -> Bools:
    return rows.answered


def _asked(rows: Columns) -> Bools:
    return rows.answered & ~rows.cached


def _timed(rows: Columns) -> Bools:
    return _asked(rows) & rows.timed


def _ruled(rows: Columns) -> Bools:
    return rows.answered & rows.ruled


def _with_outcome(rows: Columns) -> Bools:
    return rows.answered & rows.entry & rows.settled


def _let_through(rows: Columns) -> Bools:
    return _with_outcome(rows) & rows.rules_allow & rows.allow


def _held_back(rows: Columns) -> Bools:
    return _with_outcome(rows) & rows.rules_allow & ~rows.allow


def _brier(rows: Columns) -> Floats:
    return (rows.allow != (rows.made > 0)).astype(float)


ALL: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric(
            "validity", "the share of answers that validate, of those not kept from before", "rate", "up",
            _asked, lambda rows: rows.valid.astype(float), decides=False,
        ),
        Metric(
            "latency", "the mean time of an answer that was not kept from before", "milliseconds", "down",
            _timed, lambda rows: rows.total_ms, decides=False,
        ),
        Metric(
            "tokens", "the mean tokens, in and out, of an answer that was not kept from before", "tokens", "down",
            _timed, lambda rows: rows.tokens, decides=False,
        ),
        Metric(
            "deny_rate", "the share of answers that do not allow", "rate", None,
            _answered, lambda rows: (~rows.allow).astype(float),
        ),
        Metric(
            "agreement", "the share of answers that say what the rules in code say", "rate", None,
            _ruled, lambda rows: (rows.allow == rows.rules_allow).astype(float),
        ),
        Metric(
            "brier", "the mean of (allow - made money)², over entries with an outcome", "score", "down",
            _with_outcome, _brier,
        ),
        Metric(
            "return_allowed", "the mean return, in the entry's direction, of entries that policy and rules allow",
            "return", "up", _let_through, lambda rows: rows.made,
        ),
        Metric(
            "return_blocked", "the mean return, in the entry's direction, of entries that only the policy blocks",
            "return", "down", _held_back, lambda rows: rows.made,
        ),
    )
}  # fmt: skip
"""Every metric by its name. Brier, G. W. (1950), Monthly Weather Review 78, 1-3, with a probability of 0 or 1."""


def metrics_of(key: str, worths: Mapping[str, float] | None) -> dict[Metric, float]:
    """The metrics an experiment on the prompt `key` compares by, each with the smallest difference worth having.

    `worths` is as the experiment says it; None or nothing means all. A prompt that decides nothing has no others than
    validity, latency and tokens. Raises `KeyError` for a name that is not in `ALL`.
    """
    wanted = {ALL[name]: worth for name, worth in worths_of(worths).items()}
    return {metric: worth for metric, worth in wanted.items() if key == POLICY or not metric.decides}
