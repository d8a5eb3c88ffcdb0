"""Limits per key: what is admitted, what is refused and how, and what a refusal leaves as it was."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.keys import Key, KeyLimits
from services.api.dataplane.callers import Admission, Callers
from services.api.dataplane.errors import ApiError

SLACK = 1e-3
"""What sums of many floats may be wrong by."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str = "desk", **limits: int) -> Key:
    return Key(name=name, sha256="0" * 64, scopes=frozenset({"infer"}), limits=KeyLimits.model_validate(limits))


def refusal(callers: Callers, asking: Key, tokens: int = 1) -> ApiError:
    with pytest.raises(ApiError) as caught:
        callers.admit(asking, tokens)
    error = caught.value
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    return error


def left(callers: Callers, asking: Key) -> Mapping[str, str]:
    """What a key has left, as the refusal of a request tells that can never pass and is not charged."""
    return refusal(callers, asking, 10**9).headers


def test_a_key_without_limits_passes_without_end() -> None:
    callers = Callers(Clock())
    admitted = [callers.admit(key(), 10**9) for _ in range(1000)]
    for one in admitted:
        one.close(5)
    assert callers.names == 0


def test_requests_per_minute_fill_evenly_and_say_what_is_left() -> None:
    clock = Clock()
    callers, asking = Callers(clock), key(requests_per_minute=3)
    for _ in range(3):
        callers.admit(asking, 1)
    error = refusal(callers, asking)
    assert error.headers["Retry-After"] == "20"
    assert "3 requests per minute" in error.message
    assert "come again in 20 s" in error.message
    assert error.headers["x-ratelimit-limit-requests"] == "3"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 20
    callers.admit(asking, 1)
    assert refusal(callers, asking).headers["Retry-After"] == "20"


def test_the_real_number_of_tokens_replaces_the_estimate() -> None:
    clock = Clock()
    callers, asking = Callers(clock), key(tokens_per_minute=100)
    cheap = callers.admit(asking, 100)
    assert refusal(callers, asking, 10).headers["Retry-After"] == "6"
    cheap.close(30)
    callers.admit(asking, 60)
    assert refusal(callers, asking, 11).headers["x-ratelimit-remaining-tokens"] == "10"
    callers.admit(asking, 10).close(60)  # 50 more than was there
    assert refusal(callers, asking, 10).headers["Retry-After"] == "36"
    clock.now += 36
    callers.admit(asking, 10).close(None)
    assert refusal(callers, asking, 1).headers["Retry-After"] == "1"


def test_more_debt_than_a_minute_pays_still_asks_to_come_again_within_one() -> None:
    clock = Clock()
    callers, asking = Callers(clock), key(tokens_per_minute=100)
    callers.admit(asking, 1).close(1000)
    assert refusal(callers, asking).headers["Retry-After"] == "60"
    clock.now += 540
    refusal(callers, asking)
    clock.now += 1
    callers.admit(asking, 1)


def test_a_request_larger_than_the_budget_is_told_that_it_never_passes() -> None:
    callers = Callers(Clock())
    error = refusal(callers, key(tokens_per_minute=100), 101)
    assert error.headers["x-should-retry"] == "false"
    assert "Retry-After" not in error.headers
    assert "never pass" in error.message
    callers.admit(key(tokens_per_minute=100), 100)


def test_calls_in_flight_are_bounded_and_closing_twice_frees_one_place() -> None:
    callers, asking = Callers(Clock()), key(concurrent=2)
    first, second = callers.admit(asking, 1), callers.admit(asking, 1)
    error = refusal(callers, asking)
    assert error.headers == {"Retry-After": "1"}
    assert "2 calls in flight" in error.message
    first.close(1)
    first.close(1)
    third = callers.admit(asking, 1)
    refusal(callers, asking)
    for one in (second, third):
        one.close(None)
    callers.admit(asking, 1)


def test_of_several_limits_the_one_that_takes_longest_is_named() -> None:
    callers, asking = Callers(Clock()), key(requests_per_minute=1, tokens_per_minute=1000, concurrent=1)
    callers.admit(asking, 1000)
    error = refusal(callers, asking, 100)
    assert "requests per minute" in error.message
    assert error.headers["Retry-After"] == "60"


def test_names_have_budgets_of_their_own() -> None:
    callers = Callers(Clock())
    callers.admit(key("a", requests_per_minute=1), 1)
    callers.admit(key("b", requests_per_minute=1), 1)
    refusal(callers, key("a", requests_per_minute=1))


def test_changed_limits_hold_from_the_next_request_on() -> None:
    callers = Callers(Clock())
    for _ in range(10):
        callers.admit(key(requests_per_minute=10), 1)
    refusal(callers, key(requests_per_minute=10))
    callers.admit(key(requests_per_minute=11), 1)
    refusal(callers, key(requests_per_minute=11))
    callers.admit(key(), 1)
    refusal(callers, key(requests_per_minute=1))  # what was used before stays used
    callers.admit(key(tokens_per_minute=10), 10)  # a limit that is new begins with a full minute
    refusal(callers, key(tokens_per_minute=10))


def test_a_lower_limit_is_no_debt() -> None:
    callers = Callers(Clock())
    callers.admit(key(requests_per_minute=100), 1)
    for _ in range(5):
        callers.admit(key(requests_per_minute=5), 1)
    assert refusal(callers, key(requests_per_minute=5)).headers["Retry-After"] == "12"


