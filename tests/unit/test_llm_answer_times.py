"""The times of an answer count from the start of its question, whatever came before the turn that is kept."""

from dataclasses import replace
from pathlib import Path

from libs.llm.attempts import Attempts
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import Answer
from libs.upstreams.errors import FirstTokenTimeout
from libs.upstreams.types import ChatReply, TimeSplit
from tests.unit.llm_cases import GOOD, VERDICT_INPUTS, Remembering, ScriptedEngine, reply, write_prompts


class Watch:
    """A clock that goes on by hand, in milliseconds."""

    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms / 1000

    async def take(self, text: str, queue_ms: float, first_token_ms: float, total_ms: float) -> ChatReply:
        """A reply that takes its time."""
        self.now_ms += total_ms
        return replace(reply(text), time=TimeSplit(queue_ms, 1, first_token_ms, total_ms))

    async def sleep(self, seconds: float) -> None:
        self.now_ms += seconds * 1000


async def answer_of(folder: Path, watch: Watch, engine: ScriptedEngine) -> Answer:
    client = Client(
        engine=engine,
        prompts=Prompts.build(Registry.load_quietly(write_prompts(folder)), ""),
        cache=None,
        recorder=Remembering(),
        settings=LLMSettings(),
        attempts=Attempts(engine, clock=watch, chance=lambda: 0.5, sleep=watch.sleep),
        clock=watch,
    )
    return await client.ask("verdict", VERDICT_INPUTS, use_cache=False)


def times(answer: Answer) -> list[float]:
    return [round(each) for each in (answer.queue_ms, answer.first_queue_ms, answer.first_token_ms, answer.total_ms)]


async def test_an_answer_at_once(tmp_path: Path) -> None:
    watch = Watch()
    answer = await answer_of(tmp_path, watch, ScriptedEngine(lambda: watch.take(GOOD, 50, 150, 300)))
    assert times(answer) == [50, 50, 150, 300]


async def test_the_wait_of_a_repair_turn_is_not_before_the_first_token(tmp_path: Path) -> None:
    watch = Watch()
    turns = (lambda: watch.take("no json", 50, 150, 300), lambda: watch.take(GOOD, 400, 500, 700))
    answer = await answer_of(tmp_path, watch, ScriptedEngine(*turns))
    assert answer.status == "ok"
    assert times(answer) == [450, 50, 150, 1000]


async def test_an_attempt_that_failed_is_before_the_first_token(tmp_path: Path) -> None:
    watch = Watch()

    async def slow() -> ChatReply:
        watch.now_ms += 600
        raise FirstTokenTimeout("no token", upstream="lexi")

    answer = await answer_of(tmp_path, watch, ScriptedEngine(slow, lambda: watch.take(GOOD, 10, 100, 200)))
    assert answer.status == "ok"
    assert times(answer) == [10, 10, 800, 900]  # 600 lost, 100 until it was tried again


async def test_a_reply_that_did_not_stream_has_no_first_token(tmp_path: Path) -> None:
    watch = Watch()
    answer = await answer_of(tmp_path, watch, ScriptedEngine(lambda: watch.take(GOOD, 10, 0, 200)))
    assert answer.first_token_ms == 0
