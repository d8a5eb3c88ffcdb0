"""Alerts: written with the event, sent at least once, tried again, and given up aloud."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from libs.alerts import MOST_ATTEMPTS, AlertSettings, raise_alert, send_due
from libs.settings import SettingsError, load

WEBHOOK = "https://chat.example/hook/secret-path"


class Webhook:
    """The other end: answers `status`, or does what `behave` does, and keeps what it got."""

    def __init__(self, status: int = 200, behave: Callable[[], Awaitable[None]] | None = None) -> None:
        self.status = status
        self.behave = behave
        self.got: list[dict[str, Any]] = []
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == WEBHOOK
        if self.behave is not None:
            await self.behave()
        self.got.append(json.loads(request.content))
        return httpx.Response(self.status)

    @property
    def texts(self) -> list[str]:
        return sorted(alert["text"] for alert in self.got)


async def tell(engine: AsyncEngine, *texts: str) -> None:
    async with engine.begin() as connection:
        for words in texts:
            await raise_alert(connection, key=f"test:{words}", kind="halt", text=words)


async def rows(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("select text, sent_at is not null, attempts, error from alerts order by id")
        )
        return [tuple(row) for row in found]


async def pass_time(engine: AsyncEngine, seconds: int) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("update alerts set at = at - :s * interval '1 second'"), {"s": seconds})


async def test_an_alert_is_sent_once_as_json(engine: AsyncEngine) -> None:
    webhook = Webhook()
    await tell(engine, "halted", "halted")
    assert await send_due(engine, WEBHOOK, webhook.client) == 1
    assert await send_due(engine, WEBHOOK, webhook.client) == 0
    (sent,) = webhook.got
    assert datetime.fromisoformat(sent.pop("at")).tzinfo is not None
    assert sent == {"kind": "halt", "text": "halted", "key": "test:halted"}
    assert await rows(engine) == [("halted", True, 1, None)]


async def test_what_did_not_happen_is_not_told(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await raise_alert(connection, key="x", kind="halt", text="halted")
        await connection.rollback()
    assert await send_due(engine, WEBHOOK, Webhook().client) == 0


async def test_one_that_was_not_taken_is_tried_again_later(engine: AsyncEngine) -> None:
    webhook = Webhook(status=500)
    await tell(engine, "halted")
    assert await send_due(engine, WEBHOOK, webhook.client) == 0
    assert await rows(engine) == [("halted", False, 1, "answered 500")]
    webhook.status = 204
    await pass_time(engine, 1)
    assert await send_due(engine, WEBHOOK, webhook.client) == 1
    assert await rows(engine) == [("halted", True, 2, None)]


async def test_attempts_come_further_and_further_apart(engine: AsyncEngine) -> None:
    webhook = Webhook(status=500)
    await tell(engine, "halted")
    async with engine.begin() as connection:
        await connection.execute(text("update alerts set attempts = 6"))
    await pass_time(engine, 40)
    await send_due(engine, WEBHOOK, webhook.client)
    assert webhook.got == []
    await pass_time(engine, 30)
    await send_due(engine, WEBHOOK, webhook.client)
    assert len(webhook.got) == 1


async def test_one_that_is_never_taken_is_given_up_with_a_line_in_the_log(engine: AsyncEngine) -> None:
    webhook = Webhook(status=404)
    await tell(engine, "halted")
    await pass_time(engine, 3600)
    with capture_logs() as lines:
        for _ in range(MOST_ATTEMPTS + 2):
            await send_due(engine, WEBHOOK, webhook.client)
    assert len(webhook.got) == MOST_ATTEMPTS
    assert [line["text"] for line in lines if line["event"] == "alert_given_up"] == ["halted"]
    assert await rows(engine) == [("halted", False, MOST_ATTEMPTS, "answered 404")]


async def test_a_webhook_that_never_answers_holds_up_nobody(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libs.alerts.SEND_LIMIT_S", 0.05)
    webhook = Webhook(behave=asyncio.Event().wait)  # pyright: ignore[reportArgumentType]
    await tell(engine, "one", "two")
    assert await send_due(engine, WEBHOOK, webhook.client) == 0
    assert await rows(engine) == [(words, False, 1, "no answer within 0.05 s") for words in ("one", "two")]


async def test_the_address_stays_out_of_the_record(engine: AsyncEngine) -> None:
    async def break_off() -> None:
        raise httpx.ConnectError(f"cannot connect to {WEBHOOK}")

    await tell(engine, "halted")
    await send_due(engine, WEBHOOK, Webhook(behave=break_off).client)
    assert await rows(engine) == [("halted", False, 1, "ConnectError: cannot connect to ALERT_WEBHOOK_URL")]


async def test_two_senders_send_each_alert_once(engine: AsyncEngine) -> None:
    both_hold_some = asyncio.Barrier(2)
    first, second = Webhook(behave=both_hold_some.wait), Webhook()  # pyright: ignore[reportArgumentType]
    await tell(engine, "one")
    sending = asyncio.create_task(send_due(engine, WEBHOOK, first.client))
    await asyncio.sleep(0)
    while both_hold_some.n_waiting == 0:  # noqa: ASYNC110 - the barrier has no event for it
        await asyncio.sleep(0.01)
    await tell(engine, "two")
    assert await send_due(engine, WEBHOOK, second.client) == 1
    await both_hold_some.wait()
    assert await sending == 1
    assert (first.texts, second.texts) == (["one"], ["two"])


async def test_without_a_webhook_alerts_are_logged_once(engine: AsyncEngine) -> None:
    await tell(engine, "halted")
    with capture_logs() as lines:
        assert await send_due(engine, None, Webhook().client) == 1
        assert await send_due(engine, None, Webhook().client) == 0
    assert [(line["log_level"], line["text"]) for line in lines if line["event"] == "alert"] == [("warning", "halted")]


@pytest.mark.parametrize("address", ["ftp://host/secret", "secret", "https://"])
def test_an_address_that_cannot_be_posted_to_stops_the_start(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ALERT_WEBHOOK_URL", address)
    with pytest.raises(SettingsError, match="ALERT_WEBHOOK_URL") as refusal:
        load(AlertSettings)
    assert "secret" not in str(refusal.value)
