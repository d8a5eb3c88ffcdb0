"""What the bundled model manages: prompt sizes, valid policy answers, and a round of the bundled tickers.

Starts an embedded server of its own and judges real bars of the bundled tickers through `assess()` and `ask()`, as the
forecast service does, on a new day each round, so that only the prompts' common beginnings are cached in the model.
CPU seconds of the model server are printed beside the wall clock: on a busy machine they tell more.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydantic import SecretStr

from libs.calendar import NoCalendar
from libs.db.engine import DatabaseSettings, create_engine
from libs.judgement.assess import Manner, assess
from libs.judgement.inputs import build_inputs, prompt_inputs
from libs.judgement.rules import Rules
from libs.judgement.types import Inputs, PriceForecast
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import Answer
from libs.settings import load
from libs.telemetry import configure
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import TimeLimits
from services.forecast.feed.replay import load_bundled
from services.forecast.feed.table import BarTable, to_moment
from services.forecast.numbers import random_walk
from tools.local_stack.lexi import CONTEXT_PER_SLOT

INTERVAL_S = 30.0  # what `make run` gives a round with this model
TIMED_ROUNDS = 4
POLICY_ANSWERS = 100
MOST_TOKENS = 160
HISTORY = 250
FIRST_BAR = 125  # of the youngest ticker (it has 196): every round finds the 121 bars that all factors need
FEED = "replay:1"
VERSIONS = ("1.0.0", "1.1.0")
PATIENT = TimeLimits(connect_s=2, first_token_s=300, idle_s=60, total_s=600)  # the bench measures, it does not give up


@contextmanager
def embedded_server() -> Generator[tuple[str, psutil.Process]]:
    """The embedded model on a free port: its base address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = os.environ | {"LEXI_PORT": str(port), "LEXI_HOST": "127.0.0.1", "LLM_MODEL": "Lexi"}
    environment.pop("LLM_API_KEY", None)
    process = subprocess.Popen([sys.executable, "-m", "tools.local_stack.lexi"], env=environment)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return when the server answers; an error when it ended or took a minute."""
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < 60:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - our own loopback address
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError("the embedded model did not start")


def day_inputs(table: BarTable, rules: Rules, day: int) -> list[Inputs]:
    """Every bundled ticker as it stood on one day, counted from the first on which all have enough history."""
    youngest = min(table.series.values(), key=len)
    as_of = to_moment(youngest.as_of[FIRST_BAR + day])
    found: list[Inputs] = []
    for ticker in table.series:
        bars = table.history(ticker, as_of, HISTORY)
        numbers = random_walk(bars.close, 1)
        inputs = build_inputs(
            ticker,
            bars,
            horizon="1d",
            as_of=as_of,
            forecast=PriceForecast(float(bars.close[-1]), numbers.mean, numbers.lower, numbers.upper),
            rules=rules,
            calendar=NoCalendar(),
            feed_days=table.days(as_of, HISTORY),
        )
        found.append(inputs)
    return found


@dataclass(slots=True)
class Bench:
    """The production path on the embedded server, and what came of it so far."""

    client: Client
    table: BarTable
    rules: Rules
    process: psutil.Process
    days: int = 0
    policies: list[Answer] = field(default_factory=list[Answer])
    rationales: list[Answer] = field(default_factory=list[Answer])

    def next_day(self) -> list[Inputs]:
        """Inputs no call has seen yet."""
        self.days += 1
        return day_inputs(self.table, self.rules, self.days)

    def cpu_s(self) -> float:
        """CPU seconds of the model server so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    async def round(self, version: str) -> tuple[float, float]:
        """One round: both calls for every ticker. Seconds it took, by the clock and in the server's CPU."""
        manner = Manner(versions={"rationale": version, "policy": version}, limits=PATIENT, use_cache=False)
        inputs = self.next_day()
        started, spent = time.monotonic(), self.cpu_s()
        judged = await asyncio.gather(
            *(assess(one, client=self.client, rules=self.rules, feed=FEED, manner=manner) for one in inputs)
        )
        took, spent = time.monotonic() - started, self.cpu_s() - spent
        for judgement in judged:
            self.rationales += [judgement.rationale] if judgement.rationale else []
            self.policies += [judgement.policy] if judgement.policy else []
        return took, spent

    async def more_policies(self, wanted: int) -> None:
        """Ask for policy alone until that many answers are there, both versions in turn."""
        while len(self.policies) < wanted:
            version = VERSIONS[self.days % len(VERSIONS)]
            asked = (
                self.client.ask(
                    "policy",
                    prompt_inputs(one, self.rules, feed=FEED),
                    version=version,
                    limits=PATIENT,
                    use_cache=False,
                )
                for one in self.next_day()
            )
            self.policies += await asyncio.gather(*asked)


