"""vLLM's server as a launch script sees it: `python vllm_server.py FOLDER [flags]`.

Writes its command line and its environment into FOLDER/started, answers /health at once and completions with 503 as
often as FOLDER/refusals says, breaks answers off as often as FOLDER/broken says, and ends on SIGTERM with the code in
FOLDER/exit-code.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

FOLDER = Path(sys.argv[1])
FLAGS = sys.argv[2:]


def number(name: str, default: int) -> int:
    """A number that a test wrote."""
    file = FOLDER / name
    return int(file.read_text(encoding="ascii")) if file.exists() else default


class Handler(BaseHTTPRequestHandler):
    """One request."""

    left = number("refusals", 0)
    broken = number("broken", 0)

    def do_GET(self) -> None:
        """/health is green from the start."""
        self._answer(200, {})

    def do_POST(self) -> None:
        """A completion, once it is warm."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (FOLDER / "asked").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"path": self.path, "key": self.headers["Authorization"], **asked}) + "\n")
        if Handler.left > 0:
            Handler.left -= 1
            self._answer(503, {"error": {"message": "warming up"}})
        elif Handler.broken > 0:
            Handler.broken -= 1
            self.send_response(200)
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(b"{")
        else:
            self._answer(200, {"choices": [{"message": {"content": "OK"}}]})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by its base
        """Keep quiet."""

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def leave(_: int, __: FrameType | None) -> None:
    """End as told."""
    os._exit(number("exit-code", 0))


def main() -> None:
    """Serve until a signal, or end at once where FOLDER/dies is."""
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    started = {"flags": FLAGS, "environment": dict(os.environ), "pid": os.getpid()}
    (FOLDER / "started.new").write_text(json.dumps(started), encoding="utf-8")
    (FOLDER / "started.new").replace(FOLDER / "started")
    if (FOLDER / "dies").exists():
        time.sleep(0.2)
        os._exit(number("exit-code", 1))
    address = ("127.0.0.1", int(FLAGS[FLAGS.index("--port") + 1]))
    ThreadingHTTPServer(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
