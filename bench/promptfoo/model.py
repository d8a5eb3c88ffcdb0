"""The loopback model of this bench, as a process: a fixed share of its answers is invalid, and which is the case's.

`python -m bench.promptfoo.model` prints its address, serves until SIGTERM, and then prints what it saw as JSON.
"""

import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from tests.fakes.engine import FakeEngine

SLOTS = 64
DELAY_S = 0.1
INVALID_SHARE = 0.07
REPAIRED_SHARE = 0.5
VALID = (
    '{"allow": true, "reasons": [], "flags": []}',
    '{"allow": false, "reasons": ["EARNINGS"], "flags": ["WIDE_RANGE"]}',
)
# One of each kind that a validator of JSON and schema can tell. A key given twice is left out: only ours refuses it.
INVALID = (
    "I would not enter here.",
    '{"allow": true, "reasons": [',
    'Sure! {"allow": true, "reasons": [], "flags": []}',
    '```json\n{"allow": true, "reasons": [], "flags": []}\n```',
    '{"allow": "false", "reasons": [], "flags": []}',
    '{"allow": 1, "reasons": [], "flags": []}',
    '{"allow": true, "reasons": []}',
    '{"allow": true, "reasons": [], "flags": [], "confidence": 0.9}',
    '{"allow": false, "reasons": ["BAD_FEELING"], "flags": []}',
    '{"allow": false, "reasons": ["EARNINGS", "BORROW", "MACRO", "LIQUIDITY"], "flags": []}',
)


def answer(body: dict[str, Any]) -> str:
    """The answer to a conversation: by its first question, so that order, time and who asks change nothing."""
    messages = cast("list[dict[str, str]]", body["messages"])
    asked_again = any(message["role"] == "assistant" for message in messages)
    question = [message for message in messages if message["role"] != "assistant"][:3]
    if asked_again:
        question = question[: len(messages) - 2]
    text = json.dumps([message["content"] for message in question])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    invalid = number % 10_000 < 10_000 * (INVALID_SHARE * REPAIRED_SHARE if asked_again else INVALID_SHARE)
    choices = INVALID if invalid else VALID
    return choices[number // 10_000 % len(choices)]


class Watched(FakeEngine):
    """Remembers from when to when it was asked, and for how long its slots were held in all."""

    def __init__(self) -> None:
        super().__init__(slots=SLOTS, delay_s=DELAY_S, chunks=1, reply=answer)
        self.begun: float | None = None
        self.ended = 0.0
        self.held_s = 0.0

    @asynccontextmanager
    async def _slot(self, priority: int) -> AsyncGenerator[None]:
        arrived = time.monotonic()
        self.begun = arrived if self.begun is None else self.begun
        async with super()._slot(priority):
            taken = time.monotonic()
            try:
                yield
            finally:
                self.ended = time.monotonic()
                self.held_s += self.ended - taken

    def seen(self) -> dict[str, float]:
        """Requests answered, seconds from the first to the end of the last, share of the slots used, most held."""
        span = self.ended - (self.ended if self.begun is None else self.begun)
        used = self.held_s / SLOTS / span if span else 0.0
        return {"requests": self.served, "span_s": span, "used": used, "peak": self.peak}


async def main() -> None:
    """Serve until told to stop."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    model = Watched()
    await model.start(0)
    print(model.base_url, flush=True)
    await stop.wait()
    await model.stop()
    print(json.dumps(model.seen()), flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
