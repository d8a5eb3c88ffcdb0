"""What a backup holds, counted in the very snapshot that is dumped, and what a restored database holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.trading.audit.links import START, Link

COUNTED = (
    "forecasts", "llm_calls", "gate_verdicts", "authorisations", "orders", "fills", "outcomes", "switches",
    "activations", "halts",
)  # fmt: skip
"""History that cannot be made again."""


@dataclass(frozen=True, slots=True)
class Content:
    """Rows by table, partitions in all, the schema's revision, and the last verdict with its hash (`SEQ:HASH`)."""

    rows: Mapping[str, int]
    partitions: int
    revision: int
    head: str

    def line(self) -> str:
        """It in words."""
        counts = ", ".join(f"{count} {table}" for table, count in self.rows.items() if count)
        return f"{counts or 'no rows'}; {self.partitions} partitions; the last verdict is {self.head}"

    def missing(self, found: "Content") -> list[str]:
        """Where another database differs from this, in words."""
        mine, other = asdict(self), asdict(found)
        plain = [name for name in ("partitions", "revision", "head") if mine[name] != other[name]]
        differences = [f"{name} {other[name]} instead of {mine[name]}" for name in plain]
        tables = [table for table in self.rows if self.rows[table] != found.rows.get(table)]
        return [f"{found.rows.get(table)} {table} instead of {self.rows[table]}" for table in tables] + differences


async def content(connection: AsyncConnection) -> Content:
    """What the database holds, as this transaction sees it."""
    rows = {table: await connection.scalar(text(f"select count(*) from {table}")) or 0 for table in COUNTED}
    partitions = await connection.scalar(text("select count(*) from pg_class where relispartition and relkind = 'r'"))
    revision = await connection.scalar(text("select version_num from alembic_version"))
    found = await connection.execute(text("select seq, hash from gate_verdicts order by seq desc limit 1"))
    last = found.one_or_none()
    head = START if last is None else Link(last.seq, last.hash)
    return Content(rows, partitions or 0, int(revision or 0), f"{head.seq}:{head.hash}")
