"""Activations of the key `verdict` of the tests' prompts."""

from typing import Any

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
