"""The desk on a real database: what it tells, what it stores, and what one order's verdict does to the next."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.chain import GENESIS, link
from services.api.strategist.desk.desk import Desk
from services.api.strategist.desk.record import Asked
from tests.integration.desk_cases import Judged, an_order, reconciled, store, turn
from tests.integration.desk_running import desk_on, enforce, rows, says


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    """A desk with the default limits."""
    async with desk_on(database_url, tmp_path) as running:
        yield running


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
