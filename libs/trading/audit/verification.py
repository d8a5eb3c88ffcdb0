"""The chain of verdicts read from the database in order, and checked row by row."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.audit.links import COLUMNS, START, Broken, Link, check

BATCH = 1_000

ROWS = text(
    f"""
    select {", ".join(COLUMNS)}, payload, hash from gate_verdicts
    where seq > :after and (cast(:last as bigint) is null or seq <= :last)
    order by seq limit {BATCH}
    """
)
HASH = text("select hash from gate_verdicts where seq = :seq")


@dataclass(frozen=True, slots=True)
class Verified:
    """How far the chain holds: `rows` were read, `head` is the last that holds, `broken` the first that does not."""

    rows: int
    head: Link
    broken: Broken | None = None


async def batches(
    engine: AsyncEngine, *, after: int, last: int | None = None
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    """The rows after a number, to another one included, some at a time, each time in a transaction of its own."""
    while True:
        async with engine.connect() as connection:
            found = await connection.execute(ROWS, {"after": after, "last": last})
            rows = [dict(row) for row in found.mappings()]
        if rows:
            yield rows
            after = rows[-1]["seq"]
        if len(rows) < BATCH:
            return


async def verify(engine: AsyncEngine, start: Link = START) -> Verified:
    """Check every row after `start`, which must stand in the chain as it is.

    Rows cut off at the end are seen only by who kept a later head.
    """
    if start != START and (broken := await still_there(engine, start)) is not None:
        return Verified(0, start, broken)
    head, count = start, 0
    async for rows in batches(engine, after=start.seq):
        for row in rows:
            broken = check(head, row)
            if broken is not None:
                return Verified(count, head, broken)
            head, count = Link(row["seq"], row["hash"]), count + 1
    return Verified(count, head)


async def still_there(engine: AsyncEngine, kept: Link) -> Broken | None:
    """Whether a place of the chain that was noted before, such as a logged head, still stands as it was."""
    async with engine.connect() as connection:
        found = await connection.scalar(HASH, {"seq": kept.seq})
    if found is None:
        return Broken(kept.seq, f"it is gone; its hash was {kept.hash}")
    if found != kept.hash:
        return Broken(kept.seq, f"its hash is {found}, and was {kept.hash}")
    return None
