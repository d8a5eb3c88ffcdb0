"""The cases that a person should read first: what could have cost money, before what merely failed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.evaluation.figures.columns import ABSENT, INVALID, STATUS_NAMES, Columns
from libs.evaluation.figures.estimates import Truths
from libs.evaluation.figures.pairs import Attacked, policies
from libs.judgement.assess import POLICY

MOST = 40
EACH = 10
"""How many of one kind come before the next kind, so that many of the first do not hide all of the others."""


@dataclass(frozen=True, slots=True)
class Worst:
    """One case to show: why, by which repeat of which prompt."""

    kind: str
    why: str
    case: int
    prompt: str
    repeat: int


def worst(columns: Columns, attacks: Iterable[Attacked]) -> list[Worst]:
    """At most `MOST` cases, the most dangerous kind first; each case once for a prompt, for the worst that it did."""
    seen: set[tuple[str, int]] = set()
    kinds: list[list[Worst]] = []
    for found in _kinds(columns, attacks):
        kept: list[Worst] = []
        for one in found:
            if (one.prompt, one.case) not in seen and len(kept) < MOST:
                seen.add((one.prompt, one.case))
                kept.append(one)
        kinds.append(kept)
    room = MOST - sum(min(EACH, len(kept)) for kept in kinds)
    chosen: list[Worst] = []
    for kept in kinds:
        more = max(0, min(len(kept) - EACH, room))
        chosen += kept[: EACH + more]
        room -= more
    return chosen[:MOST]


def worst_documents(columns: Columns, chosen: Iterable[Worst]) -> list[dict[str, Any]]:
    """These cases as JSON, each with what every version of the prompt answered."""
    return [
        {
            "case": columns.cases.ids[one.case],
            "prompt": one.prompt,
            "kind": one.kind,
            "why": one.why,
            "ticker": columns.cases.ticker_names[columns.cases.tickers[one.case]],
            "day": columns.cases.day_names[columns.cases.days[one.case]],
            "answers": list(_answers(columns, one)),
        }
        for one in chosen
    ]


def _answers(columns: Columns, one: Worst) -> Iterator[dict[str, Any]]:
    for version, pinned in enumerate(columns.plan.versions):
        status = int(columns.status[one.case, version, one.repeat])
        if pinned.prompt != one.prompt or status == ABSENT:
            continue
        allow = int(columns.allow[one.case, version, one.repeat])
        said = columns.texts.of(columns.item(one.case, version, one.repeat))
        yield {
            "version": pinned.version,
            "status": STATUS_NAMES[status],
            "allow": None if allow < 0 else bool(allow),
            "reasons": list(said.reasons),
            "text": said.text,
            "error": said.error,
        }


def _kinds(columns: Columns, attacks: Iterable[Attacked]) -> Iterator[list[Worst]]:
    """The kinds, most dangerous first."""
    cases, answered = columns.cases, columns.answered & columns.clean[:, None, None]
    decides = np.zeros(len(columns.plan.versions), dtype=np.bool_)
    decides[policies(columns)] = True
    judged = answered & decides[None, :, None]
    lost = (cases.won == 0)[:, None, None]
    wrongly = judged & columns.allowed & (cases.target == 0)[:, None, None]
    unknown = (cases.target < 0)[:, None, None]
    blocked = judged & ~columns.allowed & (columns.status != INVALID) & (cases.target == 1)[:, None, None]
    yield _flips(columns, attacks)
    yield _found(columns, wrongly & lost, "wrongly_allowed_lost", "was to be denied, was allowed, and lost money")
    yield _found(columns, wrongly, "wrongly_allowed", "was to be denied and was allowed")
    yield _found(columns, judged & columns.allowed & unknown & lost, "allowed_lost", "was allowed and lost money")
    yield _found(columns, _differing(columns, judged), "versions_differ", "the versions decide differently")
    yield _found(columns, answered & (columns.status == INVALID), "invalid", "the answer is invalid")
    yield _found(columns, blocked, "wrongly_blocked", "was to be allowed and was denied")
    yield _found(columns, answered & (columns.grounded == 0), "ungrounded", "has numbers that stand in no input")


def _flips(columns: Columns, attacks: Iterable[Attacked]) -> list[Worst]:
    found: list[Worst] = []
    for attacked in attacks:
        for flip in attacked.flips:
            attack = columns.cases.attack[flip.hostile]
            why = f"a deny turned to allow by an attack ({attack})"
            found.append(Worst("flip", why, flip.hostile, POLICY, flip.repeat))
    return found


def _differing(columns: Columns, judged: Truths) -> Truths:
    """Where versions that decide say different things in the same repeat."""
    some_allow = (judged & columns.allowed).any(axis=1, keepdims=True)
    some_deny = (judged & ~columns.allowed).any(axis=1, keepdims=True)
    return judged & some_allow & some_deny


def _found(columns: Columns, where: Truths, kind: str, why: str) -> list[Worst]:
    """The places, what lost most first, then by the number of the case."""
    numbers, versions, repeats = np.nonzero(where)
    made = np.nan_to_num(columns.cases.made[numbers])
    first = np.lexsort((repeats, versions, numbers, made))[
        : MOST * len(columns.plan.versions) * columns.plan.repeat * 8
    ]
    names = columns.plan.versions
    return [Worst(kind, why, int(numbers[at]), names[versions[at]].prompt, int(repeats[at])) for at in first]
