"""What the watchdog tells its webhook: as JSON, again when it was not taken, and never the address."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime

import httpx
import pytest
from structlog.testing import capture_logs

from services.watchdog import alarm
from services.watchdog.alarm import ATTEMPTS, Alarm

WEBHOOK = "https://chat.example/secret-path"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm, "PAUSE_S", 0.0)


async def told(answer: Callable[[int], httpx.Response], address: str | None = WEBHOOK) -> list[dict[str, str]]:
    """What the other end got, where it answers the nth message so."""
    got: list[dict[str, str]] = []

    async def take(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == WEBHOOK
        got.append(json.loads(request.content))
        return answer(len(got))

    async with httpx.AsyncClient(transport=httpx.MockTransport(take)) as client:
        voice = Alarm(address, client)
        voice.tell("watchdog_restart", "llm was restarted")
        await asyncio.gather(*voice._sending)
    return got


async def test_it_is_told_once_as_every_alert_of_the_house() -> None:
    (sent,) = await told(lambda _: httpx.Response(204))
    assert datetime.fromisoformat(sent["at"]).tzinfo is not None
    assert sent["key"] == f"watchdog_restart:{sent['at']}"
    assert (sent["kind"], sent["text"]) == ("watchdog_restart", "llm was restarted")


async def test_what_was_not_taken_is_sent_again_under_the_same_key() -> None:
    sent = await told(lambda number: httpx.Response(204 if number == 3 else 500))
    assert len(sent) == 3
    assert len({message["key"] for message in sent}) == 1


async def test_it_is_given_up_aloud_and_without_the_address() -> None:
    def broken(_: int) -> httpx.Response:
        raise httpx.ConnectError(f"cannot connect to {WEBHOOK}")

    with capture_logs() as logs:
        assert len(await told(broken)) == ATTEMPTS
    assert [line["event"] for line in logs] == ["alert", "alert_given_up"]
    assert "secret-path" not in repr(logs)


async def test_without_an_address_it_is_logged() -> None:
    with capture_logs() as logs:
        assert await told(lambda _: httpx.Response(204), address=None) == []
    assert logs == [{"kind": "watchdog_restart", "text": "llm was restarted", "event": "alert", "log_level": "error"}]


async def test_the_end_of_the_process_ends_the_sending() -> None:
    asked = asyncio.Event()

    async def silent(_: httpx.Request) -> httpx.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with httpx.AsyncClient(transport=httpx.MockTransport(silent)) as client:
        voice = Alarm(WEBHOOK, client)
        voice.tell("watchdog_blind", "unreadable")
        await asked.wait()
        sending = list(voice._sending)
        voice.close()
        await asyncio.wait(sending)
        assert [task.cancelled() for task in sending] == [True]
