"""Tells the webhook of a panic exit, from a thread that never holds it up."""

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx

_ATTEMPTS = 2
_LIMIT_S = 1.2


def webhook(environment: Mapping[str, str]) -> str | None:
    """The address in `ALERT_WEBHOOK_URL`, or in the file that `ALERT_WEBHOOK_URL_FILE` names."""
    said = environment.get("ALERT_WEBHOOK_URL", "").strip()
    path = environment.get("ALERT_WEBHOOK_URL_FILE", "").strip()
    if said or not path:
        return said or None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


class Alarm:
    """One webhook. Without an address nothing is told."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._threads: list[threading.Thread] = []
        self.told: list[str] = []
        self.failed: list[str] = []

    def tell(self, key: str, text: str, *, after_s: float = 0.0) -> None:
        """Send `{kind, text, at, key}`. `after_s` lets what is more urgent go first."""
        if self._address is None:
            return
        message = {"kind": "panic_exit", "text": text, "at": datetime.now(UTC).isoformat(), "key": key}
        thread = threading.Thread(target=self._send, args=(self._address, message, after_s), daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, within_s: float) -> None:
        """Wait until everything was told, at most `within_s` seconds."""
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _send(self, address: str, message: dict[str, str], after_s: float) -> None:
        time.sleep(after_s)
        trouble = ""
        for _ in range(_ATTEMPTS):
            try:
                httpx.post(address, json=message, timeout=_LIMIT_S).raise_for_status()
            except Exception as error:  # noqa: BLE001 - not only httpx's: a proxy it cannot use is an ImportError
                trouble = type(error).__name__  # the address is a secret and stands in the message
            else:
                self.told.append(message["key"])
                return
        self.failed.append(f"{message['key']}: {trouble}")


def begun_key(exit_id: str) -> str:
    """The key of the alert at an exit's begin, so that whoever else tells of it can know it was told."""
    return f"panic:{exit_id}:begun"


def ended_key(exit_id: str) -> str:
    """The key of the alert at an exit's end."""
    return f"panic:{exit_id}:ended"


FIRST_AFTER_S = 0.3
"""The first alert leaves after the first cancel."""
