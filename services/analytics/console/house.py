"""The api as the console asks it: with the key of whoever is signed in, and with an answer for every failure."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httpx
from pydantic import Field, field_validator

from libs.settings import Settings
from services.analytics.console.door.sessions import Session

LIMIT_S = 10.0


class HouseSettings(Settings):
    """Where the console finds the api."""

    api_url: str = Field(default="http://127.0.0.1:8001", description="Address of services.api, for the console.")

    @field_validator("api_url")
    @classmethod
    def must_be_http(cls, value: str) -> str:
        """Accept addresses that can be asked."""
        if not value.startswith(("http://", "https://")):
            raise ValueError("must look like http://host:port")
        return value.rstrip("/")


@dataclass(frozen=True, slots=True)
class Told:
    """What the api said. `status` is 0 where it did not answer; `problem` is empty where it did what was asked."""

    status: int
    content: Any
    problem: str = ""

    @property
    def good(self) -> bool:
        """Whether it did what was asked."""
        return not self.problem


class House:
    """The api. Nothing here raises for a failure of the other side: pages say it instead."""

    def __init__(self, client: httpx.AsyncClient, *, api_url: str) -> None:
        self._client = client
        self.api_url = api_url

    async def get(self, path: str, session: Session | None = None, *, limit_s: float = LIMIT_S, **query: str) -> Told:
        """Ask for something."""
        return await self._ask("GET", path, session, query=query, limit_s=limit_s)

    async def post(self, path: str, session: Session, content: Mapping[str, Any], *, limit_s: float = LIMIT_S) -> Told:
        """Have something done in the name of a session."""
        return await self._ask("POST", path, session, content=content, limit_s=limit_s)

    async def delete(self, path: str, session: Session) -> Told:
        """Have something taken back."""
        return await self._ask("DELETE", path, session)

    async def _ask(
        self,
        method: str,
        path: str,
        session: Session | None,
        *,
        query: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
        limit_s: float = LIMIT_S,
    ) -> Told:
        headers = {} if session is None else {"Authorization": f"Bearer {session.token.get_secret_value()}"}
        try:
            answer = await self._client.request(
                method, f"{self.api_url}{path}", params=query, json=content, headers=headers, timeout=limit_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = str(error) or type(error).__name__
            return Told(0, None, f"the api at {self.api_url} does not answer: {words}")
        return told(answer)


def told(answer: httpx.Response) -> Told:
    """An answer of the api; problems keep their `detail`, which is written for people."""
    try:
        content: Any = answer.json()
    except ValueError:
        content = answer.text
    if answer.is_success:
        return Told(answer.status_code, content)
    detail = cast("dict[str, Any]", content).get("detail") if isinstance(content, dict) else None
    words = detail if isinstance(detail, str) else HTTPStatus(answer.status_code).phrase
    return Told(answer.status_code, content, words)
