"""Activations of the key `verdict` of the tests' prompts."""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import activate
from libs.llm.in_force import Activation, Arms, Ground

ON_FILE = Ground("1.0.0", None, None)


async def promote(
    engine: AsyncEngine, to: str = "1.1.0", arms: Arms = (), *, ground: Ground = ON_FILE, expected: Any = "any"
) -> Activation | None:
    """Append an activation in a transaction of its own."""
    async with engine.begin() as connection:
        return await activate(
            connection, key="verdict", version=to, arms=arms, who="ada", why="better", ground=ground, expected=expected
        )


BY_HAND = text(
    "insert into activations (key, version, arms, who, why, file_version, file_experiment) "
    "values (:key, '1.1.0', cast(:arms as jsonb), 'bob', 'by hand', '1.0.0', cast(:experiment as jsonb))"
)


async def write_by_hand(
    engine: AsyncEngine, key: str, *, arms: str | None = '{"1.0.0": 90}', experiment: str | None = None
) -> None:
    """Insert a row as somebody with psql would, with arms as an object unless told otherwise."""
    async with engine.begin() as connection:
        await connection.execute(BY_HAND, {"key": key, "arms": arms, "experiment": experiment})
