"""A case: what one judgement may see, and, where known, what is right and what came of it. As a value, and as JSON.

A case's JSON is checked whole: every field must be known, present and of its type, and nothing may come from after
`as_of`. `docs/datasets.md` documents it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from libs.evaluation.cases.document import CaseDocument, InputsDocument, problem_of
from libs.judgement.record import inputs_block, written
from libs.judgement.types import Fact, Inputs, Signal

Twin: TypeAlias = Literal["", "masked", "hostile"]
LONGEST_ID = 150
Moments: TypeAlias = Mapping[str, datetime | tuple[datetime, ...]]


class CaseError(Exception):
    """A case's JSON cannot be used; the message names the field and what is wrong with it."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Realised:
    """The price's change to the horizon as a fraction, not signed by the signal's side; known from `at` on."""

    change: float
    at: datetime


@dataclass(frozen=True, slots=True)
class EvalCase:
    """One judgement to be made in an evaluation.

    `target` is what a right policy answers (may it be entered?), None where nobody says. `moments` are the times at
    which single features were known, by their names in `Inputs`; for a feature without one `as_of` vouches. A twin is
    the case `twin_of`, changed: "masked" (ticker, dates and price level hidden) or "hostile" (`attack` says how).
    """

    id: str
    as_of: datetime
    feed: str
    inputs: Inputs
    target: bool | None = None
    realised: Realised | None = None
    twin: Twin = ""
    twin_of: str = ""
    attack: str = ""
    moments: Moments = field(default_factory=dict[str, "datetime | tuple[datetime, ...]"])

    @property
    def ticker(self) -> str:
        """The ticker judged."""
        return self.inputs.ticker

    @property
    def day(self) -> date:
        """The UTC day of `as_of`."""
        return self.as_of.astimezone(UTC).date()

    @property
    def made(self) -> float | None:
        """What the side made by the horizon, as a fraction; None without a side or an outcome."""
        side = self.inputs.signal.side
        if self.realised is None or side == "none":
            return None
        return self.realised.change if side == "buy" else -self.realised.change

    @property
    def won(self) -> bool | None:
        """Whether the side made money; None without a side or an outcome."""
        made = self.made
        return None if made is None else made > 0


def case_from(document: Mapping[str, Any]) -> EvalCase:
    """A case from its JSON. Raises `CaseError` naming the first field that is missing, unknown, wrong or too late."""
    try:
        read = CaseDocument.model_validate(document)
    except ValidationError as error:
        raise CaseError(*problem_of(error)) from error
    inputs = inputs_of(read.inputs)
    moments: dict[str, datetime | tuple[datetime, ...]] = {
        name: tuple(moment) if isinstance(moment, list) else moment for name, moment in read.moments.given().items()
    }
    case = EvalCase(
        id=read.id,
        as_of=read.as_of,
        feed=read.feed,
        inputs=inputs,
        target=None if read.target is None else read.target.allow,
        realised=None if read.realised is None else Realised(read.realised.change, read.realised.at),
        twin=read.twin,
        twin_of=read.twin_of,
        attack=read.attack,
        moments=moments,
    )
    check_moments(case)
    check_twin(case)
    return case


def inputs_of(read: InputsDocument) -> Inputs:
    """The inputs of a checked document."""
    signal = read.signal
    return Inputs(
        ticker=read.ticker,
        horizon=read.horizon,
        as_of=read.as_of,
        signal=Signal(
            side=signal.side,
            last_price=signal.last_price,
            mean=signal.mean,
            lower=signal.lower,
            upper=signal.upper,
            expected_return=signal.expected_return,
        ),
        factors=read.factors,
        liquidity_usd=read.liquidity_usd,
        coverage_pct=read.coverage_pct,
        headlines=tuple(read.headlines),
        facts={
            name: Fact(name=name, value=fact.value, as_of=fact.as_of, source=fact.source)
            for name, fact in read.facts.items()
        },
        earnings_in_days=read.earnings_in_days,
    )


def check_moments(case: EvalCase) -> None:
    """Refuse what was not known at `as_of`. Raises `CaseError`."""
    as_of, inputs = case.as_of, case.inputs
    if inputs.as_of != as_of:
        raise CaseError("inputs.as_of", f"{written(inputs.as_of)} is not the case's as_of {written(as_of)}")
    known = {f"inputs.facts.{name}.as_of": fact.as_of for name, fact in inputs.facts.items()}
    for name, moment in case.moments.items():
        if isinstance(moment, datetime):
            known[f"moments.{name}"] = moment
        elif len(moment) != len(inputs.headlines):
            raise CaseError(f"moments.{name}", f"{len(moment)} moments for {len(inputs.headlines)} headlines")
        else:
            known |= {f"moments.{name}.{number}": one for number, one in enumerate(moment)}
    for place, moment in known.items():
        if moment > as_of:
            raise CaseError(
                place, f"{written(moment)} is after as_of {written(as_of)}; nothing from the future may be seen"
            )
    if case.realised is not None and case.realised.at <= as_of:
        raise CaseError(
            "realised.at", f"{written(case.realised.at)} is not after as_of {written(as_of)}; an outcome comes later"
        )


def check_twin(case: EvalCase) -> None:
    """Refuse what cannot be a twin, or have one. Raises `CaseError`."""
    if not case.twin and len(case.id) > LONGEST_ID:
        raise CaseError("id", f"has more than {LONGEST_ID} characters; its twins need the rest")
    if case.twin and not case.twin_of:
        raise CaseError("twin_of", "is missing; a twin names the case it was made from")
    if case.twin_of and not case.twin:
        raise CaseError("twin", 'is missing; say "masked" or "hostile", or leave twin_of out')
    if case.twin_of == case.id:
        raise CaseError("twin_of", "a case cannot be its own twin")
    if (case.twin == "hostile") is not bool(case.attack):
        raise CaseError("attack", "belongs to a hostile twin, which must have it, and to no other case")


def document_of(case: EvalCase) -> dict[str, Any]:
    """A case as JSON: `case_from` gives the same case back. What does not apply is left out."""
    document: dict[str, Any] = {
        "id": case.id,
        "as_of": written(case.as_of),
        "feed": case.feed,
        "inputs": inputs_block(case.inputs),
    }
    if case.moments:
        document["moments"] = {
            name: written(moment) if isinstance(moment, datetime) else [written(one) for one in moment]
            for name, moment in case.moments.items()
        }
    if case.target is not None:
        document["target"] = {"allow": case.target}
    if case.realised is not None:
        document["realised"] = {"change": case.realised.change, "at": written(case.realised.at)}
    return document | {
        name: value
        for name, value in (("twin", case.twin), ("twin_of", case.twin_of), ("attack", case.attack))
        if value
    }


def vouched_for(case: EvalCase) -> tuple[str, ...]:
    """The features that are there without a moment of their own: only `as_of` says when they were known."""
    inputs = case.inputs
    there = {
        "signal": True,
        "factors": bool(inputs.factors),
        "liquidity_usd": inputs.liquidity_usd is not None,
        "coverage_pct": inputs.coverage_pct is not None,
        "headlines": bool(inputs.headlines),
        "earnings_in_days": inputs.earnings_in_days is not None,
    }
    return tuple(name for name, present in there.items() if present and name not in case.moments)