async def measure(base_url: str, process: psutil.Process, folder: Path) -> None:
    """Everything, printed as it is found."""
    settings = load(LLMSettings)
    registry = Registry.load_quietly(settings.prompts_file)
    upstreams = Upstreams.load(
        load(
            UpstreamSettings, llm_base_url=base_url, llm_model="Lexi", llm_api_key=None, llm_max_tokens=CONTEXT_PER_SLOT
        ),
        role="forecast",
    )
    # Never started: what is recorded here stays in memory and goes with the process.
    nowhere = create_engine(
        DatabaseSettings(database_url=SecretStr("postgresql://127.0.0.1:1/none")), application="bench"
    )
    client = Client(
        engine=upstreams,
        prompts=Prompts.build(registry),
        cache=None,
        recorder=Recorder(nowhere, service="bench", state_dir=folder),
        settings=settings,
    )
    await upstreams.start()
    try:
        bench = Bench(client, load_bundled(()), Rules.load(Path("configs/rules.yaml")), process)
        await timed_rounds(bench)
        await bench.more_policies(POLICY_ANSWERS)
        report_answers(bench)
        health = await client.ask("health", {}, limits=PATIENT, use_cache=False)
        print(f"health: {health.text!r} ({health.tokens_in} tokens in, {health.tokens_out} out)")
    finally:
        await upstreams.close()
        await nowhere.dispose()


async def timed_rounds(bench: Bench) -> None:
    """A first round on an empty cache, then the rounds that repeat."""
    tickers = len(bench.table.series)
    took, spent = await bench.round(VERSIONS[0])
    print(f"first round of {tickers} tickers, nothing cached: {took:.1f} s, {spent:.1f} s CPU", flush=True)
    rounds = [await bench.round(VERSIONS[0]) for _ in range(TIMED_ROUNDS)]
    took, spent = (max(times) for times in zip(*rounds, strict=True))
    print(
        f"round of {tickers} tickers: {took:.1f} s of {INTERVAL_S:.0f} s, {spent:.1f} s CPU (slowest of {TIMED_ROUNDS})"
    )
    print(f"  in the mean {sum(cpu for _, cpu in rounds) / TIMED_ROUNDS:.1f} s CPU of {INTERVAL_S:.0f} s", flush=True)


def report_answers(bench: Bench) -> None:
    """Counts of valid answers, and sizes of prompts and answers, by prompt version."""
    valid = [answer for answer in bench.policies if answer.status == "ok" and answer.tokens_out <= MOST_TOKENS]
    most = max(answer.tokens_out for answer in bench.policies)
    print(f"policy answers valid: {len(valid)}/{len(bench.policies)}, tokens max {most}")
    written = [answer for answer in bench.rationales if answer.status == "ok"]
    print(f"rationales written: {len(written)}/{len(bench.rationales)}")
    sizes: dict[str, list[Answer]] = {}
    for answer in (*bench.rationales, *bench.policies):
        sizes.setdefault(f"{answer.prompt_key} {answer.prompt_version}", []).append(answer)
    for name, answers in sorted(sizes.items()):
        print(
            f"  {name}: prompt at most {max(answer.tokens_in for answer in answers)} tokens, "
            f"answer at most {max(answer.tokens_out for answer in answers)}"
        )
    errors = sorted(
        {f"{answer.prompt_key}: {answer.error}" for answer in bench.policies + bench.rationales if answer.error}
    )
    for error in errors:
        print(f"  {error}")


def main() -> None:
    """Start a server and measure it."""
    configure("bench", "WARNING")
    print(f"embedded model: rounds over the bundled tickers, {POLICY_ANSWERS} policy answers", flush=True)
    with tempfile.TemporaryDirectory() as name, embedded_server() as (base_url, process):
        asyncio.run(measure(base_url, process, Path(name)))


if __name__ == "__main__":
    main()
