"""What goes to an engine and what comes back, independent of dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]
Dialect: TypeAlias = Literal["vllm", "llamacpp", "openai"]
Role: TypeAlias = Literal["forecast", "api", "analytics", "jobs", "sidecar", "eval"]


class Priority(IntEnum):
    """Order in which the engine serves what waits (vLLM: lower is earlier)."""

    POLICY = 0
    RATIONALE = 1
    SUMMARY = 2
    HEALTH = 3
    INTERACTIVE = 4
    BATCH = 9


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the engine picks tokens. `max_tokens` bounds the answer."""

    temperature: float = 0.2
    top_p: float = 0.9
    max_tokens: int = 512
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the answer must look like: a JSON schema, or one of a few literal words. Exactly one is set."""

    schema: JsonObject | None = None
    choice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion."""

    messages: tuple[Message, ...]
    sampling: Sampling
    constraint: Constraint | None = None
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Limits of one call in seconds; `total_s` includes waiting for a slot."""

    connect_s: float = 2.0
    first_token_s: float = 10.0
    idle_s: float = 5.0
    total_s: float = 20.0


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where the time of one call went, milliseconds."""

    queue_ms: float = 0.0
    connect_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them; `estimated` where it did not say."""

    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A whole answer. `finish_reason` "length" means it was cut at `max_tokens`."""

    text: str
    finish_reason: str
    upstream: str
    model: str
    usage: Usage = field(default_factory=Usage)
    time: TimeSplit = field(default_factory=TimeSplit)


UpstreamState: TypeAlias = Literal["up", "busy", "stuck", "down", "unknown"]


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """How an upstream is, as this process sees it. `slots` is this process's share, `reason` empty where all is well.

    up: answers and has nothing to do. busy: works, and its counters move. stuck: holds requests and makes no progress.
    down: does not answer, or is not asked for a while since calls to it failed. unknown: not looked at yet.
    """

    name: str
    model: str
    state: UpstreamState
    reason: str
    slots_used: int
    slots: int


class Engine(Protocol):
    """Anything that answers chat requests: the upstreams, a playback of recorded answers, a test's fake."""

    async def chat(self, request: ChatRequest, limits: TimeLimits, *, upstream: str) -> ChatReply:
        """Answer, or raise an `UpstreamError`. Cancelling the call closes the upstream's socket at once."""
        ...

    def model_of(self, upstream: str) -> str:
        """The model name of an upstream entry."""
        ...

    def place_of(self, upstream: str) -> str:
        """Where an entry's answers come from: different for servers that may hold different models of one name."""
        ...

    def fallbacks_of(self, upstream: str) -> tuple[str, ...]:
        """The entries to try in order when this one cannot answer."""
        ...
