"""Slots: never more than the share, never one lost, served by priority, whoever cancels when; and a bounded line."""

import asyncio
from dataclasses import dataclass
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.upstreams.drain import Drain
from libs.upstreams.errors import BreakerOpen, QueueFull
from libs.upstreams.slots import Slots

FAR = 60.0
BOUND = 150

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 9)),
        st.tuples(st.just("bounded"), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("release_and_cancel"), st.integers(0, 30)),
        st.tuples(st.just("resize"), st.integers(1, 4)),
        st.tuples(st.just("dismiss"), st.just(0)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=40,
)


class Desk:
    """Callers that ask, hold, leave and give back."""

    def __init__(self, share: int) -> None:
        self.slots = Slots(share, queue_tokens=BOUND)
        self.callers: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.holding = 0
        self.most = share

    async def _call(self, priority: int, release: asyncio.Event, tokens: int) -> None:
        await self.slots.take(priority, monotonic() + FAR, tokens=tokens)
        self.holding += 1
        try:
            await release.wait()
        finally:
            self.holding -= 1
            self.slots.give_back()

    def ask(self, priority: int, *, tokens: int = 0) -> None:
        release = asyncio.Event()
        call = asyncio.get_running_loop().create_task(self._call(priority, release, tokens))
        self.callers.append((call, release))

    def pick(self, number: int) -> tuple[asyncio.Task[None], asyncio.Event] | None:
        return self.callers[number % len(self.callers)] if self.callers else None

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def step(self, kind: str, number: int) -> None:
        if kind == "ask":
            self.ask(number)
        elif kind == "bounded":
            self.ask(number, tokens=10 * (number + 1))
        elif kind == "dismiss":
            self.slots.dismiss(lambda: BreakerOpen("a test"))
        elif kind == "settle":
            await self.settle()
        elif kind == "resize":
            self.slots.resize(number, queue_tokens=BOUND)
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
            assert desk.slots.tokens_waiting <= BOUND
        await desk.close()
        assert (desk.slots.used, desk.slots.waiting, desk.slots.tokens_waiting) == (0, 0, 0)
        assert desk.slots.take_now()
        ended = [call.exception() for call, _ in desk.callers if not call.cancelled()]
        assert all(error is None or isinstance(error, QueueFull | BreakerOpen) for error in ended)

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
    assert slots.waiting == 1
    assert set(slots._levels) == {0}  # pyright: ignore[reportPrivateUsage] - what it holds in memory shows nowhere else
    slots.give_back()
    await patient
    assert (slots.used, slots.waiting) == (1, 0)


@dataclass(eq=False)
class Arrival:
    """A caller in a plain account of the line: a list, searched from end to end."""

    number: int
    priority: int
    tokens: int


def plainly(arrivals: list[Arrival], *, tokens: int, callers: int) -> tuple[list[int], set[int]]:
    """In which order callers are served once all stand in line, and who was refused or had to leave."""
    line, gone = list[Arrival](), set[int]()

    def fits(others: list[Arrival], one: Arrival) -> bool:
        held = sum(other.tokens for other in others)
        return sum(1 for other in others if other.tokens) < callers and (not held or held + one.tokens <= tokens)

    for one in arrivals:
        if one.tokens and not fits([other for other in line if other.priority <= one.priority], one):
            gone.add(one.number)
            continue
        while one.tokens and not fits(line, one):
            last = max((other for other in line if other.tokens), key=lambda other: (other.priority, other.number))
            line.remove(last)
            gone.add(last.number)
        line.append(one)
    return [one.number for one in sorted(line, key=lambda one: (one.priority, one.number))], gone


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 0, 1, 10, 40, 100, 500])), max_size=40),
    st.integers(1, 300),
    st.integers(1, 12),
)
def test_the_line_is_what_a_plain_list_would_be(calls: list[tuple[int, int]], tokens: int, callers: int) -> None:
    async def play() -> tuple[list[int], set[int]]:
        slots, served, refused = Slots(1, queue_tokens=tokens), list[int](), set[int]()
        slots.queue_calls = callers
        assert slots.take_now()

        async def call(one: Arrival) -> None:
            try:
                await slots.take(one.priority, monotonic() + FAR, tokens=one.tokens)
            except QueueFull:
                refused.add(one.number)
            else:
                served.append(one.number)
                slots.give_back()

        async with asyncio.TaskGroup() as group:
            for one in arrivals:
                group.create_task(call(one))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            slots.give_back()
        return served, refused

    arrivals = [Arrival(number, *call) for number, call in enumerate(calls)]
    assert asyncio.run(play()) == plainly(arrivals, tokens=tokens, callers=callers)


async def test_one_larger_than_the_bound_waits_where_it_is_alone() -> None:
    slots = Slots(1, queue_tokens=100)
    assert slots.take_now()
    large = asyncio.create_task(slots.take(4, monotonic() + FAR, tokens=5000))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="1 requests wait for 1 slots: no more may wait"):
        await slots.take(4, monotonic() + FAR, tokens=1)
    slots.give_back()
    await large


