"""Exact replay: recorded answers through today's pipeline, which must come to what is stored.

inputs → rules → render → recorded answer → parse → decision. Every step is production's own; only the engine is a
playback. What may differ is who was asked when: ids of calls, the arm, and whether the reply cache answered.
"""

import re
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from libs.judgement.assess import POLICY, Manner, assess, parse_decision
from libs.judgement.inputs import prompt_inputs
from libs.judgement.record import SKIPPED, RecordError, decision_block, features_llm, inputs_from_record
from libs.judgement.rules import Rules
from libs.judgement.types import Inputs
from libs.llm.client import Client
from libs.llm.errors import InputsRefused, RenderFailed, UnknownPrompt
from libs.llm.ledger import Unrecorded
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.structured import Parsed
from libs.replay.cases import KEYS, Case
from libs.replay.difference import MISSING, changed_fields
from libs.upstreams.playback import Playback
from libs.upstreams.types import ChatReply

NEVER_THE_SAME: Final = frozenset({"call_id", "arm", "cached"})
ABOUT_NO_ANSWER: Final = frozenset({"status", "error", "model", "prompt_version", "prompt_hash"})
"""What says why there was no answer; without one there is nothing to play."""
NOT_IN_THE_REPLY: Final = ("cut:", "unstorable:")
"""How the error of a reply begins that cannot be judged by the text that is kept of it."""
SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing in which a replay differs: where (`policy.decision.allow`), what is stored, what comes now."""

    case: str
    where: str
    stored: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.case}: {self.where}: stored {shown(self.stored)}, now {shown(self.now)}"


@dataclass(slots=True)
class Checked:
    """How a check went. `first` is the first difference.

    `not_kept` counts answers whose calls are gone, `read_again` those of them whose reply stands in the record.
    """

    cases: int = 0
    answers: int = 0
    not_kept: int = 0
    read_again: int = 0
    different: int = 0
    first: Difference | None = None

    @property
    def nothing(self) -> str | None:
        """Why nothing was held against anything; None where something was."""
        if not self.cases:
            return "nothing was checked: there is no judged forecast in it"
        if self.not_kept and not self.answers and not self.read_again:
            return f"no answer was checked: the calls behind all {self.not_kept} of them are not kept any more"
        return None

    def count(self, case: Case, found: Difference | None, *, read_again: bool) -> None:
        """Take one case."""
        self.read_again += read_again
        self.cases += 1
        for key in KEYS:
            if answered(case, key):
                self.answers += 1
            elif case.llm.get(key, {}).get("status") in {"ok", "invalid"}:
                self.not_kept += 1
        if found is not None:
            self.different += 1
            self.first = self.first or found

    def __str__(self) -> str:
        said = f"{self.cases} forecasts, {self.answers} recorded answers replayed: "
        again = f"; the stored reply to {self.read_again} of them was read again" * bool(self.read_again)
        gone = f" ({self.not_kept} answers could not be replayed: their calls are not kept any more{again})" * bool(
            self.not_kept
        )
        if not self.cases:
            return f"{said}nothing to check"
        if self.first is None:
            return f"{said}all as stored{gone}"
        return f"{said}{self.different} differ{gone}\nthe first difference: {self.first}"


@dataclass(frozen=True, slots=True)
class Checker:
    """Replays cases exactly. `registry` may hold edited versions: finding them out is what this is for."""

    registry: Registry
    rules: Rules
    settings: LLMSettings = field(default_factory=LLMSettings)

    async def check(self, case: Case) -> Difference | None:
        """The first difference of a case, None where everything comes out as stored."""
        try:
            inputs = inputs_from_record(case.llm)
        except RecordError as error:
            return Difference(str(case), "inputs", case.llm.get("inputs"), str(error))
        for where, stored, now in self._before_the_answer(case, inputs):
            if stored != now:
                return Difference(str(case), where, stored, now)
        try:
            record = await self._judged(case, inputs)
            for where, stored, now in (*different(case, record), *self._read_again(case)):
                return Difference(str(case), where, stored, now)
        except (KeyError, TypeError, AttributeError) as error:
            return Difference(str(case), "record", f"unreadable: {type(error).__name__}: {error}", None)
        return None

    def _before_the_answer(self, case: Case, inputs: Inputs) -> Iterator[tuple[str, Any, Any]]:
        """What is fixed before an answer comes, in order: the rules' word, then what each prompt asks."""
        verdict = self.rules.judge(inputs, case.feed)
        rules = {"allow": verdict.allow, "reasons": list(verdict.reasons)}
        yield "policy.rules", case.llm.get("policy", {}).get("rules"), rules
        variables = prompt_inputs(inputs, self.rules, feed=case.feed)
        for key in KEYS:
            if not answered(case, key):
                continue
            call = case.calls[key][0]
            yield from self._asked(key, call.prompt_version, variables, stored=[one.content for one in call.messages])
            yield f"{key}.prompt_hash", case.llm[key]["prompt_hash"], self._hash(key, call.prompt_version)

    def _asked(
        self, key: str, version: str, variables: Mapping[str, Any], *, stored: list[str]
    ) -> Iterator[tuple[str, Any, Any]]:
        """Each message as sent then and as rendered now; of two that differ, the first line in which they do."""
        try:
            rendered = self.registry.render(self.registry.version(key, version), variables)
        except (UnknownPrompt, InputsRefused, RenderFailed) as error:
            yield f"{key}.messages", stored, str(error)
            return
        now = [message.content for message in rendered.messages]
        yield f"{key}.messages", f"{len(stored)} messages", f"{len(now)} messages"
        for number, (before, after) in enumerate(zip(stored, now, strict=True)):
            yield f"{key}.messages[{number}]", *first_lines(before, after)

    def reads_again(self, case: Case) -> bool:
        """Whether the policy's calls are not kept any more, and what came of them can be told by the stored reply.

        The version must be there and say what it said then.
        """
        block = case.llm.get(POLICY, {})
        if answered(case, POLICY) or block.get("status") not in {"ok", "invalid"}:
            return False
        if not isinstance(block.get("raw"), str) or (block.get("error") or "").startswith(NOT_IN_THE_REPLY):
            return False
        try:
            return self._hash(POLICY, block.get("prompt_version", "")) == block.get("prompt_hash")
        except UnknownPrompt:
            return False

    def _read_again(self, case: Case) -> Iterator[tuple[str, Any, Any]]:
        """What today's parser makes of a stored reply whose calls are gone."""
        if not self.reads_again(case):
            return
        block = case.llm[POLICY]
        output = self.registry.output(self.registry.version(POLICY, block["prompt_version"]))
        parsed = output.parse(block["raw"])
        decision = parse_decision(parsed.value) if isinstance(parsed, Parsed) else None
        now = {
            "status": "invalid" if decision is None else "ok",
            "decision": None if decision is None else decision_block(decision),
            "shadow_allow": decision is not None and decision.allow and block["rules"]["allow"],
        }
        for where, (before, after) in changed_fields({name: block[name] for name in now}, now).items():
            yield f"{POLICY}.{where}", before, after

    def _hash(self, key: str, version: str) -> str:
        return self.registry.version(key, version).sha256

    async def _judged(self, case: Case, inputs: Inputs) -> Mapping[str, Any]:
        """The record that the pipeline makes of the inputs and the recorded answers."""
        calls = [call for key in KEYS if answered(case, key) for call in case.calls[key]]
        playback = Playback(
            (call.messages, ChatReply(call.reply, call.finish_reason or "stop", call.upstream, call.model))
            for call in calls
        )
        client = Client(
            engine=playback,
            prompts=Prompts.build(self.registry),
            cache=None,
            recorder=Unrecorded(),
            settings=self.settings,
        )
        versions = {call.prompt_key: call.prompt_version for call in calls}
        judgement = await assess(
            inputs, client=client, rules=self.rules, feed=case.feed, manner=Manner(versions=versions, use_cache=False)
        )
        return features_llm(judgement, case.llm["policy"]["shadow_mode"])


