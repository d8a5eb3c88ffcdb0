"""The gauges that nobody else sets, against a real database."""

from pathlib import Path

from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.alerts import raise_alert
from services.jobs.retention import make_ahead
from services.jobs.vitals import AHEAD_H, Vitals

PARENTS = ("llm_calls", "llm_bodies", "forecasts")


def missing() -> dict[str, float | None]:
    return {parent: REGISTRY.get_sample_value("lexi_partition_missing", {"parent": parent}) for parent in PARENTS}


async def test_a_partition_counts_as_missing_until_it_is_made(engine: AsyncEngine, tmp_path: Path) -> None:
    vitals = Vitals(engine, tmp_path)
    async with engine.begin() as connection:
        made = await connection.scalars(
            text("select inhrelid::regclass::text from pg_inherits where inhparent in "
                 "('llm_calls'::regclass, 'llm_bodies'::regclass, 'forecasts'::regclass)")
        )  # fmt: skip
        for name in made.all():
            await connection.execute(text(f"drop table {name}"))
    await vitals.step()
    assert missing() == dict.fromkeys(PARENTS, 1)
    await make_ahead(engine)
    await vitals.step()
    assert missing() == dict.fromkeys(PARENTS, 0)
    assert AHEAD_H < 24, "tomorrow's partition is all that is made ahead"


async def test_disk_and_database_have_a_size(engine: AsyncEngine, tmp_path: Path) -> None:
    await Vitals(engine, tmp_path / "not made yet").step()
    free, size = (REGISTRY.get_sample_value(f"lexi_state_{name}_bytes") for name in ("free", "size"))
    assert free is not None
    assert size is not None
    assert 0 < free < size
    assert (REGISTRY.get_sample_value("lexi_database_bytes") or 0) > 1_000_000


async def test_an_alert_leaves_its_moment(engine: AsyncEngine, tmp_path: Path) -> None:
    async with engine.begin() as connection:
        await raise_alert(connection, key="vitals:1", kind="vitals", text="somebody called")
        now = await connection.scalar(text("select extract(epoch from now())"))
    await Vitals(engine, tmp_path).step()
    assert REGISTRY.get_sample_value("lexi_alert_raised_timestamp_seconds", {"kind": "vitals"}) == float(now or 0)