def test_names_that_owe_nothing_are_forgotten_and_others_are_not() -> None:
    clock = Clock()
    callers = Callers(clock)
    busy, debtor = key("busy", concurrent=1), key("debtor", tokens_per_minute=10)
    held = callers.admit(busy, 1)
    callers.admit(debtor, 10).close(1000)
    for number in range(5000):
        callers.admit(key(f"n{number}", requests_per_minute=5, tokens_per_minute=50, concurrent=2), 1).close(1)
    assert callers.names == 5002
    clock.now += 121
    callers.admit(key("last", concurrent=1), 1).close(1)
    assert callers.names == 3
    refusal(callers, busy)
    refusal(callers, debtor)
    held.close(1)
    callers.admit(busy, 1)


@given(limit=st.integers(1, 50), waits=st.lists(st.floats(0, 90, allow_nan=False), max_size=120))
def test_no_window_admits_more_requests_than_a_full_bucket_and_its_filling(limit: int, waits: list[float]) -> None:
    clock = Clock()
    callers, asking = Callers(clock), key(requests_per_minute=limit)
    admitted: list[float] = []
    for wait in waits:
        clock.now += wait
        try:
            callers.admit(asking, 1)
        except ApiError as error:
            seconds = int(error.headers["Retry-After"])
            assert 1 <= seconds <= 60
            continue
        admitted.append(clock.now)
    for first, begin in enumerate(admitted):
        for count, end in enumerate(admitted[first:], start=1):
            assert count <= limit * (1 + (end - begin) / 60) + SLACK


@given(
    limits=st.fixed_dictionaries(
        {
            "requests_per_minute": st.integers(1, 30),
            "tokens_per_minute": st.integers(1, 500),
        }
    ),
    asks=st.lists(st.integers(1, 500), min_size=1, max_size=40),
)
def test_who_waits_as_told_is_admitted(limits: dict[str, int], asks: list[int]) -> None:
    clock = Clock()
    callers, asking = Callers(clock), key("desk", **limits)
    for tokens in asks:
        try:
            callers.admit(asking, tokens)
        except ApiError as error:
            if "x-should-retry" in error.headers:
                assert tokens > limits["tokens_per_minute"]
                continue
            clock.now += int(error.headers["Retry-After"])
            callers.admit(asking, tokens)


STEPS = st.lists(
    st.tuples(st.sampled_from(["wait", "ask", "end"]), st.integers(1, 40)) | st.tuples(st.just("ask"), st.just(1)),
    max_size=80,
)


@given(STEPS)
def test_a_refusal_leaves_everything_as_it_was(steps: list[tuple[str, int]]) -> None:
    """Two desks do the same, but that one never makes the requests that are refused. All numbers here are exact."""
    clock = Clock()
    eager, modest = Callers(clock), Callers(clock)
    asking = key(requests_per_minute=15, tokens_per_minute=120, concurrent=4)
    under_way: list[tuple[Admission, Admission]] = []
    for what, amount in steps:
        if what == "wait":
            clock.now += amount / 4
        elif what == "end" and under_way:
            for one in under_way.pop(0):
                one.close(amount * 2)
        elif what == "ask":
            try:
                admitted = eager.admit(asking, amount)
            except ApiError:
                continue
            under_way.append((admitted, modest.admit(asking, amount)))
        assert left(eager, asking) == left(modest, asking)


class Desk(RuleBasedStateMachine):
    """One key under all three limits, at random: every charge is in the book, with the time it was made."""

    LIMITS = KeyLimits(requests_per_minute=7, tokens_per_minute=100, concurrent=3)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.callers = Callers(self.clock)
        self.key = key(**self.LIMITS.model_dump(exclude={"choices"}))
        self.open: list[tuple[Admission, int]] = []
        self.charges: list[tuple[float, int]] = []
        self.overshoot = 0

    @rule(seconds=st.floats(0, 45, allow_nan=False))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(tokens=st.integers(1, 120))
    def ask(self, tokens: int) -> None:
        try:
            self.open.append((self.callers.admit(self.key, tokens), tokens))
        except ApiError:
            return
        self.charges.append((self.clock.now, tokens))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), real=st.none() | st.integers(0, 200))
    def end(self, data: st.DataObject, real: int | None) -> None:
        admission, estimate = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        admission.close(real)
        admission.close(0)
        if real is not None:
            self.charges.append((self.clock.now, real - estimate))
            self.overshoot += max(0, real - estimate)

    @invariant()
    def never_more_in_flight_than_allowed(self) -> None:
        assert len(self.open) <= 3

    @invariant()
    def no_window_charges_more_than_a_full_bucket_and_its_filling(self) -> None:
        for first, (begin, _) in enumerate(self.charges):
            charged = 0
            for end, tokens in self.charges[first:]:
                charged += tokens
                assert charged <= 100 * (1 + (end - begin) / 60) + self.overshoot + SLACK

    def teardown(self) -> None:
        for admission, _ in self.open:
            admission.close(0)
        self.clock.now += 60 * (2 + self.overshoot / 100)
        for _ in range(3):
            self.callers.admit(self.key, 1)


TestDesk = Desk.TestCase
