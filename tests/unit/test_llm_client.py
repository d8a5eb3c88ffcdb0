"""`ask()` against an engine in this process: what is sent, answered, kept and recorded."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from libs.llm.attempts import RetryBudget
from libs.llm.errors import InputsRefused, SamplingRefused, UnknownPrompt
from libs.llm.experiments import Unit
from libs.upstreams.errors import (
    BreakerOpen,
    BrokenStream,
    ConnectFailed,
    FirstTokenTimeout,
    PromptTooLong,
    Refused,
)
from libs.upstreams.types import ChatReply, Priority, TimeLimits
from tests.unit.llm_cases import GOOD, VERDICT_INPUTS, Desk, ScriptedEngine, reply

NOTE = {"ticker": "AAPL"}


async def never() -> ChatReply:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def until(condition: Callable[[], object], *, turns: int = 1000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("did not come to pass")


async def test_a_valid_answer_is_parsed_and_recorded_whole(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS, priority=Priority.POLICY, subject="AAPL")
    assert (answer.status, answer.value, answer.text) == ("ok", {"allow": True, "score": 7}, GOOD)
    assert (answer.model, answer.upstream, answer.cached, answer.error) == ("model-of-lexi", "lexi", False, None)
    [(_, request, limits)] = desk.engine.requests
    assert [message.role for message in request.messages] == ["system", "user", "user"]
    assert request.priority is Priority.POLICY
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.top_p) == (0, 64, 0.9)
    assert limits.total_s <= 20
    [row] = desk.recorder.calls
    assert (row.id, row.status, row.attempts, row.subject) == (answer.call_id, "ok", 1, "AAPL")
    assert (row.usage.tokens_in, row.usage.tokens_out, row.time.queue_ms) == (11, 5, 1)
    assert row.inputs == VERDICT_INPUTS
    assert row.prompt_hash == answer.prompt_hash == desk.registry.active("verdict").sha256


async def test_the_same_question_is_answered_from_the_cache(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    first = await desk.client.ask("verdict", VERDICT_INPUTS)
    second = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert len(desk.engine.requests) == 1
    assert (second.cached, second.value, second.tokens_out) == (True, first.value, 0)
    assert second.call_id != first.call_id
    assert [(call.status, call.cached, call.attempts) for call in desk.recorder.calls] == [
        ("ok", False, 1),
        ("ok", True, 0),
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "1.1.0"},
        {"upstream": "other"},
        {"sampling": {"max_tokens": 65}},
        {"inputs": {**VERDICT_INPUTS, "price": 101.6}},
        {"inputs": {**VERDICT_INPUTS, "headlines": []}},
        {"use_cache": False},
    ],
)
async def test_whatever_can_change_the_answer_misses_the_cache(tmp_path: Path, changed: dict[str, object]) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    await desk.client.ask("verdict", VERDICT_INPUTS)
    given = dict(changed)
    inputs = given.pop("inputs", VERDICT_INPUTS)
    answer = await desk.client.ask("verdict", inputs, **given)  # type: ignore[arg-type]
    assert not answer.cached
    assert len(desk.engine.requests) == 2


async def test_nothing_is_cached_above_temperature_zero(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("one", "two"))
    assert (await desk.client.ask("note", NOTE)).text == "one"
    assert (await desk.client.ask("note", NOTE)).text == "two"
    assert not desk.cache.kept


async def test_an_invalid_answer_gets_one_repair_turn_that_is_recorded(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine('{"allow": "false", "score": 1}', GOOD))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert (answer.status, answer.value) == ("ok", {"allow": True, "score": 7})
    repair = desk.engine.requests[1][1].messages
    assert [message.role for message in repair[-2:]] == ["assistant", "user"]
    assert repair[-2].content == '{"allow": "false", "score": 1}'
    assert "$.allow" in repair[-1].content
    first, second = desk.recorder.calls
    assert (first.status, first.repaired, first.retry_of) == ("invalid", False, None)
    assert (second.status, second.repaired, second.retry_of) == ("ok", True, first.id)
    assert answer.call_id == second.id
    assert [(call.usage.tokens_in, call.usage.tokens_out) for call in (first, second)] == [(11, 5), (11, 5)]
    assert (answer.tokens_in, answer.tokens_out) == (22, 10)
    assert (await desk.client.ask("verdict", VERDICT_INPUTS)).cached


async def test_there_is_no_second_repair_turn(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("nonsense"))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert (answer.status, answer.value, answer.text) == ("invalid", None, "nonsense")
    assert answer.error is not None
    assert answer.error.startswith("not_json")
    assert desk.statuses == ["invalid", "invalid"]
    assert not desk.cache.kept


async def test_a_failed_repair_turn_leaves_the_first_answer(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("nonsense", FirstTokenTimeout("silent")))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS, use_cache=False)
    assert (answer.status, answer.text) == ("invalid", "nonsense")
    assert desk.statuses == ["invalid", "timed_out"]


async def test_a_cut_structured_answer_is_invalid_and_not_kept(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(reply(GOOD, finish_reason="length")))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert answer.status == "invalid"
    assert answer.error is not None
    assert answer.error.startswith("cut")
    assert not desk.cache.kept


async def test_an_empty_free_text_is_invalid_without_repair(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("  "))
    assert (await desk.client.ask("note", NOTE)).status == "invalid"
    assert len(desk.engine.requests) == 1


async def test_text_that_postgres_cannot_keep_is_replaced(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("a\x00b\ud800c"))
    answer = await desk.client.ask("note", NOTE)
    assert answer.text == answer.value == "a\ufffdb\ufffdc"


async def test_a_retry_waits_with_jitter_on_top_of_what_the_upstream_asked_for(tmp_path: Path) -> None:
    busy = Refused("busy", status=503, retry_after_s=2.0)
    desk = Desk(tmp_path, ScriptedEngine(busy, GOOD))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert answer.status == "ok"
    assert desk.slept == [pytest.approx(2.0 + 0.5 * 0.2)]
    assert desk.recorder.calls[0].attempts == 2


async def test_no_retry_past_the_deadline(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(Refused("busy", status=503, retry_after_s=30.0)))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert answer.status == "unavailable"
    assert answer.error is not None
    assert answer.error.startswith("refused")
    assert not desk.slept
    assert len(desk.engine.requests) == 1


@pytest.mark.parametrize("status", [400, 422])
async def test_the_requests_own_fault_is_not_tried_again_anywhere(tmp_path: Path, status: int) -> None:
    desk = Desk(tmp_path, ScriptedEngine(Refused("bad", status=status), fallbacks=("second",)))
    assert (await desk.client.ask("verdict", VERDICT_INPUTS)).status == "unavailable"
    assert len(desk.engine.requests) == 1


async def test_extra_calls_stay_within_their_share(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(BrokenStream("cut")), cached=False)
    for _ in range(200):
        await desk.client.ask("note", NOTE)
    assert len(desk.engine.requests) == 200 + 30
    assert len(desk.recorder.calls) == 200


@pytest.mark.parametrize(
    "fault", [BreakerOpen("resting"), ConnectFailed("refused"), PromptTooLong("long"), Refused("gone", status=404)]
)
async def test_a_fallback_answers_under_its_own_name(tmp_path: Path, fault: Exception) -> None:
    engine = ScriptedEngine(fallbacks=("second",), by_upstream={"lexi": [fault], "second": [GOOD]})  # type: ignore[list-item]
    desk = Desk(tmp_path, engine)
    answer = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert (answer.status, answer.upstream, answer.model) == ("ok", "second", "model-of-second")
    again = await desk.client.ask("verdict", VERDICT_INPUTS)
    assert not again.cached, "a fallback's words must not stand for the first choice's"
    direct = await desk.client.ask("verdict", VERDICT_INPUTS, upstream="second")
    assert direct.cached


async def test_a_silent_engine_ends_at_the_deadline(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(never))
    answer = await desk.client.ask("verdict", VERDICT_INPUTS, limits=TimeLimits(total_s=0.05))
    assert answer.status == "unavailable"
    assert answer.error is not None
    assert answer.error.startswith("deadline_exceeded")
    assert desk.statuses == ["timed_out"]
    assert desk.engine.cancelled == 1


@pytest.mark.parametrize("use_cache", [True, False])
async def test_a_cancelled_call_is_recorded_and_stays_cancelled(tmp_path: Path, use_cache: bool) -> None:
    desk = Desk(tmp_path, ScriptedEngine(never))
    task = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS, use_cache=use_cache))
    await until(lambda: desk.engine.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: desk.engine.cancelled and desk.recorder.calls)
    assert desk.statuses == ["cancelled"]


async def test_who_asks_the_same_at_once_shares_one_call(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    answers = await asyncio.gather(*(desk.client.ask("verdict", VERDICT_INPUTS) for _ in range(5)))
    assert len(desk.engine.requests) == 1
    assert {answer.text for answer in answers} == {GOOD}
    assert sorted(answer.cached for answer in answers) == [False, True, True, True, True]
    assert len({call.id for call in desk.recorder.calls}) == 5


async def test_the_others_get_their_answer_when_the_first_caller_goes_away(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def opened() -> ChatReply:
        await gate.wait()
        return reply(GOOD)

    desk = Desk(tmp_path, ScriptedEngine(opened))
    first = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS))
    await until(lambda: desk.engine.requests)
    second = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS))
    third = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS))
    await asyncio.sleep(0)
    first.cancel()
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    answer = await second
    assert (answer.status, answer.cached) == ("ok", True)
    assert desk.engine.cancelled == 0
    assert sorted(desk.statuses) == ["cancelled", "cancelled", "ok", "ok"]
    assert len({call.id for call in desk.recorder.calls}) == 4


async def test_a_joined_caller_keeps_its_own_deadline(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(never))
    first = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS))
    await until(lambda: desk.engine.requests)
    answer = await desk.client.ask("verdict", VERDICT_INPUTS, limits=TimeLimits(total_s=0.02))
    assert (answer.status, answer.cached) == ("unavailable", False)
    assert desk.engine.cancelled == 0
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_joined_caller_with_more_time_asks_again_when_the_first_one_ran_out_of_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(never, GOOD))
    short = asyncio.create_task(desk.client.ask("verdict", VERDICT_INPUTS, limits=TimeLimits(total_s=0.02)))
    await until(lambda: desk.engine.requests)
    patient = await asyncio.gather(*(desk.client.ask("verdict", VERDICT_INPUTS) for _ in range(3)))
    assert (await short).status == "unavailable"
    assert [answer.status for answer in patient] == ["ok"] * 3
    assert len(desk.engine.requests) == 2
    assert sorted(desk.statuses) == ["ok", "ok", "ok", "timed_out"]


async def test_a_bug_under_a_shared_call_leaves_every_caller_a_row(tmp_path: Path) -> None:
    async def broken() -> ChatReply:
        raise LookupError("a bug of ours")

    desk = Desk(tmp_path, ScriptedEngine(broken))
    asked = [desk.client.ask("verdict", VERDICT_INPUTS) for _ in range(3)]
    assert all(isinstance(one, LookupError) for one in await asyncio.gather(*asked, return_exceptions=True))
    assert desk.statuses == ["failed"] * 3
    assert len({call.id for call in desk.recorder.calls}) == 3


async def test_another_server_of_the_same_model_name_is_asked_itself(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    await desk.client.ask("verdict", VERDICT_INPUTS)
    desk.engine.places["lexi"] = "http://elsewhere/v1"
    assert not (await desk.client.ask("verdict", VERDICT_INPUTS)).cached
    assert (await desk.client.ask("verdict", VERDICT_INPUTS)).cached


async def test_the_version_asked_for_wins_over_the_arm(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD), buckets="verdict:1.1.0")
    unit = Unit("AAPL", datetime(2013, 1, 2, tzinfo=UTC))
    by_arm = await desk.client.ask("verdict", VERDICT_INPUTS, unit=unit)
    pinned = await desk.client.ask("verdict", VERDICT_INPUTS, unit=unit, version="1.0.0")
    assert (by_arm.prompt_version, by_arm.arm) == ("1.1.0", "1.1.0")
    assert (pinned.prompt_version, pinned.arm) == ("1.0.0", "")


async def test_sampling_of_the_call_over_the_version_over_the_settings(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("text"), llm_temperature=1.5, llm_max_output_tokens=99)
    await desk.client.ask("note", NOTE)
    await desk.client.ask("note", NOTE, sampling={"temperature": 0.1, "max_tokens": None})
    [(_, first, _), (_, second, _)] = desk.engine.requests
    assert (first.sampling.temperature, first.sampling.max_tokens) == (0.7, 99)
    assert (second.sampling.temperature, second.sampling.max_tokens) == (0.1, 99)


async def test_our_own_mistakes_are_raised(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    with pytest.raises(UnknownPrompt, match="nothing"):
        await desk.client.ask("nothing", {})
    with pytest.raises(UnknownPrompt, match=r"9\.9\.9"):
        await desk.client.ask("verdict", VERDICT_INPUTS, version="9.9.9")
    with pytest.raises(InputsRefused, match=r"\$\.price"):
        await desk.client.ask("verdict", {**VERDICT_INPUTS, "price": "high"})
    with pytest.raises(SamplingRefused, match="temperature"):
        await desk.client.ask("verdict", VERDICT_INPUTS, sampling={"temperature": "hot"})
    assert not desk.engine.requests


def test_the_retry_budget_slides() -> None:
    now = [0.0]
    budget = RetryBudget(share=0.15, window_s=60, clock=lambda: now[0])
    assert budget.take(), "one extra call is always allowed"
    assert not budget.take()
    for _ in range(20):
        budget.count_first()
    assert [budget.take() for _ in range(3)] == [True, True, False]
    now[0] = 61.0
    assert [budget.take() for _ in range(2)] == [True, False]
