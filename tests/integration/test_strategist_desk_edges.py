"""The desk at the edge: limits, counts, late callers, a lock that is held, a database that is away."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.limits import Limits
from libs.trading.reasons import Reason
from services.api.strategist.desk.desk import Desk, NoVerdict
from services.api.strategist.desk.record import Asked
from services.api.strategist.desk.repository import DeskConnection
from tests.integration.api_app import database_away, until
from tests.integration.desk_cases import MODEL, Judged, an_order, reconciled, store, turn
from tests.integration.desk_running import FILL, desk_on, enforce, rows, says
from tools.local_stack.postgres import EmbeddedPostgres


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    """A desk with the default limits."""
    async with desk_on(database_url, tmp_path) as running:
        yield running


async def test_limits_see_positions_open_orders_and_each_other(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    """A position of 30 at 100, and orders of 10: the second would exceed 5,000 in one ticker."""
    await reconciled(engine, AAPL=Decimal(30))
    limits = Limits(max_position_notional=Decimal(5_000), max_gross_notional=Decimal(6_500), max_orders_per_min=3)
    await store(engine, Judged(price=100.0))
    await store(engine, Judged(ticker="MSFT", price=100.0))
    async with desk_on(database_url, tmp_path, limits=limits) as desk:
        first, second = await asyncio.gather(
            *(desk.verdict(Asked(an_order(f"c{n}", qty=Decimal(15)), send=True)) for n in range(2))
        )
        assert first.verdict == "allow"
        assert "LIMIT_POSITION" in second.reasons
        gross = await desk.verdict(Asked(an_order("g", ticker="MSFT", qty=Decimal(21)), send=True))
        assert gross.reasons == ("LIMIT_GROSS",)
        for n in range(2):
            assert (await desk.verdict(Asked(an_order(f"m{n}", ticker="MSFT", qty=Decimal(1))))).verdict == "allow"
        assert "LIMIT_RATE" in (await desk.verdict(Asked(an_order("m3", ticker="MSFT")))).reasons


async def test_a_live_forecast_ends_when_its_next_bar_is_overdue(engine: AsyncEngine, desk: Desk) -> None:
    """Written while its end was to come, asked after it; history that is replayed never ends so."""
    now = datetime.now(UTC)
    soon, long_ago = (now + timedelta(seconds=1)).isoformat(), (now - timedelta(days=9)).isoformat()
    await store(engine, Judged(features={"ends_at": soon}))
    await store(engine, Judged(ticker="MSFT", features={"ends_at": long_ago}))
    await reconciled(engine)
    await enforce(engine)
    assert (await desk.verdict(Asked(an_order("a", ticker="MSFT")))).verdict == "allow"
    await asyncio.sleep(1.1)
    assert (await desk.verdict(Asked(an_order("b")))).reasons == ("STALE_DECISION",)


async def test_a_database_that_is_away_means_no_entry_and_heals(
    engine: AsyncEngine, database_url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """No verdict, never an allow; afterwards the desk works on by itself."""
    await store(engine, Judged())
    await reconciled(engine)
    async with desk_on(database_url, tmp_path) as desk:
        with database_away(postgres, database_url), pytest.raises(NoVerdict) as refused:
            await desk.verdict(Asked(an_order()))
        assert refused.value.reason is Reason.GATE_ERROR
        assert (await desk.verdict(Asked(an_order()))).verdict == "allow"


async def test_a_lock_that_is_held_ends_in_a_timeout(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    """Somebody holds the gate's lock: the order is refused in its time, and is not stored later as if it had passed."""
    await store(engine, Judged())
    await reconciled(engine)
    async with desk_on(database_url, tmp_path, timeout_s=0.3) as desk:
        async with engine.connect() as other:
            await other.execute(text("select pg_advisory_lock(hashtext('gate'))"))
            with pytest.raises(NoVerdict) as refused:
                await desk.verdict(Asked(an_order(), send=True))
            await other.execute(text("select pg_advisory_unlock(hashtext('gate'))"))
        assert refused.value.reason in {Reason.GATE_TIMEOUT, Reason.GATE_ERROR}
        assert await rows(engine, "select 1 from orders") == []


