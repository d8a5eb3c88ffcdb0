"""Says when a server is ready: `ready.py URL MODEL PID S` waits up to S seconds for a completion, while PID lives.

0: it came. 2: it did not, with the reason on stderr. The key is read from VLLM_API_KEY, never from the command line.
Standard library only, since it runs under vLLM's own Python.
"""

import http.client
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

ASK_FIRST_S = 0.1  # then ever longer, up to
ASK_EVERY_S = 2.0
ASK_TIMEOUT_S = 60.0
STOP_WITHIN_S = 30.0


class NotReady(Exception):
    """The server will not answer; the message says why."""


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def completed(url: str, name: str) -> str:
    """Ask for one short completion; empty when it came, else why not."""
    body = {"model": name, "messages": [{"role": "user", "content": "Say OK"}], "max_tokens": 1, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    if os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['VLLM_API_KEY']}"
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on this way
    try:
        with opener.open(request, timeout=ASK_TIMEOUT_S) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        return f"it answered {error.code} to a completion"
    except OSError as error:
        return f"no answer yet ({error})"
    except (http.client.HTTPException, ValueError) as error:
        # Not its words: they may quote a header, and so the key.
        return f"no whole answer ({type(error).__name__})"
    return "" if isinstance(content, dict) and content.get("choices") else "its answer holds no completion"


def ready(url: str, name: str, pid: int, patience_s: float) -> str:
    """Wait for a completion. When time is up the server is ended: one that cannot answer must not look as if it ran."""
    began, pause_s = time.monotonic(), ASK_FIRST_S
    while True:
        reason = completed(url, name)
        if not reason:
            break
        if not alive(pid):
            raise NotReady("the server ended before it answered")
        if time.monotonic() - began > patience_s:
            end(pid)
            raise NotReady(f"no completion within {patience_s:g} s: {reason}; the server was ended")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, ASK_EVERY_S)
    tell_systemd()
    return f"ready: {name} answered a completion at {url}/v1 after {time.monotonic() - began:.0f} s"


def end(pid: int) -> None:
    """End the server: politely, then not. It may be gone before it is told."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_WITHIN_S
        while alive(pid) and time.monotonic() < until:
            time.sleep(0.2)
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def tell_systemd() -> None:
    """Say to systemd that the service is up, where it asked (Type=notify)."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(b"READY=1", "\0" + place[1:] if place.startswith("@") else place)


def main(arguments: "list[str]") -> int:
    """Wait, and say how it ended."""
    url, name, pid, patience_s = arguments
    try:
        print(ready(url, name, int(pid), float(patience_s)), flush=True)
    except NotReady as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
