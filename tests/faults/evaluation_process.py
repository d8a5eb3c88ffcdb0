"""An evaluation on the real road, here or in a process of its own that may be killed or lose its disk."""

import asyncio
import multiprocessing
import os
import resource
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, cast

import uvloop

from libs.evaluation.cases.dataset import CaseFile, write_cases
from libs.evaluation.running.asking import Asking
from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import Journal
from libs.evaluation.running.plan import Pinned
from libs.evaluation.running.runner import run
from libs.evaluation.running.work import Ended, Patience
from libs.llm.cache import ReplyCache
from libs.llm.client import Client
from libs.llm.ledger import Unrecorded
from libs.llm.prompts import Prompts, PromptSource
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import TimeLimits
from tests.unit.evaluation_running_cases import case_number, plan_of
from tests.unit.judgement_cases import ROOT, RULES

SLOTS = 8
LIMITS = TimeLimits(connect_s=2, first_token_s=10, idle_s=10, total_s=30)
FORKS = multiprocessing.get_context("forkserver")


def registry() -> Registry:
    """The prompts of the house."""
    return Registry.load_quietly(ROOT / "configs" / "llm_prompts.yaml")


def pinned(prompt: str, version: str = "1.0.0") -> Pinned:
    """A version as it is now."""
    return Pinned(prompt, version, registry().version(prompt, version).sha256)


def begun(results: Path, cases: int, **changes: Any) -> Folder:
    """The folder of a run over so many cases, of which nothing is asked yet."""
    with Folder.making(results, "test", at=datetime.now(UTC)) as folder:
        written, digest = write_cases(folder.cases, (case_number(number) for number in range(cases)))
        plan = plan_of(written, versions=(pinned("policy"),), cases_sha256=digest)
        folder.write_plan(replace(plan, **changes))
    return folder


@dataclass(frozen=True, slots=True)
class Road:
    """A client on real upstreams, with its share of their slots."""

    client: Client
    upstreams: Upstreams

    def places(self) -> int:
        """The share as it is now."""
        return self.upstreams.status()[0].slots

    def asking(self, *, use_cache: bool = False, limits: TimeLimits = LIMITS) -> Asking:
        """The way of asking items."""
        return Asking(self.client, RULES, limits, use_cache, model=lambda: self.upstreams.model_of("lexi"))


@asynccontextmanager
async def road_to(
    *base_urls: str, cache: ReplyCache | None = None, prompts: PromptSource | None = None
) -> AsyncGenerator[Road]:
    """The first address is Lexi's, the second another model's that stands in for it."""
    names = ["lexi", "other"][: len(base_urls)]
    entries = {
        name: UpstreamEntry(
            name,
            "Lexi" if name == "lexi" else "Other",
            base_url,
            "vllm",
            SLOTS,
            {"eval": SLOTS},
            8192,
            fallback=tuple(names[number + 1 :]),
        )
        for number, (name, base_url) in enumerate(zip(names, base_urls, strict=True))
    }
    upstreams = Upstreams(entries, role="eval")
    await upstreams.start()
    try:
        client = Client(
            engine=upstreams,
            prompts=prompts or Prompts.build(registry()),
            cache=cache,
            recorder=Unrecorded(),
            settings=LLMSettings(),
        )
        yield Road(client, upstreams)
    finally:
        await upstreams.close()


async def go_on(folder: Folder, base_url: str, *, retry: bool = False) -> Ended:
    """Ask what has no row yet; with `retry` what has no answer."""
    plan = folder.read_plan()
    async with road_to(base_url) as road, Journal(folder.rows, items=plan.items) as journal:
        return await run(
            plan,
            CaseFile(folder.cases),
            ask=road.asking(),
            keep=journal.keep,
            skip=journal.answered if retry else journal.done,
            places=road.places,
            pace=plan.rate,
            seen=lambda _: None,
            stop=asyncio.Event(),
            patience=Patience(first_s=0.05, longest_s=0.1, give_up_s=20),
        )


def in_child(path: Path, base_url: str, told: "Connection[Any, Any]", most_bytes: int | None) -> None:
    """What a child process does: go on with a run, on a disk that takes files of at most so many bytes."""
    if most_bytes is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):  # pytest captures them in files, and only the rows are to meet the limit
            os.dup2(nowhere, output)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ended = runner.run(go_on(Folder.open(path), base_url))
    except Exception as error:  # noqa: BLE001 - told to the test
        told.send(f"{type(error).__name__}: {error}")
    else:
        told.send(ended)


def child(
    folder: Folder, base_url: str, *, most_bytes: int | None = None
) -> "tuple[ForkServerProcess, Connection[Any, Any]]":
    """A process that goes on with a run, and where it tells how that ended."""
    FORKS.set_forkserver_preload(["tests.faults.evaluation_process"])
    hear, tell = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=in_child, args=(folder.path, base_url, tell, most_bytes))
    process.start()
    tell.close()
    return process, cast("Connection[Any, Any]", hear)
