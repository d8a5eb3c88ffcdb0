"""The broker without a socket: an httpx transport that behaves like one whose connection may be cut."""

import httpx
from starlette.types import ASGIApp

from services.paper.cuts import ConnectionCut, NoAnswer


class PaperTransport(httpx.AsyncBaseTransport):
    """Give it to a client. A reset comes out as `httpx.ReadError`, an answer that never comes as `httpx.ReadTimeout`.

    That timeout is raised at once, so that a simulation on a virtual clock does not wait.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._inner = httpx.ASGITransport(app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Serve one request."""
        try:
            return await self._inner.handle_async_request(request)
        except ConnectionCut as cut:
            raise httpx.ReadError(str(cut), request=request) from cut
        except NoAnswer as silence:
            raise httpx.ReadTimeout(str(silence), request=request) from silence
