"""What a gateway needs of vLLM, asked of the vLLM that runs: `python -m tools.lexi_vllm.verify`.

Speaks to LLM_BASE_URL as LLM_MODEL with LLM_API_KEY and prints one line for each thing, with its figures. Start that
server with few sequences (LEXI_MAX_NUM_SEQS=4), so that its queue is soon reached. 0 where all is as the gateway
expects it, 1 where something is not.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from itertools import pairwise
from time import monotonic
from typing import Any

import httpx

from libs.settings import SettingsError, load
from libs.upstreams.errors import UpstreamError
from libs.upstreams.heartbeat import Beat, read_metrics
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import ChatRequest, Constraint, Message, Priority, Sampling, TimeLimits

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"allow": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 60}},
    "required": ["allow", "reason"],
    "additionalProperties": False,
}
CHOICES = ("LONG", "SHORT")
CLOSED = ("/invocations", "/tokenize", "/inference/v1/generate", "/docs", "/v1/chat/completions/render")
PATIENT = TimeLimits(connect_s=5, first_token_s=120, idle_s=60, total_s=180)
CROWD = 24
"""More requests at once than the server's bound lets in."""


class NotAsExpected(Exception):
    """The engine did something else than the gateway counts on; the message says what."""


UNEXPECTED = (NotAsExpected, UpstreamError, httpx.HTTPError, LookupError, ValueError, TypeError, AttributeError)


def expect(met: bool, otherwise: str) -> None:
    """Go on only where it is so."""
    if not met:
        raise NotAsExpected(otherwise)


class Bench:
    """The engine under test: its plain HTTP face and ours."""

    def __init__(self, settings: UpstreamSettings, upstreams: Upstreams) -> None:
        key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.base = settings.llm_base_url.rstrip("/")
        self.root = self.base.removesuffix("/v1")
        self.model = settings.llm_model
        self.context = settings.llm_max_tokens
        self.upstreams = upstreams
        limits = httpx.Limits(max_connections=64)
        self.http = httpx.AsyncClient(headers=headers, timeout=180, limits=limits, trust_env=False)

    def body(self, words: str, **more: Any) -> dict[str, Any]:
        """A chat request's body."""
        return {"model": self.model, "messages": [{"role": "user", "content": words}], "temperature": 0, **more}

    async def ask(self, words: str, **more: Any) -> httpx.Response:
        """A chat completion in one piece, whatever its status."""
        return await self.http.post(f"{self.base}/chat/completions", json=self.body(words, **more))

    async def text(self, words: str, **more: Any) -> str:
        """The words of one."""
        answer = await self.ask(words, **more)
        expect(answer.status_code == 200, f"{answer.status_code}: {answer.text[:200]}")
        return str(answer.json()["choices"][0]["message"]["content"])

    async def beat(self) -> Beat:
        """The two numbers of the heartbeat."""
        return read_metrics((await self.http.get(f"{self.root}/metrics")).content, "vllm")

    async def running(self) -> float:
        """vllm:num_requests_running."""
        return (await self.beat()).running or 0.0

    async def until_running(self, wanted: Callable[[float], bool], within_s: float = 60.0) -> float:
        """Seconds until the number of running requests is as wanted."""
        began = monotonic()
        while not wanted(now := await self.running()):
            expect(monotonic() - began < within_s, f"{now:g} requests still run after {within_s:g} s")
            await asyncio.sleep(0.02)
        return monotonic() - began


async def chat(bench: Bench) -> str:
    """One completion, its usage, the caller's request id, the engine's own times."""
    began = monotonic()
    answer = await bench.http.post(
        f"{bench.base}/chat/completions",
        json=bench.body("What is the capital of France?", max_tokens=12),
        headers={"X-Request-Id": "verify-1"},
    )
    content: Any = answer.json()
    expect(answer.status_code == 200, answer.text[:200])
    expect(content["usage"]["completion_tokens"] > 0, "no usage")
    expect(answer.headers.get("x-request-id") == "verify-1", f"request id {answer.headers.get('x-request-id')!r}")
    expect(bool(content.get("metrics")), "no times of its own: start vLLM with --enable-per-request-metrics")
    first: float = content["metrics"]["time_to_first_token_ms"]
    words: str = content["choices"][0]["message"]["content"]
    return f"{words!r} in {monotonic() - began:.2f} s, id echoed, its own time to first token {first:.0f} ms"


