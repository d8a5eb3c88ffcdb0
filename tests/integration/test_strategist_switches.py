"""`/strategist/switches`: who may turn what, and for how long."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.switches import order_gate_disabled
from services.api.strategist import switches
from tests.integration.strategist_app import Desk, desk_of

OFF = {"name": "ORDER_GATE_DISABLED", "value": True, "operator": "ann", "reason": "the model is down"}
LIVE = {"name": "LLM_SHADOW_MODE", "value": False, "operator": "ann", "reason": "go live"}


@pytest.fixture
def desk(engine: AsyncEngine, tmp_path: Path) -> Desk:
    return desk_of([switches.router], engine, tmp_path)


async def is_off(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return await order_gate_disabled(connection)


async def rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(text("select count(*) from switches")) or 0)


async def test_they_stand_as_the_defaults_say_until_somebody_turns_them(desk: Desk) -> None:
    answer = await desk.send("GET", "/switches", scope="read")
    assert answer.json() == [
        {
            "name": name,
            "value": value,
            "set_by": "default",
            "reason": "nobody has turned it yet",
            "set_at": None,
            "expires_at": None,
        }
        for name, value in (("ORDER_GATE_DISABLED", False), ("LLM_SHADOW_MODE", True))
    ]


@pytest.mark.parametrize(("more", "minutes"), [({}, 15), ({"minutes": 240}, 240)])
async def test_the_gate_goes_off_for_its_time(
    desk: Desk, engine: AsyncEngine, more: dict[str, Any], minutes: int
) -> None:
    answer = await desk.send("POST", "/switches", scope="switch", body=OFF | more)
    assert answer.status_code == 200
    stand = answer.json()
    lasts = datetime.fromisoformat(stand["expires_at"]) - datetime.fromisoformat(stand["set_at"])
    assert lasts == timedelta(minutes=minutes)
    assert (stand["value"], stand["set_by"], stand["reason"]) == (True, "ann (key has-switch)", "the model is down")
    assert await is_off(engine)
    shown = await desk.send("GET", "/switches", scope="read")
    assert shown.json()[0] == stand
    await desk.send("POST", "/switches", scope="switch", body=OFF | {"value": False})
    assert not await is_off(engine)


async def test_shadow_is_lifted_until_somebody_says_otherwise(desk: Desk) -> None:
    stand = (await desk.send("POST", "/switches", scope="switch", body=LIVE)).json()
    assert (stand["name"], stand["value"], stand["expires_at"]) == ("LLM_SHADOW_MODE", False, None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (OFF | {"minutes": 241}, "minutes"),
        (OFF | {"minutes": 0}, "minutes"),
        (OFF | {"value": False, "minutes": 5}, "leave minutes out"),
        (LIVE | {"minutes": 5}, "leave minutes out"),
        (OFF | {"value": "true"}, "value"),
        (OFF | {"name": "MAX_ORDER_QTY"}, "name"),
        (OFF | {"operator": " "}, "operator"),
        (OFF | {"reason": ""}, "reason"),
        (OFF | {"reason": "two\nlines"}, "reason"),
        (OFF | {"reason": "NUL \x00"}, "reason"),
        ({name: OFF[name] for name in ("name", "value", "operator")}, "reason"),
        (OFF | {"minute": 5}, "minute"),
    ],
)
async def test_what_cannot_be_turned_like_this_is_refused_and_nothing_changes(
    desk: Desk, engine: AsyncEngine, body: dict[str, Any], said: str
) -> None:
    answer = await desk.send("POST", "/switches", scope="switch", body=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert await rows(engine) == 0


async def test_only_a_key_that_may_switch_switches(desk: Desk, engine: AsyncEngine) -> None:
    answers = {scope: await desk.send("POST", "/switches", scope=scope, body=OFF) for scope in desk.keys}
    allowed = [scope for scope, answer in answers.items() if answer.status_code == 200]
    assert allowed == ["switch"]
    assert {answer.status_code for scope, answer in answers.items() if scope != "switch"} == {403}
    assert (await desk.send("POST", "/switches", scope=None, body=OFF)).status_code == 401
    assert (await desk.send("GET", "/switches", scope="switch")).status_code == 403
    assert await rows(engine) == 2
