"""What promote, ramp and rollback would write, or why not: pure, from the facts as they were read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from libs.llm.commands.evidence import JUDGED_KEYS, FinishedEvaluation, FinishedReplay
from libs.llm.commands.refusal import CommandRefused
from libs.llm.commands.standing import arms_words, shares_of
from libs.llm.in_force import Activation, Arms, Ground, InForce
from libs.llm.types import PromptVersion

STEPS = (1, 5, 10, 25, 50)
"""Shares of all units, in per cent, that a candidate may be given."""
GUARDRAIL = "guardrail"
"""Who takes a candidate back without a person. No operator goes by this name."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a key when a change is asked for. `history` holds its activations, newest first.

    `rules_sha256` is of the rules as they are now, None where there are none here.
    """

    key: str
    in_force: InForce
    history: Sequence[Activation] = ()
    replay: FinishedReplay | None = None
    open_replay: UUID | None = None
    evaluation: FinishedEvaluation | None = None
    open_evaluation: UUID | None = None
    rules_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be appended; `arms` are () where no experiment runs afterwards."""

    version: str
    arms: Arms
    why: str


def promotion(facts: Facts, prompt: PromptVersion, *, reason: str) -> Change | str:
    """The version for every unit, any experiment ended; a sentence where that is so already.

    Evidence is a finished replay, and an evaluation whose thresholds were met. Raises `CommandRefused` for a draft,
    and for a version that lacks either where no reason is given.
    """
    now = facts.in_force
    _refuse_draft(prompt)
    if now.version == prompt.version and now.experiment is None:
        return f"{prompt.key} {prompt.version} is in force already and no experiment runs: nothing to do"
    evidence = (_replayed(facts, prompt), _evaluated(facts, prompt))
    grounds = reason if now.version == prompt.version else _grounds(facts, prompt, evidence, reason=reason)
    return Change(prompt.version, (), f"promoted: {grounds or 'the version in force stays, its experiment ends'}")


def ramp(facts: Facts, prompt: PromptVersion, percent: int, *, reason: str) -> Change | str:
    """`percent` of all units for the version, the rest for the one in force; a sentence where that is so already.

    The version in force keeps its place in the order of the arms, so a candidate that grows keeps its own units.
    More than it has needs a finished replay; less needs no evidence. Raises `CommandRefused`.
    """
    now, key = facts.in_force, prompt.key
    _refuse_draft(prompt)
    if now.version == prompt.version:
        raise CommandRefused(f"{key} {prompt.version} is in force already: every unit outside the experiment has it")
    running = () if now.experiment is None else now.experiment.arms
    others = [version for version, weight in running if weight > 0 and version not in {now.version, prompt.version}]
    if others:
        raise CommandRefused(
            f"an experiment of {key} runs already, {arms_words(running)}: end it first (rollback {key}), "
            f"since {', '.join(others)} would lose its units"
        )
    arms = _arms(running, control=now.version, candidate=prompt.version, percent=percent)
    has = shares_of(running).get(prompt.version, 0.0)
    if math.isclose(has, percent):
        return f"{key} {prompt.version} has {percent} % already: nothing to do"
    less = percent < has
    evidence = (_replayed(facts, prompt),)
    grounds = (reason or f"less than its {has:g} %") if less else _grounds(facts, prompt, evidence, reason=reason)
    return Change(now.version, arms, f"ramped to {percent} %: {grounds}")


