"""How every story ends: all is well again, the account gets flat, a person re-arms, the house trades as it should."""

import asyncio
from typing import Any

from sqlalchemy import text

from libs.switches import turn
from libs.trading.rearm import rearm
from tests.simulation.house import Answered
from tests.simulation.invariants import must
from tests.simulation.market import Opinion
from tests.simulation.steps import Steps
from tests.simulation.world import World

A_DAY_S = 86_400.0
UNSETTLED = text("select ticker || ' ' || origin || ' ' || status from orders where status = 'submitting'")
HELD = text("select ticker from positions where qty <> 0")


async def end_well(world: World, steps: Steps) -> None:
    """See the module. Raises `Violation` where the house does not come to rest, or does not trade."""
    world.trail.append("end_well")
    world.exchange.faults.clear()
    world.house.wires.mishaps.clear()
    await world.house.restart_api()
    await pass_time(world, 5)
    answer = await world.panic(None)
    assert answer is not None
    world.watch.check_exit(answer, calm=True)
    await pass_time(world, A_DAY_S)  # what was lost today was lost yesterday
    await at_rest(world)
    await world.house.copy()
    await rearm(
        world.house.engine,
        world.house.jobs_broker,
        world.house.halt_file,
        operator="simulated",
        reason="the end of a story",
    )
    world.watch.note_rearmed()
    await trades(world, steps)
    await world.watch.check(world.house.engine, world.clock.monotonic())


async def pass_time(world: World, seconds: float) -> None:
    """Let time pass and the jobs catch up: a difference is settled when it is seen twice."""
    await world.clock.skip(seconds)
    for _ in range(3):
        await world.settle()
        await world.house.reconcile()
        await asyncio.sleep(2)


async def at_rest(world: World) -> None:
    """Our record is the broker's: nothing held, nothing on its way, every exit on record."""
    async with world.house.engine.connect() as connection:
        unsettled = (await connection.execute(UNSETTLED)).scalars().all()
        held = (await connection.execute(HELD)).scalars().all()
    must(not unsettled, f"orders that nobody knows the end of: {unsettled}")
    must(not held, f"the record holds {held} and the broker nothing")
    waiting = world.house.api.strategist.exits.to_copy()
    must(not waiting, f"exits that never came on record: {waiting}")


async def trades(world: World, steps: Steps) -> None:
    """Enforce lets through what is allowed and nothing else; shadow and the kill switch let both through."""
    for name in ("ORDER_GATE_DISABLED", "LLM_SHADOW_MODE"):
        await switch(world, name, on=False)
    passed = await order(world, steps, "allow")
    must(passed.status == 200, f"a good entry did not pass in enforce: {passed}")
    for opinion in ("deny", "unavailable"):
        refused = await order(world, steps, opinion)
        must((refused.status, refused.body.get("would_have")) == (409, "deny"), f"{opinion} passed: {refused}")
    await switch(world, "LLM_SHADOW_MODE", on=True)
    shadowed = await order(world, steps, "deny")
    told = (shadowed.status, shadowed.body.get("verdict"), shadowed.body.get("would_have"))
    must(told == (200, "allow", "deny"), f"shadow gated: {shadowed}")
    await switch(world, "LLM_SHADOW_MODE", on=False)
    await switch(world, "ORDER_GATE_DISABLED", on=True)
    waived = await order(world, steps, "deny")
    must(waived.status == 200 and "KILL_SWITCH" in waived.reasons, f"the kill switch did not act: {waived}")
    await world.clock.skip(61)
    await world.settle()
    again = await order(world, steps, "deny")
    must(again.status == 409, f"the kill switch did not end by itself: {again}")


async def switch(world: World, name: Any, *, on: bool) -> None:
    """An operator turns a switch; the gate is off for a minute."""
    minutes = 1 if name == "ORDER_GATE_DISABLED" and on else None
    async with world.house.engine.begin() as connection:
        await turn(connection, name, on, operator="simulated", reason="the end", minutes=minutes)


async def order(world: World, steps: Steps, opinion: Opinion) -> Answered:
    """A small entry on a new forecast of which the model thought this."""
    await world.tick(opinion)
    await world.house.reconcile()
    return await world.house.post(steps.orders.body(ticker="CCC", side="buy", qty="1"))
