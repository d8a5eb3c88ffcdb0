"""The panic exit as a process, and the webhook that hears of it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from libs.trading.panic.report import unfinished
from tests.integration.test_panic_process import House, house

__all__ = ["house"]


class _Webhook(BaseHTTPRequestHandler):
    said: list[dict[str, Any]]
    hangs: threading.Event | None = None

    def do_POST(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)
        self.said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Says nothing."""


@pytest.fixture
def webhook() -> Iterator[tuple[str, type[_Webhook]]]:
    handler = type("Handler", (_Webhook,), {"said": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/secret", handler
    server.shutdown()
    server.server_close()


def test_the_webhook_is_told(house: House, webhook: tuple[str, type[_Webhook]]) -> None:
    house.extra["ALERT_WEBHOOK_URL"], handler = webhook
    _, answer, _ = house.run("--reason", "fire")
    keys = [message["key"] for message in handler.said]
    assert keys == [f"panic:{answer['exit_id']}:begun", f"panic:{answer['exit_id']}:ended"]
    assert "FLAT" in handler.said[1]["text"]
    last = house.journal.entries()[-1]
    assert (last.action, last.result) == ("alerted", {"told": keys, "failed": []})
    assert unfinished(house.journal) is None


def test_a_webhook_that_hangs_delays_nothing(house: House, webhook: tuple[str, type[_Webhook]]) -> None:
    house.extra["ALERT_WEBHOOK_URL"], handler = webhook
    handler.hangs = threading.Event()
    process = house.start()
    assert process.stdout is not None
    answer = json.loads(process.stdout.readline())
    assert answer["state"] == "FLAT"
    assert handler.said == [], "the answer came while the webhook hung"
    handler.hangs.set()
    process.communicate(timeout=60)
    assert process.returncode == 0