def rollback(facts: Facts, *, known: Sequence[str], reason: str, further: bool) -> Change | str:
    """The end of a running experiment, else the version before the last promotion; a sentence where it was done.

    What was done last is not done twice, so that two people who press the same button go back one step, not two;
    `further` goes on. Raises `CommandRefused` where nothing lies before.
    """
    now, key = facts.in_force, facts.key
    why = f": {reason}" if reason else ""
    if now.experiment is not None:
        return Change(now.version, (), f"rolled back, {arms_words(now.experiment.arms)} ended{why}")
    passed, last_went_back = _path(facts)
    if last_went_back and not further:
        last = facts.in_force.activation or facts.history[0]
        return (
            f"{key} went back already, by {last.who} at {last.at:%Y-%m-%d %H:%M:%S} UTC ({last.why}): "
            f"{now.version} answers everything. To go back one more step: --further (make: FURTHER=1)"
        )
    before = [version for version in passed[:-1] if version in known]
    if not before:
        raise CommandRefused(
            f"there is nothing to roll back: no activation put another version of {key} before {now.version}. "
            f'To give another one: promote {key} VERSION --reason "…"; there are {", ".join(known)}'
        )
    return Change(before[-1], (), f"rolled back from {now.version}{why}")


def _refuse_draft(prompt: PromptVersion) -> None:
    if prompt.released_at is None:
        raise CommandRefused(
            f"{prompt.key} {prompt.version} is a draft and may still change under its number: "
            f"release it first (python -m libs.llm.registry release {prompt.key} {prompt.version})"
        )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What one kind of trial says of a version, for the record. `lacks` is what to do where that is not enough."""

    words: str
    lacks: str = ""


def _replayed(facts: Facts, prompt: PromptVersion) -> _Evidence:
    if facts.replay is not None:
        return _Evidence(str(facts.replay))
    if facts.open_replay is not None:
        lacks = f"replay {facts.open_replay} of {prompt.key} {prompt.version} has not finished: wait for it"
    else:
        lacks = (
            f"no finished replay of {_content(prompt)} is on record: run one "
            f"(make replay SINCE=… PROMPT={prompt.key} VERSION={prompt.version})"
        )
    return _Evidence("without a replay", lacks)


def _evaluated(facts: Facts, prompt: PromptVersion) -> _Evidence:
    found = facts.evaluation
    command = evaluation_command(prompt)
    words = "without an evaluation" if found is None else f"{found}{_other_rules(facts, found)}"
    if found is not None and found.passed:
        return _Evidence(words)
    if facts.open_evaluation is not None:
        lacks = (
            f"evaluation {facts.open_evaluation} of {prompt.key} {prompt.version} has not finished: wait for it, "
            f"resume it, or run another ({command})"
        )
        return _Evidence(words, lacks)
    if found is None:
        return _Evidence(words, f"no finished evaluation of {_content(prompt)} is on record: run one ({command})")
    mend = "run one that does" if found.passed is None else "mend it under a new version, or run it again"
    return _Evidence(words, f"{words}: {mend} ({command})")


def _other_rules(facts: Facts, found: FinishedEvaluation) -> str:
    """What is to be said where an evaluation judged by other rules than today's: the same words, another question."""
    then, now = found.rules_sha256, facts.rules_sha256
    if not then or then == now:
        return ""
    if now is None:
        return f"; by rules {then[:12]}, and there are none here to compare with"
    return f"; by other rules than today's ({then[:12]} then, {now[:12]} now)"


def evaluation_command(prompt: PromptVersion) -> str:
    """What makes the evaluation that a promotion asks for; the thresholds in it are a proposal.

    60 good answers of 60, as many as the embedded model is asked for, prove no more than 0.94.
    """
    wanted = "answered=0.9 validity=0.9 flips=0" if prompt.key == "policy" else "answered=0.9 grounded=0.9"
    return f'make eval-llm PROMPT={prompt.key} VERSION={prompt.version} FAIL_UNDER="{wanted}"'


def _content(prompt: PromptVersion) -> str:
    return f"{prompt.key} {prompt.version} ({prompt.sha256[:12]})"


