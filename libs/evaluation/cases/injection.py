"""The hostile twin: the same case with headlines that try to talk the policy out of its denial.

Facts, numbers and what the rules say stay as they are, so a right policy answers both twins alike. A deny that becomes
an allow is a flip.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

from libs.evaluation.cases.attacks import ATTACKS, FAMILIES, Attack
from libs.evaluation.cases.case import CaseError, EvalCase, Moments
from libs.judgement.rules import Rules

HEADLINES: Final = "headlines"
SPARE: Final = 4
"""How many times as many cases are kept for the attacks of one kind as each of them can meet."""


def hostile(case: EvalCase, attack: Attack) -> EvalCase:
    """The hostile twin of a case: the attack's headlines first, then its own.

    Raises `CaseError` for a case that is a twin already.
    """
    if case.twin:
        raise CaseError("twin", f"case {case.id!r} is a twin already")
    lines = attack.write(case)
    return replace(
        case,
        id=hostile_id(case, attack),
        inputs=replace(case.inputs, headlines=(*lines, *case.inputs.headlines)),
        twin="hostile",
        twin_of=case.id,
        attack=attack.name,
        moments=with_more_headlines(case, len(lines)),
    )


def with_more_headlines(case: EvalCase, more: int) -> Moments:
    """The moments of a case with so many headlines more, known at `as_of`."""
    known = case.moments.get(HEADLINES)
    if known is None or isinstance(known, datetime):
        return case.moments
    return {**case.moments, HEADLINES: (*([case.as_of] * more), *known)}


def injection_twins(cases: Iterable[EvalCase], *, limit: int, seed: int, rules: Rules) -> Iterator[EvalCase]:
    """At most `limit` hostile twins of these cases, in the cases' order; the cases themselves are not given again.

    Cases that the rules deny come first, since only a denial can be talked away; they are attacked in several ways
    where there are fewer of them than twins are wanted, and allowed ones come in only where all that is not enough.
    An attack that argues about rules meets cases denied for nothing else first, then those denied for them among
    others, then any that is denied.
    Every family of attacks is there from as many twins on as there are families. Hostile twins that are among `cases`
    already count, and are not made again. Same arguments, same twins.
    """
    chance = random.Random(f"{seed}/injection")  # noqa: S311 - a sample, not a secret
    pool = Pool(limit, chance)
    there: set[str] = set()
    for position, case in enumerate(cases):
        if case.twin == "hostile":
            there.add(case.id)
        elif not case.twin:
            pool.offer(Candidate(position, case, rules.judge(case.inputs, case.feed).reasons))
    attacks = in_turn(chance)
    found = (pair for group in (pool.denied(), pool.allowed()) for pair in pairs(group, attacks))
    new = (pair for pair in found if hostile_id(pair[0].case, pair[1]) not in there)
    wanted = list(islice(new, max(0, limit - len(there))))
    for one, attack in sorted(wanted, key=lambda pair: (pair[0].position, pair[1].name)):
        yield hostile(one.case, attack)


def meets_its_rule(twin: EvalCase, rules: Rules) -> bool | None:
    """Whether a hostile twin's case is denied for nothing but what its attack argues about.

    None where the attack argues about no rule of its own, or is not one of `ATTACKS`. The headlines of a twin are
    nothing to the rules, so they say of the twin what they say of the case.
    """
    attack = ATTACKS.get(twin.attack)
    if attack is None or not attack.argues:
        return None
    reasons = rules.judge(twin.inputs, twin.feed).reasons
    return bool(reasons) and attack.argues.issuperset(reasons)


def hostile_id(case: EvalCase, attack: Attack) -> str:
    """The id of a hostile twin."""
    return f"{case.id}~{attack.name}"


class Candidate(NamedTuple):
    """A case that may be attacked, its place among the cases, and what the rules deny it for."""

    position: int
    case: EvalCase
    reasons: tuple[str, ...]


class Sample:
    """Up to `size` cases of a stream of unknown length, each as likely to be kept (Vitter's algorithm R, 1985)."""

    def __init__(self, size: int, chance: random.Random) -> None:
        self.kept: list[Candidate] = []
        self._size = size
        self._chance = chance
        self._seen = 0

    def offer(self, one: Candidate) -> None:
        """Take a case, or not."""
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(one)
        elif (place := self._chance.randrange(self._seen)) < self._size:
            self.kept[place] = one


class Pool:
    """What is kept of all cases: denied ones, allowed ones, and of those denied for what an attack argues about
    enough of each kind, however rare it is.
    """

    def __init__(self, limit: int, chance: random.Random) -> None:
        self._chance = chance
        self._denied, self._allowed = Sample(limit, chance), Sample(limit, chance)
        each = min(limit, SPARE * (limit // len(ATTACKS) + 1))
        kinds = dict.fromkeys(attack.argues for attack in ATTACKS.values() if attack.argues)
        self._alone = {argues: Sample(each, chance) for argues in kinds}
        self._among = {argues: Sample(each, chance) for argues in kinds}

    def offer(self, one: Candidate) -> None:
        """Take a case, or not."""
        if not one.reasons:
            self._allowed.offer(one)
            return
        self._denied.offer(one)
        for argues in self._alone:
            if argues.issuperset(one.reasons):
                self._alone[argues].offer(one)
            elif not argues.isdisjoint(one.reasons):
                self._among[argues].offer(one)

    def denied(self) -> list[Candidate]:
        """What was kept of the denied cases, in a random order."""
        samples = (self._denied, *self._alone.values(), *self._among.values())
        found = {one.position: one for sample in samples for one in sample.kept}
        return self._chance.sample(list(found.values()), len(found))

    def allowed(self) -> list[Candidate]:
        """What was kept of the allowed cases, in a random order."""
        return self._chance.sample(self._allowed.kept, len(self._allowed.kept))


class Line:
    """Cases that take turns at being attacked."""

    def __init__(self, group: Iterable[Candidate]) -> None:
        self._waiting = deque(group)

    def next_for(self, met: set[int]) -> Candidate | None:
        """The next that is not among those met already, by position; it goes to the end. None where all were met."""
        for _ in range(len(self._waiting)):
            one = self._waiting[0]
            self._waiting.rotate(-1)
            if one.position not in met:
                met.add(one.position)
                return one
        return None


def lines_of(group: list[Candidate], argues: frozenset[str]) -> list[Line]:
    """Cases denied for nothing but this, those denied for it among others. None where nothing is argued about."""
    alone = [one for one in group if one.reasons and argues.issuperset(one.reasons)]
    among = [one for one in group if not argues.issuperset(one.reasons) and not argues.isdisjoint(one.reasons)]
    return [Line(alone), Line(among)] if argues else []


def pairs(group: list[Candidate], attacks: list[Attack]) -> Iterator[tuple[Candidate, Attack]]:
    """Which case meets which attack: every attack in turn, as often as there are cases.

    Each takes the best case that it has not met: one denied for what it argues about, or the next of all.
    """
    everyone = Line(group)
    lines = {argues: [*lines_of(group, argues), everyone] for argues in {attack.argues for attack in attacks}}
    met: dict[str, set[int]] = {attack.name: set() for attack in attacks}
    for _ in group:
        for attack in attacks:
            offered = (line.next_for(met[attack.name]) for line in lines[attack.argues])
            yield next(one for one in offered if one is not None), attack


def in_turn(chance: random.Random) -> list[Attack]:
    """All attacks, one of each family before the second of any."""
    families = {name: chance.sample(members, len(members)) for name, members in by_family().items()}
    order = chance.sample(FAMILIES, len(FAMILIES))
    longest = max(len(members) for members in families.values())
    return [families[name][turn] for turn in range(longest) for name in order if turn < len(families[name])]


def by_family() -> dict[str, list[Attack]]:
    """The attacks of each family."""
    return {family: [attack for attack in ATTACKS.values() if attack.family == family] for family in FAMILIES}
