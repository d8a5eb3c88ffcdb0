"""What the desk must hear of: rows written with the event itself, sent to a webhook by any process that looks.

At least once: a sender that dies between sending and noting it leaves the row to the next one.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog
from prometheus_client import Counter
from pydantic import Field, SecretStr, field_validator
from sqlalchemy import RowMapping
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.settings import Settings

MOST_ATTEMPTS = 10
AT_ONCE = 20
SEND_LIMIT_S = 3.0
LONGEST_ERROR = 200

SENT = Counter("lexi_alerts_sent_total", "Alerts that the webhook took, by kind.", ["kind"])
LOST = Counter("lexi_alerts_lost_total", "Alerts that the webhook never took, by kind.", ["kind"])

log = structlog.get_logger(__name__)

RAISE = sql("insert into alerts (key, kind, text) values (:key, :kind, :text) on conflict (key) do nothing")

# An attempt waits twice as long as the one before: all of them span eight minutes and a half.
DUE = sql(
    f"""
    select id, key, kind, text, at, attempts from alerts
    where sent_at is null and attempts < {MOST_ATTEMPTS}
      and at + (power(2, attempts) - 1) * interval '1 second' <= clock_timestamp()
    order by id limit {AT_ONCE} for update skip locked
    """
)
NOTE_SENT = sql("update alerts set sent_at = clock_timestamp(), attempts = attempts + 1, error = null where id = :id")
NOTE_FAILED = sql("update alerts set attempts = attempts + 1, error = :error where id = :id")


class AlertSettings(Settings):
    """Where the house calls for help."""

    alert_webhook_url: SecretStr | None = Field(
        default=None,
        description="Address that gets each alert as JSON {kind, text, at, key}; unset, alerts are only logged.",
    )

    @field_validator("alert_webhook_url")
    @classmethod
    def must_be_http(cls, value: SecretStr | None) -> SecretStr | None:
        """Accept addresses that can be posted to."""
        if value is not None:
            parts = urlsplit(value.get_secret_value())
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("must look like https://host/path")
        return value

    @property
    def webhook(self) -> str | None:
        """The address in the clear."""
        return None if self.alert_webhook_url is None else self.alert_webhook_url.get_secret_value()


@dataclass(frozen=True, slots=True)
class _Alert:
    id: int
    attempts: int
    content: Mapping[str, Any]


async def raise_alert(connection: AsyncConnection, *, key: str, kind: str, text: str) -> None:
    """Have the desk told, once the caller's transaction commits. The same `key` again changes nothing."""
    await connection.execute(RAISE, {"key": key, "kind": kind, "text": text})


async def send_due(engine: AsyncEngine, webhook: str | None, client: httpx.AsyncClient) -> int:
    """Send what waits, at most `AT_ONCE` side by side, `SEND_LIMIT_S` seconds each; returns how many were taken.

    Without a webhook they are logged instead. Several processes may do this at once: each alert is in one's hands. An
    alert that was not taken is tried again, later each time, and given up after `MOST_ATTEMPTS`.
    """
    async with engine.begin() as connection:
        rows = (await connection.execute(DUE)).mappings().all()
        alerts = [_Alert(row["id"], row["attempts"], _content(row)) for row in rows]
        if webhook is None:
            outcomes = [_only_log(alert) for alert in alerts]
        else:
            outcomes = await asyncio.gather(*(_send(client, webhook, alert) for alert in alerts))
        for alert, error in zip(alerts, outcomes, strict=True):
            if error is None:
                await connection.execute(NOTE_SENT, {"id": alert.id})
            else:
                await connection.execute(NOTE_FAILED, {"id": alert.id, "error": error})
    for alert, error in zip(alerts, outcomes, strict=True):
        _count(alert, error)
    return sum(error is None for error in outcomes)


def _content(row: RowMapping) -> dict[str, Any]:
    return {"kind": row["kind"], "text": row["text"], "at": row["at"].isoformat(), "key": row["key"]}


def _only_log(alert: _Alert) -> None:
    log.warning("alert", **{name: value for name, value in alert.content.items() if name != "key"})


async def _send(client: httpx.AsyncClient, webhook: str, alert: _Alert) -> str | None:
    """None when the webhook took it, else what was wrong, without the address: it is a secret."""
    try:
        async with asyncio.timeout(SEND_LIMIT_S):
            answer = await client.post(webhook, json=dict(alert.content), timeout=SEND_LIMIT_S)
    except TimeoutError:
        return f"no answer within {SEND_LIMIT_S:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"{type(error).__name__}: {error}".replace(webhook, "ALERT_WEBHOOK_URL")[:LONGEST_ERROR]
    return None if answer.is_success else f"answered {answer.status_code}"


def _count(alert: _Alert, error: str | None) -> None:
    kind = str(alert.content["kind"])
    if error is None:
        SENT.labels(kind).inc()
    elif alert.attempts + 1 >= MOST_ATTEMPTS:
        LOST.labels(kind).inc()
        log.error("alert_given_up", kind=kind, text=alert.content["text"], attempts=alert.attempts + 1, error=error)
    else:
        log.warning("alert_not_sent", kind=kind, attempts=alert.attempts + 1, error=error)
