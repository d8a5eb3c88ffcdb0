"""How long a line is expected to take: linear in what is ahead, and not deceived by slots that come free together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.upstreams.drain import LEAST_TURNS, Drain


def fed(share: int, rounds: int, *, round_s: float, together: bool, tokens: int = 100) -> Drain:
    """A line in which a whole share is served in every `round_s`: in one moment, or evenly spread."""
    drain = Drain(share)
    drain.began(0.0, share)
    for number in range(share * rounds):
        at = (number // share + 1) * round_s if together else (number + 1) * round_s / share
        drain.turned(at, tokens)
    return drain


def test_nothing_is_known_before_a_turn_was_seen_or_after_the_line_was_empty() -> None:
    drain = Drain(4)
    drain.began(0.0, 4)
    assert drain.wait_s(3, 5.0) is None
    assert drain.answer_s(10, 5.0) is None
    for number in range(LEAST_TURNS):
        assert not drain.known
        drain.turned(number, 10)
    assert drain.known
    drain.began(100.0, 4)
    assert not drain.known


@given(st.integers(1, 64), st.integers(2, 12), st.floats(0.01, 100.0), st.booleans(), st.integers(0, 300))
def test_the_wait_is_the_rounds_ahead(share: int, rounds: int, round_s: float, together: bool, ahead: int) -> None:
    drain = fed(share, rounds, round_s=round_s, together=together)
    wait = drain.wait_s(ahead, rounds * round_s)
    assert wait is not None
    true = (ahead + 1) * round_s / share
    assert 0.74 * true <= wait <= 1.01 * true


@given(st.integers(1, 64), st.integers(2, 12), st.floats(0.01, 100.0), st.integers(1, 10_000))
def test_a_slot_is_held_for_a_round_or_less_for_a_small_request(
    share: int, rounds: int, round_s: float, tokens: int
) -> None:
    drain = fed(share, rounds, round_s=round_s, together=False)
    held = drain.answer_s(tokens, rounds * round_s)
    assert held == pytest.approx(round_s * min(1.0, tokens / 100), rel=0.05)


def test_an_engine_that_stands_still_makes_the_wait_longer() -> None:
    drain = fed(4, 8, round_s=1.0, together=False)
    before, later = drain.wait_s(3, 8.0), drain.wait_s(3, 80.0)
    assert before is not None
    assert later is not None
    assert later > 10 * before


@given(st.integers(1, 64), st.integers(20, 30), st.floats(0.01, 100.0), st.booleans())
def test_at_best_a_slot_is_held_for_a_round(share: int, rounds: int, round_s: float, together: bool) -> None:
    drain = fed(share, rounds, round_s=round_s, together=together)
    next_turn = rounds * round_s + (round_s if together else round_s / share)
    assert drain.least_s(100, next_turn) == pytest.approx(round_s)
    assert drain.least_s(50, next_turn) == pytest.approx(round_s / 2)


@given(st.integers(1, 64), st.integers(3, 6), st.floats(5.0, 100.0))
def test_a_stall_between_quick_rounds_is_not_how_long_a_slot_is_held(share: int, rounds: int, stall_s: float) -> None:
    drain = fed(share, 16 * rounds, round_s=0.1, together=True)
    over = 16 * rounds * 0.1 + stall_s
    assert drain.least_s(100, over) == pytest.approx(0.1)
    average = drain.answer_s(100, over)
    assert average is not None
    assert average > 1.5 * drain.least_s(100, over)


def test_after_a_slow_first_round_the_next_turn_tells() -> None:
    drain = fed(8, 1, round_s=1.5, together=True)
    assert drain.known
    assert drain.least_s(100, 1.51) == pytest.approx(0.01)


def test_calls_that_were_under_way_when_the_line_began_do_not_look_like_speed() -> None:
    drain = Drain(8)
    drain.began(0.0, 8)
    for _ in range(8):
        drain.turned(0.001, 100)
    assert drain.least_s(100, 5.0) == pytest.approx(5.0, rel=0.01)


def test_a_lasting_change_is_learnt() -> None:
    drain = fed(2, 20, round_s=0.1, together=True)
    for number in range(40):
        drain.turned(2.0 + number // 2 + 1, 100)
    assert drain.least_s(100, 23.0) == pytest.approx(1.0)
