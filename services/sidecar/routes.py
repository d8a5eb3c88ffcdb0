"""The routes that old clients call."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from libs.http_leaving import CLIENT_GONE, unless_gone
from libs.keys import GuardedRoute, require
from libs.problems import Problem, Unavailable
from services.sidecar.answers import invalid_model_id, reply
from services.sidecar.asking import Models, Said
from services.sidecar.device import Device
from services.sidecar.lookout import Lookout
from services.sidecar.places import NAMES
from services.sidecar.requests import Question, RoutedQuestion


class Crowd:
    """Bounds how many are served at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    @contextmanager
    def enter(self) -> Generator[None, None, None]:
        """A place inside the block. Raises `Unavailable` where all are taken."""
        if self._inside >= self._most:
            raise Unavailable(
                f"{self._most} requests are being answered already, as many as SIDECAR_MAX_REQUESTS allows",
                headers={"Retry-After": "2"},
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


@dataclass(frozen=True, slots=True)
class SidecarState:
    """What the routes stand on."""

    models: Models
    lookout: Lookout
    crowd: Crowd
    device: Callable[[], Awaitable[Device]]
    legacy_status: bool
    micro_model: Path | None


async def _answer(request: Request, work: Callable[[Models], Coroutine[Any, Any, Said]]) -> Response:
    state: SidecarState = request.app.state.sidecar
    with state.crowd.enter():
        said = await unless_gone(request, work(state.models))
    return Response(status_code=CLIENT_GONE) if said is None else reply(said, legacy_status=state.legacy_status)


async def generate(request: Request, question: RoutedQuestion) -> Response:
    """Ask the model that `model_id` names."""
    state: SidecarState = request.app.state.sidecar
    if question.model_id == "hermes":
        return await _answer(request, lambda models: models.generate(question))
    if question.model_id == "phi3":
        return await _answer(request, lambda models: models.adjust(question))
    return reply(invalid_model_id(question.model_id), legacy_status=state.legacy_status)


async def generate_hermes(request: Request, question: Question) -> Response:
    """Ask Hermes for text."""
    return await _answer(request, lambda models: models.generate(question))


async def generate_phi3(request: Request, question: Question) -> Response:
    """Ask Phi-3 for an adjustment."""
    return await _answer(request, lambda models: models.adjust(question))


async def propose_trade_adjustments(request: Request, question: Question) -> Response:
    """Phi-3 proposes, Hermes reviews."""
    return await _answer(request, lambda models: models.propose(question))


async def health(request: Request) -> Response:
    """Which of the two are there. Always 200: a model that is away is no reason to restart this process."""
    state: SidecarState = request.app.state.sidecar
    looks = (state.lookout.loaded(name, state.models.client) for name in NAMES)
    (hermes, phi3), device = await asyncio.gather(asyncio.gather(*looks), state.device())
    found = {
        "status": "ok" if hermes and phi3 else "partial_error" if hermes or phi3 else "error",
        "hermes_loaded": hermes,
        "phi3_loaded": phi3,
        "phi3_model_file_exists": phi3 if state.micro_model is None else state.micro_model.is_file(),
        "device": device,
    }
    return reply(found, legacy_status=state.legacy_status)


class NotJson(Problem):
    """The body is said to be something else, such as what a page in a browser may send anywhere without asking."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


async def said_to_be_json(request: Request) -> None:
    """Raise `NotJson` unless the body is declared as JSON. Async, since FastAPI sends all else through a thread."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotJson("send the body as JSON, with the header `Content-Type: application/json`")


def router(*, open_to_all: bool) -> APIRouter:
    """The routes with a body, behind keys with the scope `infer` unless they are open to all."""
    guards = [] if open_to_all else [Depends(require("infer"))]
    routes = APIRouter(route_class=GuardedRoute, dependencies=[*guards, Depends(said_to_be_json)])
    for path, endpoint in (
        ("/generate/", generate),
        ("/generate/hermes/", generate_hermes),
        ("/generate/phi3/", generate_phi3),
        ("/propose_trade_adjustments/", propose_trade_adjustments),
    ):
        routes.add_api_route(path, endpoint, methods=["POST"])
    return routes
