"""What is written to `exposures` with what, what outcomes fill in, and what Postgres packs for a report."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.exposures.columns import RECORD, Columns
from libs.exposures.record import Assigned, Noted, note
from libs.exposures.sums import PART, read_phase
from libs.judgement.types import Judgement, RulesVerdict
from libs.upstreams.errors import DeadlineExceeded, NoSlot, PromptTooLong
from services.forecast.assessor import SUPERSEDED, first_word
from services.forecast.feed.types import Bar
from services.forecast.judging import Case, Finished, JudgementWriter
from services.forecast.numbers import Numbers
from services.forecast.patience import Patience
from services.forecast.repository import Repository
from services.forecast.rows import Forecast, JudgementRow
from services.jobs.outcomes import settle_all
from tests.integration.exposure_tables import exposures, insert
from tests.integration.forecast_loop import forecasts
from tests.unit import judgement_cases
from tests.unit.exposure_cases import Row, any_rows, phase_of

AS_OF = datetime(2024, 1, 2, 21, tzinfo=UTC)
FEED = "file:x"


def forecast(ticker: str = "AAA", *, assigned: bool = True, unit: Any = "AAA|2024-01-02") -> Forecast:
    row_id = UUID(int=sum(ticker.encode()))
    given_arm = Assigned(
        key="policy", forecast_id=row_id, phase="activation-1", unit=unit, arm="1.1.0", feed=FEED, ticker=ticker,
        horizon="1d", as_of=AS_OF, side="buy",
    )  # fmt: skip
    return Forecast(
        row_id, ticker, 1.0, Numbers("theta", 1.0, 0.9, 1.1), None, {"policy": {}},
        assigned=(given_arm,) if assigned else (),
    )  # fmt: skip


async def store(engine: AsyncEngine, *made: Forecast) -> Repository:
    repository = Repository(engine, horizon="1d")
    await repository.begin_run(FEED, FEED)
    bars = {one.ticker: Bar(AS_OF, 1.0, 1.0, 1.0, 1.0, 1.0) for one in made}
    await repository.store_tick(FEED, AS_OF, bars=bars, forecasts=made, complete=True)
    return repository


async def test_an_arm_is_written_with_its_forecast_or_neither_is(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError):
        await store(engine, forecast("AAA"), forecast("BBB", unit=None))
    assert (await forecasts(engine), await exposures(engine)) == ([], [])
    await store(engine, forecast("AAA"), forecast("BBB"))
    assert (len(await forecasts(engine)), len(await exposures(engine))) == (2, 2)


async def test_storing_twice_is_storing_once(engine: AsyncEngine) -> None:
    await store(engine, forecast())
    (first,) = await exposures(engine)
    moved = forecast()
    await store(engine, replace(moved, assigned=(replace(moved.assigned[0], arm="1.0.0", phase="activation-2"),)))
    assert await exposures(engine) == [first]


async def test_a_forecast_that_was_there_without_an_arm_is_given_none_later(engine: AsyncEngine) -> None:
    await store(engine, forecast(assigned=False))
    await store(engine, forecast("AAA"), forecast("BBB"))
    assert [row["ticker"] for row in await exposures(engine)] == ["BBB"]


async def judge(repository: Repository, *noted: Noted, llm: Any = None) -> None:
    row = JudgementRow(forecast().id, AS_OF, llm or {"policy": {"decision": None}}, complete=True, noted=noted)
    await repository.store_judgements(lambda _shadow: [row])


def came(**changes: Any) -> Noted:
    given_answer = judgement_cases.answer(
        "policy", None, arm="1.1.0", total_ms=12.5, tokens_in=3, tokens_out=4, **changes
    )
    made = note("policy", forecast().id, answer=given_answer, rules_allow=True)
    assert made is not None
    return made


async def test_a_judgement_is_noted_in_its_transaction_or_neither_is_kept(engine: AsyncEngine) -> None:
    repository = await store(engine, forecast())
    with pytest.raises(DBAPIError):
        await judge(repository, came(), llm={"policy": "\x00"})
    assert (await exposures(engine))[0]["judged_at"] is None
    await judge(repository, came())
    (row,) = await exposures(engine)
    assert (row["status"], row["total_ms"], row["tokens"], row["rules_allow"]) == ("ok", 12.5, 7, True)
    await judge(repository, came(status="invalid", error="not_json: x"))
    assert await exposures(engine) == [row]


async def test_an_answer_of_another_arm_than_was_assigned_is_not_noted(engine: AsyncEngine) -> None:
    repository = await store(engine, forecast())
    await judge(repository, replace(came(), arm="1.0.0"))
    assert (await exposures(engine))[0]["judged_at"] is None


async def test_what_has_no_answer_is_noted_for_whatever_arm_it_has(engine: AsyncEngine) -> None:
    repository = await store(engine, forecast())
    await judge(repository, Noted("policy", forecast().id, None), Noted("rationale", forecast().id, None))
    (row,) = await exposures(engine)
    assert (row["status"], row["timed_out"], row["call_id"]) == ("skipped", False, None)


@pytest.mark.parametrize(
    ("error", "at_fault"),
    [
        (f"{PromptTooLong.code}: 9,000 tokens", True),
        ("refused: answered 400: the schema is not supported", True),
        ("refused: answered 422", True),
        ("refused: the engine sent an error: too long", True),
        ("refused: answered 401", False),
        ("refused: answered 429: later", False),
        ("refused: answered 503", False),
        ("connect_failed: no connection", False),
        (f"{NoSlot.code}: none was free", False),
    ],
)
def test_a_version_that_cannot_be_asked_has_an_invalid_answer_without_a_time(error: str, at_fault: bool) -> None:
    found = came(status="unavailable", error=error)
    assert (found.status, found.timed_out, found.arm) == ("invalid" if at_fault else "unavailable", False, "1.1.0")
    assert (found.total_ms is None, found.tokens is None) == (at_fault, at_fault)


@pytest.mark.parametrize(
    ("reason", "status"),
    [("InputsRefused: no ticker", "invalid"), ("internal error: KeyError", "invalid"), (SUPERSEDED, "skipped")],
)
def test_what_broke_before_anything_was_asked_speaks_against_the_arm_and_a_newer_tick_does_not(
    reason: str, status: str
) -> None:
    inputs = judgement_cases.good_inputs(as_of=AS_OF)
    judgement = Judgement(
        inputs=inputs,
        rationale=judgement_cases.answer("rationale", "up", arm="1.0.0"),
        policy=None,
        decision=None,
        rules=RulesVerdict(allow=True, reasons=()),
        policy_error=reason,
    )
    rationale, policy = first_word(Case(forecast().id, inputs), judgement)
    assert (rationale.status, policy.status, policy.arm, policy.total_ms) == ("ok", status, None, None)
    assert policy.rules_allow is True
    assert first_word(Case(forecast().id, inputs, judgement), judgement) == ()


def test_an_answer_outside_an_experiment_is_noted_nowhere() -> None:
    assert note("policy", uuid4(), answer=judgement_cases.answer("policy", None, arm="")) is None


@pytest.mark.parametrize(
    ("error", "timed_out"),
    [
        (f"{DeadlineExceeded.code}: 20 s", True),
        (f"{NoSlot.code}: none was free", False),
        ("refused: answered 500", False),
    ],
)
def test_only_a_call_that_ran_out_of_time_timed_out(error: str, timed_out: bool) -> None:
    assert came(status="unavailable", error=error).timed_out is timed_out


async def nothing_waits() -> None:
    """All calls are on record."""


async def test_no_judgement_is_stored_before_its_calls_are_on_record(engine: AsyncEngine) -> None:
    repository = await store(engine, forecast())
    asked, on_record = asyncio.Event(), asyncio.Event()

    async def recorded() -> None:
        asked.set()
        await on_record.wait()

    writer = JudgementWriter(repository, Patience(asyncio.Event()), recorded=recorded)
    writer.start()
    case = Case(forecast().id, judgement_cases.good_inputs(as_of=AS_OF))
    writer.add(Finished(case, lambda _: {"policy": {"decision": 1}}, complete=True))
    await asked.wait()
    before = await forecasts(engine)
    on_record.set()
    await writer.close(30)
    assert before[0]["llm"] != {"policy": {"decision": 1}}
    assert (await forecasts(engine))[0]["llm"] == {"policy": {"decision": 1}}


async def test_a_later_judgement_that_overtakes_the_first_leaves_it_the_first_word(engine: AsyncEngine) -> None:
    repository = await store(engine, forecast())
    writer = JudgementWriter(repository, Patience(asyncio.Event()), recorded=nothing_waits)
    case = Case(forecast().id, judgement_cases.good_inputs(as_of=AS_OF))
    writer.add(Finished(case, lambda _: {"policy": {"decision": None}}, complete=True, noted=(came(),)))
    writer.add(Finished(case, lambda _: {"policy": {"decision": 1}}, complete=True))
    writer.start()
    await writer.close(30)
    assert (await forecasts(engine))[0]["llm"] == {"policy": {"decision": 1}}
    assert (await exposures(engine))[0]["status"] == "ok"


# --- outcomes


async def add_bars(engine: AsyncEngine, ticker: str, closes: Sequence[float]) -> None:
    async with engine.begin() as connection:
        for day, close in enumerate(closes):
            await connection.execute(
                text("insert into bars values (:feed, :ticker, :as_of, :c, :c, :c, :c, 1) on conflict do nothing"),
                {"feed": FEED, "ticker": ticker, "as_of": AS_OF + timedelta(days=day), "c": close},
            )


async def test_an_outcome_reaches_the_exposures_of_its_forecast_once(engine: AsyncEngine) -> None:
    await store(engine, forecast("AAA"), forecast("BBB", assigned=False), forecast("CCC"))
    for ticker in ("AAA", "BBB"):
        await add_bars(engine, ticker, [1.0, 1.25])
    assert await settle_all(engine) == 2
    settled, waiting = await exposures(engine)
    assert (settled["ticker"], settled["realised_return"]) == ("AAA", 0.25)
    assert settled["settled_at"] is not None
    assert (waiting["ticker"], waiting["realised_return"], waiting["settled_at"]) == ("CCC", None, None)
    assert await settle_all(engine) == 0
    assert (await exposures(engine))[0] == settled


async def test_an_outcome_whose_exposure_cannot_be_written_is_stored_another_time(engine: AsyncEngine) -> None:
    await store(engine, forecast())
    await add_bars(engine, "AAA", [1.0, 1.25])
    async with engine.begin() as connection:
        await connection.execute(text("alter table exposures add constraint no check (realised_return is null)"))
    with pytest.raises(DBAPIError):
        await settle_all(engine)
    async with engine.begin() as connection:
        assert await connection.scalar(text("select count(*) from outcomes")) == 0
        await connection.execute(text("alter table exposures drop constraint no"))
    assert await settle_all(engine) == 1
    assert (await exposures(engine))[0]["realised_return"] == 0.25


async def test_exposures_stay_when_the_forecasts_are_dropped(engine: AsyncEngine) -> None:
    await store(engine, forecast())
    async with engine.begin() as connection:
        await connection.execute(text("drop table forecasts_202401"))
    assert len(await exposures(engine)) == 1


async def test_what_postgres_packs_is_what_the_rows_say(engine: AsyncEngine) -> None:
    ordered = [replace(row, unit=f"{number}") for number, row in enumerate(any_rows(500))]
    await insert(engine, ordered)
    await insert(engine, [Row(arm="other")], phase="activation-2")
    async with engine.connect() as connection:
        found = await read_phase(connection, "policy", "activation-1")
        assert (await read_phase(connection, "rationale", "activation-1")).packed == {}
    assert found.since is not None
    assert not found.overlap
    async with engine.begin() as connection:
        await connection.execute(
            text("update exposures set horizon = '3d' where unit = '7' and phase = 'activation-1'")
        )
        assert (await read_phase(connection, "policy", "activation-1")).overlap
    there, expected = Columns.read(found.packed), Columns.read(phase_of(ordered).packed)
    assert there.arms == expected.arms
    fields = ("arm", "day", "flags", "total_ms", "tokens", "settled", "made")

    def comparable(columns: Columns) -> list[tuple[Any, ...]]:
        return sorted(zip(*(getattr(columns, name).tolist() for name in fields), strict=True))

    assert comparable(there) == comparable(expected)
    assert len(set(there.ticker.tolist())) == len({row.ticker for row in ordered})
    assert len(set(there.unit.tolist())) == len(ordered)


async def test_many_exposures_come_in_parts_and_none_is_lost(engine: AsyncEngine) -> None:
    many = 2 * PART // RECORD.itemsize + 1
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, "
                "tokens) select 'policy', gen_random_uuid(), 'p', n || '', '1.0.0', 'f', 'T', '1d', now(), 'buy', n "
                "from generate_series(1, cast(:many as integer)) as n"
            ),
            {"many": many},
        )
        read = await read_phase(connection, "policy", "p")
    assert [len(part) for part in read.packed["1.0.0"]] == [PART, PART, RECORD.itemsize]
    rows = Columns.read(read.packed)
    assert sorted(rows.tokens.tolist()) == list(range(1, many + 1))
    assert len(set(rows.unit.tolist())) == many
