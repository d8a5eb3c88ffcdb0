"""Upstreams on fake engines, and requests to them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from libs.upstreams.config import UpstreamEntry
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import ChatRequest, Message, Sampling, TimeLimits
from libs.upstreams.upstream import Upstream
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_replies import FakeDialect

DIALECTS: tuple[FakeDialect, ...] = ("vllm", "llamacpp", "openai")
ASK = ChatRequest((Message("user", "hello"),), Sampling(max_tokens=20))
PATIENT = TimeLimits(connect_s=10, first_token_s=30, idle_s=30, total_s=60)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came")


@asynccontextmanager
async def upstreams_on(*fakes: FakeEngine, share: int = 4, start: bool = True) -> AsyncGenerator[Upstreams, None]:
    """Upstreams named lexi, second, … that fall back on the ones after them."""
    names = ["lexi", "second", "third"][: len(fakes)]
    entries = {
        name: UpstreamEntry(
            name, "Lexi", fake.base_url, "auto", 64, {"forecast": share}, 4096, fallback=tuple(names[number + 1 :])
        )
        for number, (name, fake) in enumerate(zip(names, fakes, strict=True))
    }
    upstreams = Upstreams(entries, role="forecast")
    if start:
        await upstreams.start()
    try:
        yield upstreams
    finally:
        await upstreams.close()


def inside(upstreams: Upstreams, name: str = "lexi") -> Upstream:
    return upstreams._upstreams[name]
