"""The desk on a real database: what it tells, what it stores, and what one order's verdict does to the next."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.chain import GENESIS, link
from libs.trading.limits import Limits, Terms
from libs.trading.reasons import Reason
from services.api.strategist.desk.desk import Desk, GateTerms, NoVerdict
from services.api.strategist.desk.record import Asked, Told
from services.api.strategist.desk.repository import DeskConnection
from tests.integration.api_app import database_away, until
from tests.integration.desk_cases import ACCOUNT, MODEL, Judged, an_order, reconciled, store, turn
from tools.local_stack.postgres import EmbeddedPostgres


@asynccontextmanager
async def desk_on(database_url: str, state: Path, *, timeout_s: float = 20, **terms: Any) -> AsyncGenerator[Desk, None]:
    """A running desk."""
    rests_on = GateTerms(terms.pop("limits", Limits()), Terms(model=MODEL, **terms), ACCOUNT)
    desk = Desk(database_url, rests_on=rests_on, state=state, timeout_s=timeout_s)
    desk.start()
    try:
        yield desk
    finally:
        await desk.close()


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    """A desk with the default limits."""
    async with desk_on(database_url, tmp_path) as running:
        yield running


async def rows(engine: AsyncEngine, query: str) -> list[dict[str, Any]]:
    """Rows of a query."""
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(query))).mappings()]


async def enforce(engine: AsyncEngine) -> None:
    """Let the policy gate."""
    await turn(engine, "LLM_SHADOW_MODE", False)


def says(told: Told) -> tuple[str, str, str, tuple[str, ...]]:
    """A verdict in short."""
    return told.verdict, told.would_have, told.mode, told.reasons


async def test_enforce_allows_what_the_decision_allows_and_binds_the_forecast(engine: AsyncEngine, desk: Desk) -> None:
    """An allowed order leaves a verdict, an authorisation, and an order on its way at the collar."""
    forecast_id = await store(engine, Judged())
    await reconciled(engine)
    await enforce(engine)
    told = await desk.verdict(Asked(an_order(), send=True))
    assert says(told) == ("allow", "allow", "enforce", ("ALLOW",))
    assert told.forecast_id == forecast_id
    assert told.decision_age_s == pytest.approx(1, abs=60)
    assert told.limit_price == Decimal("105.00")
    assert (await rows(engine, "select client_order_id, forecast_id from authorisations")) == [
        {"client_order_id": "c1", "forecast_id": forecast_id}
    ]
    [order] = await rows(engine, "select id, status, limit_price, origin, key_name from orders")
    assert order["id"] == Asked(an_order()).order_id
    assert (order["status"], order["limit_price"], order["origin"]) == ("submitting", Decimal("105.00"), "entry")


@pytest.mark.parametrize(
    ("judged", "reasons"),
    [
        (Judged(allow=False), ("POLICY_DENY",)),
        (Judged(allow=True, reasons=["EARNINGS"]), ("INVALID_DECISION",)),
        (Judged(rules=["COVERAGE"]), ("RULE_DENY",)),
        (Judged(rules=["UNKNOWN_BORROW", "COVERAGE", "LIQUIDITY"]), ("UNKNOWN_BORROW", "RULE_DENY")),
        (Judged(age_s=901), ("STALE_DECISION",)),
        (Judged(age_s=None), ("NO_DECISION",)),
        (Judged(allow=None, status="invalid"), ("INVALID_DECISION",)),
        (Judged(allow=None, status="unavailable"), ("MODEL_UNAVAILABLE",)),
        (Judged(allow=None, status="skipped", error="pending", age_s=None), ("NO_DECISION",)),
        (Judged(answered_by="another"), ("MODEL_FALLBACK",)),
        (Judged(side="sell"), ("MISMATCH",)),
        (Judged(side="none"), ("MISMATCH",)),
        (Judged(ticker="MSFT"), ("NO_DECISION", "STALE_PRICE")),
    ],
)
async def test_shadow_notes_what_enforce_refuses(
    engine: AsyncEngine, desk: Desk, judged: Judged, reasons: tuple[str, ...]
) -> None:
    """The same thought in both modes; it acts in enforce alone. A price that is missing acts in both."""
    await store(engine, judged)
    await reconciled(engine)
    hard = "STALE_PRICE" in reasons
    shadow = await desk.verdict(Asked(an_order("a")))
    assert says(shadow) == ("deny" if hard else "allow", "deny", "shadow", reasons)
    await enforce(engine)
    used = ("DECISION_USED",) if "MISMATCH" not in reasons and "STALE_PRICE" not in reasons else ()
    enforced = await desk.verdict(Asked(an_order("b")))
    assert says(enforced) == ("deny", "deny", "enforce", (*reasons, *used))


async def test_one_forecast_authorises_one_entry(engine: AsyncEngine, desk: Desk) -> None:
    """The second entry on a forecast is refused; the next forecast authorises again."""
    await store(engine, Judged())
    await reconciled(engine)
    await enforce(engine)
    assert (await desk.verdict(Asked(an_order("a")))).verdict == "allow"
    assert says(await desk.verdict(Asked(an_order("b")))) == ("deny", "deny", "enforce", ("DECISION_USED",))
    await store(engine, Judged(as_of=datetime(2012, 5, 7, 20, tzinfo=UTC)))
    assert (await desk.verdict(Asked(an_order("c")))).verdict == "allow"


async def test_many_orders_at_once_share_a_transaction_and_one_authority(engine: AsyncEngine, desk: Desk) -> None:
    """Fifty orders on one forecast at the same moment: one is allowed, and the chain has no hole."""
    await store(engine, Judged())
    await reconciled(engine)
    await enforce(engine)
    told = await asyncio.gather(*(desk.verdict(Asked(an_order(f"c{n}"), send=True)) for n in range(50)))
    assert [each.verdict for each in told].count("allow") == 1
    assert len(await rows(engine, "select 1 from orders")) == 1
    chain = await rows(engine, "select seq, payload, hash from gate_verdicts order by seq")
    assert [row["seq"] for row in chain] == list(range(1, 51))
    before = GENESIS
    for row in chain:
        before = link(before, row["payload"])
        assert row["hash"] == before


async def test_two_desks_never_share_an_authority(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    """Two processes judge at the same time; the lock makes one chain of it."""
    await store(engine, Judged())
    await reconciled(engine)
    await enforce(engine)
    async with desk_on(database_url, tmp_path) as one, desk_on(database_url, tmp_path) as two:
        told = await asyncio.gather(*((one, two)[n % 2].verdict(Asked(an_order(f"c{n}"))) for n in range(40)))
    assert [each.verdict for each in told].count("allow") == 1
    seqs = await rows(engine, "select count(*) as n, max(seq) as last from gate_verdicts")
    assert seqs == [{"n": 40, "last": 40}]


async def test_the_same_order_gets_the_same_verdict_and_another_one_with_its_id_is_a_duplicate(
    engine: AsyncEngine, desk: Desk
) -> None:
    """Repeats are answered from the record, whatever has changed meanwhile."""
    await store(engine, Judged(allow=False))
    await reconciled(engine)
    await enforce(engine)
    first = await desk.verdict(Asked(an_order()))
    await turn(engine, "LLM_SHADOW_MODE", True)
    assert await desk.verdict(Asked(an_order())) == first
    other = await desk.verdict(Asked(an_order(qty=Decimal(2))))
    assert other.verdict == "deny"
    assert "DUPLICATE" in other.reasons
    someone = await desk.verdict(Asked(an_order(key_name="desk-2")))
    assert "DUPLICATE" in someone.reasons
    firsts = await rows(engine, "select first from gate_verdicts order by seq")
    assert [row["first"] for row in firsts] == [True, False, False]


async def test_an_order_after_the_gate_uses_its_authority_once(engine: AsyncEngine, desk: Desk) -> None:
    """/gate, then /orders twice: one verdict, one order to send."""
    await store(engine, Judged())
    await reconciled(engine)
    await enforce(engine)
    asked = await desk.verdict(Asked(an_order()))
    sent = await desk.verdict(Asked(an_order(), send=True))
    again = await desk.verdict(Asked(an_order(), send=True))
    assert asked.verdict_id == sent.verdict_id == again.verdict_id
    assert (asked.limit_price, sent.limit_price, again.limit_price) == (None, Decimal("105.00"), None)
    assert again.has_order
    assert len(await rows(engine, "select 1 from gate_verdicts")) == 1


async def test_an_authority_does_not_outlive_a_halt_or_its_decision(
    engine: AsyncEngine, desk: Desk, tmp_path: Path
) -> None:
    """What was allowed and not sent is judged again by the limits of the moment it is sent at."""
    await store(engine, Judged())
    await store(engine, Judged(ticker="MSFT", age_s=899))
    await reconciled(engine)
    await enforce(engine)
    assert (await desk.verdict(Asked(an_order("a")))).verdict == "allow"
    assert (await desk.verdict(Asked(an_order("b", ticker="MSFT")))).verdict == "allow"
    await asyncio.sleep(1.2)
    old = await desk.verdict(Asked(an_order("b", ticker="MSFT"), send=True))
    assert says(old) == ("deny", "deny", "enforce", ("STALE_DECISION",))
    (tmp_path / "halt").touch()
    halted = await desk.verdict(Asked(an_order("a"), send=True))
    assert says(halted) == ("deny", "deny", "enforce", ("HALTED",))
    assert await rows(engine, "select 1 from orders") == []
    (tmp_path / "halt").unlink()
    assert (await desk.verdict(Asked(an_order("a"), send=True))).limit_price == Decimal("105.00")


async def test_the_kill_switch_changes_the_next_verdict_and_ends_by_itself(engine: AsyncEngine, desk: Desk) -> None:
    """It outranks shadow and enforce, for decisions stored before too; limits still hold."""
    await store(engine, Judged(allow=False))
    await store(engine, Judged(ticker="MSFT", allow=False))
    await reconciled(engine)
    await enforce(engine)
    assert (await desk.verdict(Asked(an_order("a")))).verdict == "deny"
    await turn(engine, "ORDER_GATE_DISABLED", True, seconds=1.5)
    told = await desk.verdict(Asked(an_order("b")))
    assert says(told) == ("allow", "deny", "disabled", ("KILL_SWITCH", "POLICY_DENY"))
    large = await desk.verdict(Asked(an_order("c", ticker="MSFT", qty=Decimal(101))))
    assert says(large) == ("deny", "deny", "disabled", ("KILL_SWITCH", "POLICY_DENY", "LIMIT_NOTIONAL"))
    await asyncio.sleep(1.6)
    assert says(await desk.verdict(Asked(an_order("d", ticker="MSFT")))) == (
        "deny",
        "deny",
        "enforce",
        ("POLICY_DENY",),
    )


async def test_an_open_halt_row_halts_a_process_on_another_disk(engine: AsyncEngine, desk: Desk) -> None:
    """The file is somewhere else; the row is enough, in shadow too."""
    await store(engine, Judged())
    await reconciled(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "insert into halts (id, reason, halted_at, halted_until) values (gen_random_uuid(), 'x', now(), now())"
            )
        )
    assert says(await desk.verdict(Asked(an_order()))) == ("deny", "deny", "shadow", ("HALTED",))


async def test_an_account_not_read_lately_refuses_entries(engine: AsyncEngine, desk: Desk) -> None:
    """None yet, another account, or too long ago."""
    await store(engine, Judged())
    assert "RECONCILING" in (await desk.verdict(Asked(an_order("a")))).reasons
    await reconciled(engine, account="alpaca:elsewhere:k")
    assert "RECONCILING" in (await desk.verdict(Asked(an_order("b")))).reasons
    await reconciled(engine)
    async with engine.begin() as connection:
        await connection.execute(text("update broker_state set reconciled_at = now() - interval '31 seconds'"))
    assert "RECONCILING" in (await desk.verdict(Asked(an_order("c")))).reasons


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
