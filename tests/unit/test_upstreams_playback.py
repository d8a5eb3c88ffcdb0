"""Answers from a recording, and the order in which upstreams are tried."""

import pytest

from libs.upstreams.choice import usable_first
from libs.upstreams.errors import NotRecorded
from libs.upstreams.playback import Playback
from libs.upstreams.types import (
    ChatReply,
    ChatRequest,
    Engine,
    Message,
    Sampling,
    TimeLimits,
    UpstreamState,
    UpstreamStatus,
)

ONE, TWO = (Message("user", "one"),), (Message("user", "two"),)


def request(messages: tuple[Message, ...]) -> ChatRequest:
    return ChatRequest(messages, Sampling())


async def test_the_reply_recorded_for_the_same_messages() -> None:
    playback: Engine = Playback.of_texts([(ONE, "first"), (TWO, "second")], model="Lexi")
    reply = await playback.chat(request(TWO), TimeLimits(), upstream="lexi")
    assert (reply.text, reply.model, reply.finish_reason) == ("second", "Lexi", "stop")
    assert playback.model_of("lexi") == "Lexi"
    assert playback.fallbacks_of("lexi") == ()


async def test_several_replies_come_in_order_and_the_last_stays() -> None:
    replies = [ChatReply(text, "stop", "lexi", "Lexi") for text in ("a", "b")]
    playback = Playback((ONE, reply) for reply in replies)
    texts = [(await playback.chat(request(ONE), TimeLimits())).text for _ in range(3)]
    assert texts == ["a", "b", "b"]


async def test_what_was_not_recorded_is_not_made_up() -> None:
    with pytest.raises(NotRecorded):
        await Playback.of_texts([(ONE, "x")]).chat(request(TWO), TimeLimits())


def status(name: str, state: UpstreamState, slots: int = 4) -> UpstreamStatus:
    return UpstreamStatus(name, "m", state, "", 0, slots)


def test_those_that_look_dead_come_last_and_those_without_a_share_not_at_all() -> None:
    declared = [
        status("a", "down"),
        status("b", "busy"),
        status("c", "up", 0),
        status("d", "stuck"),
        status("e", "unknown"),
    ]
    assert usable_first(declared) == ("b", "e", "a", "d")
