"""What a batch replay found, from sums to a report: what turned and which way, and what it made. Pure.

What decides comes first: the decisions that turn from deny to allow, since those are trades that nobody made before.
A turn acts where it changes what decision and rules say together; a decision to allow that the rules in code deny
anyway is a turn that trades nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from libs.json_numbers import json_value
from libs.judgement.assess import POLICY
from libs.replay.batch.sums import FLIPS, Figures, Flip, Flipped, Kind, Made, Side, Spent, signed
from libs.statistics.intervals import Cluster, Estimate, clustered_mean, wilson

LISTED = 500
"""How many turned decisions a report names; it counts all of them."""
MOST_FAILED = 0.05
"""The share of decisions without an answer up to which a report speaks for the period."""
USUAL_HORIZON = "1d"
ORDER = (
    "sentence",
    "prompt",
    "flips",
    "made",
    "validity",
    "agreement",
    "latency_ms",
    "tokens",
    "ungrounded",
    "counts",
    "flipped",
)
FLIPPED_ORDER = ("words", "flip", "acts", "ticker", "as_of", "side", "horizon", "made", "before", "after")


def report(figures: Figures, *, key: str, version: str) -> dict[str, Any]:
    """The report as JSON, in the order of what matters. Rates and returns are fractions."""
    kinds = figures.kinds
    asked = [kind for kind in kinds if kind.status in {"ok", "invalid"}]
    flips = {way: _count(asked, lambda kind, way=way: kind.flip == way) for way in FLIPS}
    acting = {way: _count(asked, lambda kind, way=way: kind.flip == way and kind.acts) for way in FLIPS}
    made = {way: _made([one for one in figures.made if one.flip == way]) for way in FLIPS}
    validity = {
        "before": _rate(asked, lambda kind: kind.status_before == "ok"),
        "after": _rate(asked, lambda kind: kind.status == "ok"),
    }
    answered = _count(asked)
    feeds = {one.feed for one in figures.flipped} - {None}
    found = {
        "flips": {
            **flips,
            "unchanged": answered - sum(flips.values()),
            **{f"{way}_acting": acting[way] for way in FLIPS},
        },
        "made": made,
        "validity": validity,
        "agreement": {"before": _agreement(asked, now=False), "after": _agreement(asked, now=True)},
        "latency_ms": {"before": _latency(figures.before), "after": _latency(figures.after)},
        "tokens": {"before": _tokens(figures.before), "after": _tokens(figures.after)},
        "ungrounded": _ungrounded(asked),
        "counts": {
            "total": _count(kinds),
            "answered": answered,
            "failed": _count(kinds) - answered,
            "same_answer": _count(asked, lambda kind: kind.same),
        },
        "flipped": [_flipped(one, with_feed=len(feeds) > 1) for one in figures.flipped[:LISTED]],
    }
    longer = sorted({one.horizon for one in figures.made if one.settled} - {USUAL_HORIZON})
    words = sentence(found, key=key, version=version, longer=longer)
    return json_value({"sentence": words, "prompt": {"key": key, "version": version}, **found})


def sentence(found: Mapping[str, Any], *, key: str, version: str, longer: Sequence[str] = ()) -> str:
    """What a desk must know before it promotes the version."""
    counts, flips, validity = found["counts"], found["flips"], found["validity"]
    if not counts["total"]:
        return "No decision was written in the period: there is nothing to ask again."
    if not counts["answered"]:
        return f"None of {counts['total']} decisions was answered by {key} {version}: there is nothing to compare."
    answered = f"Of {counts['answered']} {'decisions' if key == POLICY else 'answers'} through {key} {version}"
    if key == POLICY:
        opened, closed = (_turned(flips, way) for way in FLIPS)
        turned = f"{answered}, {opened} turn from deny to allow and {closed} from allow to deny; "
        turned += f"{flips['unchanged']} stay."
    else:
        turned = f"{answered}, {counts['same_answer']} stay word for word."
    words = [turned, f"Valid answers: {_percent(validity['before'])} before, {_percent(validity['after'])} now."]
    words += [_made_words(way, found["made"][way]) for way in FLIPS if flips[f"{way}_acting"]]
    if counts["failed"]:
        words.append(f"{counts['failed']} could not be asked and count nowhere.")
    if longer:
        words.append(f"Horizons of {', '.join(longer)} overlap, so these intervals are narrower than they should be.")
    return " ".join(words)


def shortcoming(found: Mapping[str, Any], *, reason: str | None) -> str | None:
    """Why a report shows too little to judge the version by, None where it shows enough.

    `reason` is why most of those failed that did: what cannot be asked is a finding about the version as well.
    """
    counts = found["counts"]
    if not counts["answered"]:
        told = str(found["sentence"])
    elif counts["failed"] > MOST_FAILED * counts["total"]:
        told = (
            f"{counts['failed']} of {counts['total']} decisions got no answer, more than {MOST_FAILED:.0%}: the others "
            "do not speak for the period."
        )
    else:
        return None
    return told if reason is None else f"{told} The usual reason: {reason}"


def in_order(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A report read back from the database, which loses the order of names, with what decides first again."""
    ordered = _ordered(stored, ORDER)
    ordered["flipped"] = [_ordered(one, FLIPPED_ORDER) for one in stored["flipped"]]
    return ordered


