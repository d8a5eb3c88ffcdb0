"""The breaker: what opens it, how long, and that one probe decides."""

import pytest

from libs.upstreams.breaker import Breaker, BreakerRules, BreakerState
from libs.upstreams.errors import BreakerOpen

RULES = BreakerRules(failures=3, ratio=0.5, window_s=10, rest_s=5, longest_rest_s=12)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, RULES)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed("it broke", probe=False)


def test_opens_at_the_number_of_failures_and_says_why(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 1)
    assert breaker.state is BreakerState.OPEN
    with pytest.raises(BreakerOpen, match="it broke"):
        breaker.enter()


def test_failures_among_many_successes_do_not_open_it(breaker: Breaker) -> None:
    for _ in range(10):
        breaker.succeeded(probe=False)
    fail(breaker, 5)
    assert breaker.state is BreakerState.CLOSED


def test_old_failures_are_forgotten(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 2)
    clock.now += RULES.window_s + 1
    fail(breaker, 1)
    assert breaker.state is BreakerState.CLOSED


def test_after_the_rest_one_probe_passes_and_its_success_closes(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += RULES.rest_s
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.enter() is True
    with pytest.raises(BreakerOpen, match="probe"):
        breaker.enter()
    breaker.succeeded(probe=True)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.enter() is False


def test_a_failed_probe_doubles_the_rest_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    rests: list[float] = []
    for _ in range(4):
        opened = clock.now
        while breaker.state is BreakerState.OPEN:
            clock.now += 0.5
        rests.append(clock.now - opened)
        breaker.failed("again", probe=breaker.enter())
    assert rests == [5, 10, 12, 12]


def test_a_probe_that_tells_nothing_lets_the_next_one_try(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += RULES.rest_s
    breaker.undecided(probe=breaker.enter())
    assert breaker.enter() is True


def test_late_answers_of_earlier_calls_do_not_close_it(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.succeeded(probe=False)
    assert breaker.state is BreakerState.OPEN


def test_it_can_be_tripped_and_its_rest_ended_from_outside(breaker: Breaker) -> None:
    breaker.trip("down: refused")
    with pytest.raises(BreakerOpen, match="down: refused"):
        breaker.check()
    breaker.probe_next()
    assert breaker.enter() is True


def test_ending_the_rest_of_a_closed_breaker_changes_nothing(breaker: Breaker) -> None:
    breaker.probe_next()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.enter() is False
