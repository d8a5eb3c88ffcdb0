"""How rows of calls get into Postgres: binary COPY, which costs this process a quarter of an insert from arrays.

COPY cannot skip rows that are there already. Fresh calls have new ids, so it goes straight into the tables; where it
meets a row that is there, and for rows that may have been stored before, it fills a temporary table from which
`on conflict do nothing` takes what is new. Every batch is stored as a whole or not at all.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, date, datetime, time
from typing import Any, Protocol, TypeAlias, cast

from asyncpg import PostgresError, UniqueViolationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.call_record import BodyRow, CallRow, Kept

NO_PARTITION = "23514"
REFUSED_CLASSES = frozenset({"22", "23", "54"})
"""SQLSTATE classes that speak against the data: wrong values, broken rules, too large or too deep for a document."""

ENSURE_PARTITIONS = text(
    "select ensure_partition('llm_calls', 'day', cast(:moment as timestamptz)), "
    "ensure_partition('llm_bodies', 'day', cast(:moment as timestamptz))"
)

_Table: TypeAlias = tuple[str, Sequence[str], Sequence[tuple[object, ...]]]


class _Driver(Protocol):
    """What is used of asyncpg's connection, which carries no types."""

    async def execute(self, query: str) -> object: ...

    async def copy_records_to_table(
        self, table_name: str, *, records: Sequence[tuple[object, ...]], columns: Sequence[str]
    ) -> object: ...

    def transaction(self) -> AbstractAsyncContextManager[object]: ...

    def terminate(self) -> None: ...


class CallStore:
    """The tables of calls and bodies, for one writer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._days: set[date] = set()

    async def insert(self, batch: Sequence[Kept], *, again: bool = False) -> None:
        """Store a batch; with `again` its rows may be there already. Raises what the driver raises."""
        try:
            await self._ensure_days(batch)
            async with self._engine.connect() as connection:
                driver = cast("_Driver", (await connection.get_raw_connection()).driver_connection)
                try:
                    await _store(driver, batch, again=again)
                except BaseException as error:
                    if not is_refused(error):
                        # SQLAlchemy does not see what the driver went through. Left to it, a server that hangs would
                        # be waited for to say goodbye.
                        driver.terminate()
                        await connection.invalidate()
                    raise
        except BaseException:
            self._days.clear()  # a partition may have been dropped
            raise

    async def _ensure_days(self, batch: Sequence[Kept]) -> None:
        """The partitions of the rows' days, made in transactions of their own and remembered."""
        for day in sorted({kept.call.ts.date() for kept in batch} - self._days):
            async with self._engine.begin() as connection:
                await connection.execute(ENSURE_PARTITIONS, {"moment": datetime.combine(day, time(), UTC)})
            self._days.add(day)


async def _store(driver: _Driver, batch: Sequence[Kept], *, again: bool) -> None:
    bodies = [kept.body for kept in batch if kept.body is not None]
    tables: list[_Table] = [("llm_calls", CallRow._fields, [kept.call for kept in batch])]
    if bodies:
        tables.append(("llm_bodies", BodyRow._fields, bodies))
    if not again:
        try:
            await _copy(driver, tables)
        except UniqueViolationError:
            again = True
    if again:
        await _merge(driver, tables)


async def _copy(driver: _Driver, tables: Sequence[_Table]) -> None:
    if len(tables) == 1:  # one statement is a transaction of its own
        [(table, columns, rows)] = tables
        await driver.copy_records_to_table(table, records=rows, columns=columns)
        return
    async with driver.transaction():
        for table, columns, rows in tables:
            await driver.copy_records_to_table(table, records=rows, columns=columns)


async def _merge(driver: _Driver, tables: Sequence[_Table]) -> None:
    async with driver.transaction():
        for table, columns, rows in tables:
            names = ", ".join(columns)
            await driver.execute(f"create temp table given_{table} (like {table}) on commit drop")
            await driver.copy_records_to_table(f"given_{table}", records=rows, columns=columns)
            await driver.execute(
                f"insert into {table} ({names}) select {names} from given_{table} on conflict do nothing"
            )


def is_refused(error: BaseException) -> bool:
    """Whether the rows themselves were refused, by the driver that encodes them or by the database.

    A row without a partition counts as the database's trouble: the partition is made again at the next try.
    """
    if isinstance(error, DBAPIError):
        state: Any = getattr(error.orig, "sqlstate", None)
    elif isinstance(error, SQLAlchemyError):
        return False
    elif isinstance(error, PostgresError):
        state = getattr(error, "sqlstate", None)
    else:
        return isinstance(error, ValueError | TypeError | OverflowError)
    return isinstance(state, str) and state != NO_PARTITION and state[:2] in REFUSED_CLASSES
