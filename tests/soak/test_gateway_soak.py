"""A long day at the gateway: good answers, faults and leavers mixed, until so many requests were served. `make proof`.

SOAK_REQUESTS sets how many, SOAK_SEED the luck. Every request is a row, every slot and connection comes free, and the
gateway's memory after all of them is what it was after the first fifth.
"""

import asyncio
import os
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson
import psutil
import pytest

from libs.upstreams.wire import Wire
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, place, token
from tools.local_stack.postgres import EmbeddedPostgres

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "50000"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
CLIENTS = 32
GROWTH_LIMIT = 15_000_000
PATIENCE_S = 60.0
PATH = "/v1/chat/completions"
LONGEST_GHOST_S = 0.03
CACHED = frozenset({"from the cache", "ghost at the cache"})
WORDS = "one two three four five six seven eight " * 8

pytestmark = pytest.mark.timeout(600 + REQUESTS // 20)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of request: how often it comes, how it ends, what the engine does, and whether its client leaves.

    A client that `leaves` does so once the engine works on it. A `ghost` may leave at any moment, also before it was
    heard, so that nothing is said of how it ends.
    """

    weight: int
    status: str
    fault: Fault = Fault.NONE
    stream: bool = False
    leaves: bool = False
    ghost: bool = False
    body: tuple[tuple[str, Any], ...] = ()


KINDS = {
    "whole": Kind(600, "ok"),
    "stream": Kind(180, "ok", stream=True),
    "from the cache": Kind(60, "ok", body=(("temperature", 0),)),
    "long prompt": Kind(10, "ok", body=(("metadata", {"note": "x" * 30_000}),)),
    "error": Kind(25, "ok", Fault.STATUS),
    "reset": Kind(15, "failed", Fault.RESET),
    "reset in mid-stream": Kind(15, "failed", Fault.RESET_MIDSTREAM, stream=True),
    "cut": Kind(15, "failed", Fault.CUT, stream=True),
    "malformed": Kind(10, "failed", Fault.MALFORMED, stream=True),
    "no end": Kind(10, "failed", Fault.NO_DONE, stream=True),
    "leaves in mid-stream": Kind(20, "cancelled", Fault.STALL, stream=True, leaves=True),
    "leaves before the first token": Kind(20, "cancelled", Fault.SILENT, stream=True, leaves=True),
    "leaves waiting": Kind(20, "cancelled", Fault.SILENT, leaves=True),
    "ghost": Kind(20, "", ghost=True),
    "ghost in a stream": Kind(20, "", stream=True, ghost=True),
    "ghost at the cache": Kind(20, "", ghost=True, body=(("temperature", 0),)),
}


@dataclass(slots=True)
class Day:
    """What happens, and what the engines saw of it: `seen` holds a flag for each request that is under way."""

    dice: random.Random
    seen: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    asked: Counter[str] = field(default_factory=Counter[str])
    strange: list[str] = field(default_factory=list[str])
    tried: set[str] = field(default_factory=set[str])

    def reply(self, body: dict[str, Any]) -> Reply:
        """What an engine answers: what the kind that stands in the request says; an error only at the first place."""
        request_id, _, name = str(body["user"]).partition(" ")
        flag = self.seen.get(request_id)
        if flag is not None:
            flag.set()
        fault = KINDS[name].fault
        if fault is Fault.STATUS:
            fault = Fault.NONE if request_id in self.tried else fault
            self.tried ^= {request_id}
        return Reply(WORDS, fault=fault, delay_s=LONGEST_GHOST_S / 2 if KINDS[name].ghost else None)


def content(name: str, request_id: str) -> bytes:
    """The body of a request of a kind. The cached ones are few different questions."""
    kind = KINDS[name]
    asker = f"few{int(request_id[-4:], 16) % 20}" if name in CACHED else request_id
    body = {"model": "Lexi", "messages": [{"role": "user", "content": "hello"}], "user": f"{asker} {name}"}
    return orjson.dumps({**body, "stream": kind.stream, **dict(kind.body)})


async def ask(wire: Wire, day: Day, name: str) -> None:
    """One request, and a look at how it ended."""
    kind, request_id = KINDS[name], f"soak-{uuid4()}"
    headers = {
        "authorization": f"Bearer {token('ghost' if kind.ghost else 'soaker')}",
        "x-request-id": request_id,
        "x-lexi-cache": "on" if name in CACHED else "off",
    }
    flag = day.seen[request_id] = asyncio.Event()
    until = time.monotonic() + PATIENCE_S
    async with await wire.send("POST", PATH, body=content(name, request_id), headers=headers) as exchange:
        if kind.ghost:
            await asyncio.sleep(day.dice.uniform(0, LONGEST_GHOST_S))
        elif kind.leaves:
            async with asyncio.timeout(PATIENCE_S):
                await flag.wait()
        else:
            status, answer = await exchange.head(until), b""
            while chunk := await exchange.read(until):
                answer += chunk
            good = status == 200 and (answer.endswith(b"data: [DONE]\n\n") if kind.stream else b"error" not in answer)
            if good != (kind.status == "ok"):
                day.strange.append(f"{name}: {status} {answer[-300:]!r}")
    del day.seen[request_id]
    day.asked[name] += 1


async def serve_all(gateway: Gateway, day: Day, count: int) -> None:
    """So many more requests, from `CLIENTS` clients at once."""
    left = iter(range(count))
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]

    async def client() -> None:
        wire = Wire(gateway.url)
        for _ in left:
            await ask(wire, day, day.dice.choices(names, weights)[0])
        wire.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def on_record(gateway: Gateway) -> Counter[str]:
    """How many rows there are of those that are no ghosts, by status."""
    rows = await gateway.query(
        "select status, count(distinct request_id) as calls from llm_calls where caller = 'soaker' group by status"
    )
    return Counter({row.status: row.calls for row in rows})


async def test_a_day_of_everything_loses_nothing_and_grows_nothing(postgres: EmbeddedPostgres) -> None:
    day = Day(random.Random(SEED))
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeEngine(slots=64, reply=day.reply)) for _ in range(2)]
        places = [place("second", fakes[1].base_url, model="Lexi")]
        callers = [caller("soaker", record="body"), caller("ghost")]
        gateway = await stack.enter_async_context(gateway_before(postgres, places, callers, lexi_url=fakes[0].base_url))
        process = psutil.Process(gateway.pid)
        began = time.monotonic()
        await serve_all(gateway, day, REQUESTS // 5)
        before, handles = process.memory_info().rss, process.num_fds()
        await serve_all(gateway, day, REQUESTS - REQUESTS // 5)
        after, lasted = process.memory_info().rss, time.monotonic() - began
        wanted = Counter[str]()
        for name, number in day.asked.items():
            wanted[KINDS[name].status] += number
        ghosts = wanted.pop("")

        async def all_written() -> bool:
            return (await on_record(gateway)).total() >= wanted.total()

        await eventually(all_written, what="every request is a row", within_s=PATIENCE_S)
        await gateway.idle(*fakes)
        print(
            f"\n{REQUESTS} requests, seed {SEED}, {lasted:.0f} s; MB {before / 1e6:.0f} -> {after / 1e6:.0f}; {wanted}"
        )
        assert day.strange == []
        assert await on_record(gateway) == wanted
        rows = (await gateway.query("select count(*) as calls from llm_calls"))[0].calls
        assert wanted.total() <= rows <= wanted.total() + ghosts == REQUESTS, "no request is there twice"

        async def few_connections() -> bool:
            return all(fake.connections <= 2 for fake in fakes) and process.num_fds() <= handles

        await eventually(few_connections, what="no connection is left but those that look at the engines")
        assert after - before <= GROWTH_LIMIT
        assert "Traceback" not in gateway.log()
