"""Liveness from what engines publish."""

import pytest

from libs.upstreams.heartbeat import Beat, Pulse, read_metrics, total
from tests.fakes.engine_replies import llamacpp_metrics, vllm_metrics

STUCK_S = 20.0


def test_an_idle_engine_is_up_however_long_nothing_moves() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    for now in (0, STUCK_S, STUCK_S * 9):
        pulse.take(now, Beat(running=0, progress=5))
        assert pulse.state == "up"


def test_running_and_moving_is_busy_and_running_without_moving_is_stuck() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    for step in range(20):
        pulse.take(step * 2, Beat(running=3, progress=step))
        assert pulse.state == "busy"
    pulse.take(38 + STUCK_S - 0.1, Beat(running=3, progress=19))
    assert pulse.state == "busy"
    pulse.take(38 + STUCK_S, Beat(running=3, progress=19))
    assert pulse.state == "stuck"
    assert "3 requests running, no progress for 20 s" in pulse.reason
    pulse.take(60 + STUCK_S, Beat(running=3, progress=20))
    assert (pulse.state, pulse.reason) == ("busy", "")


def test_counters_that_begin_again_are_progress() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    pulse.take(0, Beat(running=1, progress=900))
    pulse.take(STUCK_S, Beat(running=1, progress=2))
    assert pulse.state == "busy"


def test_pieces_of_answers_seen_here_are_progress() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    pulse.take(0, Beat(running=1, progress=9))
    pulse.moved(STUCK_S - 1)
    pulse.take(STUCK_S, Beat(running=1, progress=9))
    assert pulse.state == "busy"


def test_no_connection_is_down_at_once() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    pulse.take(1, Beat(failure="refused", sure=True))
    assert (pulse.state, pulse.reason) == ("down", "refused")


def test_silence_is_down_the_second_time_and_not_while_answers_flow() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    pulse.take(10, Beat(running=0, progress=1))
    pulse.take(14, Beat(failure="silent"))
    assert pulse.state == "up"
    pulse.moved(17.5)
    pulse.take(18, Beat(failure="silent"))
    assert pulse.state == "up"
    pulse.take(22, Beat(failure="silent"))
    assert pulse.state == "down"
    pulse.take(24, Beat(running=0, progress=1))
    assert pulse.state == "up"


def test_an_engine_too_busy_to_publish_is_busy_then_stuck() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    pulse.take(1, Beat(running=1, progress=5))
    pulse.take(3, Beat(blind=True))
    assert pulse.state == "busy"
    pulse.take(1 + STUCK_S, Beat(blind=True))
    assert pulse.state == "stuck"


def test_an_engine_without_counters_is_up_while_it_answers() -> None:
    pulse = Pulse(0, stuck_s=STUCK_S)
    pulse.take(0, Beat())
    pulse.take(STUCK_S * 3, Beat())
    assert pulse.state == "up"


def test_vllms_page_is_read() -> None:
    beat = read_metrics(vllm_metrics("Lexi", active=3, waiting=1, iterations=40, tokens=90).encode(), "vllm")
    assert (beat.running, beat.progress) == (3, 130)


def test_llamacpps_page_is_read() -> None:
    beat = read_metrics(llamacpp_metrics(active=2, waiting=0, iterations=7, tokens=30).encode(), "llamacpp")
    assert (beat.running, beat.progress) == (2, 44)


def test_requests_running_without_any_known_counter_are_no_verdict() -> None:
    beat = read_metrics(b'vllm:num_requests_running{engine="0"} 3\nvllm:renamed_total 7\n', "vllm")
    pulse = Pulse(0, stuck_s=STUCK_S)
    for now in (0, STUCK_S, STUCK_S * 3):
        pulse.take(now, beat)
        assert pulse.state == "up"


@pytest.mark.parametrize(
    ("page", "value"),
    [
        (b"", None),
        (b"a_count 3\n", 3),
        (b"a_count 3", 3),
        (b'a_count{engine="0"} 3\na_count{engine="1"} 4.5\n', 7.5),
        (b"a_count_more 3\nxa_count 4\n# TYPE a_count counter\n", None),
        (b'a_count{model="a } b"} 3 1700000000\n', 3),
        (b"a_count 1e+06\n", 1_000_000),
        (b"a_count what\n", None),
        (b"a_count \n", None),
    ],
)
def test_a_metric_is_summed_over_its_labels(page: bytes, value: float | None) -> None:
    assert total(page, b"a_count") == value
