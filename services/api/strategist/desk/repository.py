"""A verdict's transaction, over one connection that belongs to the desk alone."""

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from services.api.strategist.desk.record import Asked
from services.api.strategist.desk.statements import BEGIN, CLAIM, GIVE_UP, PREPARE, READ, SESSION, literal

MOST_MONTHS = 8
"""How many months of forecasts are kept in mind; the newest forecasts of all tickers are of one or two."""

Row: TypeAlias = Mapping[str, Any]


class DeskConnection:
    """The desk's own connection, made when first needed and again after it broke."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
        self._timeout_s = timeout_s
        limit = f"{int(timeout_s * 1000)}ms"
        limited = ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")
        self._session = SESSION | dict.fromkeys(limited, limit)
        self._connection: Any = None
        self._months = Months()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator["DeskTransaction", None]:
        """One transaction behind the gate's lock, committed after the block; any failure drops the connection.

        Each statement may take `timeout_s`, and so may what lies between two of them: then the server ends it. Raises
        what asyncpg raises, `OSError`, `TimeoutError`.
        """
        try:
            connection = await self._connected()
            await connection.execute(BEGIN, timeout=self._timeout_s)
            transaction = DeskTransaction(connection, timeout_s=self._timeout_s, months=self._months)
            yield transaction
            if not transaction.committed:
                await connection.execute("commit", timeout=self._timeout_s)
        except BaseException:
            self.drop()
            raise

    async def _connected(self) -> Any:
        """The connection. A new one has its statements planned before it waits for the lock, and keeps the plans."""
        if self._connection is None or self._connection.is_closed():
            connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
            self._connection = connection = await connect(
                self._url, timeout=self._timeout_s, server_settings=self._session, max_cached_statement_lifetime=0
            )
            await connection.execute(PREPARE, timeout=self._timeout_s)
            await DeskTransaction(connection, timeout_s=self._timeout_s, months=self._months).read([], most_entries=0)
        return self._connection

    async def give_up(self, order_ids: Sequence[UUID]) -> None:
        """Say of orders whose callers were told that there is no verdict that nobody sends them."""
        await self._connection.execute(GIVE_UP, list(order_ids), timeout=self._timeout_s)

    def drop(self) -> None:
        """Let go of the connection at once; what it had not committed is undone by the server."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class Months:
    """The months that the newest forecasts are of, by what was read last. Forecasts are cut by month, into hundreds of
    partitions: where a statement names the months, its plan opens no other, and one trip reads heads and forecasts.
    """

    def __init__(self) -> None:
        self._known: tuple[datetime, ...] = ()
        self._name(())

    def _name(self, months: Iterable[datetime]) -> None:
        self._known = tuple(months)
        spans = [
            f"f.as_of >= '{month.isoformat()}' and f.as_of < '{_next(month).isoformat()}'" for month in self._known
        ]
        self.read = READ.replace("{months}", " or ".join(spans) or "false")

    def hold(self, moments: Iterable[datetime]) -> bool:
        """Whether all of these lie in a month that is named; from now on they do."""
        needed = {_month(moment) for moment in moments}
        if needed.issubset(self._known):
            return True
        newest = sorted(set(self._known) - needed, reverse=True)
        self._name([*needed, *newest[: max(0, MOST_MONTHS - len(needed))]])
        return False


class DeskTransaction:
    """What is read and written behind the lock."""

    def __init__(self, connection: Any, *, timeout_s: float, months: Months) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._months = months
        self.committed = False

    async def read(self, batch: Sequence[Asked], *, most_entries: int) -> list[Row]:
        """A row per order, in their order; what holds for all of them stands in the first. The last minute's entries
        are counted to one past `most_entries`.
        """
        values = (
            [asked.order.client_order_id for asked in batch],
            [asked.order.ticker for asked in batch],
            [asked.order.horizon for asked in batch],
            [asked.order_id for asked in batch],
            [None if asked.done is None else asked.done.verdict_id for asked in batch],
            most_entries + 1,
        )
        rows = await self._connection.fetch(self._months.read, *values, timeout=self._timeout_s)
        if not self._months.hold(row["as_of"] for row in rows if row["as_of"] is not None):
            rows = await self._connection.fetch(self._months.read, *values, timeout=self._timeout_s)
        return rows

    async def store(
        self,
        *,
        verdicts: Sequence[dict[str, Any]],
        authorisations: Sequence[dict[str, Any]],
        orders: Sequence[dict[str, Any]],
    ) -> None:
        """Write everything a transaction decided and commit, in one trip: trips are most of what a verdict costs."""
        documents = [json.dumps(rows, allow_nan=False) for rows in (verdicts, authorisations, orders)]
        statements = [f"execute gate_store ({', '.join(map(literal, documents))})"]
        exits = [row for row in orders if row["origin"] == "exit" and row["broker_id"]]
        if exits:
            statements.append(CLAIM.format(orders=literal(json.dumps(exits))))
        await self._connection.execute("; ".join([*statements, "commit"]), timeout=self._timeout_s)
        self.committed = True


def _month(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next(month: datetime) -> datetime:
    return (month + timedelta(days=31)).replace(day=1)
