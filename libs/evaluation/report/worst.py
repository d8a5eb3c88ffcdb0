"""The cases worth a look, as cards: what was asked beside what was answered, the words marked that differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.report.numbers import number
from libs.evaluation.report.texts import plain, side_by_side
from libs.evaluation.report.verdict import Summary, Tone

FLIP: Final = "flip"
"""The kind of worst cases that the section on hostile texts shows in full."""
_GRAVE: Final = {"flip", "wrongly_allowed", "lost", "wrongly_allowed_and_lost", "invalid"}
_MARK: Final = 1.0
"""Factors are z-scores; those within 1 of zero say little and are counted only."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: who gave it, what it came to and in which tone, its reasons, its text with marks, what was wrong."""

    title: str
    outcome: str
    tone: Tone
    reasons: str
    text: Markup
    error: str
    headlines: tuple[Markup, ...] | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One case: why it is here, what was known, and the answers side by side; `alone` where only these are shown."""

    title: str
    tone: Tone
    about: str
    case: str
    known: list[tuple[str, str]] | None
    headlines: tuple[str, ...]
    answers: list[Said]
    alone: bool = False


def worst_cards(summary: Summary, cases: Mapping[str, EvalCase]) -> list[Card]:
    """The worst cases, most dangerous first, as the summary has them, but for flips, which have cards of their own."""
    return [_worst(each, cases.get(each["case"])) for each in summary["worst"] if each.get("kind") != FLIP]


def _worst(found: Mapping[str, Any], case: EvalCase | None) -> Card:
    answers: Sequence[Mapping[str, Any]] = found["answers"]
    texts = side_by_side([answer["text"] or "" for answer in answers])
    return Card(
        title=found["why"],
        tone="bad" if found.get("kind") in _GRAVE else "note",
        about=f"{found['ticker']}, {found['day']}, {found['prompt']}",
        case=found["case"],
        known=None if case is None else known(case),
        headlines=() if case is None else case.inputs.headlines,
        answers=[_answer(answer, text) for answer, text in zip(answers, texts, strict=True)],
    )


def _answer(answer: Mapping[str, Any], text: Markup) -> Said:
    outcome, tone = outcome_of(answer["status"], answer["allow"])
    return Said(
        title=answer["version"],
        outcome=outcome,
        tone=tone,
        reasons=", ".join(answer["reasons"]),
        text=text,
        error=plain(answer["error"] or "", longest=300),
    )


def outcome_of(status: str, allow: bool | None) -> tuple[str, Tone]:
    """What an answer came to in a word, and its tone: neither allow nor deny is good in itself."""
    if status != "ok":
        return status, "bad"
    return ("answered", "open") if allow is None else ("allow", "note") if allow else ("deny", "open")


def flip_cards(flips: Sequence[Mapping[str, Any]], cases: Mapping[str, EvalCase]) -> list[Card]:
    """Each flip: the clean twin's answer and headlines beside the hostile twin's."""
    return [_flip(each, cases.get(each["case"]), cases.get(each["twin"])) for each in flips]


def _flip(found: Mapping[str, Any], clean: EvalCase | None, hostile: EvalCase | None) -> Card:
    texts = side_by_side([found["clean"]["text"], found["hostile"]["text"]])
    lines = [None if case is None else case.inputs.headlines for case in (clean, hostile)]
    marked = _headlines(lines)
    case, acted = clean or hostile, found["acted"]
    return Card(
        title=found["attack"].replace("_", " "),
        tone="bad" if acted else "note",
        about="the rules in code allow it too: an order would have gone out" if acted else "the rules in code deny it",
        case=found["twin"] if not found["repeat"] else f"{found['twin']}, repeat {found['repeat']}",
        known=None if case is None else known(case),
        headlines=(),
        answers=[
            _twin("clean", found["clean"], texts[0], marked[0]),
            _twin("hostile", found["hostile"], texts[1], marked[1]),
        ],
    )


def _twin(title: str, side: Mapping[str, Any], text: Markup, headlines: tuple[Markup, ...] | None) -> Said:
    """One side of a flip. An invalid answer lets nothing through and is no deny, so the clean side is "not allowed"."""
    hostile = title == "hostile"
    reasons = ", ".join(side["reasons"])
    return Said(
        title=title,
        outcome="allow" if hostile else "deny" if reasons else "not allowed",
        tone="bad" if hostile else "open",
        reasons=reasons,
        text=text,
        error="",
        headlines=headlines,
    )


def _headlines(lines: Sequence[tuple[str, ...] | None]) -> list[tuple[Markup, ...] | None]:
    """The headlines of both twins; those of the hostile one that the clean one has not are marked whole."""
    clean, hostile = lines
    known_ones = set(clean or ())
    plainly = None if clean is None else tuple(side_by_side([each])[0] for each in clean)
    if hostile is None:
        return [plainly, None]
    shown = [(each in known_ones, side_by_side([each])[0]) for each in hostile]
    return [plainly, tuple(each if old else Markup("<mark>{}</mark>").format(each) for old, each in shown)]


def known(case: EvalCase) -> list[tuple[str, str]]:
    """What the case says, in short lines: the question first, then what decides it, then what came of it."""
    inputs, signal = case.inputs, case.inputs.signal
    strong = {name: score for name, score in inputs.factors.items() if abs(score) >= _MARK}
    weak = len(inputs.factors) - len(strong)
    factors = [f"{name} {score:+.2f}" for name, score in sorted(strong.items(), key=lambda item: -abs(item[1]))]
    if weak:
        factors.append(f"{weak} within {_MARK:g} of zero")
    lines = [
        ("question", f"{signal.side} {inputs.ticker}, horizon {inputs.horizon}"),
        ("expected", f"{number(signal.expected_return, 'return')} from {signal.last_price:,.6g}"),
        ("range", f"{signal.lower:,.6g} to {signal.upper:,.6g}"),
        ("factors", ", ".join(factors) or "none"),
        ("liquidity", _or_unknown(inputs.liquidity_usd, "{:,.0f} USD")),
        ("coverage", _or_unknown(inputs.coverage_pct, "{:.4g} %")),
        ("earnings", _or_unknown(inputs.earnings_in_days, "in trading days: {}")),
        *((fact.name.replace("_", " "), str(fact.value)) for fact in inputs.facts.values()),
    ]
    if case.target is not None:
        lines.append(("to be", "allowed" if case.target else "denied"))
    if case.realised is not None:
        lines.append(("the price then", number(case.realised.change, "return")))
    return lines


def _or_unknown(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)
