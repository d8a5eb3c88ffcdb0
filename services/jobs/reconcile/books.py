"""Our record of the broker: what it says before a reading, and one transaction that brings it up to date."""

import json
from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.trading.broker.types import Fill
from services.jobs.reconcile import statements as sql
from services.jobs.reconcile.differences import Difference
from services.jobs.reconcile.reading import Ground, Pending, Reading
from services.jobs.reconcile.update import Update, Written

WRITE_LOCK = 7_410_002
TOO_OLD_S = 30.0


class OvertakenError(Exception):
    """A reading is not stored: it took too long, or another process stored a newer one meanwhile."""


class Books:
    """The tables orders, fills, positions, broker_state and differences."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ground(self) -> Ground:
        """Our record as it stands."""
        async with self._engine.connect() as connection:
            await connection.execute(sql.BY_INDEX_ONLY)
            state = (await connection.execute(sql.GROUND)).mappings().one()
            pending = (await connection.execute(sql.PENDING)).mappings().all()
            spelled = tuple(await connection.scalars(sql.SPELLED))
        suspected = tuple(Difference.from_json(each) for each in state["suspected"])
        return Ground(
            begun=state["begun"],
            account=state["account"],
            reconciled_at=state["reconciled_at"],
            fills_from=min([state["fills_from"], *(each.since for each in suspected)]),
            pending=tuple(Pending(**row) for row in pending),
            suspected=suspected,
            spelled=spelled,
        )

    async def strangers_of(self, fills: Collection[Fill]) -> Collection[str]:
        """The broker's ids of the orders of these fills that are in no record of ours; stored fills are settled."""
        if not fills:
            return ()
        rows = json.dumps([{"id": fill.id, "broker_id": fill.order_id} for fill in fills])
        async with self._engine.connect() as connection:
            return list(await connection.scalars(sql.STRANGERS, {"rows": rows}))

    async def write(self, ground: Ground, reading: Reading) -> Written:
        """Bring the record up to what was read, whole or not at all.

        Raises `OvertakenError` when the reading is too old or another one was stored meanwhile.
        """
        async with self._engine.begin() as connection:
            await refuse_if_overtaken(connection, ground)
            return await Update(connection, ground, reading).run()


async def refuse_if_overtaken(connection: AsyncConnection, ground: Ground) -> None:
    """Take the lock of writers, and see that nobody wrote since the reading began."""
    await connection.execute(sql.BY_INDEX_ONLY)
    await connection.execute(sql.LOCK, {"lock": WRITE_LOCK})
    stored = (await connection.execute(sql.NOW_STORED, {"begun": ground.begun})).mappings().one()
    if (stored["account"], stored["reconciled_at"]) != (ground.account, ground.reconciled_at):
        raise OvertakenError("another process reconciled meanwhile")
    if stored["age_s"] > TOO_OLD_S:
        raise OvertakenError(f"the reading began {stored['age_s']:.0f} s ago, which is too long")
