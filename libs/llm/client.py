"""`Client.ask()`: the one way our own code puts a question to a model.

choose the version → render → reply cache → one call for all who ask the same → attempts with retries and fallbacks →
strict validation → at most one repair turn → record. A model's failure is an `Answer`; only our own mistakes
(`PromptError`) and cancellation are raised, and every call leaves a record, whatever came of it.

The prompts may change while the process runs. Each question takes them as they are when it is asked, once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from libs.llm.attempts import Attempts, Outcome
from libs.llm.cache import ReplyCache, cache_key
from libs.llm.call_record import new_call_id
from libs.llm.errors import SamplingRefused
from libs.llm.experiments import Unit
from libs.llm.ledger import Ledger, Question, Records
from libs.llm.prompt_file import SAMPLING_FIELDS, sampling_problem
from libs.llm.prompts import PromptSource
from libs.llm.settings import LLMSettings
from libs.llm.single_flight import SingleFlight
from libs.llm.structured import Output, Parsed, Rejected
from libs.llm.types import Answer, Arm, PromptVersion, Rendered
from libs.upstreams.errors import DeadlineExceeded, NoSlot, UnknownUpstream
from libs.upstreams.types import ChatReply, ChatRequest, Engine, Message, Priority, Sampling, TimeLimits

LONGEST_REPLY_SHOWN = 4_000


@dataclass(frozen=True, slots=True)
class _Landed:
    """What a flight brings to everybody on board: the reply with its value, or the reason there is none, which may be
    that who asked first was out of time.
    """

    answer: Answer
    finish_reason: str
    reply: ChatReply | None
    out_of_time: bool = False


class Client:
    """Asks models through versioned prompts. One per process; safe for any number of tasks of one event loop."""

    def __init__(
        self,
        *,
        engine: Engine,
        prompts: PromptSource,
        cache: ReplyCache | None,
        recorder: Records,
        settings: LLMSettings,
        attempts: Attempts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._cache = cache
        self._clock = clock
        self._attempts = attempts if attempts is not None else Attempts(engine, clock=clock)
        self._ledger = Ledger(recorder, clock=clock)
        self._flights = SingleFlight[_Landed]()
        self._limits = settings.limits()
        self._defaults = settings.sampling()
        self._samplings: dict[str, Sampling] = {}

    async def ask(
        self,
        key: str,
        inputs: Mapping[str, object],
        *,
        unit: Unit | None = None,
        version: str | None = None,
        priority: Priority = Priority.INTERACTIVE,
        upstream: str = "lexi",
        limits: TimeLimits | None = None,
        use_cache: bool = True,
        subject: str = "",
        sampling: Mapping[str, Any] | None = None,
        replay_of: UUID | None = None,
    ) -> Answer:
        """Ask the prompt `key` with `inputs` and return what came of it.

        The version is `version`, else the arm of `unit`, else the active one. `limits` default to the settings';
        `total_s` bounds everything together, waiting, retries and repair included. `sampling` wins over the version,
        the version over the settings. `use_cache=False` truly calls the model. `subject` says in the record what the
        call was about, such as a ticker, and `replay_of` which call this one asks again.

        Raises `PromptError` where the prompt does not exist or the inputs do not fit it.
        """
        prompts = self._prompts.now
        arm = prompts.experiments.arm(key, unit) if version is None else Arm(version)
        prompt = prompts.registry.version(key, arm.version)
        question = self._question(
            prompts.registry.render(prompt, inputs),
            output=prompts.registry.output(prompt),
            sampling=self._sampling(prompt, sampling),
            inputs=inputs,
            priority=priority,
            upstream=upstream,
            limits=limits,
            subject=subject,
            arm=arm.name,
            replay_of=replay_of,
        )
        if use_cache and question.request.sampling.temperature == 0:
            kept_under = self._key_of(question, upstream)
            if kept_under is not None:
                return await self._ask_together(kept_under, question)
        return (await self._ask_model(question)).answer

    async def ask_again(
        self,
        rendered: Rendered,
        *,
        sampling: Sampling,
        inputs: Mapping[str, Any] | None,
        replay_of: UUID,
        priority: Priority = Priority.BATCH,
        upstream: str = "lexi",
        limits: TimeLimits | None = None,
        subject: str = "",
    ) -> Answer:
        """Put exactly these messages to the model again, with exactly this sampling, and return what came of it.

        The answer is validated, and repaired, as the version of `rendered` asks, which need not be among the prompts of
        now. The reply cache is neither read nor written, no call is shared, and there is no arm. `inputs` are only
        recorded; `replay_of` is the call that is asked again.
        """
        constraint = rendered.prompt.constraint
        output = Output() if constraint is None else Output(schema=constraint.schema, choice=constraint.choice)
        question = self._question(
            rendered,
            output=output,
            sampling=sampling,
            inputs=inputs,
            priority=priority,
            upstream=upstream,
            limits=limits,
            subject=subject,
            replay_of=replay_of,
        )
        return (await self._ask_model(question)).answer

    def _question(
        self,
        rendered: Rendered,
        *,
        output: Output,
        sampling: Sampling,
        inputs: Mapping[str, Any] | None,
        priority: Priority,
        upstream: str,
        limits: TimeLimits | None,
        subject: str,
        replay_of: UUID | None,
        arm: str = "",
    ) -> Question:
        """A question that begins now, under a new id."""
        prompt = rendered.prompt
        within = limits if limits is not None else self._limits
        started = self._clock()
        return Question(
            call_id=new_call_id(),
            prompt=prompt,
            output=output,
            arm=arm,
            inputs=inputs,
            request=ChatRequest(rendered.messages, sampling, prompt.constraint, priority),
            upstream=upstream,
            model=self._model_of(upstream),
            limits=within,
            started=started,
            deadline=started + within.total_s,
            subject=subject,
            replay_of=replay_of,
        )

    def _model_of(self, upstream: str) -> str:
        """The model of an upstream; empty where there is none of that name, which asking it will tell."""
        try:
            return self._engine.model_of(upstream)
        except UnknownUpstream:
            return ""

    def _sampling(self, prompt: PromptVersion, given: Mapping[str, Any] | None) -> Sampling:
        """The call's word over the version's over the settings'."""
        merged = self._samplings.get(prompt.sha256)
        if merged is None:
            said = {name: getattr(prompt.sampling, name) for name in prompt.sampling_fields}
            merged = self._samplings[prompt.sha256] = replace(self._defaults, **said)
        if not given:
            return merged
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, value in chosen.items():
            problem = sampling_problem(name, value) if name in SAMPLING_FIELDS else "there is no such sampling field"
            if problem:
                raise SamplingRefused(f"sampling {name}: {problem}")
        return replace(merged, **chosen)

    async def _ask_together(self, key: str, question: Question) -> Answer:
        """Ask at temperature 0, where one question has one answer: from the cache, or with all who ask it now.

        Where the shared call ran out of its first caller's time, those who have some left ask again.
        """
        while self._flights.under_way(key):
            with self._ledger.waiting(question) as wait:
                landed = await wait.until_deadline(self._flights.run(key, lambda: self._fly(key, question)))
            if landed is None:
                return self._ledger.failed(
                    question, DeadlineExceeded("the shared call took longer", upstream=question.upstream)
                )
            if not landed.out_of_time or self._clock() >= question.deadline:
                return self._ledger.shared(question, landed.answer, finish_reason=landed.finish_reason)
        return await self._lead(key, question)

    async def _lead(self, key: str, question: Question) -> Answer:
        """Begin a flight. It goes on where this first caller is cancelled while others wait; its row says so."""
        with self._ledger.leading(question, survives=lambda: self._flights.under_way(key)):
            return (await self._flights.run(key, lambda: self._fly(key, question))).answer

    async def _fly(self, key: str, question: Question) -> _Landed:
        """The kept reply where it is valid, else the model's, kept for next time if it is.

        A cache that hangs takes at most half of the time there is, and none beyond the deadline.
        """
        with self._ledger.calling(question):
            half = (question.deadline - self._clock()) / 2
            kept = None if self._cache is None else await self._cache.get(key, within_s=half)
        if kept is not None:
            parsed = question.output.parse(kept.reply.text, finish_reason=kept.reply.finish_reason)
            if isinstance(parsed, Parsed):
                answer = self._ledger.from_cache(question, kept.reply, parsed.value)
                return _Landed(answer, kept.reply.finish_reason, kept.reply)
        landed = await self._ask_model(question)
        left = question.deadline - self._clock()
        if self._cache is not None and landed.reply is not None and landed.answer.status == "ok" and left > 0:
            # Under the upstream that answered: a fallback's words must not stand for the first choice's.
            answered = self._key_of(question, landed.answer.upstream)
            if answered is not None:
                await self._cache.put(answered, landed.reply, call_id=landed.answer.call_id, within_s=left)
        return landed

    def _key_of(self, question: Question, upstream: str) -> str | None:
        """Under which an upstream's reply to this question is kept; None where it was taken out meanwhile."""
        try:
            model, place = self._engine.model_of(upstream), self._engine.place_of(upstream)
        except UnknownUpstream:
            return None
        return cache_key(question.request, question.prompt, model=model, place=place)

    async def _ask_model(self, question: Question) -> _Landed:
        """Call the model; where a structured answer is invalid, once more with its reply and what is wrong with it."""
        first, rejected = await self._call(question)
        if rejected is None or first.reply is None or self._clock() >= question.deadline:
            return first
        repair = replace(
            question,
            call_id=new_call_id(),
            request=replace(question.request, messages=_repair_messages(question, first.answer.text, rejected)),
            repairs=question.call_id,
            repair_started=self._clock(),
        )
        second, _ = await self._call(repair)
        if second.reply is None:
            return first
        return replace(second, answer=self._ledger.repaired(question, first.answer, second.answer))

    async def _call(self, question: Question) -> tuple[_Landed, Rejected | None]:
        """One recorded call. The rejection is given only where a repair turn may mend it."""
        with self._ledger.asking(question) as told:
            outcome: Outcome = await self._attempts.chat(
                question.request,
                question.limits,
                upstream=question.upstream,
                deadline=question.deadline,
                extra=question.repairs is not None,
            )
            told(outcome)
        if outcome.reply is None:
            out_of_time = isinstance(outcome.error, DeadlineExceeded | NoSlot)
            return _Landed(self._ledger.unanswered(question, outcome), "", None, out_of_time), None
        parsed = question.output.parse(outcome.reply.text, finish_reason=outcome.reply.finish_reason)
        answer = self._ledger.answered(question, outcome, parsed)
        landed = _Landed(answer, outcome.reply.finish_reason, outcome.reply)
        return landed, parsed if isinstance(parsed, Rejected) and question.output.structured else None


def _repair_messages(question: Question, reply: str, rejected: Rejected) -> tuple[Message, ...]:
    """The conversation so far, the model's reply, and what is wrong with it."""
    shown = reply if len(reply) <= LONGEST_REPLY_SHOWN else reply[:LONGEST_REPLY_SHOWN] + "…"
    constraint = question.request.constraint
    form = "one of the allowed words" if constraint is not None and constraint.choice else "one JSON object"
    shorter = " Keep it shorter." if rejected.kind == "cut" else ""
    ask_again = f"That reply cannot be used: {rejected.reason}. Answer the question again with {form} and nothing else."
    return (*question.request.messages, Message("assistant", shown), Message("user", ask_again + shorter))
