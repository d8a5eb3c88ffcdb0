"""Callers that leave before they are answered."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import Request

T = TypeVar("T")

CLIENT_GONE: Final = 499
"""For the log and the metrics: nobody reads this answer. The number is nginx's."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What comes of the work, or None when the caller left first: it is dropped then, which frees the model's slot."""
    question = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({question, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not question.done():
            question.cancel()
            await asyncio.wait({question})
    return None if question.cancelled() else question.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
