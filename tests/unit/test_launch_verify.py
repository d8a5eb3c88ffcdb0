"""The tool that asks a vLLM for what a gateway needs: a server with another shape is an answer of it, not its end."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tools.lexi_vllm import verify


class Bare(BaseHTTPRequestHandler):
    """A vLLM started without per-request metrics, whose streams are empty."""

    def do_GET(self) -> None:
        """Whatever is asked about the server."""
        self._answer({"version": "0.33.0", "data": [{"id": "Lexi"}]})

    def do_POST(self) -> None:
        """A completion, and nothing about its times."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        self._answer(
            {} if asked.get("stream") else {"choices": [choice], "usage": {"completion_tokens": 1}, "metrics": None}
        )

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by its base
        """Keep quiet."""

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("X-Request-Id", self.headers.get("X-Request-Id", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bare) as listening:
        serving = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        monkeypatch.setenv("LLM_BASE_URL", f"http://127.0.0.1:{listening.server_port}/v1")
        yield
        listening.shutdown()
        serving.join()


@pytest.mark.usefixtures("server")
async def test_every_check_is_made_whatever_the_answers_look_like(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def shapeless(bench: verify.Bench) -> str:
        content = (await bench.ask("hi")).json()
        return content["metrics"]["time_to_first_token_ms"]

    monkeypatch.setattr(verify, "CHECKS", (verify.chat, verify.streaming, shapeless))
    assert await verify.verify() == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("ok", "NOT"))]
    assert told[0] == "NOT  chat: NotAsExpected: no times of its own: start vLLM with --enable-per-request-metrics"
    assert told[1].startswith("NOT  streaming: IndexError")
    assert told[2].startswith("NOT  shapeless: TypeError")
