"""Asking again what was asked before, and asking while the prompts change."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from libs.llm.call_record import CallRecord, new_call_id
from libs.llm.client import Client
from libs.llm.in_force import Activation, Ground
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import Answer, Rendered
from libs.upstreams.types import ChatReply, Message, Priority, Sampling
from tests.unit.llm_cases import (
    GOOD,
    PROMPTS,
    VERDICT_INPUTS,
    Desk,
    MemoryCache,
    Remembering,
    ScriptedEngine,
    reply,
    write_prompts,
)

OTHER = '{"allow": false, "score": 1}'
ON_FILE = Ground("1.0.0", None, None)


def recorded(desk: Desk, call: CallRecord) -> Rendered:
    """The messages of a recorded call with the version that made them."""
    return Rendered(desk.registry.version(call.prompt_key, call.prompt_version), call.messages)


async def again(desk: Desk, call: CallRecord) -> Answer:
    return await desk.client.ask_again(
        recorded(desk, call), sampling=call.sampling, inputs=call.inputs, replay_of=call.id, subject=call.subject
    )


async def test_exactly_the_recorded_messages_and_sampling_go_out(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD), buckets="verdict:1.1.0", llm_temperature=1.5, llm_top_p=0.3)
    await desk.client.ask("verdict", VERDICT_INPUTS, version="1.0.0", sampling={"seed": 7, "top_p": 0.5})
    [original] = desk.recorder.calls
    answer = await again(desk, original)
    [(_, first, _), (_, second, _)] = desk.engine.requests
    assert second.messages == first.messages == original.messages
    assert second.sampling == first.sampling == original.sampling
    assert second.sampling == Sampling(temperature=0, top_p=0.5, max_tokens=64, seed=7)
    assert (second.constraint, second.priority) == (first.constraint, Priority.BATCH)
    assert (answer.status, answer.value, answer.prompt_version) == ("ok", {"allow": True, "score": 7}, "1.0.0")


async def test_messages_that_no_template_makes_go_out_as_they_are(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    messages = (Message("user", "{{ ticker }} {% raw %}"), Message("assistant", "what?"), Message("user", ""))
    rendered = Rendered(desk.registry.active("verdict"), messages)
    await desk.client.ask_again(rendered, sampling=Sampling(temperature=0.4), inputs=None, replay_of=UUID(int=1))
    [(_, request, _)] = desk.engine.requests
    assert (request.messages, request.sampling) == (messages, Sampling(temperature=0.4))
    assert desk.recorder.calls[0].inputs is None


async def test_the_cache_is_neither_read_nor_written(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD, OTHER))
    await desk.client.ask("verdict", VERDICT_INPUTS)
    kept = dict(desk.cache.kept)
    answer = await again(desk, desk.recorder.calls[0])
    assert (answer.cached, answer.text) == (False, OTHER)
    assert desk.cache.kept == kept
    assert (await desk.client.ask("verdict", VERDICT_INPUTS)).text == GOOD


async def test_an_empty_cache_stays_empty(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    rendered = desk.registry.render(desk.registry.active("verdict"), VERDICT_INPUTS)
    sampling = Sampling(temperature=0, top_p=0.9, max_tokens=64)
    await desk.client.ask_again(rendered, sampling=sampling, inputs=VERDICT_INPUTS, replay_of=UUID(int=1))
    assert not desk.cache.kept


async def test_no_call_is_shared(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    await desk.client.ask("verdict", VERDICT_INPUTS)
    original = desk.recorder.calls[0]
    answers = await asyncio.gather(*(again(desk, original) for _ in range(5)))
    assert len(desk.engine.requests) == 6
    assert not any(answer.cached for answer in answers)


async def test_the_record_points_at_the_original_and_has_no_arm(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine("nonsense", GOOD, "nonsense", OTHER), buckets="verdict:1.1.0")
    await desk.client.ask("verdict", VERDICT_INPUTS, version="1.1.0", use_cache=False, subject="AAPL 2013-01-02")
    original = desk.recorder.calls[0]
    assert original.replay_of is None
    answer = await again(desk, original)
    first, repair = desk.recorder.calls[2:]
    assert (first.replay_of, first.retry_of, first.arm) == (original.id, None, "")
    assert (repair.replay_of, repair.retry_of, repair.arm) == (original.id, first.id, "")
    assert (first.inputs, first.subject) == (original.inputs, original.subject)
    assert (answer.call_id, answer.text, answer.arm) == (repair.id, OTHER, "")


async def test_an_answer_is_held_against_the_version_that_asked_even_if_it_is_gone(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    await desk.client.ask("verdict", VERDICT_INPUTS)
    [original] = desk.recorder.calls
    rendered = recorded(desk, original)
    stricter = PROMPTS.replace("maximum: 10", "maximum: 3")
    moved = Registry.load_quietly(write_prompts(tmp_path, stricter))
    client = Client(
        engine=desk.engine,
        prompts=Prompts.build(moved),
        cache=desk.cache,
        recorder=desk.recorder,
        settings=LLMSettings(),
    )
    answer = await client.ask_again(rendered, sampling=original.sampling, inputs=original.inputs, replay_of=original.id)
    assert (answer.status, answer.prompt_hash) == ("ok", original.prompt_hash)


async def test_another_version_on_the_same_inputs_points_at_the_original_too(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ScriptedEngine(GOOD))
    called = new_call_id()
    await desk.client.ask("verdict", VERDICT_INPUTS, version="1.1.0", use_cache=False, replay_of=called)
    [row] = desk.recorder.calls
    assert (row.replay_of, row.prompt_version, row.arm) == (called, "1.1.0", "")
    assert not desk.cache.kept


# --- the prompts change while a question is under way -----------------------------------------------------------------


@dataclass
class Turning:
    """Prompts that a test turns."""

    now: Prompts


def promoted(registry: Registry) -> Prompts:
    """The same file after 1.1.0 was promoted."""
    activation = Activation(1, "verdict", "1.1.0", (), "ada", "better", ON_FILE, datetime(2013, 1, 2, tzinfo=UTC))
    return Prompts.build(registry, activations={"verdict": [activation]})


async def test_each_question_takes_the_prompts_as_they_are_when_it_is_asked(tmp_path: Path) -> None:
    registry = Registry.load_quietly(write_prompts(tmp_path))
    source, recorder = Turning(Prompts.build(registry)), Remembering()
    client = Client(engine=ScriptedEngine(GOOD), prompts=source, cache=None, recorder=recorder, settings=LLMSettings())
    await client.ask("verdict", VERDICT_INPUTS)
    source.now = promoted(registry)
    await client.ask("verdict", VERDICT_INPUTS)
    assert [row.prompt_version for row in recorder.calls] == ["1.0.0", "1.1.0"]


async def test_a_question_under_way_is_finished_on_the_prompts_it_began_with(tmp_path: Path) -> None:
    registry = Registry.load_quietly(write_prompts(tmp_path))
    source, recorder, cache = Turning(Prompts.build(registry)), Remembering(), MemoryCache()
    stricter = PROMPTS.replace("maximum: 10", "maximum: 3")

    async def meanwhile() -> ChatReply:
        source.now = Prompts.build(Registry.load_quietly(write_prompts(tmp_path, stricter)))
        return reply("nonsense")

    engine = ScriptedEngine(meanwhile, GOOD)
    client = Client(engine=engine, prompts=source, cache=cache, recorder=recorder, settings=LLMSettings())
    answer = await client.ask("verdict", VERDICT_INPUTS)
    assert (answer.status, answer.value) == ("ok", {"allow": True, "score": 7})
    begun_with = registry.active("verdict").sha256
    assert {row.prompt_hash for row in recorder.calls} == {begun_with}
    [(_, first, _), (_, repair, _)] = engine.requests
    assert repair.messages[:3] == first.messages
    assert source.now.registry.active("verdict").sha256 != begun_with
    assert (await client.ask("verdict", VERDICT_INPUTS)).status == "invalid"
