"""The road to hosted APIs, over the vendor's own client. The only file that imports it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any, TypeAlias, cast

import httpx2
from openai import (
    APIConnectionError,
    APIStatusError,
    AsyncAPIResponse,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    Timeout,
)

from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import BrokenStream, ConnectFailed, UpstreamError
from libs.upstreams.exchange import Overdue
from libs.upstreams.roads import refused

Answer: TypeAlias = "AbstractAsyncContextManager[AsyncAPIResponse[Any]]"


class VendorBody:
    """The raw bytes of a streamed answer; the same parser as everywhere else reads them."""

    def __init__(self, answer: Answer, response: AsyncAPIResponse[Any]) -> None:
        self._answer = answer
        self._chunks: AsyncIterator[bytes] = response.iter_bytes().__aiter__()

    async def read(self, until: float | None = None) -> bytes:
        """What came, `b""` at the end."""
        try:
            async with asyncio.timeout_at(until):
                return await anext(self._chunks, b"")
        except TimeoutError as error:
            raise Overdue from error
        except httpx2.HTTPError as error:
            raise BrokenStream(f"the connection broke in the middle of the answer: {type(error).__name__}") from error

    async def aclose(self) -> None:
        """Close the response, and with it the socket unless the answer is whole."""
        await self._answer.__aexit__(None, None, None)


class VendorRoad:
    """One hosted API. Retries are off: they are decided in one place, above."""

    def __init__(self, entry: UpstreamEntry) -> None:
        key = "none" if entry.api_key is None else entry.api_key.get_secret_value()
        # A redirect would carry prompts to an address that nobody configured; the vendor's own default follows them.
        http = DefaultAsyncHttpxClient(follow_redirects=False)
        self._client = AsyncOpenAI(base_url=entry.base_url, api_key=key, max_retries=0, http_client=http)
        create = self._client.chat.completions.with_streaming_response.create
        self._create = cast("Callable[..., Answer]", create)

    async def open(self, content: dict[str, Any], clock: CallClock) -> VendorBody:
        """Send and wait for status 200. Connecting counts towards the first token here."""
        now = monotonic()
        limit = Timeout(None, connect=clock.connect_s(now))
        clock.sent(now, connected_s=0.0)
        answer = self._create(**content, timeout=limit)
        try:
            async with asyncio.timeout_at(clock.due):
                response = await answer.__aenter__()
        except TimeoutError as error:
            raise Overdue from error
        except APIStatusError as error:
            after = error.response.headers.get("retry-after")
            raise refused(error.status_code, after.encode() if after else None, error.response.content) from error
        except APIConnectionError as error:
            raise _unreachable(error) from error
        clock.waited_s += monotonic() - now
        return VendorBody(answer, response)

    async def close(self) -> None:
        """Drop all connections."""
        await self._client.close()


def _unreachable(error: APIConnectionError) -> UpstreamError:
    cause = error.__cause__
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ConnectFailed(f"no connection: {cause}")
    return BrokenStream(f"the connection was closed before an answer: {type(cause).__name__}")