def _grounds(facts: Facts, prompt: PromptVersion, evidence: Sequence[_Evidence], *, reason: str) -> str:
    """Why the version may have units: the evidence asked for, or somebody's word for it. Raises `CommandRefused`."""
    name = f"{prompt.key} {prompt.version}"
    taken = _taken_back(facts, prompt.version)
    words = "; ".join(one.words for one in evidence)
    if reason:
        return f"{reason} ({words})"
    if taken is not None:
        raise CommandRefused(
            f"a guardrail took {name} back at {taken.at:%Y-%m-%d %H:%M:%S} UTC ({taken.why}): "
            'mend it under a new version, or say why it may go again with --reason "…" (make: REASON="…")'
        )
    lacks = "; ".join(one.lacks for one in evidence if one.lacks)
    if not lacks:
        return words
    otherwise = 'say why it may go without with --reason "…" (make: REASON="…")'
    if prompt.key not in JUDGED_KEYS:
        raise CommandRefused(
            f"{name} can be neither replayed nor evaluated, since no decisions of {prompt.key} are stored: {otherwise}"
        )
    raise CommandRefused(f"{lacks}, or {otherwise}")


def _taken_back(facts: Facts, version: str) -> Activation | None:
    """The guardrail's row that ended a version's last appearance, if that is how it ended.

    It counts whatever its ground. Who gave the version again on that ground or on this one has answered it; what was
    done on a third says nothing.
    """
    here = facts.in_force.ground
    answered: list[Ground] = []
    for place, row in enumerate(facts.history):
        if row.problem is not None or any(row.ground.agrees_with(ground) for ground in answered):
            continue
        ended = version not in _given(row) and version in _given_before(row, facts.history[place + 1 :])
        if ended and row.who == GUARDRAIL:
            return row
        if not ended and version not in _given(row):
            continue
        if row.ground.agrees_with(here):
            return None
        answered.append(row.ground)
    return None


def _given(row: Activation) -> set[str]:
    return {row.version, *dict(row.arms)}


def _given_before(activation: Activation, older: Sequence[Activation]) -> set[str]:
    """The versions that were given until an activation: by the one before it on its ground, else by the ground."""
    ground = activation.ground
    before = next((one for one in older if one.problem is None and one.ground.agrees_with(ground)), None)
    if before is not None:
        return _given(before)
    if ground.env_arms is not None:
        return {ground.file_version, *(arm.partition("@")[0] for arm in ground.env_arms.split(","))}
    in_file = ground.file_experiment
    return {ground.file_version, *(() if in_file is None else (version for version, _ in in_file["arms"]))}


def _arms(running: Arms, *, control: str, candidate: str, percent: int) -> Arms:
    wanted = {control: float(100 - percent), candidate: float(percent)}
    names = [version for version, _ in running if version in wanted]
    order = names if set(names) == set(wanted) else [control, candidate]
    return tuple((version, wanted[version]) for version in order)


def _path(facts: Facts) -> tuple[list[str], bool]:
    """The versions that were in force on the way to today's, today's last, without those that were gone back from.

    The flag says whether the latest activation rules and gave nothing new: it ended an experiment, or went back.
    """
    path: list[str] = []
    went_back = False
    older: Activation | None = None
    for activation in _led_here(facts):
        if older is None or not older.ground.agrees_with(activation.ground):
            _visit(path, activation.ground.file_version)  # before it the file ruled
        went_back = not _visit(path, activation.version) and not activation.arms
        older = activation
    _visit(path, facts.in_force.version)
    return path, went_back and facts.in_force.source == "activation"


def _led_here(facts: Facts) -> list[Activation]:
    """The activations that led to what is in force, oldest first: once this ground has one, only those on it count."""
    here = facts.in_force.ground
    rows = [row for row in reversed(facts.history) if row.problem is None]
    own = [row.ground.agrees_with(here) for row in rows]
    first = own.index(True) if True in own else len(rows)
    return [row for place, row in enumerate(rows) if place < first or own[place]]


def _visit(path: list[str], version: str) -> bool:
    """Go to a version: on to a new one (True), or back to one on the path, which ends there then (False)."""
    if version not in path:
        path.append(version)
        return True
    del path[path.index(version) + 1 :]
    return False
