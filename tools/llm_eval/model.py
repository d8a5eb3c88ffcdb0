"""The road of an evaluation to the model: the production client with the share of the role `eval`.

With a database, calls go on record like everybody's and activations say what is in force. Without one, nothing of a
call is kept but its row in the results, and file and environment say it. The prompts stay as they were at the start:
an edit in the middle of a run must not be half in its figures.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.presence import is_there
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.activations import latest
from libs.llm.cache import ReplyCache
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.ledger import Unrecorded
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.replay.batch.ask import patient
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.upstreams.config import LEXI
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import TimeLimits, UpstreamStatus
from tools.llm_eval.refusal import UsageRefused
from tools.llm_eval.server import Server, meet, require_answering

ROLE = "eval"


@dataclass(frozen=True, slots=True)
class Road:
    """What it takes to ask. `places` is the share of Lexi's slots as it is now, `there` whether its server is alive;
    `usual` are the limits of production.
    """

    client: Client
    rules: Rules
    server: Server
    places: Callable[[], int]
    there: Callable[[], bool]
    usual: TimeLimits

    def limits(self, *, open_loop: bool) -> TimeLimits:
        """The limits of one call.

        In a closed loop as patient as a batch replay's: the calls have the lowest priority, and how long others keep
        them waiting says nothing about a prompt. Under a rate the waiting is what is measured, and production's hold.
        """
        return self.usual if open_loop else patient(self.usual)


async def prompts_now(engine: AsyncEngine | None) -> Prompts:
    """The prompts' file, `LLM_AB_BUCKETS` and, with a database, what was activated; fixed from then on.

    Raises `PromptFileError` or `ExperimentError`, naming what is wrong.
    """
    settings = load(LLMSettings)
    registry = Registry.load_quietly(settings.prompts_file, settings.prompts_lock)
    if engine is None:
        return Prompts.build(registry, settings.llm_ab_buckets)
    async with engine.connect() as connection:
        activations = await latest(connection)
    return Prompts.build(registry, settings.llm_ab_buckets, activations=activations)


@asynccontextmanager
async def open_road(prompts: Prompts, engine: AsyncEngine | None, *, cache: bool) -> AsyncGenerator[Road, None]:
    """The road, open until the end of the block; calls still unwritten are then kept.

    Raises `HarnessFailed` where nothing answers, `UsageRefused`, `SettingsError`, `UpstreamConfigError`, `RulesError`.
    """
    if cache and engine is None:
        raise UsageRefused("--cache on needs the database that keeps the replies: start the stack, or set DATABASE_URL")
    settings, where = load(LLMSettings), load(UpstreamSettings)
    rules = Rules.load(RULES_FILE)
    upstreams = Upstreams.load(where, role=ROLE)
    async with AsyncExitStack() as stack:
        await upstreams.start()
        stack.push_async_callback(upstreams.close)
        require_answering(upstreams, where)
        server = await meet(upstreams, where)
        recorder: Recorder | Unrecorded = Unrecorded()
        if engine is not None:
            recorder = Recorder(engine, service=ROLE, state_dir=load(ListenSettings).local_state)
            await recorder.start()
            stack.push_async_callback(recorder.close)
        kept = ReplyCache(engine, ttl_s=settings.llm_cache_ttl_s) if cache and engine is not None else None
        client = Client(engine=upstreams, prompts=prompts, cache=kept, recorder=recorder, settings=settings)
        yield Road(
            client,
            rules,
            server,
            places=lambda: status_of(upstreams).slots,
            there=lambda: is_there(status_of(upstreams)),
            usual=settings.limits(),
        )


def status_of(upstreams: Upstreams) -> UpstreamStatus:
    """How Lexi is now; its slots are how many questions this process may have under way."""
    return next(status for status in upstreams.status() if status.name == LEXI)
