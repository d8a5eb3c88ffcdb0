"""A small set of prompts, an engine that follows a script, and a recorder that only remembers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from libs.llm.attempts import Attempts
from libs.llm.cache import Cached, ReplyCache
from libs.llm.call_record import CallRecord
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.lock import HEADER
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.upstreams.errors import UpstreamError
from libs.upstreams.types import ChatReply, ChatRequest, TimeLimits, TimeSplit, Usage

PROMPTS = """
verdict:
  version: "1.0.0"
  versions:
    "1.0.0": &verdict
      system: You judge entries. Answer with JSON.
      user_template: "{{ ticker }} at {{ price }}, limit {{ limits.low }}"
      inputs: &inputs
        type: object
        properties:
          ticker: {type: string, pattern: "^[A-Z.]{1,6}$"}
          price: {type: number}
          limits: {type: object, additionalProperties: false, required: [low], properties: {low: {type: number}}}
          headlines: {type: array, items: {type: string, maxLength: 60}, maxItems: 3, x-untrusted: true}
      output:
        type: object
        additionalProperties: false
        required: [allow, score]
        properties:
          allow: {type: boolean}
          score: {type: integer, minimum: 0, maximum: 10}
      sampling: {temperature: 0, max_tokens: 64}
    "1.1.0":
      <<: *verdict
      system: You judge entries with care. Answer with JSON.
note:
  version: "1.0.0"
  versions:
    "1.0.0":
      user_template: "Say something about {{ ticker }}."
      inputs: {type: object, properties: {ticker: {type: string}}}
      sampling: {temperature: 0.7}
health:
  version: "1.0.0"
  versions:
    "1.0.0":
      system: Answer OK.
      user_template: Are you there?
      output: {choice: ["OK", "NO"]}
      sampling: {temperature: 0, max_tokens: 4}
"""
VERDICT_INPUTS: dict[str, object] = {"ticker": "AAPL", "price": 101.5, "limits": {"low": 99}, "headlines": ["Up <b>5%"]}
GOOD = '{"allow": true, "score": 7}'

Step = str | ChatReply | UpstreamError | Callable[[], Awaitable[ChatReply]]


def write_prompts(folder: Path, text: str = PROMPTS) -> Path:
    """The prompts as a file, with a lock that holds nothing yet."""
    path = folder / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".lock").write_text(f"{HEADER}\n", encoding="utf-8")
    return path


class ScriptedEngine:
    """Plays its steps in order, per upstream or for all; the last step is played for ever."""

    def __init__(
        self, *steps: Step, fallbacks: tuple[str, ...] = (), by_upstream: Mapping[str, list[Step]] | None = None
    ) -> None:
        self.steps: list[Step] = list(steps)
        self.by_upstream = {name: list(steps) for name, steps in (by_upstream or {}).items()}
        self.fallbacks = fallbacks
        self.requests: list[tuple[str, ChatRequest, TimeLimits]] = []
        self.cancelled = 0
        self.places: dict[str, str] = {}

    async def chat(self, request: ChatRequest, limits: TimeLimits, *, upstream: str) -> ChatReply:
        self.requests.append((upstream, request, limits))
        steps = self.by_upstream.get(upstream, self.steps)
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        try:
            await asyncio.sleep(0)
            return await self._play(step, upstream)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _play(self, step: Step, upstream: str) -> ChatReply:
        if isinstance(step, UpstreamError):
            raise step
        if isinstance(step, str):
            return reply(step, upstream=upstream)
        return step if isinstance(step, ChatReply) else await step()

    def model_of(self, upstream: str) -> str:
        return f"model-of-{upstream}"

    def place_of(self, upstream: str) -> str:
        return self.places.get(upstream, "")

    def fallbacks_of(self, upstream: str) -> tuple[str, ...]:
        return self.fallbacks if upstream == "lexi" else ()


def reply(text: str, *, upstream: str = "lexi", finish_reason: str = "stop") -> ChatReply:
    """A whole reply of the model of `upstream`."""
    return ChatReply(
        text=text,
        finish_reason=finish_reason,
        upstream=upstream,
        model=f"model-of-{upstream}",
        usage=Usage(11, 5),
        time=TimeSplit(queue_ms=1, connect_ms=2, first_token_ms=3, total_ms=4),
    )


class Remembering(Recorder):
    """A recorder without a database."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []

    def record(self, call: CallRecord) -> None:
        self.calls.append(call)


class MemoryCache(ReplyCache):
    """A reply cache without a database and without an end."""

    def __init__(self) -> None:
        self.kept: dict[str, Cached] = {}

    async def get(self, key: str, *, within_s: float = 1.0) -> Cached | None:
        return self.kept.get(key)

    async def put(self, key: str, reply: ChatReply, *, call_id: Any, within_s: float = 1.0) -> None:
        self.kept[key] = Cached(reply, call_id)


class Desk:
    """A client with everything around it."""

    def __init__(
        self, folder: Path, engine: ScriptedEngine, *, buckets: str = "", cached: bool = True, **settings: Any
    ) -> None:
        self.engine = engine
        self.recorder = Remembering()
        self.cache = MemoryCache()
        self.slept: list[float] = []
        self.registry = Registry.load_quietly(write_prompts(folder))
        self.client = Client(
            engine=engine,
            prompts=Prompts.build(self.registry, buckets),
            cache=self.cache if cached else None,
            recorder=self.recorder,
            settings=LLMSettings(**settings),
            attempts=Attempts(engine, chance=lambda: 0.5, sleep=self._sleep),
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    @property
    def statuses(self) -> list[str]:
        return [call.status for call in self.recorder.calls]
