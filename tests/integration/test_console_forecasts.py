"""The console's forecasts: what is read of them, how it is shown, and replays over the real route of the api."""

import html
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.http_app import Edge
from libs.judgement.thresholds import Rule
from libs.keys import KeyRing, create_key, parse_scopes
from libs.service_settings import ListenSettings
from libs.settings import load
from services.analytics.app import open_app
from services.analytics.console.door.sessions import Session, Sessions
from services.analytics.console.house import House
from services.analytics.console.layout.frame import Console
from services.analytics.console.live import Live
from services.analytics.console.pages.decision.replaying import changes, replay, summary
from services.analytics.console.pages.decision.words import RULES, status_words, word_of
from services.analytics.console.pages.forecasts.chart import MARKS, SIGNS, marked, meant_for, milliseconds, options
from services.analytics.console.pages.forecasts.page import chosen, decision_page
from services.analytics.console.pages.forecasts.queries import (
    Row,
    Series,
    forecast,
    newest_of,
    points,
    series_of_newest_feed,
    verdicts_on,
)
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, database_away, running
from tests.integration.replay_cases import ALLOW, DENY, call_of, change, judged, replies, rows
from tests.integration.test_analytics_shadow import NOW, entered
from tests.unit.judgement_cases import AS_OF, good_inputs
from tools.local_stack.postgres import EmbeddedPostgres

DAY = timedelta(days=1)
FIRST = datetime(2012, 1, 30, 21, tzinfo=UTC)
POLICY = (
    '{"llm": {"v": 1, "policy": {"status": "ok", "decision": {"allow": true, "reasons": [], "flags": []},'
    ' "rules": {"allow": true, "reasons": []}}}}'
)
STORE = """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, ts)
    values (:feed, :ticker, '1d', 'theta', :as_of, :id, :price, 101, 98, 104, cast(:features as jsonb), :ts)
"""
HEAD = """
    insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
    values (:feed, :ticker, '1d', 'theta', :as_of, :id)
    on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
"""
OUTCOME = """
    insert into outcomes (feed, ticker, horizon, model, as_of, forecast_id, realised_as_of, last_price, realised_price,
      realised_return, inside)
    values (:feed, :ticker, '1d', 'theta', :as_of, :id, :realised, 100, 99, -0.01, true)
"""
FEED = """
    insert into feeds (feed, source, last_write_at) values (:feed, 'replay', :at)
    on conflict (feed) do update set last_write_at = excluded.last_write_at
"""


async def stored(
    engine: AsyncEngine, days: int, *, ticker: str = "AAA", feed: str = "replay:2", settled: int = 0
) -> list[UUID]:
    """A series of some days, whose first ones have an outcome; its feed wrote at the hour of its number."""
    ids = [uuid4() for _ in range(days)]
    await change(engine, FEED, feed=feed, at=NOW - DAY + timedelta(hours=int(feed[-1])))
    for number, forecast_id in enumerate(ids):
        at = FIRST + number * DAY
        key = {"feed": feed, "ticker": ticker, "as_of": at, "id": forecast_id}
        ts = NOW - 2 * DAY + timedelta(minutes=number)
        await change(engine, "select ensure_partition('forecasts', 'month', :at)", at=at)
        await change(engine, STORE, **key, price=100.0 + number, features=POLICY, ts=ts)
        await change(engine, HEAD, **key)
        if number < settled:
            await change(engine, OUTCOME, **key, realised=at + 3 * DAY)
    return ids


async def test_a_series_is_that_of_the_feed_that_wrote_last_newest_first(engine: AsyncEngine) -> None:
    await stored(engine, 1, feed="replay:1", ticker="OLD")
    ids = await stored(engine, 4, settled=2)
    await stored(engine, 1, ticker="BBB")
    async with engine.connect() as connection:
        every = await series_of_newest_feed(connection)
        assert [series.ticker for series in every] == ["AAA", "BBB"]
        found = await points(connection, every[0], most=3)
        assert await newest_of(connection, every[0]) == every[0].id == ids[-1]
    (later,) = await stored(engine, 1, feed="replay:3")
    async with engine.connect() as connection:
        assert await newest_of(connection, every[0]) == later
    assert [row["id"] for row in found] == [ids[3], ids[2], ids[1]]
    assert [row["realised_price"] for row in found] == [None, None, 99]
    assert (found[0]["allow"], found[0]["rules_allow"], found[0]["status"]) == (True, True, "ok")


async def test_a_forecast_is_found_with_and_without_its_moment(engine: AsyncEngine) -> None:
    ids = await stored(engine, 3, settled=1)
    async with engine.connect() as connection:
        for as_of in (FIRST, None, FIRST + DAY):
            row = await forecast(connection, ids[0], as_of)
            assert row is not None
            assert (row["id"], row["as_of"], row["realised_price"]) == (ids[0], FIRST, 99)
        assert await forecast(connection, uuid4(), FIRST) is None


