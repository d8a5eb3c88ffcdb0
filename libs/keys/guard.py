"""Who may call a route."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from libs.keys.entries import Key, Scope
from libs.keys.ring import KeyRing
from libs.problems import Forbidden, Unauthorized


def bearer(request: Request) -> str:
    """The token of `Authorization: Bearer …`; empty when there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True, slots=True)
class Guard:
    """A FastAPI dependency that lets a key with `scope` pass and returns it.

    The app keeps its `KeyRing` in `app.state.keys`. Raises `Unauthorized` or `Forbidden`.
    """

    scope: Scope

    async def __call__(self, request: Request) -> Key:
        """The key of a request that may pass. Asynchronous, since FastAPI gives what is not to a thread."""
        return self.key_of(request)

    def key_of(self, request: Request) -> Key:
        """The key of a request that may pass."""
        ring: KeyRing = request.app.state.keys
        token = bearer(request)
        key = ring.identify(token) if token else None
        if key is None:
            if ring.empty:
                raise Unauthorized("this service has no keys yet; `make key NAME=… SCOPES=…` makes one")
            raise Unauthorized("wrong key" if token else "send a key: `Authorization: Bearer …`")
        if self.scope not in key.scopes:
            raise Forbidden(f"the key {key.name} lacks the scope {self.scope}")
        return key


def require(scope: Scope) -> Guard:
    """The guard of a scope."""
    return Guard(scope)


class GuardedRoute(APIRoute):
    """A route that takes a body: its guards are asked before the body is read, which FastAPI reads first otherwise."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the guards."""
        handler = super().get_route_handler()
        guards = [one.dependency for one in self.dependencies if isinstance(one.dependency, Guard)]

        async def guarded(request: Request) -> Response:
            for guard in guards:
                guard.key_of(request)
            return await handler(request)

        return guarded
