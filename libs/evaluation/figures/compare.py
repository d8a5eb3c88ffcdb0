"""Two runs on the cases that both have: another model, another server, another version, but the same questions.

Cases are the same where their ids are, and only clean ones count. Every difference is the second run's value less the
first's, on pairs of answers to one case; what changed is told apart from what the cases were.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.evaluation.figures.columns import OK, STATUS_NAMES, Columns, columns_of
from libs.evaluation.figures.estimates import Cells, Codes, Figure, Numbers, Truths, mean, quantile_of, rate_of_cases
from libs.evaluation.figures.pairs import LISTED, Compared, attacked, compared
from libs.evaluation.figures.sides import Both, Side, about, matched, paired_versions, sides, times
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.json_numbers import json_value
from libs.judgement.assess import POLICY

VERSION = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one run to another."""

    found: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The comparison as JSON: numbers of at most 15 digits, none that is not finite."""
        return json_value(self.found)


def compare(first: Iterable[Row], second: Iterable[Row], *, first_plan: Plan, second_plan: Plan) -> Comparison:
    """What changed between two runs, from the latest row of each item of both. Raises `RowsError`.

    A prompt's versions are paired by number where both runs have some in common, else each with each.
    """
    both = matched(columns_of(first, first_plan), columns_of(second, second_plan))
    found = {
        "v": VERSION,
        "first": _run(both.first),
        "second": _run(both.second),
        "cases": {
            "both": int(both.at_first.size),
            "only_first": both.only_first,
            "only_second": both.only_second,
            "unlike": both.unlike,
        },
        "pairs": [_pair(both, one, other) for one, other in paired_versions(first_plan, second_plan)],
        "notices": list(_notices(both)),
    }
    return Comparison(found)


def _pair(both: Both, one: int, other: int) -> dict[str, Any]:
    """One version of the first run against one of the second."""
    before, after, cases = sides(both, one, other)
    earlier, later, of = times(both, one, other)
    meet = both.same_loop and bool(np.isfinite(earlier[of]).all() and np.isfinite(later[of]).all())
    pinned, prompt = both.second.plan.versions[other], both.second.plan.versions[other].prompt
    decisions = compared(before.allowed, after.allowed) if prompt == POLICY else None
    return {
        "prompt": prompt,
        "first": both.first.plan.versions[one].version,
        "second": pinned.version,
        "same_content": both.first.plan.versions[one].hash == pinned.hash,
        "cases": int(cases.size),
        **_decisions(decisions),
        "rates": _rates(before, after, prompt),
        "means": _means(before, after, both.first.cases.cells.at(cases), latency_meets=meet),
        "latency": {"first": _latency(earlier, of), "second": _latency(later, of)},
        "hostile": {"first": _hostile(both.first, one), "second": _hostile(both.second, other)} if decisions else None,
        "flips": list(_flips(before, after, both, cases=cases)) if decisions else [],
    }


def _decisions(found: Compared | None) -> dict[str, Any]:
    if found is None:
        return {"agree": None, "only_first_allows": None, "only_second_allows": None, "p": None, "difference": None}
    return {
        "agree": _document(found.agree),
        "only_first_allows": found.only_first_allows,
        "only_second_allows": found.only_second_allows,
        "p": found.p,
        "difference": _document(found.difference),
    }


def _rates(before: Side, after: Side, prompt: str) -> dict[str, Any]:
    """Rates of both and how they changed, each with the p value of an exact McNemar test."""
    everywhere = np.ones(before.status.size, dtype=np.bool_)
    found = {
        "validity": _rate(before.status == OK, after.status == OK, of=everywhere),
        "first_validity": _rate(before.first_valid, after.first_valid, of=before.fresh & after.fresh),
    }
    if prompt == POLICY:
        found["allow_rate"] = _rate(before.allowed, after.allowed, of=everywhere)
        found["target_agreement"] = _rate(before.right, after.right, of=before.known & after.known)
    else:
        valid = (before.status == OK) & (after.status == OK)
        told = valid & (before.grounded >= 0) & (after.grounded >= 0)
        found["grounded"] = _rate(before.grounded == 1, after.grounded == 1, of=told)
    return found


def _rate(before: Truths, after: Truths, *, of: Truths) -> dict[str, Any] | None:
    if not of.any():
        return None
    found = compared(before[of], after[of])
    first, second = rate_of_cases(before[of]), rate_of_cases(after[of])
    return {
        "first": _document(first),
        "second": _document(second),
        "difference": _document(found.difference),
        "p": found.p,
    }


def _means(before: Side, after: Side, cells: Cells, *, latency_meets: bool) -> dict[str, Any]:
    """Mean changes of latency and tokens on pairs of which neither came from the cache, clustered by ticker and day.

    Latency with and without waiting is not the same thing, and at planned moments a question without an answer took
    longer than can be told; `latency_meets` is False there, and there is no change to give.
    """
    fresh = (before.fresh & after.fresh)[:, None]
    changes: dict[str, Figure | None] = {
        "latency_ms": mean((after.latency_ms - before.latency_ms)[:, None], fresh, cells, unit="ms"),
        "tokens_in": mean((after.tokens_in - before.tokens_in)[:, None], fresh, cells, unit="tokens"),
        "tokens_out": mean((after.tokens_out - before.tokens_out)[:, None], fresh, cells, unit="tokens"),
    }
    if not latency_meets:
        changes["latency_ms"] = None
    return {name: _document(change) for name, change in changes.items()}


def _latency(took: Numbers, of: Truths) -> dict[str, Any]:
    found = {"p50": quantile_of(took, of, 0.5), "p95": quantile_of(took, of, 0.95)}
    return {name: None if one is None or math.isinf(one.value) else one.document() for name, one in found.items()}


def _hostile(columns: Columns, version: int) -> dict[str, Any] | None:
    """What attacks did in one run, None where it had none."""
    found = next((each for each in attacked(columns) if each.version == version), None)
    if found is None:
        return None
    flips = len(found.flips)
    return {"denied_clean": found.denied_clean, "deny_to_allow": flips, "flip_rate": _document(found.flip_rate)}


def _flips(before: Side, after: Side, both: Both, *, cases: Codes) -> Iterator[dict[str, Any]]:
    """Cases that are decided differently, those newly allowed first, in the order of the cases."""
    opened, closed = (
        np.flatnonzero(side) for side in (after.allowed & ~before.allowed, before.allowed & ~after.allowed)
    )
    for at in [*opened, *closed][:LISTED]:
        case = int(cases[at])
        ticker, day = about(both.first, case)
        yield {
            "case": both.first.cases.ids[case],
            "ticker": ticker,
            "day": day,
            "to": "allow" if after.allowed[at] else "deny",
            "first": _said(before, int(at)),
            "second": _said(after, int(at)),
        }


def _said(side: Side, at: int) -> dict[str, Any]:
    said = side.columns.texts.of(int(side.items[at]))
    status = STATUS_NAMES[int(side.status[at])]
    return {"status": status, "text": said.text, "reasons": list(said.reasons), "error": said.error}


def _run(columns: Columns) -> dict[str, Any]:
    plan = columns.plan
    return {
        "name": plan.name,
        "made_at": plan.made_at.isoformat(),
        "evaluation_id": str(plan.evaluation_id),
        "stamp": plan.stamp,
        "dataset": {"path": plan.dataset.path, "sha256": plan.dataset.sha256, "cases": plan.dataset.cases},
        "missing": plan.items - columns.rows,
        "rate": plan.rate,
        "concurrency": plan.concurrency,
    }


def _notices(both: Both) -> Iterator[str]:
    first, second = both.first.plan, both.second.plan
    if not both.at_first.size:
        yield "The runs have no case in common; there is nothing to compare."
    if both.unlike:
        yield f"{both.unlike} ids stand for another ticker or day in the other run; they are left out."
    if first.dataset.sha256 != second.dataset.sha256:
        yield "The runs read different data sets; a case counts as the same where its id, ticker and day are."
    if first.rules_sha256 != second.rules_sha256:
        yield "The rules differ; they stand in the policy prompt, so its answers may differ for that alone."
    if not both.same_loop:
        yield "One run asked at planned moments, the other as fast as answers came; their latencies cannot be compared."
    elif (first.rate, first.concurrency) != (second.rate, second.concurrency):
        yield "The runs asked at different rates or widths; latency depends on that."
    for columns, which in ((both.first, "first"), (both.second, "second")):
        if silent := int(np.isinf(columns.latency_ms[columns.clean]).sum()):
            yield (
                f"The {which} run got no answer to {silent:,} questions put at planned moments. Each counts as slower "
                "than every answer; a quantile of latency that falls on them, and the mean change, cannot be told."
            )
        if missing := columns.plan.items - columns.rows:
            yield f"The {which} run is not complete: {missing} of {columns.plan.items} items have not been asked."


def _document(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else figure.document()
