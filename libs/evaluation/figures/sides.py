"""Two runs' answers to the same cases, side by side."""

from dataclasses import dataclass

import numpy as np

from libs.evaluation.figures.columns import Columns
from libs.evaluation.figures.estimates import Codes, Numbers, Truths
from libs.evaluation.running.plan import Plan


@dataclass(frozen=True, slots=True)
class Both:
    """Two runs with the numbers of the clean cases that both have, side by side.

    `unlike` counts ids that both have for another ticker or day; their cases are in neither.
    """

    first: Columns
    second: Columns
    at_first: Codes
    at_second: Codes
    only_first: int
    only_second: int
    unlike: int

    @property
    def same_loop(self) -> bool:
        """Whether both runs asked as fast as answers came, or both at planned moments."""
        return (self.first.plan.rate is None) == (self.second.plan.rate is None)


@dataclass(frozen=True, slots=True)
class Side:
    """One run's answers to the pairs, one element each; `items` says where their texts are."""

    columns: Columns
    status: Codes
    allowed: Truths
    right: Truths
    known: Truths
    first_valid: Truths
    grounded: Codes
    fresh: Truths
    latency_ms: Numbers
    tokens_in: Numbers
    tokens_out: Numbers
    items: Codes


def matched(first: Columns, second: Columns) -> Both:
    """The cases that both runs have. One that stands for another ticker or day under the same id is in neither."""
    places = {second.cases.ids[at]: int(at) for at in np.flatnonzero(second.clean)}
    own = np.flatnonzero(first.clean)
    same = [(int(at), places[first.cases.ids[at]]) for at in own if first.cases.ids[at] in places]
    alike = [pair for pair in same if about(first, pair[0]) == about(second, pair[1])]
    found = np.array(alike, dtype=np.int64).reshape(-1, 2)
    return Both(
        first=first,
        second=second,
        at_first=found[:, 0],
        at_second=found[:, 1],
        only_first=len(own) - len(same),
        only_second=len(places) - len(same),
        unlike=len(same) - len(alike),
    )


def about(columns: Columns, case: int) -> tuple[str, str]:
    """A case's ticker and day."""
    cases = columns.cases
    return cases.ticker_names[int(cases.tickers[case])], cases.day_names[int(cases.days[case])]


def paired_versions(first: Plan, second: Plan) -> list[tuple[int, int]]:
    """Which versions are held against each other, as numbers of the plans' versions."""
    pairs = [
        (one, other)
        for one, mine in enumerate(first.versions)
        for other, theirs in enumerate(second.versions)
        if mine.prompt == theirs.prompt
    ]
    numbered = {
        first.versions[one].prompt
        for one, other in pairs
        if first.versions[one].version == second.versions[other].version
    }
    return [
        (one, other)
        for one, other in pairs
        if first.versions[one].prompt not in numbered or first.versions[one].version == second.versions[other].version
    ]


def sides(both: Both, one: int, other: int) -> tuple[Side, Side, Codes]:
    """The pairs of two versions: of each case the first repeat that both answered; and the cases' numbers."""
    repeats = min(both.first.plan.repeat, both.second.plan.repeat)
    answered = both.first.answered[both.at_first, one, :repeats] & both.second.answered[both.at_second, other, :repeats]
    some = answered.any(axis=1)
    repeat = answered.argmax(axis=1)[some]
    mine, theirs = both.at_first[some], both.at_second[some]
    return _side(both.first, mine, one, repeat=repeat), _side(both.second, theirs, other, repeat=repeat), mine


def times(both: Both, one: int, other: int) -> tuple[Numbers, Numbers, Truths]:
    """Latencies of two versions as (cases, repeats), and where both have one; infinite as in `Columns`."""
    repeats = min(both.first.plan.repeat, both.second.plan.repeat)
    before, after = (both.at_first, one, slice(repeats)), (both.at_second, other, slice(repeats))
    of = both.first.timed[before] & both.second.timed[after]
    return both.first.latency_ms[before], both.second.latency_ms[after], of


def _side(columns: Columns, cases: Codes, version: int, *, repeat: Codes) -> Side:
    at = (cases, version, repeat)
    allowed = columns.allowed[at]
    target = columns.cases.target[cases]
    return Side(
        columns=columns,
        status=columns.status[at].astype(np.int64),
        allowed=allowed,
        right=allowed == (target == 1),
        known=target >= 0,
        first_valid=columns.first_valid[at],
        grounded=columns.grounded[at].astype(np.int64),
        fresh=~columns.cached[at],
        latency_ms=columns.latency_ms[at],
        tokens_in=columns.tokens_in[at],
        tokens_out=columns.tokens_out[at],
        items=(cases * len(columns.plan.versions) + version) * columns.plan.repeat + repeat,
    )
