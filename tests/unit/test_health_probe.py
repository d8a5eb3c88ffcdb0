"""The model's health as a pure matter of time: when a result is given again, shared, or measured anew."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

import pytest

from libs.llm.types import Answer
from libs.upstreams.types import Priority, TimeLimits
from services.api.health import HealthProbe

GOOD = Answer(
    status="ok",
    text="OK",
    value="OK",
    error=None,
    cached=False,
    call_id=UUID(int=0),
    model="Lexi",
    upstream="lexi",
    prompt_key="health",
    prompt_version="1.0.0",
    prompt_hash="",
    arm="",
)
TTL = 10.0


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Answers when `open` is set; `answer` may be an exception."""

    def __init__(self) -> None:
        self.asked = 0
        self.limits: list[TimeLimits] = []
        self.answer: Answer | Exception = GOOD
        self.open = asyncio.Event()
        self.open.set()

    async def ask(
        self, key: str, inputs: Mapping[str, object], *, priority: Priority, limits: TimeLimits, use_cache: bool
    ) -> Answer:
        assert (key, inputs, priority, use_cache) == ("health", {}, Priority.HEALTH, False)
        self.asked += 1
        self.limits.append(limits)
        await self.open.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probe(model: Model, clock: Clock) -> HealthProbe:
    return HealthProbe(model, model="Lexi", ttl_s=TTL, clock=clock)


async def test_a_good_answer_is_given_again_while_fresh(probe: HealthProbe, model: Model, clock: Clock) -> None:
    first = await probe.read()
    clock.now += 1
    second = await probe.read()
    assert (first.ok, first.cached, second.ok, second.cached, model.asked) == (True, False, True, True, 1)
    assert second.checked_at == first.checked_at
    clock.now += TTL
    assert not (await probe.read()).cached
    assert model.asked == 2


async def test_reuse_and_wait_together_stay_within_the_ttl(probe: HealthProbe, model: Model, clock: Clock) -> None:
    """Frozen right after a good answer: the last true is given and the false is known before the TTL is over."""
    await probe.read()
    reused = 0.0
    while (await probe.read()).cached:
        reused += 0.1
        clock.now += 0.1
    assert reused + model.limits[-1].total_s <= TTL


async def test_callers_at_the_same_time_share_one_completion(probe: HealthProbe, model: Model) -> None:
    model.open.clear()
    callers = [asyncio.create_task(probe.read()) for _ in range(20)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.sleep(0)
    model.open.set()
    found = await asyncio.gather(*callers[1:])
    assert all(health.ok for health in found)
    assert model.asked == 1


@pytest.mark.parametrize(
    "answer",
    [
        replace(GOOD, text="ok"),
        replace(GOOD, text="NO", value="NO"),
        replace(GOOD, text="", status="unavailable", error="connect_failed: refused"),
        replace(GOOD, status="invalid"),
        replace(GOOD, cached=True),
        RuntimeError("a bug of ours"),
        ConnectionRefusedError("the database"),
    ],
)
async def test_anything_but_a_fresh_literal_ok_is_not_ok(
    probe: HealthProbe, model: Model, answer: Answer | Exception
) -> None:
    model.answer = answer
    health = await probe.read()
    assert (health.ok, health.model) == (False, "Lexi")


async def test_a_completion_that_hangs_is_false_and_the_next_one_is_asked_anew(model: Model) -> None:
    probe = HealthProbe(model, model="Lexi", ttl_s=0.2)
    model.open.clear()
    assert not (await probe.read()).ok
    model.open.set()
    await asyncio.sleep(0.1)  # longer than the false result is given again
    assert (await probe.read()).ok


async def test_closing_ends_a_completion_under_way(probe: HealthProbe, model: Model) -> None:
    model.open.clear()
    caller = asyncio.create_task(probe.read())
    await asyncio.sleep(0)
    await probe.close()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_latency_is_told_to_a_tenth_of_a_millisecond(probe: HealthProbe, model: Model, clock: Clock) -> None:
    model.open.clear()
    reading = asyncio.create_task(probe.read())
    await asyncio.sleep(0)  # it starts the probe,
    await asyncio.sleep(0)  # which asks
    assert model.asked == 1
    clock.now += 0.0123456
    model.open.set()
    assert (await reading).latency_ms == 12.3
