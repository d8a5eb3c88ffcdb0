"""What an evaluation comes to, in words. The page, the table and the JUnit file say the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

Tone: TypeAlias = Literal["good", "bad", "note", "open"]
Summary: TypeAlias = Mapping[str, Any]
"""The document of `summary.json`."""

UNASKED: Final = "No threshold was asked for, so this neither passed nor missed."


@dataclass(frozen=True, slots=True)
class Spoken:
    """The verdict: its tone, one sentence, and the reasons for it."""

    tone: Tone
    sentence: str
    reasons: tuple[str, ...] = ()


def verdict(summary: Summary) -> Spoken:
    """Passed, missed and for what reasons, or not asked; and whether the run is whole."""
    thresholds: Sequence[Mapping[str, Any]] = summary["thresholds"]
    missed = tuple(each["sentence"] for each in thresholds if not each["passed"])
    unfinished = () if summary["run"]["complete"] else (incomplete(summary),)
    if summary["passed"] is None:
        return Spoken("note" if unfinished else "open", UNASKED, unfinished)
    if summary["passed"]:
        said = "the threshold holds" if len(thresholds) == 1 else f"all {len(thresholds)} thresholds hold"
        return Spoken("note" if unfinished else "good", f"Passed: {said}.", unfinished)
    said = "the threshold" if len(thresholds) == len(missed) == 1 else f"{len(missed)} of {len(thresholds)} thresholds"
    return Spoken("bad", f"Missed: {said if missed else 'the evaluation did not pass'}.", (*missed, *unfinished))


def incomplete(summary: Summary) -> str:
    """What is missing of a run."""
    run = summary["run"]
    return f"The run is not whole: {run['missing']:,} of {run['items']:,} items have no row yet; resume it."


def prompts(summary: Summary) -> list[str]:
    """The prompts that were evaluated, in the order of their versions."""
    return list(dict.fromkeys(version["prompt"] for version in summary["versions"]))


def chance(p: float | None, *, apart: bool) -> str:
    """What a p of McNemar's exact test says; `apart` where anything sets the two apart."""
    if not apart:
        return "Nothing sets them apart."
    return "" if p is None else "That is more than chance." if p < 0.05 else "That may be chance."


def is_missed(summary: Summary, *, prompt: str, version: str) -> bool:
    """Whether a threshold on flips was asked of this version and missed."""
    return any(
        each["name"] == "flips"
        and not each["passed"]
        and each["prompt"] in (prompt, None, "")
        and each["version"] in (version, None, "")
        for each in summary["thresholds"]
    )
