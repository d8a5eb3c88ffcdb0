"""What the routes of the control plane stand on."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.judgement.rules import Rules
from libs.llm.client import Client
from libs.llm.prompts import PromptSource
from libs.replay.one import Replayer
from services.api.health import HealthProbe


@dataclass(frozen=True, slots=True)
class ApiState:
    """Everything that lives as long as the process."""

    engine: AsyncEngine
    client: Client
    prompts: PromptSource
    rules: Rules
    replayer: Replayer
    health: HealthProbe


def get_state(request: Request) -> ApiState:
    """The state `create_app` was given."""
    return request.app.state.api


State = Annotated[ApiState, Depends(get_state)]


async def get_reader(state: State) -> AsyncGenerator[AsyncConnection, None]:
    """A connection in a read-only transaction that ends with the request."""
    async with state.engine.connect() as connection:
        yield await connection.execution_options(postgresql_readonly=True)


async def get_writer(state: State) -> AsyncGenerator[AsyncConnection, None]:
    """A connection whose transaction commits when the route returned, and leaves nothing when it raised."""
    async with state.engine.begin() as connection:
        yield connection


Reader = Annotated[AsyncConnection, Depends(get_reader, scope="function")]
Writer = Annotated[AsyncConnection, Depends(get_writer, scope="function")]
