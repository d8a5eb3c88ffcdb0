"""Rows as columns of numbers: a few dozen bytes an answer, however long its texts are.

Items are numbered by case, version and repeat in turn, so a column is a block of (cases, versions, repeats), and a
figure is a sum over a part of it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from libs.evaluation.figures.estimates import Cells, Codes, Numbers, Truths
from libs.evaluation.figures.texts import Texts
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row

Small = npt.NDArray[np.int8]

ABSENT, OK, INVALID, UNAVAILABLE, REFUSED = range(5)
STATUS: Final = {"ok": OK, "invalid": INVALID, "unavailable": UNAVAILABLE, "refused": REFUSED}
STATUS_NAMES: Final = {code: name for name, code in STATUS.items()}
UNSEEN, CLEAN, MASKED, HOSTILE = range(4)
KINDS: Final = {"": CLEAN, "masked": MASKED, "hostile": HOSTILE}
MOST_NAMES = 1_000
"""Different error kinds, or reasons, that are counted by name; a model may invent them without end."""
OTHER = "(others)"
LONGEST_NAME = 60


class RowsError(Exception):
    """The rows are not those of the plan; the message names the item and what does not fit."""


@dataclass(slots=True)
class Cases:
    """One element for each case. A truth value is -1 where it is not known, `made` is NaN then."""

    ids: list[str]
    kind: Small
    target: Small
    won: Small
    made: Numbers
    tickers: Codes
    days: Codes
    twin_of: dict[int, str]
    attack: dict[int, str]
    ticker_names: list[str]
    day_names: list[str]

    @property
    def cells(self) -> Cells:
        """Which ticker and day each belongs to."""
        return Cells(self.tickers, self.days)


@dataclass(slots=True)
class Columns:
    """Every answer. Arrays are (cases, versions, repeats); a truth value is -1 where it is not known.

    Times of the open loop are infinite where no answer came: who asked at that moment waited longer than any limit, and
    leaving the slowest out would make a slower version look faster.
    """

    plan: Plan
    cases: Cases
    status: Small
    allow: Small
    rules_allow: Small
    grounded: Small
    first_valid: Truths
    cached: Truths
    latency_ms: Numbers
    first_token_ms: Numbers
    tokens_in: Numbers
    tokens_out: Numbers
    said: Codes
    errors: list[Counter[str]]
    reasons: list[Counter[str]]
    texts: Texts
    rows: int

    @property
    def answered(self) -> Truths:
        """Where a model replied, validly or not."""
        return (self.status == OK) | (self.status == INVALID)

    @property
    def timed(self) -> Truths:
        """Where the times say something of the model: not from the cache, and answered or known to be infinite."""
        return (self.answered & ~self.cached) | np.isinf(self.latency_ms)

    @property
    def allowed(self) -> Truths:
        """Where an entry would be let through: an invalid answer is none, as at the gate."""
        return self.allow == 1

    @property
    def clean(self) -> Truths:
        """The cases that are nobody's twin."""
        return self.cases.kind == CLEAN

    def item(self, case: int, version: int, repeat: int) -> int:
        """The number of an item."""
        return (case * len(self.plan.versions) + version) * self.plan.repeat + repeat


def columns_of(rows: Iterable[Row], plan: Plan) -> Columns:
    """The columns of rows, in any order. Raises `RowsError` where they are not of this plan, or an item comes twice."""
    found = _empty(plan)
    reader = _Reader(found)
    for row in rows:
        reader.take(row)
    return found


