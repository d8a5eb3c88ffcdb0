"""The two compiled programs, upstream and generator, and how they are told what to do."""

import hashlib
import json
import shutil
import signal
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateway.machine import CACHE, LOAD_CORE, free_port, on_core, start
from tools.local_stack.children import dies_with_parent

PATH = "/v1/chat/completions"
TALK = [
    {"role": "system", "content": "You judge whether a signal may be acted on. " * 4},
    {"role": "user", "content": "Prices of the last days, newest last: 101.2 100.8 102.4 103.1. " * 6},
]
NO_TIME_LEFT = 2


class BenchError(Exception):
    """The bench cannot measure what it was asked to; the message says why."""


def compiled(name: str) -> Path:
    """The program of `name`.c, compiled when its source is new. Raises `BenchError`."""
    source = Path(__file__).with_name(f"{name}.c")
    program = CACHE / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("the bench compiles its generator and upstream: it needs a C compiler (cc or gcc)")
    CACHE.mkdir(exist_ok=True)
    done = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{source.name} does not compile:\n{done.stderr}")
    return program


class Upstream:
    """The stand-in for the engine, on the core of the load."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.process = start([compiled("upstream"), str(self.port)], folder / "upstream.log", core=LOAD_CORE)

    def ask(self, path: str) -> dict[str, Any]:
        """What it answers on one of its own paths."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def set(self, *, chunks: int = 64, gap_ms: float = 10, delay_ms: float = 0) -> None:
        """How it answers from now on: events per stream, time between two of them, time before an answer begins."""
        self.ask(f"/bench/set?chunks={chunks}&gap_us={gap_ms * 1000:.0f}&delay_us={delay_ms * 1000:.0f}")


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator saw. Latencies in milliseconds; `trouble` is the first error in words."""

    requests: int
    good: int
    errors: int
    trouble: str
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    events: int
    bytes: int


def body(*, stream: bool) -> bytes:
    """A request of about 600 bytes, the same for every candidate."""
    asked: dict[str, Any] = {"model": "Lexi", "messages": TALK, "temperature": 0.2, "max_tokens": 128}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked).encode()


def request(key: str, *, stream: bool) -> bytes:
    """The same as it goes over the wire."""
    content = body(stream=stream)
    fields = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"POST {PATH} HTTP/1.1\r\n{fields}Authorization: Bearer {key}\r\nAccept: */*\r\n\r\n".encode() + content


class Generator:
    """Asks a port the same request again and again, from the core of the load."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = compiled("load")

    def begin(
        self, port: int, key: str, *, stream: bool, count: int, connections: int = 64, rate: float = 0
    ) -> "subprocess.Popen[str]":
        """Start a load that ends by itself, after two minutes at the latest."""
        path = self._folder / f"{'stream' if stream else 'plain'}-{port}.http"
        path.write_bytes(request(key, stream=stream))
        words = [str(self._program), str(port), str(path), str(connections), str(count), str(rate), "120"]
        with on_core(LOAD_CORE):
            return subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),  # noqa: PLW1509 - no threads run when it is started
            )

    def run(self, port: int, key: str, *, stream: bool, count: int, connections: int = 64, rate: float = 0) -> Load:
        """The whole of a load. Raises `BenchError` where a single answer was not good."""
        process = self.begin(port, key, stream=stream, count=count, connections=connections, rate=rate)
        printed, said = process.communicate()
        if process.returncode not in {0, NO_TIME_LEFT}:
            raise BenchError(f"the generator failed: {said.strip()}")
        seen = Load(**json.loads(printed))
        if process.returncode == NO_TIME_LEFT or seen.errors or seen.good != count:
            raise BenchError(f"{seen.good} of {count} answers were good; first trouble: {seen.trouble or 'too slow'}")
        return seen
