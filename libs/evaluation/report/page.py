"""The report of an evaluation as one HTML file that needs nothing else: for a desk to read, to keep and to send on.

Everything that a model, a headline or a data set wrote is text: escaped, and with what is hidden in it shown. The page
forbids itself scripts and anything from elsewhere. Each number that stands in `summary.json` carries where it stands
there (`data-figure`) and its exact value (`data-value`), so that both can be held against each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.report.catalogue import Entry, groups, unmeasured
from libs.evaluation.report.paths import Numbers
from libs.evaluation.report.plots import attacks_plot, kinds_plot, latency_plot, rates_plot, reliability_plot, spans
from libs.evaluation.report.stamps import facts, packages, stamp_lines
from libs.evaluation.report.templates import template
from libs.evaluation.report.verdict import Summary, prompts, verdict
from libs.evaluation.report.worst import Card, flip_cards, worst_cards

OPEN_FLIPS: Final = 12
"""So many flips lie open at first; the others are a click away."""


def page(summary: Summary, cases: Mapping[str, EvalCase]) -> str:
    """The HTML of a summary's document. `cases` holds the cases of `shown_cases`; one that is missing is said to be."""
    told = verdict(summary)
    return template("page.html").render(
        s=summary,
        n=Numbers(summary),
        verdict=told,
        facts=facts(summary),
        stamp=stamp_lines(summary),
        packages=packages(summary),
        prompts=[_prompt(summary, name) for name in prompts(summary)],
        hostile=[_hostile(summary, at, cases=cases) for at in range(len(summary["hostile"]))],
        worst=worst_cards(summary, cases),
        open_flips=OPEN_FLIPS,
    )


def shown_cases(summary: Summary) -> set[str]:
    """The ids of the cases whose inputs the page shows: the worst ones, and both twins of what flipped."""
    flips = [flip for each in summary["hostile"] for flip in each["flips"]]
    return {each["case"] for each in summary["worst"]} | {flip[name] for flip in flips for name in ("case", "twin")}


def _prompt(summary: Summary, name: str) -> dict[str, Any]:
    """What is shown of one prompt: its versions beside each other."""
    found = [(at, each) for at, each in enumerate(summary["versions"]) if each["prompt"] == name]
    versions = [each for _, each in found]
    return {
        "name": name,
        "versions": found,
        "groups": [(group, [_row(entry, found) for entry in group.entries]) for group in groups(versions)],
        "unmeasured": unmeasured(versions),
        "pairs": [(at, each) for at, each in enumerate(summary["pairs"]) if each["prompt"] == name],
        "masked": [(at, each) for at, each in enumerate(summary["masked"]) if each["prompt"] == name],
        "plots": _plots(versions, name),
        "confused": [(at, each) for at, each in found if each["confusion"] is not None],
        "spans": [(at, each["version"], spans(each["latency"])) for at, each in found],
    }


def _row(entry: Entry, found: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    return {"entry": entry, "cells": [(at, each["version"], each["figures"].get(entry.name)) for at, each in found]}


def _plots(versions: Sequence[Mapping[str, Any]], name: str) -> dict[str, Markup]:
    drawn = {
        "rates": rates_plot(versions, name=f"{name}: rates with their 95 % intervals, by version"),
        "latency": latency_plot(versions, name=f"{name}: distribution of latency, by version"),
        "reliability": reliability_plot(versions, name=f"{name}: how often allowing was right, by version"),
        "errors": kinds_plot(versions, field="error_kinds", name=f"{name}: kinds of errors, by version"),
        "reasons": kinds_plot(versions, field="reasons", name=f"{name}: reasons given, by version"),
    }
    return {kind: _drawing(plot) for kind, plot in drawn.items()}


def _drawing(plot: str) -> Markup:
    return Markup(plot)  # noqa: S704 - our own drawing: numbers, and labels that it has escaped


def _hostile(summary: Summary, at: int, *, cases: Mapping[str, EvalCase]) -> dict[str, Any]:
    found = summary["hostile"][at]
    name = f"{found['prompt']} {found['version']}: flips from deny to allow, by attack"
    cards: list[Card] = flip_cards(found["flips"], cases)
    return {
        "at": at,
        "found": found,
        "plot": _drawing(attacks_plot(found["by_attack"], name=name)),
        "cards": cards,
    }
