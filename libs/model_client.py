"""How a service gets hold of the model: settings to upstreams, prompts, cache, recorder, client."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.cache import ReplyCache
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.experiments import Experiments
from libs.llm.prompts import LivePrompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.probes import Check, Degraded
from libs.settings import load
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import Role, UpstreamStatus

LEXI = "lexi"


@dataclass(frozen=True, slots=True)
class Model:
    """The road to the model and what lies along it. `cache` is None where replies are not kept."""

    client: Client
    prompts: LivePrompts
    upstreams: Upstreams
    recorder: Recorder
    cache: ReplyCache | None

    @property
    def name(self) -> str:
        """The model name of the entry `lexi`."""
        return self.upstreams.model_of(LEXI)

    @property
    def registry(self) -> Registry:
        """The prompts' file as it is now."""
        return self.prompts.now.registry

    @property
    def experiments(self) -> Experiments:
        """The experiments in force now."""
        return self.prompts.now.experiments

    def checks(self, own: Mapping[str, Check]) -> dict[str, Check]:
        """For `/ready`, as it is now: the process's own, then the prompts, the file of upstreams, and every upstream in
        it. Ask for them anew each time, since entries come and go. A model that is away is yellow: we answer without
        it. An upstream whose name is that of another line shows as `upstream NAME`, and hides nothing.
        """

        async def prompts() -> str | None:
            drafts = ", ".join(f"{prompt.key} {prompt.version}" for prompt in self.registry.drafts())
            reasons = [self.prompts.trouble, f"not released yet: {drafts}" if drafts else None]
            return Degraded("; ".join(filter(None, reasons))) if any(reasons) else None

        async def upstreams_file() -> str | None:
            return None if self.upstreams.trouble is None else Degraded(self.upstreams.trouble)

        checks: dict[str, Check] = {**own, "prompts": prompts, "upstreams_file": upstreams_file}
        for status in self.upstreams.status():
            checks[f"upstream {status.name}" if status.name in checks else status.name] = _check(status)
        return checks


def _check(status: UpstreamStatus) -> Check:
    async def check() -> str | None:
        if status.state in {"up", "busy"}:
            return None
        return Degraded(f"{status.state}: {status.reason}" if status.reason else status.state)

    return check


@asynccontextmanager
async def open_model(engine: AsyncEngine, *, role: Role, state_dir: Path) -> AsyncGenerator[Model, None]:
    """Everything built from the environment, running until the end of the block; calls still unwritten are kept.

    Where the database is away, the prompts begin with what the file and `LLM_AB_BUCKETS` say, and `/ready` says so;
    who must not ask before the activations are known waits for `Model.prompts.refresh()`.

    Raises `SettingsError`, `UpstreamConfigError`, `PromptFileError` or `ExperimentError`, each naming what is wrong.
    """
    settings = load(LLMSettings)
    prompts = LivePrompts(
        engine, path=settings.prompts_file, lock_path=settings.prompts_lock, ab_buckets=settings.llm_ab_buckets
    )
    upstreams = Upstreams.load(load(UpstreamSettings), role=role)
    recorder = Recorder(engine, service=role, state_dir=state_dir)
    async with AsyncExitStack() as stack:
        await recorder.start()
        stack.push_async_callback(recorder.close)
        await prompts.start()
        stack.push_async_callback(prompts.close)
        await upstreams.start()
        stack.push_async_callback(upstreams.close)
        cache = ReplyCache(engine, ttl_s=settings.llm_cache_ttl_s) if settings.llm_cache_ttl_s > 0 else None
        client = Client(
            engine=upstreams,
            prompts=prompts,
            cache=cache,
            recorder=recorder,
            settings=settings,
        )
        yield Model(client=client, prompts=prompts, upstreams=upstreams, recorder=recorder, cache=cache)