async def test_thousands_of_callers_join_are_displaced_leave_and_are_served() -> None:
    many = 20_000
    slots = Slots(1, queue_tokens=many * 10)
    slots.queue_calls = many
    assert slots.take_now()
    served = 0

    async def call(priority: int) -> None:
        nonlocal served
        await slots.take(priority, monotonic() + 20 * FAR, tokens=10)
        served += 1
        slots.give_back()

    async with asyncio.timeout(FAR):
        patient = [asyncio.create_task(call(9)) for _ in range(many)]
        await asyncio.sleep(0)
        urgent = [asyncio.create_task(call(0)) for _ in range(many // 2)]
        await asyncio.sleep(0)
        for leaving in patient[: many // 4]:
            leaving.cancel()
        await asyncio.sleep(0)
        slots.give_back()
        ended = await asyncio.gather(*patient, *urgent, return_exceptions=True)
    assert sum(isinstance(end, QueueFull) for end in ended) == many // 2
    assert sum(isinstance(end, asyncio.CancelledError) for end in ended) == many // 4
    assert served == many // 2 + many // 4
    assert (slots.used, slots.waiting, slots.tokens_waiting) == (0, 0, 0)


def seen_turning(drain: Drain, *, each_s: float, tokens: int) -> None:
    """As if callers of one slot had been served for a while, one in so many seconds."""
    start = monotonic() - 20 * each_s
    drain.began(start, 1)
    for number in range(20):
        drain.turned(start + number * each_s, tokens)


async def test_who_would_be_answered_too_late_is_refused_at_once_if_bounded() -> None:
    drain = Drain(1)
    slots = Slots(1, drain=drain)
    assert slots.take_now()
    first = asyncio.create_task(slots.take(0, monotonic() + FAR))
    await asyncio.sleep(0)
    seen_turning(drain, each_s=5.0, tokens=10)
    with pytest.raises(QueueFull, match="too late") as caught:
        await slots.take(4, monotonic() + 12, tokens=10)  # one ahead: a slot in 10 s, an answer in 15 s
    assert caught.value.retry_after_s == pytest.approx(10, abs=1)
    in_time = asyncio.create_task(slots.take(4, monotonic() + 20, tokens=10))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await slots.take(4, monotonic() + 0.01)
    slots.give_back()
    await first
    slots.give_back()
    await in_time


async def test_a_turn_too_late_for_its_caller_goes_to_the_next() -> None:
    drain = Drain(1)
    slots = Slots(1, drain=drain)
    assert slots.take_now()
    hurried = asyncio.create_task(slots.take(4, monotonic() + 3, tokens=10))
    patient = asyncio.create_task(slots.take(4, monotonic() + 20, tokens=10))
    await asyncio.sleep(0)
    seen_turning(drain, each_s=5.0, tokens=10)
    slots.give_back()
    await patient
    with pytest.raises(QueueFull, match="too late"):
        await hurried
    last = asyncio.create_task(slots.take(4, monotonic() + 1, tokens=10))
    await asyncio.sleep(0)
    slots.give_back()
    await last  # nobody else would use the slot


async def test_callers_in_line_are_told_that_there_will_be_no_slot() -> None:
    slots = Slots(1)
    assert slots.take_now()
    waiting = [asyncio.create_task(slots.take(n, monotonic() + FAR, tokens=n)) for n in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    slots.dismiss(lambda: BreakerOpen("it went down", retry_after_s=5))
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert all(isinstance(end, BreakerOpen) and end.retry_after_s == 5 for end in ended[1:])
    assert (slots.used, slots.waiting) == (1, 0)


@pytest.mark.parametrize(("after", "until"), [(0, 2.4), (10, 2.4), (16, 2.4), (32, 2.0)])
async def test_a_stall_does_not_send_away_those_who_would_still_be_answered(after: int, until: float) -> None:
    share, turns, answered = 8, 0, 0
    slots, began = Slots(share, queue_tokens=10**6), monotonic()

    async def call() -> None:
        nonlocal turns, answered
        await slots.take(4, began + until, tokens=500)
        turns += 1
        await asyncio.sleep(1.5 if after < turns <= after + share else 0.01)
        slots.give_back()
        answered += 1

    ended = await asyncio.gather(*(call() for _ in range(72)), return_exceptions=True)
    assert all(end is None or isinstance(end, QueueFull | TimeoutError) for end in ended)
    assert answered >= 60
    assert (slots.used, slots.waiting) == (0, 0)


async def test_where_the_guess_is_bad_each_turn_costs_one_caller_at_most() -> None:
    drain = Drain(1)
    slots = Slots(1, drain=drain)
    assert slots.take_now()
    hurried = [asyncio.create_task(slots.take(4, monotonic() + 3, tokens=10)) for _ in range(6)]
    await asyncio.sleep(0)
    seen_turning(drain, each_s=5.0, tokens=10)
    slots.give_back()
    await hurried[1]
    with pytest.raises(QueueFull, match="too late"):
        await hurried[0]
    assert slots.waiting == 4
    for call in hurried[2:]:
        call.cancel()


async def test_what_was_learnt_of_another_number_of_slots_is_forgotten() -> None:
    drain = Drain(32)
    slots = Slots(32, queue_tokens=10**6, drain=drain)
    for _ in range(32):
        assert slots.take_now()
    first = asyncio.create_task(slots.take(4, monotonic() + FAR, tokens=10))
    await asyncio.sleep(0)
    start = monotonic() - 140 * 0.1
    drain.began(start, 32)
    for number in range(140):
        drain.turned(start + number * 0.1, 100)
    assert drain.known
    slots.resize(32, queue_tokens=10**6)
    assert drain.known, "the same number"
    slots.resize(4, queue_tokens=10**6)
    assert not drain.known
    last = asyncio.create_task(slots.take(4, monotonic() + 1.6, tokens=10))
    await asyncio.sleep(0)
    assert not last.done(), "nobody knows yet that it is too late"
    first.cancel()
    last.cancel()
