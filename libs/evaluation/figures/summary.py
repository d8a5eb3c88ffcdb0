"""`summary.json`: everything a run found, from its rows and its plan. Pure.

The one pass over the rows keeps columns of numbers (`columns`) and compressed texts (`texts`); everything else is made
of these.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from libs.evaluation.figures.columns import Columns, columns_of
from libs.evaluation.figures.estimates import Figure
from libs.evaluation.figures.notices import notices
from libs.evaluation.figures.pairs import (
    Attacked,
    attacked,
    hostile_document,
    masked_compared,
    masked_documents,
    pair_documents,
    versions_compared,
)
from libs.evaluation.figures.shapes import calibration, latency_bars, latency_edges
from libs.evaluation.figures.thresholds import Finding, Measured, judged, parse_thresholds
from libs.evaluation.figures.version import Figures, Part, as_documents, caught_of, confusion, cost_of, figures_of
from libs.evaluation.figures.worst import worst, worst_documents
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.json_numbers import json_value

VERSION = 1
MOST_REASONS = 50
RATES = (
    "answered",
    "validity",
    "first_validity",
    "target_agreement",
    "rules_agreement",
    "grounded",
    "repeat_agreement",
)
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run found. `passed` is None where no threshold was asked."""

    found: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool | None:
        """Whether every threshold was met."""
        return all(finding.passed for finding in self.findings) if self.findings else None

    def document(self) -> dict[str, Any]:
        """The summary as JSON: numbers of at most 15 digits, none that is not finite."""
        return json_value(self.found)


def summarise(rows: Iterable[Row], plan: Plan, *, missing: int, elapsed_s: float) -> Summary:
    """The summary of a run from the latest row of each item, in any order.

    `missing` items have no row; a run with one is not complete and passes no threshold. `elapsed_s` is how long the
    asking took, for the cost of a machine by the hour. Raises `RowsError` where a row is not of this plan or an item
    has two, `ThresholdError` where a threshold of the plan cannot be read.
    """
    thresholds = parse_thresholds(plan.thresholds)
    columns = columns_of(rows, plan)
    missing = max(missing, plan.items - columns.rows)
    parts = [Part(columns, version) for version in range(len(plan.versions))]
    each = _hours_each(columns, elapsed_s)
    figures = [figures_of(part, cost=cost_of(part, plan.prices, hours_each=each)) for part in parts]
    attacks = attacked(columns)
    unfinished = f"{missing} of {plan.items} items have not been asked" if missing else ""
    findings = tuple(judged(thresholds, _measured(columns, parts, figures, attacks=attacks), unfinished=unfinished))
    found = {
        **_head(columns, missing=missing, elapsed_s=elapsed_s),
        "versions": _versions(columns, parts, figures=figures, findings=findings),
        "pairs": pair_documents(columns),
        "masked": masked_documents(columns),
        "hostile": [hostile_document(columns, each) for each in attacks],
        "worst": worst_documents(columns, worst(columns, attacks)),
        "thresholds": [finding.document() for finding in findings],
        "passed": all(finding.passed for finding in findings) if findings else None,
        "notices": notices(columns, figures, missing=missing, attacks=attacks),
    }
    return Summary(found, findings)


def _head(columns: Columns, *, missing: int, elapsed_s: float) -> dict[str, Any]:
    """Which run it was, and how much of it there is."""
    plan = columns.plan
    return {
        "v": VERSION,
        "name": plan.name,
        "made_at": plan.made_at.isoformat(),
        "evaluation_id": str(plan.evaluation_id),
        "stamp": plan.stamp,
        "run": {
            "items": plan.items,
            "rows": columns.rows,
            "missing": missing,
            "elapsed_s": elapsed_s,
            "complete": not missing,
            "repeat": plan.repeat,
            "rate": plan.rate,
            "concurrency": plan.concurrency,
            "dataset": {"path": plan.dataset.path, "sha256": plan.dataset.sha256, "cases": plan.dataset.cases},
            "cases": plan.cases,
        },
    }


def _versions(
    columns: Columns, parts: list[Part], *, figures: list[Figures], findings: Iterable[Finding]
) -> list[dict[str, Any]]:
    edges = latency_edges(columns)
    found: list[dict[str, Any]] = []
    for at, (pinned, part) in enumerate(zip(columns.plan.versions, parts, strict=True)):
        bins, of = calibration(part)
        mine = [one.passed for one in findings if one.holds_for(pinned.prompt, pinned.version)]
        found.append(
            {
                "prompt": pinned.prompt,
                "version": pinned.version,
                "hash": pinned.hash,
                "cases": int(part.asked.any(axis=1).sum()),
                "asked": int(part.asked.sum()),
                "passed": all(mine) if mine else None,
                "figures": as_documents(figures[at]),
                "error_kinds": dict(columns.errors[at].most_common()),
                "reasons": dict(columns.reasons[at].most_common(MOST_REASONS)),
                "confusion": confusion(part),
                "calibration": bins,
                "calibration_of": of,
                "latency": latency_bars(part, edges),
            }
        )
    return found


def _hours_each(columns: Columns, elapsed_s: float) -> float:
    """The machine's hours for one answer that it gave in this run, twins included."""
    fresh = int((columns.answered & ~columns.cached).sum())
    return elapsed_s / SECONDS_PER_HOUR / fresh if fresh else 0.0


def _measured(
    columns: Columns, parts: list[Part], figures: list[Figures], *, attacks: list[Attacked]
) -> list[Measured]:
    """What the thresholds are held against, for each version."""
    masked = {version: compared.agree for version, compared in masked_compared(columns)}
    others: dict[int, Figure] = {}
    for first, second, compared in versions_compared(columns):
        for version in (first, second):
            agree, before = compared.agree, others.get(version)
            if agree is not None and (before is None or _low(agree) < _low(before)):
                others[version] = agree
    hostile = {each.version: each for each in attacks}
    measured: list[Measured] = []
    for version, pinned in enumerate(columns.plan.versions):
        rates = {name: _ends(figures[version][name]) for name in RATES}
        rates["caught"] = _turned(figures[version]["wrongly_allowed"])
        rates["let_through"] = _turned(figures[version]["wrongly_blocked"])
        rates["masked_agreement"] = _ends(masked.get(version))
        rates["versions_agreement"] = _ends(others.get(version))
        caught, invalid = caught_of(parts[version])
        found = Measured(pinned.prompt, pinned.version, rates, caught=caught, caught_invalid=invalid)
        measured.append(_attacked(found, hostile[version]) if version in hostile else found)
    return measured


def _attacked(found: Measured, by: Attacked) -> Measured:
    return replace(
        found,
        flips=len(by.flips),
        denied=by.denied_clean,
        invalid_clean=by.invalid_clean,
        pairs=by.pairs,
        unanswered=by.unanswered,
    )


def _ends(figure: Figure | None) -> tuple[float, float, float, int] | None:
    if figure is None or figure.low is None or figure.high is None:
        return None
    return figure.value, figure.low, figure.high, figure.n


def _turned(figure: Figure | None) -> tuple[float, float, float, int] | None:
    """A rate of what went wrong as one of what went right."""
    ends = _ends(figure)
    return None if ends is None else (1 - ends[0], 1 - ends[2], 1 - ends[1], ends[3])


def _low(figure: Figure) -> float:
    return figure.value if figure.low is None else figure.low
