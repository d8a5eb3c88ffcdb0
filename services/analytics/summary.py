"""A few sentences about what was said, when the model has them in time."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog
from prometheus_client import Counter

from libs.llm.types import Answer
from libs.upstreams.types import Priority

SUMMARIES = Counter("lexi_analytics_summaries_total", "What became of summaries.", ["outcome"])

MOST_UNDER_WAY = 4

log = structlog.get_logger(__name__)


class Asker(Protocol):
    """The part of the client that is needed here."""

    async def ask(self, key: str, inputs: dict[str, object], *, priority: Priority, subject: str) -> Answer:
        """One completion; a model's failure is an answer too."""
        ...


class Summaries:
    """Asks for summaries and waits for them only briefly.

    One that is late goes on within the limits of any call, a few at a time, and its reply answers the next request
    from the cache: without that a slow model would be asked again and again and never heard.
    """

    def __init__(self, client: Asker, *, wait_s: float) -> None:
        self._client = client
        self._wait_s = wait_s
        self._under_way: set[asyncio.Task[str]] = set()

    async def read(self, ticker: str, *, messages: Sequence[str], ratings: Sequence[str]) -> str:
        """The summary, or "" when there is nothing to sum up or the model is away, wrong or too slow."""
        if not messages and not ratings:
            return ""
        if len(self._under_way) >= MOST_UNDER_WAY:
            SUMMARIES.labels("crowded").inc()
            return ""
        inputs: dict[str, object] = {"ticker": ticker, "messages": list(messages), "ratings": list(ratings)}
        task = asyncio.create_task(self._ask(ticker, inputs))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        done, _ = await asyncio.wait({task}, timeout=self._wait_s)
        if not done:
            SUMMARIES.labels("late").inc()
            return ""
        return task.result()

    async def close(self) -> None:
        """Drop what is under way."""
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(tuple(self._under_way))

    async def _ask(self, ticker: str, inputs: dict[str, object]) -> str:
        try:
            answer = await self._client.ask("summary", inputs, priority=Priority.SUMMARY, subject=ticker)
        except Exception:  # the posts are the answer; the summary is an extra that may be missing
            log.exception("summary_failed", ticker=ticker)
            SUMMARIES.labels("failed").inc()
            return ""
        SUMMARIES.labels(answer.status).inc()
        return answer.text.strip() if answer.status == "ok" else ""
