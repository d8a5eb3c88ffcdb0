"""One call again: its recorded answer, the model asked anew with the same messages, or another version on its inputs.

What is recorded is read, never written: a replay is a row of its own in `replays`. The model's answer to it is a call
of its own in `llm_calls` that names the original, has no arm, and neither reads nor fills the reply cache.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.judgement.assess import POLICY
from libs.judgement.rules import Rules
from libs.llm.errors import InputsRefused, RenderFailed, UnknownPrompt
from libs.llm.prompts import PromptSource
from libs.llm.registry import Registry
from libs.llm.single_flight import SingleFlight
from libs.llm.types import Answer, PromptVersion, Rendered
from libs.replay.difference import outcome_of
from libs.replay.errors import ContentChanged, InputsDoNotFit, NotKept, NotOurs, UnknownCall, UnknownVersion
from libs.replay.originals import OriginalCall, call_by_id, forecast_of
from libs.replay.recorded import answer_now, as_then, outcome_then, valid_as
from libs.replay.rows import Original, Replayed, Source, earlier, store
from libs.upstreams.errors import UnknownUpstream
from libs.upstreams.types import Priority, Sampling

LEXI = "lexi"


class Asker(Protocol):
    """What is needed of `libs.llm.client.Client`."""

    async def ask(
        self,
        key: str,
        inputs: Mapping[str, object],
        *,
        version: str | None = None,
        upstream: str = LEXI,
        use_cache: bool = True,
        subject: str = "",
        replay_of: UUID | None = None,
    ) -> Answer:
        """Ask a prompt."""
        ...

    async def ask_again(
        self,
        rendered: Rendered,
        *,
        sampling: Sampling,
        inputs: Mapping[str, object] | None,
        replay_of: UUID,
        priority: Priority = Priority.BATCH,
        upstream: str = LEXI,
        subject: str = "",
    ) -> Answer:
        """Send exactly these messages with this sampling."""
        ...


@dataclass(frozen=True, slots=True)
class Replayer:
    """Replays calls one by one, for people. Use it from one event loop.

    `model_of` names the model of an upstream, and raises `UnknownUpstream`.
    """

    engine: AsyncEngine
    client: Asker
    rules: Rules
    prompts: PromptSource
    model_of: Callable[[str], str]
    flights: SingleFlight[Replayed] = field(default_factory=SingleFlight[Replayed])

    async def replay(
        self, call_id: UUID, *, force: bool = False, version: str | None = None, asked_by: str = ""
    ) -> Replayed:
        """Replay a call, and keep what came of it.

        Without `force` the recorded answer; with `force` the model's to the same messages, sampling and seed; with
        `version` that version's on the stored inputs, from an earlier replay of the same pair unless `force`. Who asks
        for the same pair while it is being asked gets the same answer. The version the call was made with counts as
        none named, as long as it says what it said then.

        Raises `ReplayError`. A model that does not answer is a `Replayed` like any other.
        """
        registry = self.prompts.now.registry
        original = await self._original(call_id, registry)
        call = original.call
        prompt = None if version is None else other_version(call, version, registry)
        if prompt is not None:
            if force:
                return await self._through(original, prompt, asked_by=asked_by)
            return await self._through_once(original, prompt, asked_by=asked_by)
        if force:
            answer = await self._again(call, version_then(call, registry))
            return await self._keep(original, answer, source="model", asked_by=asked_by)
        answer = answer_now(call, registry)
        return await self._keep(original, answer, source="recorded", asked_by=asked_by)

    async def _original(self, call_id: UUID, registry: Registry) -> Original:
        async with self.engine.connect() as connection:
            call = await call_by_id(connection, call_id)
            if call is None:
                raise UnknownCall(f"there is no call {call_id}; GET /llm/admin/calls lists those that are kept")
            forecast = await forecast_of(connection, call, rules=self.rules)
        if not call.has_body:
            raise NotKept(
                f"what call {call_id} sent and received was not kept; choose one whose body is not null in "
                "GET /llm/admin/call/{id}"
            )
        rules_now = None if forecast is None else self.rules.judge(forecast.inputs, forecast.feed).allow
        return Original(call, forecast, outcome_then(call, forecast, registry), rules_now)

    async def _again(self, call: OriginalCall, prompt: PromptVersion) -> Answer:
        """The model's answer to the recorded messages, by the recorded sampling."""
        upstream = call.upstream or LEXI
        answer = await self.client.ask_again(
            Rendered(prompt, call.messages),
            sampling=call.sampling,
            inputs=call.inputs,
            replay_of=call.id,
            priority=Priority.INTERACTIVE,
            upstream=upstream,
            subject=call.subject,
        )
        return self._of_its_own(answer, upstream)

    def _of_its_own(self, answer: Answer, upstream: str) -> Answer:
        """The answer, where the model gave it that was asked.

        Another one's, by a fallback, says nothing about what a version makes of that model: it is as if none had come.
        """
        if answer.status == "unavailable":
            return answer
        try:
            wanted = self.model_of(upstream)
        except UnknownUpstream:
            wanted = ""  # it was taken out meanwhile
        if answer.model == wanted:
            return answer
        error = f"{answer.model} answered in its place, which says nothing about {wanted or upstream}"
        return replace(answer, status="unavailable", text="", value=None, error=error)

    async def _through_once(self, original: Original, prompt: PromptVersion, *, asked_by: str) -> Replayed:
        """What an earlier replay of this pair came to, or the one under way, or a new one."""

        async def earlier_or_now() -> Replayed:
            async with self.engine.connect() as connection:
                found = await earlier(connection, original.call, prompt)
            return found or await self._through(original, prompt, asked_by=asked_by)

        key = f"{original.call.id} {prompt.version} {prompt.sha256}"
        joined = self.flights.under_way(key)
        found = await self.flights.run(key, earlier_or_now)
        return replace(found, cached=True) if joined else found

    async def _through(self, original: Original, prompt: PromptVersion, *, asked_by: str) -> Replayed:
        """Send the stored inputs through another version, by that version's own sampling."""
        call = original.call
        upstream = call.upstream or LEXI
        try:
            answer = await self.client.ask(
                call.prompt_key,
                call.inputs or {},
                version=prompt.version,
                upstream=upstream,
                use_cache=False,
                subject=call.subject,
                replay_of=call.id,
            )
        except UnknownPrompt as error:  # it was taken out since it was looked up
            raise UnknownVersion(f"{error}; there are: {versions_of(call, self.prompts.now.registry)}") from error
        except (InputsRefused, RenderFailed) as error:
            raise InputsDoNotFit(
                f"the inputs of call {call.id} do not fit: {error}; choose a version with the same inputs"
            ) from error
        return await self._keep(original, self._of_its_own(answer, upstream), source="model", asked_by=asked_by)

    async def _keep(self, original: Original, answer: Answer, *, source: Source, asked_by: str) -> Replayed:
        """Keep what came of a replay."""
        key = original.call.prompt_key
        answer = valid_as(key, answer)
        after = outcome_of(answer, policy=key == POLICY, rules_allow=original.rules_now)
        async with self.engine.begin() as connection:
            return await store(connection, original, answer, after=after, source=source, asked_by=asked_by)


