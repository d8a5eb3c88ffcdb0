"""The cache: only where asked for, only where the answer cannot vary, only whole answers; many askers, one flight."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.engine import FakeEngine, Fault, Reply, ToolCall
from tests.faults.gateway_client import Answer, ask, client_that_leaves
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, place
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gateway_cache")]

WORDS = "one two three four five six seven eight"
ON = {"x-lexi-cache": "on"}
OFF = {"x-lexi-cache": "off"}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "price", "parameters": {"type": "object", "properties": {}}}}
]

_questions = count()


@dataclass(frozen=True, slots=True)
class House:
    """The gateway before one engine."""

    gateway: Gateway
    fake: FakeEngine

    async def ask(self, question: str, **more: Any) -> Answer:
        """Ask a question of its own at temperature 0, unless `more` says otherwise."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "temperature": 0, **more}
        return await ask(self.gateway, "sage", **{name: value for name, value in body.items() if value is not None})


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def opened(postgres: EmbeddedPostgres) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeEngine(model="sage", reply=WORDS))
        callers = [caller("desk"), caller("saver", cache="on")]
        gateway = await stack.enter_async_context(
            gateway_before(postgres, [place("sage", fake.base_url)], callers, API_IDLE_TIMEOUT_S="1")
        )
        yield House(gateway, fake)


@pytest.fixture
def house(opened: House) -> House:
    """The house with an engine that behaves."""
    opened.fake.reply, opened.fake.fault, opened.fake.delay_s = WORDS, Fault.NONE, 0.0
    opened.fake.requests.clear()
    return opened


@pytest.fixture
def question() -> str:
    """One that was not asked before."""
    return f"What moved on day {next(_questions)}?"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a question is asked twice, and what the second answer's header says then."""

    more: dict[str, Any]
    second: str


RULES = {
    "asked for by header": Rule({"headers": ON}, "hit"),
    "asked for by key": Rule({"key": "saver"}, "hit"),
    "the header wins over the key": Rule({"key": "saver", "headers": OFF}, "bypass"),
    "not asked for": Rule({}, "bypass"),
    "temperature not said": Rule({"headers": ON, "temperature": None}, "bypass"),
    "temperature above 0": Rule({"headers": ON, "temperature": 0.1}, "bypass"),
    "temperature 0.0": Rule({"headers": ON, "temperature": 0.0}, "hit"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rule", RULES)
async def test_an_answer_is_given_again_only_where_that_was_asked_for(
    house: House, question: str, rule: str, stream: bool
) -> None:
    more, second = RULES[rule].more, RULES[rule].second
    answers = [await house.ask(question, stream=stream, **more) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    first = "miss" if second == "hit" else "bypass"
    assert [answer.headers["x-lexi-cache"] for answer in answers] == [first, second]
    assert len(house.fake.requests) == (1 if second == "hit" else 2)
    assert answers[1].text == WORDS
    row = await house.gateway.row(answers[1].request_id)
    assert (row.status, row.cached, row.attempts) == ("ok", second == "hit", 0 if second == "hit" else 1)
    if second == "hit":
        assert answers[1].body == answers[0].body
        assert answers[1].headers["content-type"] == answers[0].headers["content-type"]
        assert answers[1].headers["x-lexi-upstream"] == "sage"
        assert answers[1].request_id != answers[0].request_id


DIFFERENCES: dict[str, dict[str, Any]] = {
    "a stream": {"stream": True},
    "a seed": {"seed": 7},
    "another length": {"max_tokens": 9},
    "an unknown field": {"flavour": "vanilla"},
    "usage in the stream": {"stream": True, "stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("difference", DIFFERENCES)
async def test_whatever_differs_is_another_question(house: House, question: str, difference: str) -> None:
    await house.ask(question, headers=ON)
    answer = await house.ask(question, headers=ON, **DIFFERENCES[difference])
    assert answer.headers["x-lexi-cache"] == "miss"
    assert len(house.fake.requests) == 2


UNKEPT: dict[str, tuple[Reply, bool]] = {
    "cut at its length": (Reply(WORDS, "length"), False),
    "a stream cut at its length": (Reply(WORDS, "length"), True),
    "a stream that broke": (Reply(WORDS, fault=Fault.CUT), True),
    "a stream without its end": (Reply(WORDS, fault=Fault.NO_DONE), True),
    "an error": (Reply(WORDS, fault=Fault.STATUS), False),
    "a body cut short": (Reply(WORDS, fault=Fault.CUT_BODY), False),
}


@pytest.mark.parametrize("why", UNKEPT)
async def test_what_is_not_whole_is_never_kept(house: House, question: str, why: str) -> None:
    house.fake.reply, stream = UNKEPT[why]
    await house.ask(question, stream=stream, headers=ON)
    house.fake.reply = WORDS
    answer = await house.ask(question, stream=stream, headers=ON)
    assert (answer.status, answer.headers["x-lexi-cache"]) == (200, "miss")
    assert len(house.fake.requests) == 2


async def test_calls_of_tools_are_kept(house: House, question: str) -> None:
    house.fake.reply = Reply("", tools=(ToolCall("price", '{"ticker": "AAPL"}'),))
    answers = [await house.ask(question, tools=TOOLS, headers=ON) for _ in range(2)]
    assert answers[1].headers["x-lexi-cache"] == "hit"
    assert answers[1].json["choices"][0]["finish_reason"] == "tool_calls"
    assert answers[1].body == answers[0].body


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_question_of_many_at_once_is_sent_once(house: House, question: str, stream: bool) -> None:
    house.fake.delay_s = 0.4
    answers = await asyncio.gather(*(house.ask(question, stream=stream, headers=ON) for _ in range(20)))
    assert len(house.fake.requests) == 1
    assert {answer.status for answer in answers} == {200}
    assert {answer.body for answer in answers} == {answers[0].body}
    assert all(answer.done for answer in answers) == stream
    said = [answer.headers["x-lexi-cache"] for answer in answers]
    assert (said.count("miss"), said.count("hit")) == (1, 19)
    rows = [await house.gateway.row(answer.request_id) for answer in answers]
    assert sorted(row.attempts for row in rows) == [0] * 19 + [1]
    await house.gateway.idle(house.fake)


async def test_those_who_wait_for_one_who_leaves_are_answered(house: House, question: str) -> None:
    house.fake.delay_s = 0.6
    messages = [{"role": "user", "content": question}]
    body: dict[str, Any] = {"messages": messages, "temperature": 0, "headers": ON}
    async with client_that_leaves(house.gateway, "sage", **body) as first:

        async def asked() -> bool:
            return len(house.fake.requests) == 1

        await eventually(asked, what="the first one is at the engine")
        others = [asyncio.create_task(house.ask(question, headers=ON)) for _ in range(5)]
        await asyncio.sleep(0.2)
        first.leave()
        answers = await asyncio.gather(*others)
    assert {answer.status for answer in answers} == {200}
    assert {answer.text for answer in answers} == {WORDS}
    await house.gateway.idle(house.fake)


async def test_waiting_for_anothers_answer_has_a_limit_too(house: House, question: str) -> None:
    house.fake.delay_s = 1.5
    first = asyncio.create_task(house.ask(question, headers=ON))

    async def asked() -> bool:
        return len(house.fake.requests) == 1

    await eventually(asked, what="the first one is at the engine")
    hurried = await house.ask(question, headers={**ON, "x-deadline-ms": "300"})
    assert (hurried.status, hurried.error["code"]) == (504, "deadline_exceeded")
    assert not first.done()
    assert (await first).status == 200
    assert len(house.fake.requests) == 1