async def test_a_decision_of_any_shape_is_read_and_never_permits(engine: AsyncEngine, desk: Desk) -> None:
    """Whatever stands in features.llm, the gate answers, and only a whole decision allows."""
    await reconciled(engine)
    await enforce(engine)
    shapes: list[Any] = [None, 7, "x", [], {}, {"policy": 3}, {"policy": {"status": "ok"}}]
    shapes += [{"policy": {"status": "ok", "model": MODEL, "decision": {"allow": "true"}, "rules": {"allow": True}}}]
    for n, shape in enumerate(shapes):
        await store(engine, Judged(as_of=datetime(2012, 6, 1 + n, 20, tzinfo=UTC), features={"llm": shape}))
        assert (await desk.verdict(Asked(an_order(f"c{n}")))).verdict == "deny"


@pytest.mark.parametrize("switch", ["LLM_SHADOW_MODE", "ORDER_GATE_DISABLED"])
async def test_what_passed_in_another_mode_is_not_sent_in_enforce(engine: AsyncEngine, desk: Desk, switch: str) -> None:
    """An authority given in shadow, or under the kill switch, ends with it."""
    await store(engine, Judged(allow=False))
    await reconciled(engine)
    await enforce(engine)
    await turn(engine, switch, True)
    assert (await desk.verdict(Asked(an_order()))).verdict == "allow"
    await turn(engine, switch, False)
    told = await desk.verdict(Asked(an_order(), send=True))
    assert says(told) == ("deny", "deny", "enforce", ("POLICY_DENY",))
    assert await rows(engine, "select 1 from orders") == []


async def test_an_authority_without_a_decision_grows_old_too(engine: AsyncEngine, desk: Desk) -> None:
    """Let through under shadow without any forecast, and sent long after: noted as stale."""
    await store(engine, Judged(age_s=None))
    await reconciled(engine)
    assert (await desk.verdict(Asked(an_order()))).reasons == ("NO_DECISION",)
    async with engine.begin() as connection:
        await connection.execute(text("update gate_verdicts set at = at - interval '20 minutes'"))
    assert (await desk.verdict(Asked(an_order(), send=True))).reasons == ("NO_DECISION", "STALE_DECISION")


async def test_an_order_sent_under_the_kill_switch_says_so_whenever_it_was_allowed(
    engine: AsyncEngine, desk: Desk
) -> None:
    """Each use of the switch is a row."""
    await store(engine, Judged())
    await reconciled(engine)
    await enforce(engine)
    assert (await desk.verdict(Asked(an_order()))).reasons == ("ALLOW",)
    await turn(engine, "ORDER_GATE_DISABLED", True)
    told = await desk.verdict(Asked(an_order(), send=True))
    assert says(told) == ("allow", "allow", "disabled", ("KILL_SWITCH",))
    assert [row["mode"] for row in await rows(engine, "select mode from gate_verdicts order by seq")] == [
        "enforce",
        "disabled",
    ]


