"""The one place where values are written into a statement instead of bound: a verdict is stored in a single trip."""

import ast
import json
import random
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.api.strategist.desk.statements import SESSION, literal

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "'); drop table gate_verdicts; --",
    "\\'",
    "'' ' ''",
    "\\\\'; select 1 --",
    "\u2019'",
    "$$",
    "e'\\\\''",
    "%s :x $1",
    "\x7f",
]


@pytest.mark.parametrize("value", HOSTILE)
async def test_a_hostile_value_comes_back_as_it_was(engine: AsyncEngine, value: str) -> None:
    await comes_back(engine, value)


async def test_so_do_many_others(engine: AsyncEngine) -> None:
    draw = random.Random(7)
    letters = "'\\\"$:%;-/*(){}eE \n\t" + "\u02bc\uff07\u00e9\U0001f600"
    await comes_back(engine, ["".join(draw.choices(letters, k=12)) for _ in range(500)])


async def comes_back(engine: AsyncEngine, value: str | list[str]) -> None:
    """As the desk writes it: JSON, which is ASCII, as a string of SQL that is no bound parameter."""
    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute("set standard_conforming_strings = on")
        stored = await raw.fetchval(f"select {literal(json.dumps(value))}::json::text")
        assert json.loads(stored) == value
        assert await connection.scalar(text("select to_regclass('gate_verdicts') is not null"))


def test_the_desks_session_pins_what_literals_rest_on() -> None:
    assert SESSION["standard_conforming_strings"] == "on"


def test_what_is_not_ascii_is_refused() -> None:
    with pytest.raises(ValueError, match="ASCII"):
        literal("\u02bc")


def test_nobody_else_writes_literals() -> None:
    users = [
        str(path.relative_to(ROOT))
        for folder in ("libs", "services", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "literal" for alias in node.names)
    ]
    assert users == ["services/api/strategist/desk/repository.py"]
