"""Tells the webhook, without Postgres: what the watchdog looks after may be down together with it.

The same JSON as every other alert of the house. Sending never holds the watchdog up; what was not taken is tried
again, later each time, and given up aloud.
"""

import asyncio
from datetime import UTC, datetime

import httpx
import structlog

ATTEMPTS = 8
SEND_LIMIT_S = 3.0
PAUSE_S = 1.0
"""Before the second try; each later one is twice as long."""

log = structlog.get_logger(__name__)


class Alarm:
    """One webhook. Without an address, what there is to tell is only logged."""

    def __init__(self, address: str | None, client: httpx.AsyncClient) -> None:
        self._address = address
        self._client = client
        self._sending: set[asyncio.Task[None]] = set()

    def tell(self, kind: str, text: str) -> None:
        """Log it as an error and send it on its way."""
        log.error("alert", kind=kind, text=text)
        if self._address is not None:
            at = datetime.now(UTC).isoformat()
            message = {"kind": kind, "text": text, "at": at, "key": f"{kind}:{at}"}
            task = asyncio.create_task(self._send(self._address, message))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def close(self) -> None:
        """Stop sending."""
        for task in self._sending:
            task.cancel()

    async def _send(self, address: str, message: dict[str, str]) -> None:
        trouble = ""
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(PAUSE_S * (2**attempt - 1))
            try:
                async with asyncio.timeout(SEND_LIMIT_S):
                    answer = await self._client.post(address, json=message)
            except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                trouble = type(error).__name__  # the address is a secret and may stand in the message
                continue
            if answer.is_success:
                return
            trouble = f"answered {answer.status_code}"
        log.error("alert_given_up", kind=message["kind"], attempts=ATTEMPTS, error=trouble)
