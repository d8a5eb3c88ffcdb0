"""The sidecar while its engines die, hang, dawdle and talk nonsense, and while its callers leave."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.faults.gateway_process import eventually
from tests.faults.sidecar_process import Sidecar, sidecar_before
from tests.integration.sidecar_app import PROPOSAL, VALID, entries_of, two_models

SLOTS = "lexi_upstream_slots_in_use"
SECRET = "the prompt that no log may hold"


@pytest.fixture
async def models() -> AsyncGenerator[tuple[FakeEngine, FakeEngine], None]:
    async with two_models() as both:
        yield both


@pytest.fixture
async def sidecar(tmp_path: Path, models: tuple[FakeEngine, FakeEngine]) -> AsyncGenerator[Sidecar, None]:
    limits = {"LLM_FIRST_TOKEN_TIMEOUT_S": "1", "LLM_IDLE_TIMEOUT_S": "1", "SIDECAR_DEADLINE_S": "3"}
    async with sidecar_before(tmp_path, *entries_of(*models), **limits) as process:
        yield process
        assert "Traceback" not in process.log()
        assert SECRET not in process.log()
        assert process.log().count("calls_not_written") <= 1  # there is no database, which is said once


async def no_slot_taken(sidecar: Sidecar, engine: FakeEngine) -> None:
    async def look() -> bool:
        return await sidecar.metric(SLOTS) == 0 and engine.active == engine.waiting == 0

    await eventually(look, what="every slot is free")


FAULTS = (
    Fault.STATUS, Fault.CUT, Fault.CLOSE, Fault.MALFORMED, Fault.GARBAGE, Fault.ERROR_EVENT, Fault.NOT_JSON,
    Fault.SILENT, Fault.STALL,
)  # fmt: skip


@pytest.mark.timeout(300)
async def test_whatever_an_engine_does_the_caller_gets_an_error_object_and_the_slot_comes_back(
    sidecar: Sidecar, models: tuple[FakeEngine, FakeEngine]
) -> None:
    for fault in FAULTS:
        for path, engine, name in (("/generate/hermes/", models[0], "Hermes"), ("/generate/phi3/", models[1], "Phi-3")):
            engine.fault = fault
            said = await sidecar.ask(path, SECRET)
            assert set(said) <= {"error", "call_id"}, (fault, said)
            assert said["error"].startswith(name), fault
            assert SECRET not in json.dumps(said)
            await no_slot_taken(sidecar, engine)
            engine.fault = Fault.NONE
            await eventually(lambda path=path: answers(sidecar, path), what=f"it heals after {fault}")


async def answers(sidecar: Sidecar, path: str) -> bool:
    return "error" not in await sidecar.ask(path)


async def test_an_answer_later_than_the_deadline_is_an_error_in_time(
    sidecar: Sidecar, models: tuple[FakeEngine, FakeEngine]
) -> None:
    models[0].reply, models[0].chunks, models[0].gap_s = "slow " * 100, 100, 0.5
    said = await sidecar.ask("/generate/hermes/")
    assert said["error"] == "Hermes did not answer in time."
    await no_slot_taken(sidecar, models[0])


async def test_both_models_share_the_deadline_of_a_proposal(
    sidecar: Sidecar, models: tuple[FakeEngine, FakeEngine]
) -> None:
    models[1].reply = Reply(VALID, delay_s=0.8)
    models[0].reply, models[0].chunks, models[0].gap_s = "slow " * 100, 100, 0.5
    said = await sidecar.ask("/propose_trade_adjustments/")
    assert said["error"] == "Hermes did not answer in time."
    assert "phi3_proposal" not in said


async def test_an_engine_that_dies_in_the_middle_and_comes_back(
    sidecar: Sidecar, models: tuple[FakeEngine, FakeEngine]
) -> None:
    models[0].reply, models[0].chunks, models[0].gap_s = "slow " * 20, 20, 0.2
    under_way = asyncio.create_task(sidecar.ask("/generate/hermes/"))
    await eventually(lambda: asyncio.sleep(0, models[0].active == 1), what="it writes")
    await models[0].stop()
    assert set(await under_way) <= {"error", "call_id"}
    assert await sidecar.ask("/generate/phi3/") == PROPOSAL

    async def partial() -> bool:
        found = (await sidecar.http.get(f"{sidecar.url}/health")).json()
        return found["status"] == "partial_error" and not found["hermes_loaded"]

    await eventually(partial, what="/health says that Hermes is away")
    assert await sidecar.ask("/generate/") == {"error": "Hermes model not loaded. Please check server logs."}
    models[0].reply, models[0].gap_s = "back", 0.0
    await models[0].start()
    await eventually(lambda: answers(sidecar, "/generate/"), what="Hermes answers again")


@pytest.mark.parametrize("path", ["/generate/hermes/", "/propose_trade_adjustments/"])
async def test_a_caller_that_leaves_frees_the_slot(
    sidecar: Sidecar, models: tuple[FakeEngine, FakeEngine], path: str
) -> None:
    for engine in models:
        engine.reply, engine.chunks, engine.gap_s = "word " * 200, 200, 0.05
    engine = models[0] if path == "/generate/hermes/" else models[1]
    for number in range(5):
        async with httpx.AsyncClient(trust_env=False) as caller:
            leaving = asyncio.create_task(caller.post(f"{sidecar.url}{path}", json={"prompt": f"Well {number}?"}))
            await eventually(lambda: asyncio.sleep(0, engine.active == 1), what="it writes")
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        await no_slot_taken(sidecar, engine)
    assert engine.aborted == 5
    assert engine.served == 0


async def test_it_ends_in_time_while_an_answer_is_being_written(
    sidecar: Sidecar, models: tuple[FakeEngine, FakeEngine]
) -> None:
    models[0].reply, models[0].chunks, models[0].gap_s = "word " * 100, 100, 0.5
    under_way = asyncio.create_task(sidecar.http.post(f"{sidecar.url}/generate/", json={"prompt": SECRET}))
    await eventually(lambda: asyncio.sleep(0, models[0].active == 1), what="it writes")
    assert await sidecar.stop() == 0
    (outcome,) = await asyncio.gather(under_way, return_exceptions=True)
    told = isinstance(outcome, httpx.Response) and "generated_text" not in outcome.text
    assert told or isinstance(outcome, httpx.TransportError)
    await eventually(lambda: asyncio.sleep(0, models[0].active == 0), what="the slot is free")
