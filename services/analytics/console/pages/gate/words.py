"""The report on shadow as rows of text, for tables."""

from collections.abc import Sequence

from libs.shadow import Shadow
from libs.shadow.answer import Group, Interval
from libs.trading.reasons import Reason

MINUS = "\N{MINUS SIGN}"
FIRM = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"
MEANINGS = {reason.value: reason.meaning for reason in Reason}

FATES = (
    "entries that enforce",
    "entries",
    "with an outcome",
    "waiting",
    "return of each",
    "with a gain",
    "gain in all",
)
VERSIONS = ("version", "arm", "allowed", "return of each allowed", "blocked", "return of each blocked", "difference")
REASONS = ("reason", "entries", "with an outcome", "return of each", "with a gain", "gain in all", "meaning")

Row = tuple[str, ...]


def fates(report: Shadow) -> list[Row]:
    """The allowed beside the blocked, and what lies between them."""
    rows = [_fate("lets through", report.allowed), _fate("blocks", report.blocked)]
    apart = ("difference of the two", "", "", "", points(report.difference), "", "")
    refused = ("refused for limits in every mode", str(report.refused_anyway), "", "", "", "", "")
    return [*rows, apart, refused]


def by_version(report: Shadow) -> list[Row]:
    """The same for each version under each arm."""
    return [
        (
            each.prompt_version or "no version was asked",
            each.arm or NOTHING,
            str(each.allowed.entries),
            per_cent(each.allowed.mean_return),
            str(each.blocked.entries),
            per_cent(each.blocked.mean_return),
            points(each.difference),
        )
        for each in report.versions
    ]


def by_reason(report: Shadow) -> list[Row]:
    """What enforce would refuse, under each reason it was given."""
    ordered = sorted(report.reasons, key=lambda each: (-each.entries, each.reason))
    return [(each.reason, *_figures(each, waiting=False), meaning(each.reason)) for each in ordered]


def meaning(reason: str) -> str:
    """What a reason's code means; empty for one that is not known any more."""
    return MEANINGS.get(reason, "")


def per_cent(estimate: Interval | None) -> str:
    """A return with its interval."""
    return _interval(estimate, "%")


def points(estimate: Interval | None) -> str:
    """A difference of returns with its interval."""
    return _interval(estimate, "points")


def money(amount: float) -> str:
    """An amount of the account's currency."""
    return f"{amount:+,.2f}".replace("-", MINUS)


def _fate(name: str, group: Group) -> Row:
    return (name, *_figures(group, waiting=True))


def _figures(group: Group, *, waiting: bool) -> Sequence[str]:
    made = (per_cent(group.mean_return), share(group.hit_rate), money(group.money) if group.settled else NOTHING)
    counts = (str(group.entries), str(group.settled))
    return (*counts, str(group.waiting), *made) if waiting else (*counts, *made)


def share(estimate: Interval | None) -> str:
    """A share with its interval."""
    return _interval(estimate, "%", decimals=0, sign=False)


def _interval(estimate: Interval | None, unit: str, *, decimals: int = 2, sign: bool = True) -> str:
    """In per cent, with spaces at which no line breaks."""
    if estimate is None:
        return NOTHING
    plus = "+" if sign else ""
    value, low, high = (
        f"{number * 100:{plus}.{decimals}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high}) {unit}".replace("-", MINUS).replace(" ", FIRM)
