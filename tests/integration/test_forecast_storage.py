"""What the forecast loop writes about a judgement, and what may take the place of what."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.forecast.feed.types import Bar
from services.forecast.numbers import Numbers
from services.forecast.repository import Repository
from services.forecast.rows import Forecast, JudgementRow, forecast_id
from tests.integration.forecast_loop import forecasts

AS_OF = datetime(2024, 1, 2, 21, tzinfo=UTC)
ID = forecast_id(feed="file:x", ticker="AAA", horizon="1d", model="theta", as_of=AS_OF)
DECIDED: dict[str, Any] = {"policy": {"decision": {"allow": True, "reasons": [], "flags": []}, "rules": 1}}
UNDECIDED: dict[str, Any] = {"policy": {"decision": None, "error": "superseded by a newer tick"}}


async def stored(engine: AsyncEngine) -> Repository:
    """A repository with one forecast that waits for its judgement."""
    repository = Repository(engine, horizon="1d")
    await repository.begin_run("file:x", "file:x")
    forecast = Forecast(ID, "AAA", 1.0, Numbers("theta", 1.0, 0.9, 1.1), None, {"policy": {"error": "pending"}})
    bar = Bar(AS_OF, 1.0, 1.0, 1.0, 1.0, 1.0)
    await repository.store_tick("file:x", AS_OF, bars={"AAA": bar}, forecasts=[forecast], complete=True)
    return repository


async def judge(repository: Repository, llm: Mapping[str, Any], *, complete: bool, age_s: float = 0.0) -> None:
    row = JudgementRow(ID, AS_OF, llm, complete, age_s)
    await repository.store_judgements(lambda _shadow: [row])


async def only(engine: AsyncEngine) -> RowMapping:
    (row,) = await forecasts(engine)
    return row


async def test_what_was_not_judged_never_takes_the_place_of_what_was(engine: AsyncEngine) -> None:
    repository = await stored(engine)
    await judge(repository, UNDECIDED, complete=False)
    row = await only(engine)
    assert (row["llm"], row["judged_at"]) == (UNDECIDED, None)
    await judge(repository, DECIDED, complete=True)
    judged = await only(engine)
    await judge(repository, UNDECIDED, complete=False)
    row = await only(engine)
    assert (row["llm"], row["judged_at"]) == (DECIDED, judged["judged_at"])


async def test_a_decision_that_stands_is_stored_with_its_new_rules_and_keeps_its_age(engine: AsyncEngine) -> None:
    repository = await stored(engine)
    await judge(repository, DECIDED, complete=True)
    judged = await only(engine)
    anew = {"policy": {**DECIDED["policy"], "rules": 2}}
    await judge(repository, anew, complete=False)
    row = await only(engine)
    assert (row["llm"], row["judged_at"]) == (anew, judged["judged_at"])


async def test_a_judgement_that_waited_for_the_database_is_as_old_as_it_is(engine: AsyncEngine) -> None:
    repository = await stored(engine)
    await judge(repository, DECIDED, complete=True, age_s=3600)
    row = await only(engine)
    assert 3600 <= (datetime.now(UTC) - row["judged_at"]).total_seconds() < 3700


async def test_what_was_ingested_reaches_a_ticker_that_the_feed_writes_with_small_letters(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("insert into facts values ('KPEPE', 'borrow', now(), 'desk', '1', '\"none\"')"))
        await connection.execute(text("insert into social_messages values ('x', '1', 'KPEPE', now(), '@a', 'Up')"))
    known = await Repository(engine, horizon="1d").known(["kPEPE", "AAA"], datetime.now(UTC))
    assert known["kPEPE"].facts["borrow"].value == "none"
    assert known["kPEPE"].headlines == ("Up",)
    assert not known["AAA"].facts
