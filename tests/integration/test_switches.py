"""Turning a switch: rows with who and why, a kill switch that ends by itself, alerts, and the command line."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from libs.switches import (
    SwitchError,
    SwitchSettings,
    order_gate_disabled,
    record_environment,
    shadow_mode,
    standing,
    turn,
)

ROOT = Path(__file__).parents[2]
GATE, SHADOW = "ORDER_GATE_DISABLED", "LLM_SHADOW_MODE"
LASTS = text(
    "select name, value, set_by, reason, "
    "cast(extract(epoch from expires_at - set_at) / 60 as double precision) as minutes from switches order by id"
)


async def rows(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(LASTS)]


async def alerts(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        found = await connection.execute(text("select text from alerts where kind = 'kill_switch' order by id"))
        return list(found.scalars())


async def pass_time(engine: AsyncEngine, minutes: int) -> None:
    """As if so much time had gone by since every row was written."""
    statement = text(
        "update switches set set_at = set_at - :minutes * interval '1 minute', "
        "expires_at = expires_at - :minutes * interval '1 minute'"
    )
    async with engine.begin() as connection:
        await connection.execute(statement, {"minutes": minutes})


async def gate_off(engine: AsyncEngine, minutes: int | None = None) -> None:
    async with engine.begin() as connection:
        await turn(connection, GATE, True, operator="ann", reason="the model is down", minutes=minutes)


async def is_off(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return await order_gate_disabled(connection)


async def test_before_any_row_the_defaults_stand(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        stands = await standing(connection)
    assert [(stand.name, stand.value, stand.set_by, stand.set_at, stand.expires_at) for stand in stands] == [
        (GATE, False, "default", None, None),
        (SHADOW, True, "default", None, None),
    ]


async def test_the_gate_goes_off_for_a_quarter_of_an_hour_and_comes_back_by_itself(engine: AsyncEngine) -> None:
    await gate_off(engine)
    assert await rows(engine) == [
        (GATE, False, "ann", "holds when this has ended: the model is down", None),
        (GATE, True, "ann", "the model is down", 15.0),
    ]
    await pass_time(engine, 14)
    assert await is_off(engine)
    await pass_time(engine, 2)
    assert not await is_off(engine)


async def test_an_older_and_longer_time_off_does_not_come_back(engine: AsyncEngine) -> None:
    await gate_off(engine, 240)
    await gate_off(engine, 1)
    await pass_time(engine, 2)
    assert not await is_off(engine)


async def test_turning_the_gate_on_ends_the_time_off_at_once(engine: AsyncEngine) -> None:
    await gate_off(engine, 240)
    async with engine.begin() as connection:
        stand = await turn(connection, GATE, False, operator="bob", reason="it is back", key_name="desk")
    assert (stand.value, stand.set_by, stand.reason, stand.expires_at) == (False, "bob (key desk)", "it is back", None)
    assert not await is_off(engine)


async def test_the_desk_hears_of_the_kill_switch_both_ways_and_of_nothing_else(engine: AsyncEngine) -> None:
    await record_environment(engine, SwitchSettings())
    await gate_off(engine, 30)
    async with engine.begin() as connection:
        await turn(connection, SHADOW, False, operator="ann", reason="live")
        await turn(connection, GATE, False, operator="bob", reason="it is back")
    assert await alerts(engine) == [
        "The policy of the order gate was disabled for 30 minutes by ann: the model is down",
        "The policy of the order gate was enabled again by bob: it is back",
    ]


@pytest.mark.parametrize("minutes", [0, -1, 241])
async def test_nobody_turns_the_gate_off_for_longer_than_is_allowed(engine: AsyncEngine, minutes: int) -> None:
    with pytest.raises(SwitchError, match=f"1 to 240 minutes, not {minutes}"):
        await gate_off(engine, minutes)
    assert await rows(engine) == []


@pytest.mark.parametrize(("name", "value"), [(GATE, False), (SHADOW, True), (SHADOW, False)])
async def test_only_the_kill_switch_takes_minutes(engine: AsyncEngine, name: Any, value: bool) -> None:
    async with engine.begin() as connection:
        with pytest.raises(SwitchError, match="leave minutes out"):
            await turn(connection, name, value, operator="ann", reason="test", minutes=5)


@pytest.mark.parametrize(("operator", "reason"), [("", "why"), ("ann", " ")])
async def test_nobody_turns_a_switch_without_name_and_reason(engine: AsyncEngine, operator: str, reason: str) -> None:
    async with engine.begin() as connection:
        with pytest.raises(SwitchError, match="who turns the switch and why"):
            await turn(connection, SHADOW, False, operator=operator, reason=reason)


async def test_a_kill_switch_from_the_environment_ends_too_and_a_restart_does_not_renew_it(engine: AsyncEngine) -> None:
    await record_environment(engine, SwitchSettings(order_gate_disabled=True))
    assert await is_off(engine)
    await pass_time(engine, 239)
    assert await is_off(engine)
    await pass_time(engine, 2)
    await record_environment(engine, SwitchSettings(order_gate_disabled=True))
    assert not await is_off(engine)
    assert len(await alerts(engine)) == 1


async def test_a_kill_switch_without_an_end_gets_one_at_the_next_start(engine: AsyncEngine) -> None:
    endless = text("insert into switches (name, value, set_by, reason) values ('ORDER_GATE_DISABLED', true, 'x', 'y')")
    await record_environment(engine, SwitchSettings())
    async with engine.begin() as connection:
        await connection.execute(endless)
    await record_environment(engine, SwitchSettings())
    assert await is_off(engine)
    await pass_time(engine, 241)
    assert not await is_off(engine)


def command(database_url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"DATABASE_URL": database_url, "USER": "carol"} | environment
    run = [sys.executable, "-m", "libs.switches", *arguments]
    return subprocess.run(run, cwd=ROOT, env=variables, capture_output=True, text=True)


async def test_the_command_line_turns_and_shows(database_url: str, engine: AsyncEngine) -> None:
    off = command(database_url, "gate-off", "--reason", "the model is down", "--minutes", "20")
    assert off.returncode == 0, off.stderr
    assert "ORDER_GATE_DISABLED=true, until 20" in off.stdout
    assert await is_off(engine)
    command(database_url, "gate-on", "--operator", "dave")
    assert not await is_off(engine)
    command(database_url, "shadow-off", "--reason", "go live")
    shown = command(database_url, "show").stdout.splitlines()
    assert [line.split(" since ")[0] for line in shown] == [
        "ORDER_GATE_DISABLED=false (dave",
        "LLM_SHADOW_MODE=false (carol",
    ]
    command(database_url, "shadow-on")
    async with engine.connect() as connection:
        assert await shadow_mode(connection)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["gate-off"], {}, 'nothing was turned: say why, with make gate-off REASON="…" (without make: --reason "…")'),
        (["shadow-off"], {}, 'nothing was turned: say why, with make shadow-off REASON="…"'),
        (["shadow-off", "--reason", " "], {}, "nothing was turned: say why"),
        (
            ["gate-off", "--reason", "x", "--minutes", "ten"],
            {},
            "MINUTES (--minutes): 'ten' is no whole number of minutes\n",
        ),
        (["gate-off", "--reason", "x", "--minutes", "500"], {}, "1 to 240 minutes, not 500"),
        (["shadow-on"], {"USER": ""}, "nothing was turned: say who, with OPERATOR=NAME"),
        (["show"], {"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    database_url: str, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    failed = command(database_url, *arguments, **environment)
    assert failed.returncode == 2
    assert said in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def at_the_terminal(database_url: str, typed: bytes, *arguments: str) -> tuple[int, str]:
    """What the command says, on both of its ways, to a person who types an answer; and its exit code."""
    ours, theirs = pty.openpty()
    variables = os.environ | {"DATABASE_URL": database_url, "USER": "carol"}
    run = [sys.executable, "-m", "libs.switches", *arguments]
    child = subprocess.Popen(run, cwd=ROOT, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, typed)
    said = b""
    while chunk := _read(ours):
        said += chunk
    os.close(ours)
    return child.wait(), said.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""


async def test_a_person_at_the_terminal_is_asked_why(database_url: str, engine: AsyncEngine) -> None:
    code, said = at_the_terminal(database_url, b"thirty days of evidence\n", "shadow-off")
    assert (code, "Why?" in said) == (0, True), said
    assert await rows(engine) == [(SHADOW, False, "carol", "thirty days of evidence", None)]


async def test_who_gives_no_reason_turns_nothing(database_url: str, engine: AsyncEngine) -> None:
    code, said = at_the_terminal(database_url, b"\n", "shadow-off")
    assert (code, "nothing was turned: say why" in said) == (2, True), said
    assert await rows(engine) == []


async def test_the_way_back_waits_for_no_words(database_url: str, engine: AsyncEngine) -> None:
    for name in ("gate-on", "shadow-on"):
        assert at_the_terminal(database_url, b"", name)[0] == 0
    assert [row[3] for row in await rows(engine)] == ["turned by hand, no reason given"] * 2


async def test_a_first_start_says_so_and_a_later_one_says_that_it_differs(engine: AsyncEngine) -> None:
    with capture_logs() as logs:
        await record_environment(engine, SwitchSettings(), service="forecast")
    assert [row[3] for row in await rows(engine)] == ["first start: as the environment and its defaults have it"] * 2
    assert {log["log_level"] for log in logs} == {"info"}
    with capture_logs() as logs:
        await record_environment(engine, SwitchSettings(llm_shadow_mode=False), service="forecast")
    assert (await rows(engine))[-1][3] == "the environment of a start said otherwise than the one before"
    assert [log["log_level"] for log in logs] == ["warning"]


async def test_a_first_start_that_permits_more_than_the_default_is_a_warning(engine: AsyncEngine) -> None:
    with capture_logs() as logs:
        await record_environment(engine, SwitchSettings(llm_shadow_mode=False))
    assert [(log["name"], log["log_level"]) for log in logs] == [(GATE, "info"), (SHADOW, "warning")]