class _Reader:
    """Fills columns, row by row."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._plan = columns.plan
        self._open_loop = columns.plan.rate is not None
        self._tickers: dict[str, int] = {}
        self._days: dict[str, int] = {}
        # Views with one element for each item, which share their memory with the blocks.
        self._flat: dict[str, Any] = {name: getattr(columns, name).reshape(-1) for name in _COLUMNS}

    def take(self, row: Row) -> None:
        """One row."""
        columns, flat, item = self._columns, self._flat, row.item
        case, version = self._checked(row)
        columns.rows += 1
        flat["status"][item] = STATUS[row.status]
        flat["allow"][item] = _truth(row.allow)
        flat["rules_allow"][item] = row.rules_allow
        flat["grounded"][item] = -1 if row.ungrounded is None else not row.ungrounded
        flat["first_valid"][item] = row.status == "ok" and not row.first_error
        flat["cached"][item] = row.cached
        # Both times count from the start of the question; the second turn's wait is after the first token.
        whole, first = (row.late_ms,) * 2 if self._open_loop else (-row.queue_ms, -row.first_queue_ms)
        flat["latency_ms"][item] = max(0.0, row.total_ms + whole)
        flat["first_token_ms"][item] = max(0.0, row.first_token_ms + first) if row.first_token_ms else 0.0
        if self._open_loop and not row.answered:
            flat["latency_ms"][item] = flat["first_token_ms"][item] = np.inf
        flat["tokens_in"][item] = row.tokens_in
        flat["tokens_out"][item] = row.tokens_out
        flat["said"][item] = hash(row.text)
        columns.texts.keep(row)
        if not row.twin:
            if row.status != "ok":
                count(columns.errors[version], error_kind(row))
            else:  # the reasons of a model that answered in another's place say nothing about this one
                for reason in row.reasons:
                    count(columns.reasons[version], reason)
        if columns.cases.kind[case] == UNSEEN:
            self._case(case, row)
        elif columns.cases.ids[case] != row.case:
            raise RowsError(f"item {item} asks case {row.case}, others of its number {columns.cases.ids[case]}")

    def _checked(self, row: Row) -> tuple[int, int]:
        """The case and the version of a row, if the plan says so too."""
        if not 0 <= row.item < self._plan.items:
            raise RowsError(f"item {row.item} is not in the plan, which has {self._plan.items}")
        case, pinned, repeat = self._plan.item(row.item)
        if (row.prompt, row.version, row.repeat) != (pinned.prompt, pinned.version, repeat):
            told = f"{row.prompt} {row.version}, repeat {row.repeat}"
            raise RowsError(f"item {row.item} is {pinned}, repeat {repeat} in the plan, and {told} in its row")
        if self._flat["status"][row.item] != ABSENT:
            raise RowsError(f"item {row.item} has two rows; only the latest of each item may be given")
        return case, (row.item // self._plan.repeat) % len(self._plan.versions)

    def _case(self, case: int, row: Row) -> None:
        cases = self._columns.cases
        cases.ids[case] = row.case
        cases.kind[case] = KINDS[row.twin]
        cases.target[case] = _truth(row.target)
        cases.won[case] = _truth(row.won)
        cases.made[case] = np.nan if row.made is None else row.made
        cases.tickers[case] = _code(self._tickers, cases.ticker_names, row.ticker)
        cases.days[case] = _code(self._days, cases.day_names, row.day)
        if row.twin:
            cases.twin_of[case], cases.attack[case] = row.twin_of, row.attack


_COLUMNS: Final = {
    "status": (np.int8, ABSENT), "allow": (np.int8, -1), "rules_allow": (np.int8, -1), "grounded": (np.int8, -1),
    "first_valid": (np.bool_, False), "cached": (np.bool_, False), "latency_ms": (np.float64, 0.0),
    "first_token_ms": (np.float64, 0.0), "tokens_in": (np.float64, 0.0), "tokens_out": (np.float64, 0.0),
    "said": (np.int64, 0),
}  # fmt: skip


def _empty(plan: Plan) -> Columns:
    shape, n = (plan.cases, len(plan.versions), plan.repeat), plan.cases
    cases = Cases(
        ids=[""] * n,
        kind=np.full(n, UNSEEN, dtype=np.int8),
        target=np.full(n, -1, dtype=np.int8),
        won=np.full(n, -1, dtype=np.int8),
        made=np.full(n, np.nan),
        tickers=np.zeros(n, dtype=np.int64),
        days=np.zeros(n, dtype=np.int64),
        twin_of={},
        attack={},
        ticker_names=[],
        day_names=[],
    )
    blocks: dict[str, Any] = {name: np.full(shape, empty, dtype=kind) for name, (kind, empty) in _COLUMNS.items()}
    each = range(len(plan.versions))
    return Columns(
        plan=plan,
        cases=cases,
        errors=[Counter() for _ in each],
        reasons=[Counter() for _ in each],
        texts=Texts(plan.items),
        rows=0,
        **blocks,
    )


def count(counter: Counter[str], name: str) -> None:
    """Count a name; once there are too many different ones, new ones together."""
    short = name[:LONGEST_NAME]
    counter[short if short in counter or len(counter) < MOST_NAMES else OTHER] += 1


def error_kind(row: Row) -> str:
    """What kind of failure a row is: the word before the colon of its error, or else its status."""
    kind, colon, _ = (row.error or "").partition(":")
    return kind if colon and kind.isidentifier() else row.status


def _truth(value: bool | None) -> int:
    return -1 if value is None else int(value)


def _code(codes: dict[str, int], names: list[str], name: str) -> int:
    code = codes.setdefault(name, len(codes))
    if code == len(names):
        names.append(name)
    return code
