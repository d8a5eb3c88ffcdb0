"""Rows and plans for the tests of figures: made by hand, or simulated with known error rates."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from libs.evaluation.running.plan import Dataset, Pinned, Plan, Prices
from libs.evaluation.running.row import Row

POLICY_ONE = Pinned("policy", "1.0.0", "a" * 64)
POLICY_TWO = Pinned("policy", "1.1.0", "b" * 64)
RATIONALE_ONE = Pinned("rationale", "1.0.0", "c" * 64)
ATTACKS = ("direct_order", "fake_json", "hidden_unicode")
TICKERS = ("AAPL", "GOOG", "IBM", "MSFT", "FB")
CODES = ("LIQUIDITY", "EARNINGS", "DISPERSION")


def plan_of(
    versions: Sequence[Pinned] = (POLICY_ONE,),
    *,
    cases: int = 4,
    repeat: int = 1,
    rate: float | None = None,
    thresholds: Sequence[str] = (),
    prices: Prices | None = None,
) -> Plan:
    """A plan with what matters to figures."""
    return Plan(
        name="trial",
        made_at=datetime(2026, 3, 2, 9, 30, tzinfo=UTC),
        seed=7,
        repeat=repeat,
        versions=tuple(versions),
        cases=cases,
        cases_sha256="d" * 64,
        dataset=Dataset("cases.jsonl", "e" * 64, cases),
        concurrency=8,
        rate=rate,
        cache=False,
        thresholds=tuple(thresholds),
        rules_sha256="f" * 64,
        prices=prices,
        workers=1,
        evaluation_id=UUID(int=6),
        stamp={"commit": "0123abc", "dirty": False, "python": "3.11"},
    )


def row_of(plan: Plan, case: int, version: int = 0, repeat: int = 0, /, **given: Any) -> Row:
    """A valid answer, but for what is given. `allow` also fills text and reasons, unless they are given."""
    pinned = plan.versions[version]
    allow = given.get("allow", False if pinned.prompt == "policy" else None)
    reasons = ("LIQUIDITY",) if allow is False else ()
    text = "The price rises." if allow is None else f'{{"allow": {str(allow).lower()}}}'
    usual: dict[str, Any] = {
        "item": (case * len(plan.versions) + version) * plan.repeat + repeat,
        "try_": 1,
        "case": f"case-{case}",
        "twin": "",
        "twin_of": "",
        "attack": "",
        "ticker": TICKERS[case % len(TICKERS)],
        "day": (date(2012, 1, 2) + timedelta(days=case // len(TICKERS))).isoformat(),
        "as_of": "2012-01-02T21:00:00+00:00",
        "prompt": pinned.prompt,
        "version": pinned.version,
        "hash": pinned.hash,
        "repeat": repeat,
        "status": "ok",
        "error": None,
        "first_error": None,
        "cached": False,
        "text": text,
        "allow": allow,
        "reasons": reasons,
        "flags": (),
        "rules_allow": False,
        "rules_reasons": ("LIQUIDITY",),
        "ungrounded": () if pinned.prompt == "rationale" else None,
        "side": "buy",
        "target": None,
        "made": None,
        "won": None,
        "queue_ms": 5.0,
        "first_queue_ms": given.get("queue_ms", 5.0),
        "first_token_ms": 40.0,
        "total_ms": 105.0,
        "late_ms": 0.0,
        "tokens_in": 500,
        "tokens_out": 20,
        "model": "Lexi",
        "call_id": str(UUID(int=case + 1)),
        "at": "2026-03-02T09:30:01+00:00",
        "worker": "desk:1",
    }
    return Row(**(usual | given))


def invalid(plan: Plan, case: int, version: int = 0, repeat: int = 0, /, **given: Any) -> Row:
    """A reply that is no decision."""
    failed = {"status": "invalid", "allow": None, "reasons": (), "text": "{", "error": "cut: the tokens ran out"}
    return row_of(plan, case, version, repeat, **(failed | {"first_error": "cut: the tokens ran out"} | given))


def silent(plan: Plan, case: int, version: int = 0, repeat: int = 0, /, **given: Any) -> Row:
    """No reply."""
    failed = {"status": "unavailable", "allow": None, "reasons": (), "text": "", "error": "no answer within 20 s"}
    return row_of(plan, case, version, repeat, **(failed | given))


@dataclass(frozen=True, slots=True)
class Ways:
    """The true rates at which a simulated version errs.

    `between` is how much of that is a case's own: at 1 a case goes wrong in every repeat or in none, at 0 each repeat
    is a throw of its own. `flips` is the rate at which a hostile twin turns a deny.
    """

    answered: float = 1.0
    invalid: float = 0.02
    repaired: float = 0.05
    wrongly_allowed: float = 0.05
    wrongly_blocked: float = 0.10
    ungrounded: float = 0.04
    flips: float = 0.05
    between: float = 0.0
    latency_ms: float = 120.0
    cached: float = 0.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """How many cases there are of each kind, and the share of them that are to be allowed."""

    clean: int
    masked: int = 0
    hostile: int = 0
    to_allow: float = 0.5

    @property
    def cases(self) -> int:
        """All of them."""
        return self.clean + self.masked + self.hostile

    def twin(self, case: int) -> tuple[Literal["", "masked", "hostile"], int]:
        """Whose twin a case is."""
        if case < self.clean:
            return "", case
        if case < self.clean + self.masked:
            return "masked", (case - self.clean) % self.clean
        return "hostile", (case - self.clean - self.masked) % self.clean


def simulated(plan: Plan, made_of: Simulated, *, ways: Sequence[Ways], seed: int) -> Iterator[Row]:
    """A row for every item in the plan's order, from versions that err as often as `ways` says."""
    for item in plan.order():
        rest, repeat = divmod(item, plan.repeat)
        case, version = divmod(rest, len(plan.versions))
        twin, clean = made_of.twin(case)
        of_case = random.Random(f"{seed}/{clean}")
        target = of_case.random() < made_of.to_allow
        made = round(of_case.gauss(0.0005, 0.02), 6)
        way, each = ways[version], random.Random(f"{seed}/{item}")
        own = random.Random(f"{seed}/{case}/{version}") if each.random() < way.between else each
        of_version: dict[str, Any] = {"prompt": plan.versions[version].prompt, "target": target, "twin": twin}
        shared = {
            "case": f"case-{clean}-{twin}-{case}" if twin else f"case-{clean}",
            "twin_of": f"case-{clean}" if twin else "",
            "attack": ATTACKS[case % len(ATTACKS)] if twin == "hostile" else "",
            "ticker": TICKERS[clean % len(TICKERS)],
            "day": (date(2012, 1, 2) + timedelta(days=clean // len(TICKERS))).isoformat(),
            "rules_allow": target,
            "rules_reasons": () if target else ("LIQUIDITY",),
            "made": made,
            "won": made > 0,
        }
        said = _said(way, own=own, **of_version)
        yield row_of(plan, case, version, repeat, **shared, **of_version, **_spent(way, each), **said)


def _spent(way: Ways, each: random.Random) -> dict[str, Any]:
    total, tokens = round(way.latency_ms * each.lognormvariate(0, 0.4), 3), each.randint(480, 560)
    if each.random() < way.cached:
        return {
            "cached": True,
            "total_ms": 0.3,
            "queue_ms": 0.0,
            "first_token_ms": 0.0,
            "tokens_in": 0,
            "tokens_out": 0,
        }
    return {"total_ms": total + 5.0, "queue_ms": 5.0, "first_token_ms": round(total / 3, 3), "tokens_in": tokens}


def _said(way: Ways, *, own: random.Random, prompt: str, target: bool, twin: str) -> dict[str, Any]:
    """What a version says."""
    throws = [own.random() for _ in range(6)]
    nothing: dict[str, Any] = {"allow": None, "reasons": (), "ungrounded": None}
    if throws[0] >= way.answered:
        return nothing | {"status": "unavailable", "text": "", "error": "no answer within 20 s"}
    if throws[1] < way.invalid:
        error = "schema: reasons: Field required" if throws[5] < 0.5 else "cut: the tokens ran out"
        return nothing | {"status": "invalid", "text": '{"allow": tr', "error": error, "first_error": error}
    first = "not_json: Expecting value" if throws[2] < way.repaired else None
    if prompt != "policy":
        if throws[3] >= way.ungrounded:
            return {"first_error": first}
        return {"first_error": first, "ungrounded": ("7.5",), "text": "A rise of 7.5 % is seen."}
    wrong = throws[3] < (way.wrongly_blocked if target else way.wrongly_allowed)
    allow = target != wrong or (twin == "hostile" and throws[4] < way.flips)
    reasons = () if allow else (CODES[int(throws[5] * len(CODES))],)
    text = f'{{"allow": {str(allow).lower()}, "reasons": {list(reasons)}, "flags": []}}'.replace("'", '"')
    return {"first_error": first, "allow": allow, "reasons": reasons, "text": text}
