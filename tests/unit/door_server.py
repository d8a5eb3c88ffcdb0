"""A server of ours as its process runs it, and requests that are sent to it byte by byte."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

SERVER = """
import asyncio, sys
from libs import http_heads, process, tracing
http_heads.HEAD_S = float(sys.argv[1])
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        return
    if (given := dict(scope["headers"]).get(b"traceparent")) is not None:
        tracing.arrived(given.decode())
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    words = f"{scope['path']} {len(body)} {tracing.outgoing()}".rstrip().encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(words))]})
    await send({"type": "http.response.body", "body": words})
async def main(stop):
    await process.serve(app, host=sys.argv[2], port=0, stop=stop)
process.run(main, service="door")
"""


@contextmanager
def server(head_s: float = 60, *, host: str = "127.0.0.1", **environment: str) -> Generator[int]:
    """The port of one that listens on an address of this machine."""
    command = [sys.executable, "-c", SERVER, str(head_s), host]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ | environment)
    try:
        assert process.stderr is not None
        yield next(event["port"] for event in map(json.loads, process.stderr) if event["event"] == "listening")
    finally:
        process.kill()
        process.communicate()


def ask(port: int, request: str | bytes) -> tuple[int, str]:
    """Send these very bytes; the status and the rest of what comes back until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sent = request.encode("latin-1") if isinstance(request, str) else request
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    head = received.decode("latin-1")
    return int(head.split(" ", 2)[1]), head


def ask_in_turn(port: int, *pieces: bytes) -> bytes:
    """Everything that comes back until the server closes; each piece is on its way before the next is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def get(
    port: int, path: str = "/x", *, host: str = "127.0.0.1", more: str = "", method: str = "GET"
) -> tuple[int, str]:
    """One request, and no other after it."""
    return ask(port, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")


def upgrade(port: int, *, host: str, origin: str | None) -> int:
    """The status of an attempt to open a websocket."""
    nonce = base64.b64encode(os.urandom(16)).decode()
    more = f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\n"
    more += "" if origin is None else f"Origin: {origin}\r\n"
    return ask(port, f"GET /live HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{more}\r\n")[0]
