"""The figures of a summary as a report shows them: in which order, under what name, and what each means."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

Better: TypeAlias = Literal["more", "less", ""]

MEMORY: Final = "Old prices are in the model's memory: no evidence of skill. The masked twins show how much is memory."


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure: its name in `summary.json`, what it is called, what it says, and which way is better."""

    name: str
    label: str
    says: str
    better: Better = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are read together. `note` stands beside them."""

    title: str
    entries: tuple[Entry, ...]
    note: str = ""


GROUPS: Final = (
    Group(
        "Answers",
        (
            Entry("answered", "answered", "of all that was asked, the model gave any answer", "more"),
            Entry("validity", "valid", "fits its schema, after the repair turn", "more"),
            Entry("first_validity", "valid at once", "at the first attempt; cached answers left out", "more"),
            Entry("grounded", "grounded", "no number that stands in none of the inputs", "more"),
            Entry("repeat_agreement", "the same again", "asked again, decides the same", "more"),
            Entry("cached_rate", "from the cache", "left out of all times"),
        ),
    ),
    Group(
        "Decisions",
        (
            Entry("allow_rate", "allows", "of all answers"),
            Entry("deny_rate", "denies", "of all answers; the rest is invalid"),
            Entry("rules_agreement", "as the rules say", "the rules in code say the same", "more"),
        ),
    ),
    Group(
        "Against the target",
        (
            Entry("target_agreement", "as the target says", "an invalid answer counts as deny", "more"),
            Entry("wrongly_allowed", "wrongly allowed", "of those to be denied", "less"),
            Entry("wrongly_blocked", "wrongly blocked", "of those to be allowed", "less"),
            Entry("brier", "Brier score", "of the share of repeats that allow, against the target", "less"),
        ),
    ),
    Group(
        "What the price did",
        (
            Entry("return_allowed", "return of what was allowed", "by the side of the signal, to the horizon", "more"),
            Entry("return_blocked", "return of what was blocked", "by the side of the signal, to the horizon", "less"),
            Entry("brier_realised", "Brier score", "against whether the side made money", "less"),
        ),
        MEMORY,
    ),
    Group(
        "Time",
        (
            Entry("latency_p50_ms", "latency, half of all within", "cached answers left out", "less"),
            Entry("latency_p95_ms", "latency, 95 % within", "cached answers left out", "less"),
            Entry("latency_p99_ms", "latency, 99 % within", "from 1,000 cases on", "less"),
            Entry("first_token_p50_ms", "first token, half within", "of streamed answers", "less"),
            Entry("first_token_p95_ms", "first token, 95 % within", "of streamed answers", "less"),
        ),
    ),
    Group(
        "Cost",
        (
            Entry("tokens_in", "tokens read", "per decision, repair turns included", "less"),
            Entry("tokens_out", "tokens written", "per decision, repair turns included", "less"),
            Entry("cost_usd", "cost", "per decision, at the prices given", "less"),
        ),
    ),
)
_KNOWN: Final = {entry.name for group in GROUPS for entry in group.entries}
DRAWN: Final = (
    "validity", "first_validity", "grounded", "repeat_agreement", "rules_agreement", "target_agreement",
    "wrongly_allowed", "wrongly_blocked",
)  # fmt: skip
"""The rates that are drawn side by side: those with a better way."""


def groups(versions: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The groups with what was measured of at least one of the versions, and a last one for figures without a name."""
    measured = {name for version in versions for name, figure in version["figures"].items() if figure is not None}
    known = [Group(group.title, tuple(e for e in group.entries if e.name in measured), group.note) for group in GROUPS]
    others = tuple(Entry(name, name.replace("_", " "), "") for name in sorted(measured - _KNOWN))
    return [group for group in (*known, Group("Others", others)) if group.entries]


def unmeasured(versions: Iterable[Mapping[str, Any]]) -> list[str]:
    """The labels of what none of the versions has a figure of, in groups of which something was measured."""
    found = list(versions)
    there = {group.title for group in groups(found)}
    return [
        entry.label
        for group in GROUPS
        for entry in group.entries
        if group.title in there and all(each["figures"].get(entry.name) is None for each in found)
    ]


def entry(name: str) -> Entry:
    """The entry of a figure, one made of its name where it has none."""
    found = (each for group in GROUPS for each in group.entries if each.name == name)
    return next(found, Entry(name, name.replace("_", " "), ""))
