"""Whether the models are there, from what their servers really do.

A server that lists a model may still fail each request. So a model counts as loaded when its server lists it, shows
life, and has answered lately; where nobody has asked it lately, it is asked for one word. While that word is awaited,
or cannot be asked for since every slot is taken, its last answer stands for a while longer.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import orjson
import structlog

from libs.llm.types import Answer
from libs.upstreams.errors import UpstreamError
from libs.upstreams.exchange import Overdue
from libs.upstreams.heartbeat import ANSWER_S, OK, fetch
from libs.upstreams.types import Priority, TimeLimits
from libs.upstreams.upstream import DEAD, Upstream
from services.sidecar.asking import Asker
from services.sidecar.places import ModelName, Places

LATELY_S = 30.0
"""How long a completion speaks for the model that gave it."""
STANDS_S = 300.0
"""How long a completion speaks while there is no newer word: a slow model must not count as gone at each look."""
REUSED_S = 3.0
"""How long a look is given again."""
WAIT_S = 2.5
"""How long who asks waits for a look. Docker's health check waits 3 s; a longer look counts when it has ended."""
PROBE = TimeLimits(connect_s=2.0, first_token_s=10.0, idle_s=5.0, total_s=10.0)
NO_TURN = ("no_slot", "overloaded")
"""Failures of a question that was never put, since others are being answered."""
OF_THE_REQUEST = (
    "prompt_too_long", "refused: answered 400", "refused: answered 422", "deadline_exceeded", *NO_TURN,
)  # fmt: skip
"""Failures that say nothing about the model."""

log = structlog.get_logger(__name__)


class Lookout:
    """Looks when somebody asks; those who ask at the same time share a look. Give it every answer through `note`."""

    def __init__(self, places: Places, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._answered_at: dict[str, float] = {}
        self._seen: dict[str, tuple[bool, float]] = {}
        self._looks: dict[str, asyncio.Task[bool]] = {}

    def note(self, upstream: str, answer: Answer) -> None:
        """What came of a question to an upstream."""
        if answer.status != "unavailable":
            if answer.upstream == upstream:
                self._answered_at[upstream] = self._clock()
        elif not (answer.error or "").startswith(OF_THE_REQUEST):
            self._answered_at.pop(upstream, None)
            self._seen.pop(upstream, None)

    async def loaded(self, name: ModelName, client: Asker) -> bool:
        """Whether a model's server lists it and answers."""
        upstream, place = self._places.upstream_of(name), self._places.entered(name)
        if place is None or self._places.status_of(name).state in DEAD:
            return False
        seen, seen_at = self._seen.get(upstream, (False, -REUSED_S))
        if self._clock() - seen_at < REUSED_S:
            return seen
        look = self._looks.get(upstream)
        if look is None or look.done():
            look = self._looks[upstream] = asyncio.create_task(self._look(upstream, place, client))
        await asyncio.wait({look}, timeout=WAIT_S)  # whoever stops waiting does not end it for the others
        return look.result() if look.done() else self._answered_within(STANDS_S, upstream)

    async def close(self) -> None:
        """End the looks under way."""
        for look in self._looks.values():
            look.cancel()
        await asyncio.gather(*self._looks.values(), return_exceptions=True)

    async def _look(self, upstream: str, place: Upstream, client: Asker) -> bool:
        there = await _lists(place) and (self._vouched_for(upstream, place) or await self._asks(upstream, client))
        self._seen[upstream] = there, self._clock()
        return there

    def _vouched_for(self, upstream: str, place: Upstream) -> bool:
        """Whether a completion came lately, or one is being written: a busy server's counters move."""
        return self._answered_within(LATELY_S, upstream) or place.status().state == "busy"

    def _answered_within(self, seconds: float, upstream: str) -> bool:
        """Whether it answered in that time and has not failed since."""
        return self._clock() - self._answered_at.get(upstream, float("-inf")) < seconds

    async def _asks(self, upstream: str, client: Asker) -> bool:
        asked_at = self._clock()
        answer = await client.ask(
            "health", {}, priority=Priority.HEALTH, upstream=upstream, limits=PROBE, use_cache=False
        )
        self.note(upstream, answer)
        if answer.status != "unavailable" and answer.upstream == upstream:
            return True
        reason = (answer.error or "").partition(":")[0]
        if reason in NO_TURN:
            return self._answered_within(STANDS_S, upstream)
        if self._answered_at.get(upstream, float("-inf")) >= asked_at:
            return True  # somebody else got an answer meanwhile
        self._answered_at.pop(upstream, None)  # one word in all that time is not much to ask
        log.warning("model_does_not_answer", upstream=upstream, reason=reason)
        return False


async def _lists(place: Upstream) -> bool:
    """Whether the server has the model among those it names."""
    try:
        status, text = await fetch(place.wire, f"{place.entry.api_path}/models", time.monotonic() + ANSWER_S)
        content: Any = orjson.loads(text) if status == OK else {}
    except (UpstreamError, Overdue, orjson.JSONDecodeError) as error:
        log.warning("models_not_listed", upstream=place.entry.name, error=type(error).__name__)
        return False
    models: Any = cast("dict[str, Any]", content).get("data") if isinstance(content, dict) else None
    named = cast("list[Any]", models) if isinstance(models, list) else []
    return any(isinstance(one, dict) and cast("dict[str, Any]", one).get("id") == place.entry.model for one in named)
