"""The database of an evaluation: needed by some commands, welcome to others, and never a reason not to evaluate."""

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseError
from libs.db.opening import open_database

NAMED_BY = ("DATABASE_URL", "DATABASE_URL_FILE")
NONE_NAMED = "DATABASE_URL is not set, and no stack runs here"
COMMAND_S = 120.0
"""How long a statement may take: a report of many rows is a large one."""


@dataclass(frozen=True, slots=True)
class Database:
    """An engine, or why there is none."""

    engine: AsyncEngine | None
    without: str = ""


@asynccontextmanager
async def database_if_there() -> AsyncGenerator[Database, None]:
    """The database that the environment names; one that is not named, not there or too old is told, not raised.

    Raises `SettingsError` for an address that is none.
    """
    if not any(os.environ.get(name) for name in NAMED_BY):
        yield Database(None, NONE_NAMED)
        return
    async with AsyncExitStack() as stack:
        try:
            opened = open_database(application="eval", pool_size=4, command_timeout=COMMAND_S)
            found = Database(await stack.enter_async_context(opened))
        except DatabaseError as error:
            found = Database(None, str(error))
        yield found