async def test_what_orders_were_told_on_a_forecast(engine: AsyncEngine) -> None:
    ids = await stored(engine, 3)
    for number, forecast_id in enumerate(ids):
        at = NOW - 2 * DAY + timedelta(minutes=number, seconds=20)
        await entered(engine, "POLICY_DENY", id=forecast_id, at=at, ticker="AAA")
    async with engine.connect() as connection:
        for forecast_id in ids:
            row = await forecast(connection, forecast_id, None)
            assert row is not None
            (verdict,) = await verdicts_on(connection, row)
            assert (verdict["forecast_id"], verdict["reasons"]) == (forecast_id, ["POLICY_DENY"])


def made(number: int, **more: Any) -> Row:
    row = {"id": number, "as_of": FIRST + number * DAY, "due_at": None, "realised_as_of": None, "realised_price": None}
    numbers = {"last_price": 100.0, "mean": 101.0, "lower": 98.0, "upper": 104.0}
    return {**row, **numbers, "allow": True, "rules_allow": True, **more}


def test_the_chart_has_each_number_at_its_moment() -> None:
    realised = FIRST + 4 * DAY
    rows = [
        made(2, allow=None),
        made(1, rules_allow=False),
        made(0, allow=False, realised_as_of=realised, realised_price=99.0),
    ]
    drawn = {series["name"]: series for series in options(rows, "1d")["series"]}
    moments = [milliseconds(FIRST + number * DAY) for number in range(5)]
    assert drawn["price"]["data"] == [[moments[0], 100.0], [moments[1], 100.0], [moments[2], 100.0]]
    assert drawn["forecast mean"]["data"] == [[moments[4], 101.0], [moments[2], 101.0], [moments[3], 101.0]]
    assert [point[1] for point in drawn["lower end"]["data"]] == [98.0] * 3
    assert [point[1] for point in drawn["forecast band"]["data"]] == [6.0] * 3
    assert drawn["realised price"]["data"] == [[moments[4], 99.0]]
    for number, kind in enumerate(("deny by policy", "deny by rules", "no decision")):
        assert drawn[kind]["data"] == [[moments[number], 100.0, 101.0, 98.0, 104.0]]
        assert [row["id"] for row in marked(rows)[kind]] == [number]
    assert drawn["allow"]["data"] == []
    assert len({shape for shape, _ in MARKS.values()}) == len({colour for _, colour in MARKS.values()}) == len(MARKS)
    assert set(SIGNS) == set(drawn) - {"lower end"}


def test_a_chart_of_nothing_and_a_horizon_of_no_known_kind() -> None:
    assert options([], "1d")["dataZoom"][0]["startValue"] is None
    assert meant_for(made(0), "soon") == FIRST
    assert meant_for(made(0, due_at=FIRST + 2 * DAY), "4h") == FIRST + 2 * DAY
    assert meant_for(made(0), "4h") == FIRST + timedelta(hours=4)


def test_the_series_that_is_asked_for() -> None:
    every = [Series("f", ticker, horizon, "theta", FIRST, uuid4()) for ticker in "AB" for horizon in ("1d", "5d")]
    assert chosen(every, ticker="", horizon="", model="") is every[0]
    assert chosen(every, ticker="B", horizon="5d", model="") is every[3]
    assert chosen(every, ticker="C", horizon="", model="") is None


@pytest.mark.parametrize(
    ("allow", "rules_allow", "word"),
    [
        (True, True, "allow"),
        (False, True, "deny by policy"),
        (True, False, "deny by rules"),
        (False, False, "deny by rules"),
        (None, True, "no decision"),
        (None, False, "no decision"),
        (True, None, "deny by rules"),
    ],
)
def test_a_decision_in_a_word(allow: bool | None, rules_allow: bool | None, word: str) -> None:
    assert word_of(allow=allow, rules_allow=rules_allow) == word


def test_every_rule_has_words_and_an_error_is_said() -> None:
    assert set(RULES) == {rule.value for rule in Rule}
    assert "allow: must be a boolean" in status_words({"status": "invalid", "error": "allow: must be a boolean"})
    assert "not answered yet" in status_words({"status": "skipped", "error": "pending"})


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=replies(DENY)) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    async with running(monkeypatch, database_url, fake.base_url, tmp_path, LLM_DEADLINE_S="5") as made:
        yield made


def console_of(engine: AsyncEngine, client: httpx.AsyncClient) -> Console:
    house = House(client, api_url="http://api")
    return Console(engine, house, Sessions(KeyRing.load(load(ListenSettings).keys_path)), Live(engine, house))


def session_with(token: str) -> Session:
    return Session("ann", SecretStr(token), frozenset({"read", "admin"}), begun=0, seen=0)


