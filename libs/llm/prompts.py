"""The prompts of a process as they are now: the file with its lock, `LLM_AB_BUCKETS`, and what was activated.

`Prompts` is one consistent state and never changes. `LivePrompts` holds the newest one: it looks at the file and at the
table `activations` every two seconds and keeps the last good state, whatever happens to either.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import structlog
from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import latest
from libs.llm.experiments import Experiment, Experiments, parse_buckets
from libs.llm.in_force import Activation, InForce, arms_as_text, check_buckets, in_force
from libs.llm.prompt_watch import PromptWatch
from libs.llm.registry import Registry

POLL_S = 2.0
SETTLE_S = 0.5
"""How soon a file that just changed is looked at again."""
READ_S = 5.0
"""Most seconds that reading the activations may take."""
HASH_SHOWN = 12

log = structlog.get_logger(__name__)

IN_FORCE = Gauge(
    "lexi_prompt_in_force",
    "The versions that this process asks with: the share of units that each is given, 1 where no experiment runs",
    ["key", "version", "hash", "source"],
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """One state of the prompts: what exists, what is drawn, and by whose word."""

    registry: Registry
    experiments: Experiments
    in_force: Mapping[str, InForce]

    @classmethod
    def build(
        cls, registry: Registry, ab_buckets: str = "", *, activations: Mapping[str, Sequence[Activation]] | None = None
    ) -> "Prompts":
        """The state that a file, `LLM_AB_BUCKETS` and the latest activations of each key come to.

        Raises `ExperimentError` where `ab_buckets` cannot be read, or names a key or version that does not exist.
        """
        buckets = parse_buckets(ab_buckets)
        check_buckets(registry, buckets)
        given = activations or {}
        keys = registry.keys()
        rules = {key: in_force(registry, key, buckets=buckets, activations=given.get(key, ())) for key in keys}
        running = {key: one.experiment for key, one in rules.items() if one.experiment is not None}
        experiments = Experiments({key: one.version for key, one in rules.items()}, running)
        return cls(registry, experiments, MappingProxyType(rules))

    @property
    def now(self) -> "Prompts":
        """Itself: a fixed state is its own source."""
        return self


class PromptSource(Protocol):
    """Anything that has the prompts of now. Take `now` once per piece of work and use it to the end."""

    @property
    def now(self) -> Prompts:
        """The state to work with."""
        ...


class LivePrompts:
    """The newest good state. Use it from the event loop it was started in."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        path: Path,
        lock_path: Path | None = None,
        ab_buckets: str = "",
        poll_s: float = POLL_S,
    ) -> None:
        """Read the file; no activation counts before `start` or `refresh`.

        Raises `PromptFileError` or `ExperimentError`, naming what is wrong.
        """
        self._engine = engine
        self._ab_buckets = ab_buckets
        self._poll_s = poll_s
        buckets = parse_buckets(ab_buckets)
        lock = lock_path if lock_path is not None else path.with_suffix(".lock")
        self._watch = PromptWatch(path, lock, accept=lambda registry: check_buckets(registry, buckets))
        self._activations: Mapping[str, Sequence[Activation]] | None = None
        self._unread: str | None = "the activations were not read yet; file and environment rule"
        self._said: str | None = None
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._reported = _Reported()
        self._now = Prompts.build(self._watch.load(), ab_buckets)

    @property
    def now(self) -> Prompts:
        """The newest good state."""
        return self._now

    @property
    def trouble(self) -> str | None:
        """Why this may not be what file and activations say now; None when all is well."""
        reasons = [self._watch.trouble, self._unread, *(one.trouble for one in self._now.in_force.values())]
        return "; ".join(reason for reason in reasons if reason is not None) or None

    async def start(self) -> None:
        """Read the activations, or say that they cannot be read and go on with the file; then keep looking."""
        await self._round()
        self._reported.report(self._now)
        self._task = asyncio.create_task(self._poll(), name="prompts")

    async def close(self) -> None:
        """Stop looking. The state stays as it is."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._reported.withdraw()

    async def refresh(self) -> None:
        """Look at the file, and read the activations now.

        Raises what the driver raises where they cannot be read (`TimeoutError` after 5 s). A row that was written by
        hand and makes no sense is `trouble`, and so is a file that cannot be used.
        """
        async with self._turn:
            await self._look()
            try:
                async with asyncio.timeout(READ_S), self._engine.connect() as connection:
                    found = await latest(connection)
            except Exception as error:
                self._unread = _unread(error, self._activations is None)
                raise
            self._unread = None
            if found != self._activations:
                self._take(self._now.registry, found)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s if self._watch.settled else min(SETTLE_S, self._poll_s))
            await self._round()

    async def _round(self) -> None:
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001 - kept as trouble; whatever it was, the next round must come
            log.debug("prompts_not_refreshed", error=type(error).__name__)
        before, self._said = self._said, self.trouble
        if self._said is not None and self._said != before:
            log.warning("prompts_kept", reason=self._said)
        elif self._said is None and before is not None:
            log.info("prompts_as_written")

    async def _look(self) -> None:
        """Take a changed file. Whatever is wrong with it, the activations must still be seen."""
        try:
            registry = await asyncio.to_thread(self._watch.look)
            if registry is not None:
                self._take(registry, self._activations)
        except Exception as error:
            log.exception("prompts_file_not_read")
            self._watch.trouble = f"{type(error).__name__}: {error}"

    def _take(self, registry: Registry, activations: Mapping[str, Sequence[Activation]] | None) -> None:
        self._now = Prompts.build(registry, self._ab_buckets, activations=activations)
        self._activations = activations
        if self._task is not None:
            self._reported.report(self._now)


def _unread(error: Exception, first: bool) -> str:
    reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    kept = "file and environment rule" if first else "those read before still hold"
    return f"the activations cannot be read ({reason}); {kept}"


class _Reported:
    """What was logged and counted last, so that only changes are logged and nothing stays in the gauge for ever."""

    def __init__(self) -> None:
        self._logged: dict[str, tuple[str, str, str, str]] = {}
        self._labels: dict[tuple[str, str, str, str], float] = {}

    def report(self, prompts: Prompts) -> None:
        """Log each key that changed, and show what is in force."""
        logged = {key: _line(prompts, key) for key in prompts.in_force}
        for key, line in logged.items():
            if line != self._logged.get(key):
                version, digest, arms, source = line
                log.info("prompts_in_force", prompt_key=key, version=version, hash=digest, arms=arms, source=source)
        self._logged = logged
        labels = {label: share for key in prompts.in_force for label, share in _shares(prompts, key).items()}
        for gone in self._labels.keys() - labels.keys():
            IN_FORCE.remove(*gone)
        for label, share in labels.items():
            IN_FORCE.labels(*label).set(share)
        self._labels = labels

    def withdraw(self) -> None:
        """Show nothing any more."""
        for label in self._labels:
            IN_FORCE.remove(*label)
        self._labels = {}


def _line(prompts: Prompts, key: str) -> tuple[str, str, str, str]:
    one = prompts.in_force[key]
    arms = "" if one.experiment is None else arms_as_text(one.experiment.arms)
    return one.version, _digest(prompts, key, one.version), arms, one.source


def _shares(prompts: Prompts, key: str) -> dict[tuple[str, str, str, str], float]:
    one = prompts.in_force[key]
    shares = {one.version: 1.0} if one.experiment is None else {one.version: 0.0, **_weights(one.experiment)}
    return {(key, version, _digest(prompts, key, version), one.source): share for version, share in shares.items()}


def _weights(experiment: Experiment) -> dict[str, float]:
    total = sum(weight for _, weight in experiment.arms)
    return {version: weight / total for version, weight in experiment.arms}


def _digest(prompts: Prompts, key: str, version: str) -> str:
    return prompts.registry.version(key, version).sha256[:HASH_SHOWN]