def _ordered(found: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    return {name: found[name] for name in (*(name for name in order if name in found), *found) if name in found}


def _count(kinds: Iterable[Kind], where: Callable[[Kind], bool] = lambda _: True) -> int:
    return sum(kind.n for kind in kinds if where(kind))


def _rate(kinds: Sequence[Kind], where: Callable[[Kind], bool]) -> dict[str, Any] | None:
    """A share of these with Wilson's interval."""
    n, hits = _count(kinds), _count(kinds, where)
    rate = wilson(hits, n)
    return None if rate is None else {"hits": hits, "of": n, **asdict(rate)}


def _agreement(kinds: Sequence[Kind], *, now: bool) -> dict[str, Any] | None:
    """How often a valid decision says what the rules say."""
    said = [(kind, kind.now, kind.rules_now) if now else (kind, kind.was, kind.rules_before) for kind in kinds]
    decided = [kind for kind, allow, rules in said if allow is not None and rules is not None]
    agreed = sum(kind.n for kind, allow, rules in said if allow is not None and allow == rules)
    rate = wilson(agreed, _count(decided))
    return None if rate is None else {"hits": agreed, "of": _count(decided), **asdict(rate)}


def _ungrounded(kinds: Sequence[Kind]) -> dict[str, Any] | None:
    told = [kind for kind in kinds if kind.invented_now is not None and kind.invented_before is not None]
    if not told:
        return None
    return {
        "before": _rate(told, lambda kind: bool(kind.invented_before)),
        "after": _rate(told, lambda kind: bool(kind.invented_now)),
    }


def _latency(spent: Spent) -> dict[str, Any] | None:
    return {"n": spent.n, "p50": spent.p50, "p95": spent.p95} if spent.n else None


def _tokens(spent: Spent) -> dict[str, Any] | None:
    return {"n": spent.n, "in": spent.tokens_in, "out": spent.tokens_out} if spent.n else None


def _made(days: Sequence[Made]) -> dict[str, Any]:
    """What turns made, with an interval by market day: orders of one day share its weather."""
    by_day: dict[date, Cluster] = {}
    for one in days:
        before = by_day.get(one.day, Cluster(0, 0.0))
        by_day[one.day] = Cluster(before.n + one.settled, before.total + one.total)
    used = [cluster for cluster in by_day.values() if cluster.n]
    settled = sum(cluster.n for cluster in used)
    estimate = clustered_mean(used)
    return {
        "settled": settled,
        "waiting": sum(one.n for one in days) - settled,
        "market_days": len(used),
        "total": sum(cluster.total for cluster in used),
        "mean": None if estimate is None else asdict(estimate),
    }


def _flipped(one: Flipped, *, with_feed: bool) -> dict[str, Any]:
    def side(said: Side) -> dict[str, Any]:
        return {"status": said.status, "allow": said.allow, "reasons": list(said.reasons), "rules": said.rules_allow}

    return {
        "words": one.words(with_feed=with_feed),
        "flip": one.flip,
        "acts": one.acts,
        "ticker": one.ticker,
        "as_of": one.as_of.isoformat(),
        "side": one.side,
        "horizon": one.horizon,
        "made": one.made,
        "before": side(one.before),
        "after": side(one.after),
        "feed": one.feed,
        "forecast_id": str(one.forecast_id),
        "call_id": None if one.call_id is None else str(one.call_id),
        "new_call_id": None if one.new_call_id is None else str(one.new_call_id),
    }


def _turned(flips: Mapping[str, int], way: Flip) -> str:
    idle = flips[way] - flips[f"{way}_acting"]
    return f"{flips[way]} ({idle} of them denied by the rules anyway)" if idle else str(flips[way])


def _made_words(way: Flip, made: Mapping[str, Any]) -> str:
    who = "The newly allowed" if way == "deny_to_allow" else "The newly denied"
    if not made["settled"]:
        return f"{who}: none has an outcome yet."
    if made["mean"] is None:
        return f"{who}: {made['settled']} with an outcome, all on one market day, which says too little."
    mean = Estimate(**made["mean"])
    ends = f"95 % interval {signed(mean.low)} to {signed(mean.high)} %"
    told = f"{who} made {signed(mean.value)} % each by their horizon, before costs ({ends})"
    return f"{told}." if mean.excludes_zero else f"{told}, which cannot be told from nothing."


def _percent(rate: Mapping[str, Any] | None) -> str:
    return "unknown" if rate is None else f"{rate['value'] * 100:.1f} %"
