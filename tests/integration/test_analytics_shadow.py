"""`/analytics/shadow`: what would have been blocked, what it made, and whether that is enough to go by."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.http_app import Edge
from libs.keys import create_key, parse_scopes
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.shadow.entries import ENTRIES
from services.analytics.app import open_app
from tests.integration.api_app import database_away, environment
from tools.local_stack.postgres import EmbeddedPostgres

VERDICT = text(
    """
    insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
      ref_price, reduce_only, verdict, would_have, mode, reasons, forecast_id, feed, horizon, model, as_of,
      decision_age_s, prompt_version, arm, payload, hash)
    values ((select coalesce(max(seq), 0) + 1 from gate_verdicts), :id, :at, 'follow', 'follow', :order_id, 'intent',
      :first, :ticker, :side, :qty, :ref_price, :reduce_only, :verdict, :would_have, 'shadow', :reasons, :id, :feed,
      :horizon, :model, :as_of, 5, :prompt_version, :arm, '{}', 'h')
    """
)
OUTCOME = text(
    """
    insert into outcomes (feed, ticker, horizon, model, as_of, forecast_id, realised_as_of, last_price, realised_price,
      realised_return, inside)
    values ('replay:1', :ticker, :horizon, 'theta', :as_of, :id, :as_of, 100, :price, 0, true)
    """
)
MANY = text(
    """
    insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
      ref_price, reduce_only, verdict, would_have, mode, reasons, feed, horizon, model, as_of, payload, hash)
    select n, gen_random_uuid(), cast(:newest as timestamptz) - n * interval '10 minutes', 'f', 'f', n, n, true,
      'AAPL', 'buy', 10, 100, false, 'allow', 'allow', 'shadow', array['ALLOW'], 'replay:1', '1d', 'theta',
      cast(:day as timestamptz) + n * interval '1 minute', repeat('x', 1000), n
    from generate_series(1, 20000) as n
    """
)
DAY0 = datetime(2012, 8, 30, 20, tzinfo=UTC)
NOW = datetime.now(UTC)


@pytest.fixture
async def http(
    monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path
) -> AsyncGenerator[httpx.AsyncClient, None]:
    for name, value in environment(database_url, "http://127.0.0.1:9/v1", tmp_path).items():
        monkeypatch.setenv(name, value)
    listen = load(ListenSettings)
    headers = {"Authorization": f"Bearer {create_key(listen.keys_path, 'reader', parse_scopes('read'))}"}
    async with open_app(listen) as app:
        transport = httpx.ASGITransport(Edge(app, max_body_bytes=65536))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, timeout=60) as made:
            yield made


async def entered(
    engine: AsyncEngine, *reasons: str, day: int | None = 0, realised: float | None = None, **more: Any
) -> None:
    """One verdict on an entry, whose forecast is of a market day, and its outcome where there is one."""
    known = reasons == ("ALLOW",) or not reasons
    row: dict[str, Any] = {
        "id": uuid4(),
        "at": NOW - timedelta(days=1),
        "order_id": str(uuid4()),
        "first": True,
        "ticker": "AAPL",
        "side": "buy",
        "qty": 10,
        "ref_price": 100,
        "reduce_only": False,
        "verdict": "allow",
        "would_have": "allow" if known else "deny",
        "reasons": list(reasons) or ["ALLOW"],
        "feed": None if day is None else "replay:1",
        "horizon": None if day is None else "1d",
        "model": None if day is None else "theta",
        "as_of": None if day is None else DAY0 + timedelta(days=day),
        "prompt_version": None if day is None else "1.0.0",
        "arm": None if day is None else "",
        **more,
    }
    async with engine.begin() as connection:
        await connection.execute(VERDICT, row)
        if realised is not None:
            outcome = {name: row[name] for name in ("ticker", "horizon", "as_of", "id")} | {"price": realised}
            await connection.execute(OUTCOME, outcome)


async def shadow(http: httpx.AsyncClient, **asked: str) -> dict[str, Any]:
    answer = await http.get("/analytics/shadow", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def fill(engine: AsyncEngine, *, days: int, a_day: int = 3, **more: Any) -> None:
    """Allowed entries that make 2 % or 4 %, and blocked ones that lose 1 % or 3 %, on each of some days."""
    for day in range(days):
        for number in range(a_day):
            up = 2 * (day % 2)
            await entered(engine, day=day, realised=102 + up, ticker=f"UP{number}", **more)
            await entered(engine, "POLICY_DENY", day=day, realised=97 + up, ticker=f"DOWN{number}", **more)


async def test_nothing_yet_is_said_plainly(http: httpx.AsyncClient) -> None:
    body = await shadow(http)
    assert body["summary"].startswith("not enough data yet: 0 allowed entries and 0 blocked with an outcome")
    assert body["enough_data"] is False
    assert (body["entries"], body["versions"], body["reasons"], body["difference"]) == (0, [], [], None)
    assert body["allowed"]["mean_return"] is None
    assert body["allowed"]["hit_rate"] is None


async def test_it_counts_what_was_allowed_blocked_waiting_and_refused_anyway(
    http: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await entered(engine, realised=110)
    await entered(engine, day=1)
    await entered(engine, "RULE_DENY", "POLICY_DENY", day=2, realised=90)
    await entered(engine, "NO_DECISION", day=None)
    await entered(engine, "RULE_DENY", "LIMIT_QTY", day=3, realised=50, verdict="deny")
    body = await shadow(http)
    assert (body["entries"], body["refused_anyway"]) == (5, 1)
    counts = ("entries", "settled", "waiting", "without_forecast", "market_days")
    assert [body["allowed"][name] for name in counts] == [2, 1, 1, 0, 1]
    assert [body["blocked"][name] for name in counts] == [2, 1, 0, 1, 1]
    assert body["allowed"]["money"] == pytest.approx(100)
    assert body["blocked"]["money"] == pytest.approx(-100)
    reasons = {each["reason"]: each["entries"] for each in body["reasons"]}
    assert reasons == {"RULE_DENY": 2, "POLICY_DENY": 1, "NO_DECISION": 1, "LIMIT_QTY": 1}
    assert body["enough_data"] is False


async def test_a_sale_makes_what_the_price_loses(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await entered(engine, realised=90, side="sell", qty=3)
    await entered(engine, realised=90, side="buy", ticker="IBM")
    body = await shadow(http, ticker="AAPL")
    assert body["allowed"]["money"] == pytest.approx(30)
    assert body["allowed"]["hit_rate"]["value"] == 1
    assert (await shadow(http, ticker="ibm"))["allowed"]["money"] == pytest.approx(-100)


async def test_with_enough_data_it_says_what_enforcing_would_do(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await fill(engine, days=10)
    body = await shadow(http)
    assert body["enough_data"] is True
    assert body["allowed"]["mean_return"]["value"] == pytest.approx(0.03)
    assert body["blocked"]["mean_return"]["value"] == pytest.approx(-0.02)
    assert body["allowed"]["mean_return"]["low"] < 0.03 < body["allowed"]["mean_return"]["high"]
    # The days' own swing is in both groups and cancels in the difference.
    assert body["difference"] == {"value": 0.05, "low": pytest.approx(0.05), "high": pytest.approx(0.05)}
    assert body["allowed"]["hit_rate"]["value"] == 1
    assert 0.8 < body["allowed"]["hit_rate"]["low"] < 1
    assert "enforcing would have blocked 30" in body["summary"]
    assert "The allowed did better by 5.00 percentage points" in body["summary"]
    assert body["summary"].endswith("this speaks for enforcing.")


async def test_too_few_days_or_entries_are_not_enough(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await fill(engine, days=9, a_day=4)
    body = await shadow(http)
    assert body["summary"].startswith("not enough data yet: 36 allowed entries and 36 blocked")
    assert "over 9 and 9 market days" in body["summary"]
    assert body["difference"] is None
    await entered(engine, day=9, realised=101)
    one_sided = await shadow(http)
    assert (one_sided["enough_data"], one_sided["difference"]) == (False, None), "the blocked have 9 days still"
    await entered(engine, "POLICY_DENY", day=10, realised=99)
    enough = await shadow(http)
    assert enough["enough_data"] is True
    assert enough["difference"]["low"] < enough["difference"]["value"]


async def test_what_is_no_better_than_chance_is_called_so(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    for day in range(12):
        for number in range(3):
            await entered(engine, day=day, realised=100 + (day + number) % 3 - 1, ticker=f"A{number}")
            await entered(engine, "POLICY_DENY", day=day, realised=99 + day % 2 * 2, ticker=f"B{number}")
    body = await shadow(http)
    assert body["enough_data"] is True
    assert "cannot be told from chance" in body["summary"]


async def test_each_version_and_arm_stands_for_itself(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await fill(engine, days=2)
    await entered(engine, prompt_version="1.1.0", arm="1.1.0", realised=105, ticker="T")
    body = await shadow(http)
    found = {(each["prompt_version"], each["arm"]): each["allowed"]["entries"] for each in body["versions"]}
    assert found == {("1.0.0", ""): 6, ("1.1.0", "1.1.0"): 1}


async def test_only_first_verdicts_on_entries_within_the_time_count(
    http: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await entered(engine, realised=101)
    await entered(engine, day=1, first=False)
    await entered(engine, day=2, reduce_only=True)
    await entered(engine, day=3, at=NOW - timedelta(days=31))
    await entered(engine, day=4, at=NOW + timedelta(days=1))
    body = await shadow(http)
    assert body["entries"] == 1
    assert datetime.fromisoformat(body["until"]) - datetime.fromisoformat(body["since"]) == timedelta(days=30)
    everything = await shadow(http, since="2000-01-01T00:00:00Z", until="2100-01-01T00:00:00+02:00")
    assert everything["entries"] == 3
    assert everything["since"] == "2000-01-01T00:00:00Z"


async def test_a_short_time_is_read_by_index_however_long_the_history_is(engine: AsyncEngine) -> None:
    asked = {"since": NOW - timedelta(days=1), "until": NOW, "ticker": None}
    async with engine.begin() as connection:
        await connection.execute(MANY, {"newest": NOW, "day": DAY0})
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("analyze"))
        plan = await connection.execute(text(f"explain {ENTRIES.text}"), asked)
        lines = "\n".join(row[0] for row in plan)
    assert "gate_verdicts_at" in lines
    assert "Seq Scan on gate_verdicts" not in lines


async def test_longer_horizons_are_pointed_out(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await entered(engine, realised=101, horizon="5d")
    assert "Horizons longer than a bar overlap" in (await shadow(http))["summary"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"until": "0001-01-01T00:00:00Z"}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"ticker": "a b"}, "ticker"),
        ({"days": "5"}, "days"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_name(
    http: httpx.AsyncClient, asked: dict[str, str], field: str
) -> None:
    answer = await http.get("/analytics/shadow", params=asked)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{field}: ")


async def test_a_key_is_asked_for_and_the_database_may_be_away(
    http: httpx.AsyncClient, postgres: EmbeddedPostgres, database_url: str
) -> None:
    assert (await http.get("/analytics/shadow", headers={"Authorization": ""})).status_code == 401
    with database_away(postgres, database_url):
        answer = await http.get("/analytics/shadow")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await shadow(http))["entries"] == 0
