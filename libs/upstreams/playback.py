"""An engine that answers from recorded texts: for replays and evaluations, which must not reach a model."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from libs.upstreams.errors import NotRecorded
from libs.upstreams.types import ChatReply, ChatRequest, Message, TimeLimits

Recording: TypeAlias = "tuple[tuple[Message, ...], ChatReply]"


class Playback:
    """Answers each request with the reply recorded for the same messages.

    Several replies to the same messages are given in the order they were recorded, the last one ever after. A request
    that was never recorded raises `NotRecorded`: a playback never makes an answer up.
    """

    def __init__(self, recordings: Iterable[Recording], *, models: Mapping[str, str] | None = None) -> None:
        self._replies: dict[tuple[Message, ...], list[ChatReply]] = {}
        self._given: dict[tuple[Message, ...], int] = {}
        self._models = dict(models or {})
        for messages, reply in recordings:
            self._replies.setdefault(messages, []).append(reply)
            self._models.setdefault(reply.upstream, reply.model)

    @classmethod
    def of_texts(
        cls, texts: Iterable[tuple[tuple[Message, ...], str]], *, upstream: str = "lexi", model: str = "recorded"
    ) -> "Playback":
        """A playback of plain texts that all ended by themselves."""
        replies = ((messages, ChatReply(text, "stop", upstream, model)) for messages, text in texts)
        return cls(replies, models={upstream: model})

    async def chat(self, request: ChatRequest, limits: TimeLimits, *, upstream: str = "lexi") -> ChatReply:
        """The recorded reply. Raises `NotRecorded`."""
        replies = self._replies.get(request.messages)
        if not replies:
            raise NotRecorded("no reply was recorded for these messages", upstream=upstream)
        number = self._given.get(request.messages, 0)
        self._given[request.messages] = number + 1
        return replies[min(number, len(replies) - 1)]

    def model_of(self, upstream: str) -> str:
        """The model that was recorded under an upstream's name."""
        return self._models.get(upstream, "recorded")

    def place_of(self, upstream: str) -> str:
        """No server: a recording."""
        return f"playback {upstream}"

    def fallbacks_of(self, upstream: str) -> tuple[str, ...]:
        """None: a recording is complete or it is not."""
        return ()
