"""A guardrail acts although somebody with another file or environment activated something last."""

from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import activate
from libs.llm.in_force import Ground
from libs.llm.registry import Registry
from services.jobs.guardrails import Guardrails
from tests.integration.guardrail_cases import INVALID, PROMPTS, all_rows, give, phase_of, read
from tests.unit.llm_cases import write_prompts

BUCKETS = "policy:1.0.0@50,1.1.0@50"


async def test_a_row_on_another_ground_keeps_no_guardrail_from_acting(engine: AsyncEngine, tmp_path: Path) -> None:
    path = write_prompts(tmp_path, PROMPTS)
    registry = Registry.load(path, path.with_suffix(".lock"))
    began = await read(engine, registry, BUCKETS)
    ground, elsewhere = began.in_force["policy"].ground, Ground("0.9.0", None, None)
    ramp, rows = (("1.0.0", 90.0), ("1.1.0", 10.0)), ((ground, "ann"), (elsewhere, "bob"))
    async with engine.begin() as connection:
        for where, who in rows:
            await activate(connection, key="policy", version="1.0.0", arms=ramp, who=who, why="try", ground=where)
    prompts = await read(engine, registry, BUCKETS)
    assert phase_of(prompts) == "activation-1"
    await give(engine, "1.0.0", count=300, phase=phase_of(prompts))
    await give(engine, "1.1.0", count=300, came=INVALID, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    assert [row.who for row in await all_rows(engine)] == ["guardrail", "bob", "ann"]
    after = (await read(engine, registry, BUCKETS)).in_force["policy"]
    assert (after.source, after.version, after.experiment) == ("activation", "1.0.0", None)