def answered(case: Case, key: str) -> bool:
    """Whether a prompt brought an answer whose calls are kept."""
    return bool(case.calls.get(key)) and case.llm.get(key, {}).get("status") in {"ok", "invalid"}


def different(case: Case, record: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which a record made now differs from the stored one, as `where, stored, now`.

    Of a prompt without a recorded answer only what code says of it is compared: its decision, the rules, the verdict.
    """
    for part in (*KEYS, "inputs"):
        block = record[part]
        names = [name for name in block if name not in left_out_of(case, part, block)]
        stored, now = ({name: one.get(name, MISSING) for name in names} for one in (case.llm[part], block))
        for where, (before, after) in changed_fields(stored, now).items():
            yield f"{part}.{where}", before, after


def left_out_of(case: Case, part: str, block: Mapping[str, Any]) -> frozenset[str]:
    """The fields of a part of a record that a replay cannot or need not reproduce."""
    if part not in KEYS:
        return frozenset()
    if case.llm[part]["status"] in {"unavailable", SKIPPED}:
        return NEVER_THE_SAME | ABOUT_NO_ANSWER
    return NEVER_THE_SAME if answered(case, part) else frozenset(block) - {"rules"}


def first_lines(before: str, after: str) -> tuple[str, str]:
    """Two texts, cut down to the first line in which they differ."""
    if before == after:
        return before, after
    old, new = before.splitlines(), after.splitlines()
    for number in range(max(len(old), len(new))):
        pair = (old[number : number + 1], new[number : number + 1])
        if pair[0] != pair[1]:
            return ("".join(pair[0]), "".join(pair[1]))
    return before, after


def shown(value: Any) -> str:
    """A value on one line of bounded length."""
    line = re.sub(r"\s+", " ", repr(value))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


async def check_all(checker: Checker, cases: AsyncIterable[Case] | Iterable[Case], into: Checked) -> None:
    """Check every case, and count into `into`. All are checked, also after a difference."""
    if isinstance(cases, AsyncIterable):
        async for case in cases:
            into.count(case, await checker.check(case), read_again=checker.reads_again(case))
        return
    for case in cases:
        into.count(case, await checker.check(case), read_again=checker.reads_again(case))