async def test_hoarded_authorities_do_not_pass_the_rate(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    """Allowed one by one over a long time, and sent all at once: only as many as a minute may have."""
    await store(engine, Judged())
    await reconciled(engine)
    async with desk_on(database_url, tmp_path, limits=Limits(max_orders_per_min=3)) as desk:
        for n in range(6):
            assert (await desk.verdict(Asked(an_order(f"c{n}")))).verdict == "allow"
            async with engine.begin() as connection:
                await connection.execute(text("update authorisations set at = at - interval '2 minutes'"))
        sent = [await desk.verdict(Asked(an_order(f"c{n}"), send=True)) for n in range(6)]
    assert [told.verdict for told in sent] == ["allow"] * 3 + ["deny"] * 3
    assert sent[-1].reasons[-1] == "LIMIT_RATE"


@pytest.mark.parametrize(("denied", "most"), [(0, 302), (0, 303), (0, 304), (700, 302)])
async def test_hundreds_of_entries_in_a_minute_are_counted_to_the_last_one(
    engine: AsyncEngine, database_url: str, tmp_path: Path, denied: int, most: int
) -> None:
    """Whatever stands for a large count, it neither lets the one too many pass nor refuses the last that may."""
    await store(engine, Judged())
    await reconciled(engine)
    async with engine.begin() as connection:
        for statement in FILL[:2]:
            await connection.execute(text(statement.replace("5000", str(500 + denied))))
        await connection.execute(text("update gate_verdicts set at = now() - interval '1 hour' where seq <= 200"))
        await connection.execute(
            text("update authorisations set at = v.at from gate_verdicts v where v.id = verdict_id and v.seq <= 500")
        )
    limits = Limits(max_orders_per_min=most, max_gross_notional=Decimal(10**9))
    async with desk_on(database_url, tmp_path, limits=limits) as desk:
        together = await asyncio.gather(*(desk.verdict(Asked(an_order(f"x{n}"), send=True)) for n in range(4)))
    room = most - 300
    assert [each.verdict for each in together] == ["allow"] * room + ["deny"] * (4 - room)
    assert {each.reasons[-1] for each in together[room:]} <= {"LIMIT_RATE"}


async def test_asking_and_sending_in_one_transaction_counts_once(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    """/gate and /orders of one order at the same moment, with room for one of it."""
    await store(engine, Judged())
    await reconciled(engine)
    async with desk_on(database_url, tmp_path, limits=Limits(max_position_notional=Decimal(1_500))) as desk:
        told = await asyncio.gather(
            *(desk.verdict(Asked(an_order(qty=Decimal(10)), send=send)) for send in (False, True))
        )
    assert [each.reasons for each in told] == [("ALLOW",)] * 2
    assert len(await rows(engine, "select 1 from orders")) == 1


async def test_an_open_order_without_a_limit_is_worth_our_last_price(engine: AsyncEngine, desk: Desk) -> None:
    """Somebody's market order of 5,000 at 100 is on its way; nobody knows what one of another ticker is worth."""
    await store(engine, Judged())
    await reconciled(engine)
    insert = (
        "insert into orders (id, origin, ticker, side, qty, status, broker_id)"
        " values (gen_random_uuid(), 'broker', '{}', 'buy', 5000, 'new', '{}')"
    )
    async with engine.begin() as connection:
        await connection.execute(text(insert.format("AAPL", "b1")))
    assert (await desk.verdict(Asked(an_order("a")))).reasons == ("LIMIT_POSITION", "LIMIT_GROSS")
    async with engine.begin() as connection:
        await connection.execute(text("update orders set status = 'filled'"))
        await connection.execute(text(insert.format("NOBODY", "b2")))
    assert (await desk.verdict(Asked(an_order("b")))).reasons == ("RECONCILING",)


async def test_a_frozen_process_that_holds_the_lock_is_ended_by_the_server(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    """A desk that stops between its lock and its commit holds up the others no longer than its own limit."""
    await store(engine, Judged())
    await reconciled(engine)
    frozen = DeskConnection(database_url, timeout_s=1)
    async with desk_on(database_url, tmp_path, timeout_s=20) as desk:
        opened = frozen.transaction()
        await opened.__aenter__()
        assert (await desk.verdict(Asked(an_order()))).verdict == "allow"
    frozen.drop()


async def test_a_verdict_that_comes_after_its_caller_left_sends_nothing(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    """The commit came too late: the order's row says that nobody sends it, and asking again says the same."""
    await store(engine, Judged())
    await reconciled(engine)
    async with desk_on(database_url, tmp_path, timeout_s=20) as desk:
        await desk.verdict(Asked(an_order("warm")))
        async with engine.begin() as other:
            await other.execute(text("lock table gate_verdicts in share mode"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await desk.verdict(Asked(an_order(), send=True))
        query = "select status from orders"
        [row] = await until(
            lambda: rows(engine, query), lambda found: bool(found) and found[0]["status"] != "submitting"
        )
        assert row["status"] == "not_sent"
        told = await desk.verdict(Asked(an_order(), send=True))
        assert (told.has_order, told.limit_price) == (True, None)


async def test_a_coin_of_a_live_feed_whose_bar_is_overdue_is_stale_even_when_first_written_late(
    engine: AsyncEngine, desk: Desk
) -> None:
    """An exchange that stood still while we restarted."""
    await store(
        engine, Judged(ticker="BTC/USD", features={"ends_at": "2012-05-05T00:00:00+00:00"}, feed="ccxt:kraken:1")
    )
    await reconciled(engine)
    await enforce(engine)
    assert (await desk.verdict(Asked(an_order(ticker="BTC/USD")))).reasons == ("STALE_DECISION",)
