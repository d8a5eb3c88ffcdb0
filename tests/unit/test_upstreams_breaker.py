"""The breaker: what opens it, how long, and that a trial call decides."""

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
    says = r"^not asked: failed 3 times in 10 s \(last: it broke\); trying again in 5 s$"
    with pytest.raises(BreakerOpen, match=says):
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
    trial = breaker.enter()
    assert trial
    with pytest.raises(BreakerOpen, match=r"^not asked: one trial call is under way after: failed 3 times"):
        breaker.enter()
    breaker.succeeded(probe=trial)
    assert breaker.state is BreakerState.CLOSED
    assert not breaker.enter()


def test_a_trial_that_takes_its_time_keeps_others_out_for_no_longer_than_a_rest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += RULES.rest_s
    slow = breaker.enter()
    clock.now += RULES.rest_s - 1
    assert not breaker.passes
    with pytest.raises(BreakerOpen, match="one trial call is under way"):
        breaker.check()
    clock.now += 1
    assert breaker.passes
    second = breaker.enter()
    assert not breaker.passes, "the second one keeps others out as long again"
    breaker.succeeded(probe=second)
    assert breaker.state is BreakerState.CLOSED
    breaker.undecided(probe=slow)
    assert breaker.state is BreakerState.CLOSED


def test_two_trials_that_fail_one_after_the_other_lengthen_the_rest_once(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += RULES.rest_s
    slow = breaker.enter()
    clock.now += RULES.rest_s
    breaker.failed("again", probe=breaker.enter())
    breaker.failed("late", probe=slow)
    clock.now += 2 * RULES.rest_s
    assert breaker.state is BreakerState.HALF_OPEN


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
    assert breaker.enter()


def test_late_answers_of_earlier_calls_do_not_close_it(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.succeeded(probe=False)
    assert breaker.state is BreakerState.OPEN


def test_it_can_be_tripped_and_its_rest_ended_from_outside(breaker: Breaker) -> None:
    breaker.trip("down: refused")
    with pytest.raises(BreakerOpen, match="down: refused"):
        breaker.check()
    breaker.seen_back()
    assert breaker.enter()


def test_a_server_seen_back_gets_more_than_one_trial_and_the_first_answer_closes(breaker: Breaker) -> None:
    breaker.trip("down: refused")
    breaker.seen_back()
    first, second = breaker.enter(), breaker.enter()
    breaker.check()
    assert first
    breaker.succeeded(probe=second)
    assert breaker.state is BreakerState.CLOSED


def test_trials_that_fail_together_lengthen_the_rest_once(breaker: Breaker, clock: Clock) -> None:
    breaker.trip("down: refused")
    breaker.seen_back()
    for trial in [breaker.enter() for _ in range(4)]:
        breaker.failed("again", probe=trial)
    clock.now += 2 * RULES.rest_s - 1
    assert breaker.state is BreakerState.OPEN
    with pytest.raises(BreakerOpen, match=r"a trial call failed .*again.*trying again in 1 s"):
        breaker.check()
    clock.now += 1
    assert breaker.state is BreakerState.HALF_OPEN


def test_a_trial_from_before_the_server_was_seen_back_does_not_open_it_again(breaker: Breaker, clock: Clock) -> None:
    breaker.trip("down: frozen")
    clock.now += RULES.rest_s
    old = breaker.enter()
    breaker.seen_back()
    new = breaker.enter()
    breaker.failed("timed out", probe=old)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.succeeded(probe=new)
    assert breaker.state is BreakerState.CLOSED


def test_ending_the_rest_of_a_closed_breaker_changes_nothing(breaker: Breaker) -> None:
    breaker.seen_back()
    assert breaker.state is BreakerState.CLOSED
    assert not breaker.enter()