def version_then(call: OriginalCall, registry: Registry) -> PromptVersion:
    """The version a call was made with. Raises `NotOurs`, or `ContentChanged` where it says something else now."""
    check_ours(call, registry)
    prompt = as_then(registry, call)
    if prompt is None:
        raise ContentChanged(
            f"{call.prompt_key} {call.prompt_version} does not say any more what it said when call {call.id} was made "
            f"({call.prompt_hash[:12]}), so a new answer could not be checked as the first one was; name a `version` "
            f"to send the same inputs through it: {versions_of(call, registry)}"
        )
    return prompt


def other_version(call: OriginalCall, version: str, registry: Registry) -> PromptVersion | None:
    """The version to send a call's inputs through; None where it is the one the call was made with.

    Raises `NotOurs`, `UnknownVersion` or `NotKept`.
    """
    check_ours(call, registry)
    try:
        prompt = registry.version(call.prompt_key, version)
    except UnknownPrompt as error:
        raise UnknownVersion(f"{error}; there are: {versions_of(call, registry)}") from error
    if (prompt.version, prompt.sha256) == (call.prompt_version, call.prompt_hash):
        return None
    if call.inputs is None:
        raise NotKept(f"the inputs of call {call.id} were not kept; without `version` it can be replayed as it was")
    return prompt


def versions_of(call: OriginalCall, registry: Registry) -> str:
    """The versions of a call's prompt, in words."""
    try:
        return ", ".join(registry.versions(call.prompt_key))
    except UnknownPrompt:
        return "none"


def check_ours(call: OriginalCall, registry: Registry) -> None:
    """Refuse a call that a client of the gateway made, or a service with prompts of its own. Raises `NotOurs`."""
    if not call.ours:
        raise NotOurs(
            f"call {call.id} came from a client through /{call.prompt_key}: no prompt version stands behind it; "
            "replay it without `force` and `version`, or send it again through the gateway"
        )
    known = registry.keys()
    if call.prompt_key not in known:
        raise NotOurs(
            f"call {call.id} was made through the prompt {call.prompt_key!r}, which is not among the prompts here: it "
            "was taken out, or belongs to a service with a file of its own, as the sidecar; replay it without `force` "
            "and `version`"
        )
