"""The switches: the latest unexpired row wins, and an environment speaks only when its word changes."""

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.settings import SettingsError, load
from libs.switches import SwitchSettings, order_gate_disabled, record_environment, shadow_mode

TURN = text(
    "insert into switches (name, value, set_by, reason, expires_at) "
    "values (:name, :value, 'ann', 'test', clock_timestamp() + :lasts * interval '1 s')"
)


def says(*, shadow: bool = True, gate_off: bool = False) -> SwitchSettings:
    return SwitchSettings(llm_shadow_mode=shadow, order_gate_disabled=gate_off)


async def turn(engine: AsyncEngine, name: str, *, value: bool, lasts: float | None = None) -> None:
    async with engine.begin() as connection:
        await connection.execute(TURN, {"name": name, "value": value, "lasts": lasts})


async def stand(engine: AsyncEngine) -> tuple[bool, bool]:
    async with engine.connect() as connection:
        return await shadow_mode(connection), await order_gate_disabled(connection)


async def history(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        found = await connection.execute(text("select name, value, set_by, env_value from switches order by id"))
        return [tuple(row) for row in found]


async def test_before_any_row_the_cautious_values_hold(engine: AsyncEngine) -> None:
    assert await stand(engine) == (True, False)


async def test_the_latest_row_wins_and_an_expired_one_gives_way(engine: AsyncEngine) -> None:
    await turn(engine, "LLM_SHADOW_MODE", value=False)
    await turn(engine, "ORDER_GATE_DISABLED", value=True, lasts=600)
    assert await stand(engine) == (False, True)
    await turn(engine, "LLM_SHADOW_MODE", value=True, lasts=-1)
    await turn(engine, "ORDER_GATE_DISABLED", value=False)
    assert await stand(engine) == (False, False)
    await turn(engine, "ORDER_GATE_DISABLED", value=True, lasts=-1)
    assert await stand(engine) == (False, False)


async def test_a_switch_that_ends_during_a_transaction_is_seen_to_end(engine: AsyncEngine) -> None:
    await turn(engine, "ORDER_GATE_DISABLED", value=True, lasts=0.3)
    async with engine.begin() as connection:
        await connection.execute(text("select pg_sleep(0.4)"))
        assert not await order_gate_disabled(connection)


async def test_a_first_start_records_what_the_environment_says(engine: AsyncEngine) -> None:
    await record_environment(engine, says(shadow=False))
    assert await stand(engine) == (False, False)
    assert await history(engine) == [
        ("ORDER_GATE_DISABLED", False, "environment", False),
        ("LLM_SHADOW_MODE", False, "environment", False),
    ]


async def start(engine: AsyncEngine, service: str, *, gate_off: bool, shadow: bool = True) -> tuple[bool, bool]:
    """One service starts; where the switches stand then."""
    await record_environment(engine, says(shadow=shadow, gate_off=gate_off), service=service)
    return await stand(engine)


async def test_services_whose_environments_differ_do_not_take_turns(engine: AsyncEngine) -> None:
    assert await start(engine, "api", gate_off=True) == (True, True)
    assert await start(engine, "forecast", gate_off=False) == (True, False)  # its first start differs from the last
    assert await start(engine, "api", gate_off=True) == (True, False)
    await turn(engine, "ORDER_GATE_DISABLED", value=False)
    before = await history(engine)
    for _ in range(2):
        assert await start(engine, "forecast", gate_off=False) == (True, False)
        assert await start(engine, "api", gate_off=True) == (True, False)
    assert await history(engine) == before
    assert await start(engine, "api", gate_off=False) == (True, False)
    assert await start(engine, "api", gate_off=True) == (True, True)


async def test_a_service_that_said_the_same_as_another_has_said_it(engine: AsyncEngine) -> None:
    assert await start(engine, "api", gate_off=True, shadow=False) == (False, True)
    assert await start(engine, "forecast", gate_off=True, shadow=False) == (False, True)
    assert await start(engine, "api", gate_off=False, shadow=True) == (True, False)
    assert await start(engine, "forecast", gate_off=True, shadow=False) == (True, False)
    assert await start(engine, "forecast", gate_off=True, shadow=False) == (True, False)


async def test_what_an_older_release_recorded_is_no_change_for_a_service_that_says_the_same(
    engine: AsyncEngine,
) -> None:
    await record_environment(engine, says(shadow=False))
    await turn(engine, "LLM_SHADOW_MODE", value=True)
    for service in ("api", "forecast", "api"):
        assert await start(engine, service, gate_off=False, shadow=False) == (True, False)


async def test_a_mere_restart_changes_nothing_that_an_operator_turned(engine: AsyncEngine) -> None:
    await record_environment(engine, says(shadow=True))
    await turn(engine, "LLM_SHADOW_MODE", value=False)
    before = await history(engine)
    await record_environment(engine, says(shadow=True))
    assert await history(engine) == before
    assert await stand(engine) == (False, False)


async def test_a_changed_environment_is_recorded_and_wins(engine: AsyncEngine) -> None:
    await record_environment(engine, says(shadow=True))
    await turn(engine, "LLM_SHADOW_MODE", value=True)
    await record_environment(engine, says(shadow=False))
    assert await stand(engine) == (False, False)
    await record_environment(engine, says(shadow=True))
    assert await stand(engine) == (True, False)
    assert len(await history(engine)) == 5


async def test_starts_at_once_record_each_switch_once(engine: AsyncEngine) -> None:
    await asyncio.gather(*(record_environment(engine, says(shadow=False, gate_off=True)) for _ in range(8)))
    assert await history(engine) == [
        ("ORDER_GATE_DISABLED", False, "environment", None),  # what holds when the next one has ended
        ("ORDER_GATE_DISABLED", True, "environment", True),
        ("LLM_SHADOW_MODE", False, "environment", False),
    ]
    assert await stand(engine) == (False, True)


@pytest.mark.parametrize("seed", range(5))
async def test_any_history_ends_as_told_simply(engine: AsyncEngine, seed: int) -> None:
    """Against the rule in plain Python: rows in order, ended ones struck out, the last one left wins."""
    chance = random.Random(seed)
    rows: list[bool] = []
    recorded: bool | None = None
    for _ in range(30):
        value = chance.random() < 0.5
        if chance.random() < 0.4:
            await record_environment(engine, says(shadow=value))
            if recorded is not value:
                rows.append(value)
            recorded = value
        else:
            ended = chance.random() < 0.3
            await turn(engine, "LLM_SHADOW_MODE", value=value, lasts=-1 if ended else chance.choice([None, 600]))
            rows += [] if ended else [value]
        assert await stand(engine) == (rows[-1] if rows else True, False)


@pytest.mark.parametrize("word", ["maybe", "2", "enabled"])
def test_an_unreadable_flag_stops_the_start_by_name(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("LLM_SHADOW_MODE", word)
    with pytest.raises(SettingsError, match="LLM_SHADOW_MODE"):
        load(SwitchSettings)
