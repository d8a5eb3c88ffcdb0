"""The hourly check of the chain: what is new, everything once a day, one alert and a gauge when it breaks."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from services.api.strategist.desk.desk import Desk
from services.jobs.chain import ChainCheck
from tests.integration.audit_cases import change, open_desk, tell


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    async with open_desk(database_url, tmp_path) as made:
        yield made


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"lexi_audit_chain_{name}")


async def alerts(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("select text from alerts where kind = 'audit' order by id")))


async def test_new_rows_are_checked_and_the_head_is_logged_once_a_day(desk: Desk, engine: AsyncEngine) -> None:
    check = ChainCheck(engine)
    await tell(desk, 3)
    with capture_logs() as logs:
        await check()
        await tell(desk, 2, begin=3)
        await check()
    heads = [entry for entry in logs if entry["event"] == "audit_head"]
    assert [(entry["seq"], len(entry["hash"])) for entry in heads] == [(3, 64)]
    assert (gauge("broken"), gauge("verified_seq")) == (0, 5)
    assert await alerts(engine) == []


async def test_a_broken_chain_is_one_alert_and_heals_when_mended(desk: Desk, engine: AsyncEngine) -> None:
    check = ChainCheck(engine)
    await tell(desk, 4)
    await check()
    await tell(desk, 2, begin=4)
    await change(engine, "update gate_verdicts set qty = 9 where seq = 5")
    await check()
    await check()
    assert gauge("broken") == 1
    (told,) = await alerts(engine)
    assert told.startswith("The chain of verdicts does not hold: row 5 is broken: its column qty says")
    await change(engine, "update gate_verdicts set qty = 1.5 where seq = 5")
    await check()
    assert (gauge("broken"), gauge("verified_seq")) == (0, 6)


async def test_an_end_cut_off_since_the_last_check_is_found(desk: Desk, engine: AsyncEngine) -> None:
    check = ChainCheck(engine)
    await tell(desk, 4)
    await check()
    await change(engine, "delete from gate_verdicts where seq = 4")
    await check()
    await check()
    assert gauge("broken") == 1
    (told,) = await alerts(engine)
    assert "row 4 is broken: it is gone" in told
