"""One gateway for all tests of the official clients."""

import json
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conformance.house import SLASHED, WELL, House, house
from tests.conftest import TEMPLATE
from tests.fakes.engine import FakeEngine, Reply
from tests.fakes.engine_replies import ReplySource, ToolCall, by_constraint
from tools.local_stack.postgres import EmbeddedPostgres

TEXT = "All is well on this desk today."


def answer(body: dict[str, Any]) -> Reply:
    """A call of a tool where tools were brought, else what fits the constraint, else the text."""
    if body.get("tools"):
        return Reply("", tools=(ToolCall("price", json.dumps({"ticker": "AAPL"})),))
    return Reply(by_constraint(TEXT)(body))


@contextmanager
def open_house(postgres: EmbeddedPostgres, name: str, *, reply: ReplySource = answer) -> Generator[House, None, None]:
    """A gateway with its engines, on a database of its own. `reply` is what the engines that are well say."""
    postgres.ensure_database(name, template=TEMPLATE)
    well = {model: FakeEngine(model=model, reply=reply, chunks=4) for model in (WELL, SLASHED)}
    with (
        tempfile.TemporaryDirectory(prefix="lexi-conformance-") as folder,
        house(Path(folder), postgres.url(name), well) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def here(postgres: EmbeddedPostgres) -> Iterator[House]:
    """The house the clients call."""
    with open_house(postgres, "conformance") as running:
        yield running


@pytest.fixture
def client(here: House) -> Iterator[OpenAI]:
    """The official client, which does not try again."""
    with OpenAI(base_url=here.url, api_key="full", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture
async def async_client(here: House) -> AsyncOpenAI:
    """The official asynchronous client, which does not try again."""
    return AsyncOpenAI(base_url=here.url, api_key="full", max_retries=0, timeout=30)
