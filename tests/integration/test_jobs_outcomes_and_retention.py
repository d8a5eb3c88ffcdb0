"""Outcomes and retention against a real database."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from services.jobs import retention
from services.jobs.main import periodic_jobs
from services.jobs.outcomes import settle, settle_all
from services.jobs.retention import RetentionSettings, clear_expired, drop_old, forget_replays, make_ahead

DAY0 = datetime(2012, 8, 30, 20, tzinfo=UTC)
FEED = "replay:1"
PROMPTS = Prompts.build(Registry.load_unlocked(Path("configs/llm_prompts.yaml")))


async def add_bars(engine: AsyncEngine, ticker: str, closes: dict[int, float], feed: str = FEED) -> None:
    async with engine.begin() as connection:
        for day, close in closes.items():
            await connection.execute(
                text("insert into bars values (:feed, :ticker, :as_of, :c, :c, :c, :c, 1)"),
                {"feed": feed, "ticker": ticker, "as_of": DAY0 + timedelta(days=day), "c": close},
            )


async def add_forecasts(engine: AsyncEngine, ticker: str, prices: dict[int, float], horizon: str = "1d") -> None:
    async with engine.begin() as connection:
        for day, price in prices.items():
            as_of, row_id = DAY0 + timedelta(days=day), uuid4()
            values = {"feed": FEED, "ticker": ticker, "horizon": horizon, "as_of": as_of, "id": row_id, "p": price}
            await connection.execute(text("select ensure_partition('forecasts', 'month', :as_of)"), {"as_of": as_of})
            await connection.execute(
                text(
                    "insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper) "
                    "select :feed, :ticker, :horizon, 'theta', :as_of, :id, p, p, p * 0.9, p * 1.1 "
                    "from cast(:p as float8) as p"
                ),
                values,
            )
            await connection.execute(
                text(
                    "insert into forecast_heads values (:feed, :ticker, :horizon, 'theta', :as_of, :id) "
                    "on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id"
                ),
                values,
            )


async def outcomes(engine: AsyncEngine, ticker: str) -> list[tuple[int, int, float, float, bool]]:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("select * from outcomes where ticker = :ticker order by as_of"), {"ticker": ticker}
        )
        return [
            (
                (row.as_of - DAY0).days,
                (row.realised_as_of - DAY0).days,
                row.realised_price,
                round(row.realised_return, 6),
                row.inside,
            )
            for row in rows
        ]


async def test_an_outcome_is_the_close_of_the_next_bar_of_the_same_feed(engine: AsyncEngine) -> None:
    await add_forecasts(engine, "AAPL", {0: 100.0, 1: 104.0, 4: 130.0})
    await add_bars(engine, "AAPL", {0: 100.0, 1: 104.0, 4: 130.0})
    await add_bars(engine, "AAPL", {2: 1.0, 5: 1.0}, feed="replay:2")
    await add_bars(engine, "IBM", {2: 1.0, 5: 1.0})
    assert await settle_all(engine) == 2
    assert await outcomes(engine, "AAPL") == [(0, 1, 104.0, 0.04, True), (1, 4, 130.0, 0.25, False)]


async def test_a_longer_horizon_counts_bars(engine: AsyncEngine) -> None:
    await add_forecasts(engine, "AAPL", {0: 100.0, 1: 100.0}, horizon="3d")
    await add_bars(engine, "AAPL", {0: 1.0, 1: 2.0, 2: 3.0, 7: 4.0})
    assert await settle_all(engine) == 1
    assert await outcomes(engine, "AAPL") == [(0, 7, 4.0, -0.96, False)]


async def test_settling_again_changes_nothing_and_goes_on_where_it_stopped(engine: AsyncEngine) -> None:
    days = range(40)  # reaches into the next month, that is the next partition
    await add_forecasts(engine, "AAPL", {day: 100.0 + day for day in days})
    await add_bars(engine, "AAPL", {day: 100.0 + day for day in days if day < 20})
    assert await settle_all(engine, batch=4) == 19
    assert await settle_all(engine, batch=4) == 0
    await add_bars(engine, "AAPL", {day: 100.0 + day for day in days if day >= 20})
    assert await settle_all(engine) == 20
    found = await outcomes(engine, "AAPL")
    assert [row[:2] for row in found] == [(day, day + 1) for day in range(39)]


async def test_a_batch_never_leaves_a_hole_between_series(engine: AsyncEngine) -> None:
    for ticker in ("A", "B", "C"):
        await add_forecasts(engine, ticker, dict.fromkeys(range(6), 10.0))
        await add_bars(engine, ticker, dict.fromkeys(range(6), 10.0))
    stored = 0
    while step := await settle(engine, batch=4, per_series=2):
        assert step <= 4
        stored += step
    assert stored == 15
    for ticker in ("A", "B", "C"):
        assert [row[0] for row in await outcomes(engine, ticker)] == [0, 1, 2, 3, 4]


async def partitions(engine: AsyncEngine, parent: str) -> set[str]:
    async with engine.connect() as connection:
        statement = text("select inhrelid::regclass::text from pg_inherits where inhparent = cast(:parent as regclass)")
        return set(await connection.scalars(statement, {"parent": parent}))


async def test_partitions_are_made_for_today_and_tomorrow_and_for_two_months(engine: AsyncEngine) -> None:
    await make_ahead(engine)
    await make_ahead(engine)
    assert len(await partitions(engine, "llm_calls")) == 2
    assert len(await partitions(engine, "llm_bodies")) == 2
    assert len(await partitions(engine, "forecasts")) == 2


async def test_calls_go_by_their_day_and_young_ones_stay(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    names: dict[int, str] = {}
    async with engine.begin() as connection:
        for parent in ("llm_calls", "llm_bodies"):
            for days in (200, 93, 88, 0):
                made = await connection.scalar(
                    text("select ensure_partition(:parent, 'day', :moment)"),
                    {"parent": parent, "moment": now - timedelta(days=days)},
                )
                if parent == "llm_calls":
                    names[days] = str(made)
    dropped = await drop_old(engine, RetentionSettings())
    assert {name for name in dropped if name.startswith("llm_calls")} == {names[200], names[93]}
    assert len(dropped) == 4
    assert await partitions(engine, "llm_calls") == {names[88], names[0]}


async def test_forecasts_go_by_when_they_were_written_never_by_market_time(engine: AsyncEngine) -> None:
    await add_forecasts(engine, "AAPL", {0: 100.0, 30: 100.0})
    async with engine.begin() as connection:
        await connection.execute(
            text("update forecasts set ts = now() - interval '800 days' where as_of = :as_of"), {"as_of": DAY0}
        )
    assert await partitions(engine, "forecasts") == {"forecasts_201208", "forecasts_201209"}
    assert await drop_old(engine, RetentionSettings()) == ["forecasts_201208"]
    assert await partitions(engine, "forecasts") == {"forecasts_201209"}
    assert await drop_old(engine, RetentionSettings()) == []
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from forecast_heads")) == 1


async def test_a_head_into_a_dropped_partition_goes_with_it(engine: AsyncEngine) -> None:
    await add_forecasts(engine, "GONE", {0: 100.0})
    async with engine.begin() as connection:
        await connection.execute(text("update forecasts set ts = now() - interval '800 days'"))
    assert await drop_old(engine, RetentionSettings()) == ["forecasts_201208"]
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from forecast_heads")) == 0


async def test_a_partition_in_use_is_left_for_the_next_round(engine: AsyncEngine) -> None:
    await add_forecasts(engine, "AAPL", {0: 100.0})
    async with engine.begin() as connection:
        await connection.execute(text("update forecasts set ts = now() - interval '800 days'"))
    async with engine.begin() as reader:
        await reader.execute(text("select * from forecasts"))
        assert await drop_old(engine, RetentionSettings()) == []
    assert await drop_old(engine, RetentionSettings()) == ["forecasts_201208"]


async def test_the_queues_own_books_do_not_grow_for_ever(engine: AsyncEngine) -> None:
    row = "insert into pgqueuer_{} values (now() - interval '{} days', 0, 'successful', 'x'{})"
    async with engine.begin() as connection:
        for days in (1, 30):
            await connection.execute(
                text(row.format("statistics (created, priority, status, entrypoint, count)", days, ", 1"))
            )
            await connection.execute(
                text(row.format("log (created, priority, status, entrypoint, job_id, aggregated)", days, ", 1, true"))
            )
    await clear_expired(engine)
    async with engine.connect() as connection:
        for table in ("pgqueuer_statistics", "pgqueuer_log"):
            assert await connection.scalar(text(f"select count(*) from {table}")) == 1


async def test_expired_replies_are_deleted_and_others_stay(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        for key, hours in (("old", -1), ("older", -50), ("young", 1)):
            await connection.execute(
                text(
                    "insert into llm_cache (key, text, finish_reason, model, upstream, tokens_in, tokens_out, call_id, "
                    "expires_at) values (:key, 'x', 'stop', 'm', 'u', 1, 1, :id, now() + make_interval(hours => :h))"
                ),
                {"key": key, "id": uuid4(), "h": hours},
            )
    assert await clear_expired(engine) == 2
    async with engine.connect() as connection:
        assert list(await connection.scalars(text("select key from llm_cache"))) == ["young"]


@pytest.mark.parametrize("name", ["RETENTION_CALLS_DAYS", "RETENTION_FORECASTS_DAYS"])
def test_retention_below_a_day_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from libs.settings import SettingsError, load

    monkeypatch.setenv(name, "0")
    with pytest.raises(SettingsError, match=name):
        load(RetentionSettings)


def id_of(moment: datetime) -> UUID:
    """An id of version 7 of that moment."""
    return UUID(int=int(moment.timestamp() * 1000) << 80 | uuid4().int & ((1 << 80) - 1))


SAID = {"text": "Up 1.0 %.", "value": {"allow": True}, "decision": {"allow": True}, "rules": False, "allow": False}


async def add_replay(engine: AsyncEngine, *, call: datetime, batch_id: UUID | None = None) -> UUID:
    row_id, said = id_of(datetime.now(UTC)), json.dumps(SAID)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "insert into replays (id, batch_id, call_id, forecast_id, prompt_key, prompt_version, prompt_hash, "
                "source, status, before, after, flip, total_ms) values (:id, :batch_id, :call_id, :forecast_id, "
                "'policy', '1.1.0', 'h', 'model', 'ok', cast(:said as jsonb), cast(:said as jsonb), 'deny_to_allow', 7)"
            ),
            {"id": row_id, "batch_id": batch_id, "call_id": id_of(call), "forecast_id": uuid4(), "said": said},
        )
    return row_id


async def add_batch(engine: AsyncEngine, *, finished: datetime | None) -> UUID:
    batch_id = uuid4()
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "insert into replay_batches (id, prompt_key, prompt_version, prompt_hash, since, until, most, "
                "asked_by, state, finished_at) values (:id, 'policy', '1.1.0', 'h', now(), now(), 10, 'me', :state, "
                ":finished)"
            ),
            {"id": batch_id, "state": "running" if finished is None else "done", "finished": finished},
        )
    return batch_id


async def test_a_replay_goes_with_the_call_it_replays(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "REPLAY_BATCH", 2)
    now = datetime.now(UTC)
    for days in (400, 200, 100, 92, 91):
        await add_replay(engine, call=now - timedelta(days=days))
    kept = {await add_replay(engine, call=now - timedelta(days=days)) for days in (90, 89, 0)}
    assert await forget_replays(engine, RetentionSettings()) == 5
    async with engine.connect() as connection:
        assert set(await connection.scalars(text("select id from replays"))) == kept
    assert await forget_replays(engine, RetentionSettings()) == 0


async def test_a_batch_loses_what_models_said_and_keeps_what_its_report_is_made_of(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "REPLAY_BATCH", 2)
    now = datetime.now(UTC)
    batches = {days: await add_batch(engine, finished=now - timedelta(days=days)) for days in (200, 91, 89)}
    batches[0] = await add_batch(engine, finished=None)
    for batch_id in batches.values():
        for _ in range(5):
            await add_replay(engine, call=now - timedelta(days=300), batch_id=batch_id)
    await periodic_jobs(engine, RetentionSettings(), prompts=PROMPTS)["partitions"].work()
    async with engine.connect() as connection:
        found = (await connection.execute(text("select batch_id, before, after, flip, total_ms from replays"))).all()
    assert len(found) == 20
    forgotten = {**SAID, "text": None, "value": None}
    for row in found:
        wanted = forgotten if row.batch_id in {batches[200], batches[91]} else SAID
        assert (row.before, row.after) == (wanted, wanted)
        assert (row.flip, row.total_ms) == ("deny_to_allow", 7)


async def test_a_batch_that_was_cut_short_in_losing_its_texts_is_gone_on_with(engine: AsyncEngine) -> None:
    batch_id = await add_batch(engine, finished=datetime.now(UTC) - timedelta(days=100))
    for _ in range(4):
        await add_replay(engine, call=datetime.now(UTC), batch_id=batch_id)
    async with engine.begin() as connection:  # it begins with the last
        page = {"batch_id": batch_id, "below": retention.LAST_ID, "batch": 2}
        await connection.execute(retention.FORGET_TEXTS, page)
    await forget_replays(engine, RetentionSettings())
    async with engine.connect() as connection:
        left = text("select count(*) from replays where before ->> 'text' is not null or after ->> 'text' is not null")
        assert await connection.scalar(left) == 0
