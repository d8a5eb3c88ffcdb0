"""CPU of one answer through `libs.upstreams`: the engine is a fake in another process, so only our side is counted.

`python -m bench.ask_wire` prints milliseconds of process CPU per answer, short and in 64 chunks, alone and 64 at once.
"""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable

import uvloop

from libs.upstreams.config import UpstreamEntry
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import ChatRequest, Message, Sampling, TimeLimits
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_replies import FakeDialect

CALLS = 1500
SLOTS = 64
LIMITS = TimeLimits(connect_s=5, first_token_s=30, idle_s=30, total_s=60)
REQUEST = ChatRequest(
    (Message("system", "You judge. " * 40), Message("user", "Prices. " * 60)), Sampling(temperature=0)
)


async def measure(base_url: str, at_once: int) -> float:
    """Milliseconds of this process's CPU per answer."""
    entry = UpstreamEntry("lexi", "Lexi", base_url, "vllm", SLOTS, {"forecast": SLOTS})
    upstreams = Upstreams({"lexi": entry}, role="forecast")
    await upstreams.start()
    await asyncio.gather(*(upstreams.chat(REQUEST, LIMITS) for _ in range(at_once)))

    async def worker(calls: int) -> None:
        for _ in range(calls):
            reply = await upstreams.chat(REQUEST, LIMITS)
            assert reply.finish_reason == "stop"

    before = time.process_time()
    await asyncio.gather(*(worker(CALLS // at_once) for _ in range(at_once)))
    spent = time.process_time() - before
    await upstreams.close()
    return spent * 1000 / (CALLS // at_once * at_once)


async def reached(condition: Callable[[], bool]) -> None:
    """Look in every pass of the loop."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0)


async def until_free(dialect: FakeDialect) -> float:
    """The longest of many waits, in milliseconds, from cancelling a call to the engine seeing its caller gone."""
    async with FakeEngine(dialect=dialect, reply="word " * 500, chunks=500, gap_s=0.01) as fake:
        upstreams = Upstreams(
            {"lexi": UpstreamEntry("lexi", "Lexi", fake.base_url, dialect, 1, {"forecast": 1})}, role="forecast"
        )
        longest = 0.0
        for number in range(50):
            call = asyncio.create_task(upstreams.chat(REQUEST, LIMITS))
            await reached(lambda: fake.active == 1)
            await asyncio.sleep(0.03)
            cancelled_at = time.perf_counter()
            call.cancel()
            await reached(lambda gone=number + 1: fake.active == 0 and fake.aborted == gone)
            longest = max(longest, time.perf_counter() - cancelled_at)
        await upstreams.close()
    return longest * 1000


def main() -> None:
    """Measure and print."""
    dialects: tuple[FakeDialect, ...] = ("vllm", "openai")
    for dialect in dialects:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            longest = runner.run(until_free(dialect))
        print(f"ask_wire  {dialect}: a cancelled call frees its slot after at most {longest:.1f} ms (50 calls)")
    for name, chunks, gap_ms in (
        ("short", 1, 0.0),
        ("64 chunks, back to back", 64, 0.0),
        ("64 chunks, 2 ms apart", 64, 2.0),
    ):
        command = [sys.executable, "-m", "tests.fakes.engine", "--chunks", str(chunks), "--gap-ms", str(gap_ms)]
        command += ["--reply", "word " * 64 if chunks > 1 else "OK"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
            assert engine.stdout is not None
            base_url = engine.stdout.readline().strip()
            try:
                for at_once in (1, SLOTS):
                    if at_once == 1 and gap_ms:
                        continue
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        cost = runner.run(measure(base_url, at_once))
                    print(f"ask_wire  {name:24s} {at_once:3d} at once  {cost:6.3f} ms CPU per answer")
            finally:
                engine.terminate()


if __name__ == "__main__":
    main()
