"""The OpenAI API under `/v1`, as a bare ASGI app.

It stands beside the control plane, not inside it: a framework's routing and validation would cost more than all the
rest of a request's way. `docs/decisions/0008` has the measurements.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from time import monotonic

import orjson
from prometheus_client import Counter
from starlette.types import Receive, Scope, Send

from libs import tracing
from libs.keys import Key, KeyRing
from libs.llm.call_record import new_call_id
from libs.request_id import REQUEST_ID
from libs.upstreams.clock import CallClock
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import TimeLimits
from libs.upstreams.upstream import Upstream
from services.api.dataplane.accounting import Accounts
from services.api.dataplane.call import Call
from services.api.dataplane.callers import Callers
from services.api.dataplane.conduct import conduct
from services.api.dataplane.errors import ApiError
from services.api.dataplane.forward import OK, forward
from services.api.dataplane.guard import Guards
from services.api.dataplane.inquiry import Endpoint, Inquiry, read_inquiry
from services.api.dataplane.models import PATH as MODELS
from services.api.dataplane.models import answer_models, may_use, no_such_model
from services.api.dataplane.outlet import Outlet
from services.api.dataplane.reply_cache import AnswerCache, cacheable, key_of
from services.api.dataplane.settings import DataPlaneSettings
from services.api.dataplane.upload import Uploads

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
LONGEST_DEADLINE_MS = 3_600_000
LONGEST_DIGITS = len(str(LONGEST_DEADLINE_MS))
CACHE_WORDS = {b"on": True, b"off": False}

TURNED_AWAY = Counter(
    "lexi_gateway_turned_away_total", "Requests that did not get as far as a call: no key, no such route.", ["code"]
)

Headers = Mapping[bytes, bytes]


class DataPlane:
    """Everything under `/v1`."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        upstreams: Upstreams,
        accounts: Accounts,
        cache: AnswerCache | None,
        settings: DataPlaneSettings,
    ) -> None:
        self._keys = keys
        self._upstreams = upstreams
        self._accounts = accounts
        self._cache = cache
        self._limits = settings.limits()
        self._uploads = Uploads(settings.api_max_prompt_bytes)
        self._callers = Callers()
        self._guards = Guards()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started, headers = monotonic(), dict(scope["headers"])
        call_id = new_call_id()
        request_id = _request_id(headers) or str(call_id)
        outlet = Outlet(send, [(b"x-request-id", request_id.encode())])
        path: str = scope["path"]
        endpoint = ENDPOINTS.get(path)
        try:
            key = self._identify(headers)
            if endpoint is None:
                await outlet.whole(OK, self._models(path, scope["method"], key))
                return
            _expect("POST", scope["method"], path)
        except ApiError as error:
            TURNED_AWAY.labels(error.code).inc()
            await outlet.refuse(error)
            return
        if (traceparent := headers.get(b"traceparent")) is not None:
            tracing.arrived(traceparent.decode("latin-1"))
        clock = CallClock(self._limits_of(headers), started)
        guard = self._guards.over(clock.total_due)
        call = Call(call_id, request_id, endpoint, key=key, clock=clock, guard=guard, outlet=outlet)
        try:
            await conduct(call, self._serve(call, headers, receive), self._accounts)
        finally:
            self._guards.release(guard)

    def _identify(self, headers: Headers) -> Key:
        """The caller's key. Raises `ApiError` 401 or 403."""
        given = headers.get(b"authorization", b"")
        key = self._keys.identify_header(given)
        if key is None:
            why = "no such key" if given else "send a key: `Authorization: Bearer …`"
            if self._keys.empty:
                why = "this gateway has no keys yet; `make key NAME=… SCOPES=infer` makes one"
            raise ApiError(401, "invalid_api_key", why, headers={"WWW-Authenticate": "Bearer"})
        if "infer" not in key.scopes:
            raise ApiError(403, "insufficient_scope", f"the key {key.name} lacks the scope infer")
        return key

    def _limits_of(self, headers: Headers) -> TimeLimits:
        """The time limits of a call; ours where it brings none, or one that `_serve` will refuse."""
        given = headers.get(b"x-deadline-ms")
        if given is None or not _is_deadline(given):
            return self._limits
        return replace(self._limits, total_s=int(given) / 1000)

    def _models(self, path: str, method: str, key: Key) -> bytes:
        if path != MODELS and not path.startswith(f"{MODELS}/"):
            raise ApiError(404, "route_not_found", f"there is no route {path}")
        _expect("GET", method, path)
        return orjson.dumps(answer_models(path, key, self._upstreams))

    async def _serve(self, call: Call, headers: Headers, receive: Receive) -> None:
        """The way of one call. Raises `ApiError` or an `UpstreamError`; cancelled by the guard."""
        _check_headers(headers)
        body = await self._uploads.read(call, headers, receive)
        inquiry = call.inquiry = read_inquiry(call.endpoint, body, choices=call.key.limits.choices)
        call.guard.watch(receive)
        if not inquiry.stream:
            call.clock.expect_whole()
        places = self._places(call.key, inquiry.model)
        cache_key = self._cache_key(call, inquiry, places, headers)
        admission = self._callers.admit(call.key, inquiry.tokens)
        try:
            if cache_key is None:
                await forward(call, inquiry, places)
            else:
                await self._cached(call, inquiry, places, cache_key)
        finally:
            admission.close(call.tokens_used())

    def _places(self, key: Key, model: str) -> tuple[Upstream, ...]:
        """Where a model can be asked, best first. Raises `ApiError` 403 or 404."""
        places = self._upstreams.places(model, allowed=lambda other: may_use(key, other))
        if not places:
            raise no_such_model(model)
        if not may_use(key, model):
            raise ApiError(403, "model_not_allowed", f"the key {key.name} may not use {model!r}", param="model")
        return places

    def _cache_key(self, call: Call, inquiry: Inquiry, places: tuple[Upstream, ...], headers: Headers) -> str | None:
        """The key under which the answer may be found and kept; None where nobody asked, or it may vary."""
        word = headers.get(b"x-lexi-cache")
        asked = CACHE_WORDS[word] if word is not None else call.key.cache == "on"
        if not asked or self._cache is None or not cacheable(inquiry):
            return None
        return key_of(inquiry, places)

    async def _cached(self, call: Call, inquiry: Inquiry, places: tuple[Upstream, ...], cache_key: str) -> None:
        assert self._cache is not None  # noqa: S101 - there is no cache key without a cache
        async with self._cache.turn(cache_key, call, inquiry) as answer:
            if answer is not None:
                await call.replay(answer)
                return
            call.cache = b"miss"
            share = partial(self._cache.landed, cache_key, call, inquiry)
            await forward(call, inquiry, places, whole=share)