async def streaming(bench: Bench) -> str:
    """Events as they come, a finish, usage in an event of its own, `[DONE]`."""
    body = bench.body("Count to ten.", max_tokens=24, stream=True, stream_options={"include_usage": True})
    began, first, events = monotonic(), 0.0, list[str]()
    async with bench.http.stream("POST", f"{bench.base}/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                first = first or monotonic() - began
                events.append(line[6:])
    expect(events[-1] == "[DONE]", f"the last event is {events[-1][:80]}")
    expect(bool(json.loads(events[-2]).get("usage")), "no usage before [DONE]")
    finishes = [event for event in events[:-1] for part in json.loads(event)["choices"] if part["finish_reason"]]
    expect(len(finishes) == 1, f"{len(finishes)} finishes")
    return f"{len(events)} events, the first after {first * 1000:.0f} ms, one finish, usage, [DONE]"


async def json_schema(bench: Bench) -> str:
    """`response_format` binds the answer, whatever the model would say."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    told = json.loads(await bench.text("Tell me a joke.", max_tokens=120, response_format=form))
    expect(set(told) == {"allow", "reason"} and isinstance(told["allow"], bool), f"{told}")
    return f"{told}"


async def choice(bench: Bench) -> str:
    """`structured_outputs.choice` binds it to words; the old name `guided_choice` is ignored in silence."""
    bound = await bench.text("Tell me a joke.", max_tokens=12, structured_outputs={"choice": list(CHOICES)})
    expect(bound in CHOICES, f"{bound!r}")
    old = await bench.ask("Tell me a joke.", max_tokens=12, guided_choice=list(CHOICES))
    heard = old.json()["choices"][0]["message"]["content"] if old.status_code == 200 else old.status_code
    return f"{bound!r}; with guided_choice: {heard!r}"


async def own_face(bench: Bench) -> str:
    """The same through libs/upstreams, in the dialect it found out by itself."""
    lexi = bench.upstreams
    told = [
        (await lexi.chat(_request("Is it a good day?", Constraint(schema=SCHEMA)), PATIENT)).text,
        (await lexi.chat(_request("Is it a good day?", Constraint(choice=CHOICES)), PATIENT)).text,
    ]
    expect(isinstance(json.loads(told[0])["allow"], bool) and told[1] in CHOICES, f"{told}")
    free = await lexi.chat(_request("Name a colour."), PATIENT)
    expect(not free.usage.estimated and free.usage.tokens_out > 0, f"{free.usage}")
    counted = f"{free.usage.tokens_in}+{free.usage.tokens_out} tokens as it counted them"
    return f"{told[0]!r} · {told[1]} · {free.text[:40]!r}, {counted}"


async def priority(bench: Bench) -> str:
    """With every sequence taken, the urgent one that came last is served before the batch that waits."""
    order: list[str] = []

    async def one(name: str, tokens: int, level: int) -> None:
        answer = await bench.ask(f"{name}: tell a story.", max_tokens=tokens, ignore_eos=True, priority=level)
        expect(answer.status_code == 200, f"{name}: {answer.status_code} {answer.text[:120]}")
        order.append(name)

    taken = [asyncio.create_task(one(f"running{n}", 60, int(Priority.POLICY))) for n in range(4)]
    await bench.until_running(lambda now: now >= 4)
    waits = [asyncio.create_task(one(f"batch{n}", 30, int(Priority.BATCH))) for n in range(3)]
    await asyncio.sleep(0.3)
    waits.append(asyncio.create_task(one("policy", 30, int(Priority.POLICY))))
    await asyncio.gather(*taken, *waits)
    expect(order.index("policy") <= min(order.index(f"batch{n}") for n in range(3)), f"{order}")
    return " ".join(order)


async def abort(bench: Bench) -> str:
    """A caller that leaves frees the engine: in a stream of ours, and with an answer in one piece."""
    told: list[str] = []
    for name, start in (("stream", _long_stream), ("one piece", _long_piece)):
        task = asyncio.create_task(start(bench))
        await bench.until_running(lambda now: now >= 1)
        await asyncio.sleep(0.5)
        task.cancel()
        gone = await bench.until_running(lambda now: now == 0, within_s=10)
        told.append(f"{name}: running 1 to 0 in {gone * 1000:.0f} ms")
    return ", ".join(told)


async def heartbeat(bench: Bench) -> str:
    """The counters move with every step while a request runs, and stand still when none does."""
    task = asyncio.create_task(_long_stream(bench))
    await bench.until_running(lambda now: now >= 1)
    seen: list[float] = []
    for _ in range(5):
        seen.append((await bench.beat()).progress or 0.0)
        await asyncio.sleep(0.5)
    state = bench.upstreams.status()[0].state
    task.cancel()
    await bench.until_running(lambda now: now == 0, within_s=10)
    still = [(await bench.beat()).progress for _ in range(2)]
    expect(all(later > before for before, later in pairwise(seen)), f"{seen}")
    expect(still[0] == still[1], f"moves while idle: {still}")
    return f"progress {' '.join(f'{value:g}' for value in seen)} at half a second each; our state {state}; idle: still"


async def bounded_queue(bench: Bench) -> str:
    """A crowd beyond the bound is told 503 at once, and the rest is served."""
    began, refused_after = monotonic(), 0.0

    async def one() -> int:
        nonlocal refused_after
        status = (await bench.ask("Tell a story.", max_tokens=16, ignore_eos=True)).status_code
        if status == 503:
            refused_after = max(refused_after, monotonic() - began)
        return status

    told = await asyncio.gather(*(one() for _ in range(CROWD)))
    expect(set(told) == {200, 503}, f"{sorted(told)}")
    return f"{told.count(200)} served, {told.count(503)} refused with 503 within {refused_after:.2f} s"


async def errors(bench: Bench) -> str:
    """How it refuses: a prompt too long, an unknown model, a wrong key."""
    long = await bench.ask("word " * (bench.context + 50), max_tokens=5)
    model = await bench.http.post(f"{bench.base}/chat/completions", json={**bench.body("hi"), "model": "nobody"})
    stranger = {"Authorization": "Bearer wrong"}
    key = await bench.http.post(f"{bench.base}/chat/completions", json=bench.body("hi"), headers=stranger)
    expect((long.status_code, model.status_code, key.status_code) == (400, 404, 401), "other statuses")
    return f"too long: 400 {json.dumps(long.json()['error'])[:200]}; unknown model: 404; wrong key: 401 {key.text}"


async def closed(bench: Bench) -> str:
    """Nobody reaches what a gateway does not use, key or not."""
    told = {path: (await bench.http.post(bench.root + path, json=bench.body("hi"))).status_code for path in CLOSED}
    expect(set(told.values()) == {404}, f"{told}")
    return "404 for " + " ".join(told)


CHECKS: tuple[Callable[[Bench], Awaitable[str]], ...] = (
    chat,
    streaming,
    json_schema,
    choice,
    own_face,
    priority,
    abort,
    heartbeat,
    bounded_queue,
    errors,
    closed,
)


def _request(words: str, constraint: Constraint | None = None, *, tokens: int = 60) -> ChatRequest:
    return ChatRequest((Message("user", words),), Sampling(temperature=0.7, max_tokens=tokens), constraint)


async def _long_stream(bench: Bench) -> None:
    words = "Write the history of the world, century by century, in detail."
    await bench.upstreams.chat(_request(words, tokens=bench.context - 200), PATIENT)


async def _long_piece(bench: Bench) -> None:
    await bench.ask("Tell a story.", max_tokens=bench.context - 200, ignore_eos=True)


async def verify() -> int:
    """Run every check, one line each."""
    settings = load(UpstreamSettings)
    upstreams = Upstreams.load(settings, role="eval")
    await upstreams.start()
    bench, failed = Bench(settings, upstreams), 0
    try:
        for check in CHECKS:
            try:
                print(f"ok   {check.__name__}: {await check(bench)}", flush=True)
            except UNEXPECTED as error:
                failed += 1
                print(f"NOT  {check.__name__}: {type(error).__name__}: {error}", flush=True)
    finally:
        await bench.http.aclose()
        await upstreams.close()
    return 1 if failed else 0


def main() -> int:
    """Verify; 2 where the settings cannot be read."""
    try:
        return asyncio.run(verify())
    except SettingsError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