async def test_a_call_is_replayed_and_every_press_is_kept(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    judgement, _ = await judged(stack, engine)
    call_id = call_of(judgement)
    console, session = console_of(engine, stack.http), session_with(stack.token)
    same = await replay(console, session, call_id, force=False, version=None)
    assert same.good
    assert summary(same.content).endswith("Nothing differs from the original.")
    fake.reply = replies(ALLOW)
    other = await replay(console, session, call_id, force=False, version="1.1.0")
    assert other.good
    assert summary(other.content) == (
        "The model was called; version 1.1.0. Deny before, allow now: the decision turned."
    )
    assert ("verdict with the rules", "deny", "allow") in changes(other.content["diff"])
    assert ("decision", "deny, COVERAGE", "allow") in changes(other.content["diff"])
    missing = await replay(console, session, call_id, force=True, version="9.9.9")
    assert missing.status == 422
    pressed = await rows(engine, "select key_name, action, subject, reason, outcome from presses order by id")
    assert {(row["key_name"], row["action"], row["subject"]) for row in pressed} == {("ann", "replay", str(call_id))}
    assert [row["reason"] for row in pressed] == [
        "as recorded", "through version 1.1.0", "through version 9.9.9, asked anew",
    ]  # fmt: skip
    assert [row["outcome"].split()[0] for row in pressed] == ["200", "200", "422"]


async def test_without_the_scope_or_the_api_nothing_is_replayed_and_it_is_said(
    stack: Stack, engine: AsyncEngine
) -> None:
    reader = create_key(load(ListenSettings).keys_path, "reader", parse_scopes("read"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(stack.front), base_url="http://api") as client:
        console = console_of(engine, client)
        refused = await replay(console, session_with(reader), uuid4(), force=False, version=None)
    assert refused.status == 403
    gone = httpx.AsyncClient(transport=httpx.MockTransport(unreachable))
    silent = await replay(console_of(engine, gone), session_with(reader), uuid4(), force=True, version=None)
    assert silent.status == 0
    assert "does not answer" in silent.problem
    pressed = await rows(engine, "select outcome from presses order by id")
    assert [row["outcome"][:4] for row in pressed] == ["403 ", "0 th"]


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.fixture
async def http(stack: Stack) -> AsyncGenerator[httpx.AsyncClient, None]:
    """The console as a browser reaches it, signed in by the operator."""
    async with open_app(load(ListenSettings)) as app:
        transport = httpx.ASGITransport(Edge(app, max_body_bytes=65536))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            await client.post("/sign-in", data={"key": stack.token})
            yield client


async def read(client: httpx.AsyncClient, path: str) -> str:
    answer = await client.get(path)
    assert answer.status_code == 200
    return html.unescape(answer.text)


async def test_the_pages_show_what_is_stored_and_nothing_of_it_is_html(
    http: httpx.AsyncClient, stack: Stack, engine: AsyncEngine, postgres: EmbeddedPostgres, database_url: str
) -> None:
    assert "No forecast yet" in await read(http, "/forecasts")
    hostile = "<img src=x onerror=alert(1)> AAPL soars"
    judgement, forecast_id = await judged(stack, engine, good_inputs(headlines=(hostile,)))
    await change(engine, FEED, feed="replay:1", at=NOW)
    await change(engine, HEAD, feed="replay:1", ticker="AAPL", as_of=AS_OF, id=forecast_id)
    listed = await read(http, "/forecasts?ticker=AAPL")
    assert decision_page(forecast_id, AS_OF) in listed
    assert "deny by policy" in listed
    answer = await http.get(decision_page(forecast_id, AS_OF))
    assert "<img src=x" not in answer.text
    page = await read(http, f"/forecasts/{forecast_id}")
    call_id = str(call_of(judgement))
    for words in ("Up 1.0%.", "COVERAGE", "AAPL soars", "momentum_20", "To the model, as system", call_id, "Replay"):
        assert words in page
    assert "Not settled yet" in page
    assert "no forecast of this id" in await read(http, f"/forecasts/{uuid4()}")
    assert "no forecast of this id" in await read(http, "/forecasts/nonsense?as_of=never")
    with database_away(postgres, database_url):
        assert "The forecasts cannot be read now" in await read(http, "/forecasts")
        assert "The decision cannot be read now" in await read(http, decision_page(forecast_id, AS_OF))


async def test_a_second_console_in_a_process_stands_like_the_first(stack: Stack) -> None:
    for _ in range(2):
        async with open_app(load(ListenSettings)) as app:
            transport = httpx.ASGITransport(Edge(app, max_body_bytes=65536))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                await client.post("/sign-in", data={"key": stack.token})
                assert "No forecast yet" in await read(client, "/forecasts")