def _request_id(headers: Headers) -> str | None:
    """The caller's `X-Request-Id` where it is a sane token."""
    given = headers.get(b"x-request-id")
    if given is None:
        return None
    text = given.decode("latin-1")
    return text if REQUEST_ID.fullmatch(text) else None


def _is_deadline(given: bytes) -> bool:
    return given.isdigit() and len(given) <= LONGEST_DIGITS and 0 < int(given) <= LONGEST_DEADLINE_MS


def _check_headers(headers: Headers) -> None:
    """Raise `ApiError` 400 for a header of ours that is none."""
    deadline, cache = headers.get(b"x-deadline-ms"), headers.get(b"x-lexi-cache")
    if deadline is not None and not _is_deadline(deadline):
        message = f"X-Deadline-Ms must be a whole number from 1 to {LONGEST_DEADLINE_MS}"
        raise ApiError(400, "invalid_header", message, param="X-Deadline-Ms")
    if cache is not None and cache not in CACHE_WORDS:
        raise ApiError(400, "invalid_header", "X-Lexi-Cache must be on or off", param="X-Lexi-Cache")


def _expect(method: str, given: str, path: str) -> None:
    if given != method:
        message = f"{path} does not answer {given}"
        raise ApiError(405, "method_not_allowed", message, headers={"Allow": method})
