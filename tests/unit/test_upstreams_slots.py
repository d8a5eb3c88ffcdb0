"""Slots: never more than the share, never one lost, served by priority, whoever cancels when."""

import asyncio
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.upstreams.slots import Slots

FAR = 60.0

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("release_and_cancel"), st.integers(0, 30)),
        st.tuples(st.just("resize"), st.integers(1, 4)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=40,
)


class Desk:
    """Callers that ask, hold, leave and give back."""

    def __init__(self, share: int) -> None:
        self.slots = Slots(share)
        self.callers: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.holding = 0
        self.most = share

    async def _call(self, priority: int, release: asyncio.Event) -> None:
        await self.slots.take(priority, monotonic() + FAR)
        self.holding += 1
        try:
            await release.wait()
        finally:
            self.holding -= 1
            self.slots.give_back()

    def ask(self, priority: int) -> None:
        release = asyncio.Event()
        self.callers.append((asyncio.get_running_loop().create_task(self._call(priority, release)), release))

    def pick(self, number: int) -> tuple[asyncio.Task[None], asyncio.Event] | None:
        return self.callers[number % len(self.callers)] if self.callers else None

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def step(self, kind: str, number: int) -> None:
        if kind == "ask":
            self.ask(number)
        elif kind == "settle":
            await self.settle()
        elif kind == "resize":
            self.slots.resize(number)
            self.most = max(self.most, number)
        elif (caller := self.pick(number)) is not None:
            if kind != "cancel":
                caller[1].set()
            if kind == "release_and_cancel":
                await asyncio.sleep(0)
                other = self.pick(number + 1)
                assert other is not None
                other[0].cancel()
            if kind == "cancel":
                caller[0].cancel()

    async def close(self) -> None:
        for _, release in self.callers:
            release.set()
        await asyncio.wait_for(asyncio.gather(*(task for task, _ in self.callers), return_exceptions=True), FAR)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), STEPS)
def test_never_more_than_the_share_and_no_slot_lost(share: int, steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        desk = Desk(share)
        for kind, number in steps:
            await desk.step(kind, number)
            assert desk.holding <= desk.slots.used <= desk.most
        await desk.close()
        assert desk.slots.used == 0
        assert desk.slots.waiting == 0
        assert desk.slots.take_now()

    asyncio.run(play())


async def test_lower_priority_first_then_first_come() -> None:
    slots, order = Slots(1), list[str]()
    assert slots.take_now()

    async def call(name: str, priority: int) -> None:
        await slots.take(priority, monotonic() + FAR)
        order.append(name)
        slots.give_back()

    tasks = [asyncio.create_task(call(name, p)) for name, p in [("c", 4), ("a", 0), ("d", 4), ("b", 1)]]
    await asyncio.sleep(0)
    assert slots.waiting == 4
    slots.give_back()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c", "d"]


async def test_waiting_ends_at_the_given_moment_and_the_place_in_line_is_gone() -> None:
    slots = Slots(1)
    assert slots.take_now()
    with pytest.raises(TimeoutError):
        await slots.take(0, monotonic() + 0.01)
    assert slots.waiting == 0
    slots.give_back()
    assert slots.take_now()


async def test_a_newcomer_does_not_pass_those_in_line() -> None:
    slots = Slots(1)
    assert slots.take_now()
    waiter = asyncio.create_task(slots.take(0, monotonic() + FAR))
    await asyncio.sleep(0)
    slots.give_back()
    assert not slots.take_now()
    await waiter
    assert slots.used == 1


async def test_a_larger_share_serves_those_who_wait() -> None:
    slots = Slots(1)
    assert slots.take_now()
    waiter = asyncio.create_task(slots.take(0, monotonic() + FAR))
    await asyncio.sleep(0)
    slots.resize(2)
    await waiter
    assert slots.used == 2


async def test_those_who_left_behind_a_patient_caller_are_not_kept() -> None:
    slots = Slots(1)
    assert slots.take_now()
    patient = asyncio.create_task(slots.take(0, monotonic() + FAR))
    await asyncio.sleep(0)
    for _ in range(100):
        with pytest.raises(TimeoutError):
            await slots.take(9, monotonic())
    assert len(slots._waiting) <= 3  # pyright: ignore[reportPrivateUsage] - what it holds in memory shows nowhere else
    slots.give_back()
    await patient
    assert (slots.used, slots.waiting) == (1, 0)
