"""CPU time of one `ask()` in the asking process, cache, validation and record included; the engine is another process.

Prints milliseconds of CPU per call for a short answer and for one of 64 chunks, without and with the reply cache, and
their ratio to reading the same bytes off a bare asyncio stream in the same run.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.database import migrated
from libs.db.engine import DatabaseSettings, create_engine
from libs.llm.client import Client
from libs.model_client import open_model
from tools.local_stack.postgres import EmbeddedPostgres

CALLS = 800
IN_FLIGHT = 32
UPSTREAMS = """
upstreams:
  - {name: lexi, dialect: vllm, slots: 64, shares: {eval: 64}}
"""


def start_engine(chunks: int) -> tuple["subprocess.Popen[str]", int]:
    """A fake engine in a process of its own; returns it and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.engine", "--slots", "64", "--chunks", str(chunks), "--reply", "word " * 64],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = urlsplit(str(process.stdout.readline()).strip()).port
    assert port is not None
    return process, port


async def cpu_ms_per_call(action: Callable[[int], Awaitable[Any]]) -> float:
    """CPU milliseconds this process spends per call, `IN_FLIGHT` at a time, after a warm-up."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        async with gate:
            await action(number)

    await asyncio.gather(*(one(-number - 1) for number in range(IN_FLIGHT)))
    started = time.process_time()
    await asyncio.gather(*(one(number) for number in range(CALLS)))
    return (time.process_time() - started) * 1000 / CALLS


async def bare_read(port: int) -> float:
    """CPU of reading the same answer from a bare asyncio stream on a connection of its own, parsing nothing."""
    body = b'{"model":"Lexi","stream":true,"messages":[{"role":"user","content":"x"}],"max_tokens":512}'
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n"

    async def once(_number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        await reader.readuntil(b"[DONE]")
        writer.close()

    return await cpu_ms_per_call(once)


@asynccontextmanager
async def asking(engine: AsyncEngine, folder: Path, *, port: int) -> AsyncGenerator[Client]:
    """The production client on the fake engine, which has all its slots for it."""
    (folder / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
    os.environ |= {
        "UPSTREAMS_FILE": str(folder / "upstreams.yaml"),
        "LLM_BASE_URL": f"http://127.0.0.1:{port}/v1",
    }
    async with open_model(engine, role="eval", state_dir=folder) as model:
        yield model.client


async def measure(url: str, folder: Path, *, chunks: int) -> tuple[float, float, float]:
    """CPU milliseconds per call of `ask()`, of `ask()` with the reply cache missed and filled, and of the bare read."""
    process, port = start_engine(chunks)
    engine = create_engine(DatabaseSettings(database_url=SecretStr(url)), application="bench")
    try:
        async with asking(engine, folder, port=port) as client:

            async def ask(number: int, **sampling: float) -> None:
                inputs = {"system": "You are brief.", "user": f"{chunks} {number}"}
                answer = await client.ask("manual", inputs, sampling=sampling)
                assert answer.status == "ok", answer.error
                assert not answer.cached

            plain = await cpu_ms_per_call(ask)
            cached = await cpu_ms_per_call(lambda number: ask(number, temperature=0))
        return plain, cached, await bare_read(port)
    finally:
        await engine.dispose()
        process.terminate()
        process.wait()


def main() -> None:
    """Run on a Postgres of its own."""
    print("ask(): CPU of the asking process per call, validation and record included")
    with tempfile.TemporaryDirectory() as name:
        server = EmbeddedPostgres(Path(name) / "pg", durable=False)
        server.start()
        try:
            url = migrated(server, "bench")
            for chunks, limit in ((1, 1.0), (64, 3.0)):
                plain, cached, bare = uvloop.run(measure(url, Path(name), chunks=chunks))
                print(
                    f"  {chunks:>2} chunks: {plain:.2f} ms (limit {limit:.0f}), {cached:.2f} ms with the "
                    f"reply cache asked and filled; x{plain / bare:.1f} of a bare read ({bare:.2f} ms)",
                    flush=True,
                )
        finally:
            server.stop()


if __name__ == "__main__":
    main()
