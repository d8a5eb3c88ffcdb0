"""Whether an engine lives, told from what it publishes and without spending a token.

`/health` alone lies: it stays green while an engine hangs. So the counters that grow with every step are watched too:
requests running and counters moving is busy, requests running and nothing moving is stuck, no answer is down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import ConnectFailed, UpstreamError
from libs.upstreams.exchange import Overdue
from libs.upstreams.types import Dialect, UpstreamState
from libs.upstreams.wire import Wire

BEAT_S = 2.0
"""How often engines are looked at."""
HOSTED_BEAT_S = 30.0
"""How often hosted APIs are: they publish no counters, and their list of models is all there is to ask for."""
ANSWER_S = 2.0
"""How long one look may take."""
STUCK_S: Mapping[Dialect, float] = {"vllm": 20.0, "llamacpp": 60.0, "openai": 60.0}
"""How long running requests may show no progress: longer than the slowest single step, which for llama.cpp is a batch
of long prompts on one busy thread (its /metrics wait for the step to end as well)."""
SILENT_BEATS = 2
OK = 200
REFUSED_KEY = frozenset({401, 403})

RUNNING: Mapping[Dialect, bytes] = {"vllm": b"vllm:num_requests_running", "llamacpp": b"llamacpp:requests_processing"}
PROGRESS: Mapping[Dialect, tuple[bytes, ...]] = {
    "vllm": (b"vllm:iteration_tokens_total_count", b"vllm:generation_tokens_total", b"vllm:prompt_tokens_total"),
    "llamacpp": (b"llamacpp:n_decode_total", b"llamacpp:tokens_predicted_total", b"llamacpp:prompt_tokens_total"),
}


@dataclass(frozen=True, slots=True)
class Beat:
    """One look. `failure` is empty where the engine answered; `sure` where one such failure is enough to believe it.

    `running` and `progress` are None where the engine publishes no counters; `blind` where it did not get round to
    publishing them in time.
    """

    failure: str = ""
    sure: bool = False
    running: float | None = None
    progress: float | None = None
    blind: bool = False


class Pulse:
    """What many looks add up to. Times are seconds of any clock that never runs backwards."""

    def __init__(self, now: float, *, stuck_s: float = STUCK_S["vllm"]) -> None:
        self.state: UpstreamState = "unknown"
        self.reason = "not looked at yet"
        self.progress_at = now
        self.moved_at = 0.0
        self.stuck_s = stuck_s
        self._progress: float | None = None
        self._silent = 0

    def moved(self, now: float) -> None:
        """A piece of an answer came to this process: progress seen with our own eyes."""
        self.progress_at = self.moved_at = now

    def take(self, now: float, beat: Beat) -> None:
        """Take a look into account."""
        if beat.failure:
            self._silent += 1
            if beat.sure or (self._silent >= SILENT_BEATS and now - self.progress_at > BEAT_S):
                self.state, self.reason = "down", beat.failure
            return
        self._silent = 0
        self.reason = ""
        if beat.progress != self._progress and not beat.blind:
            self._progress = beat.progress
            self.progress_at = now
        idle = beat.running is None or beat.running == 0
        if idle and not beat.blind:
            self.progress_at = now
            self.state = "up"
        elif now - self.progress_at >= self.stuck_s:
            running = "requests" if beat.running is None else f"{beat.running:g} requests"
            self.state, self.reason = "stuck", f"{running} running, no progress for {now - self.progress_at:.0f} s"
        else:
            self.state = "busy"


async def look(wire: Wire, entry: UpstreamEntry, dialect: Dialect) -> Beat:
    """Look at an engine once. Never raises an upstream's failure: it is the result."""
    until = monotonic() + ANSWER_S
    path = f"{entry.api_path}/models" if dialect == "openai" else f"{entry.root_path}/health"
    try:
        status, _ = await fetch(wire, path, until)
    except ConnectFailed as error:
        return Beat(failure=str(error), sure=True)
    except Overdue:
        return Beat(failure=f"{path} did not answer within {ANSWER_S:g} s")
    except UpstreamError as error:
        return Beat(failure=f"{path}: {error}")
    if status in REFUSED_KEY:
        return Beat(failure=f"{path} answered {status}: the key is refused", sure=True)
    if status != OK:
        return Beat(failure=f"{path} answered {status}", sure=True)
    if dialect == "openai":
        return Beat()
    try:
        status, text = await fetch(wire, f"{entry.root_path}/metrics", until)
    except (Overdue, UpstreamError):
        return Beat(blind=True)
    return Beat() if status != OK else read_metrics(text, dialect)


async def fetch(wire: Wire, path: str, until: float) -> tuple[int, bytes]:
    """Status and whole body of a GET. Raises `ConnectFailed`, `Overdue`, `BrokenStream`."""
    async with await wire.send("GET", path, connect_s=max(0.0, until - monotonic())) as exchange:
        status = await exchange.head(until)
        pieces: list[bytes] = []
        while chunk := await exchange.read(until):
            pieces.append(chunk)
    return status, b"".join(pieces)


def read_metrics(text: bytes, dialect: Dialect) -> Beat:
    """The two numbers that tell life, out of a page of metrics that may hold thousands of lines.

    A page without any of the counters tells nothing: that requests run cannot be held against an engine then.
    """
    known = [value for name in PROGRESS[dialect] if (value := total(text, name)) is not None]
    return Beat(running=total(text, RUNNING[dialect]), progress=sum(known)) if known else Beat()


def total(text: bytes, name: bytes) -> float | None:
    """The sum of a metric over its label sets, longer names that begin alike left out; None where it is not there."""
    found: float | None = None
    start = text.find(name)
    while start >= 0:
        after = start + len(name)
        end = text.find(b"\n", after)
        line = text[after : end if end >= 0 else len(text)]
        if (start == 0 or text[start - 1] == 0x0A) and line[:1] in {b"{", b" "}:
            try:
                found = (found or 0.0) + float(line.rpartition(b"}")[2].split()[0])
            except (ValueError, IndexError):
                return None
        start = text.find(name, after)
    return found
