"""Promote, ramp and roll back over HTTP: judged and written as the command line does, with the same evidence and words.

What is refused is a 409 with the sentence that the command line prints; a value that makes no sense is a 422.
"""

import asyncio
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

import structlog
from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from libs.json_numbers import Number
from libs.keys import GuardedRoute, Key, require
from libs.llm.commands.plans import STEPS, Change, Facts, promotion, ramp, rollback
from libs.llm.commands.refusal import CommandRefused
from libs.llm.commands.standing import Files
from libs.llm.commands.turning import CarriedOut, Plan, carry_out, operator_of
from libs.llm.errors import ExperimentError, PromptFileError, UnknownPrompt
from libs.llm.experiments import parse_buckets
from libs.llm.in_force import Source, check_buckets
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import PromptVersion
from libs.problems import Conflict, NotFound, Unprocessable
from libs.settings import load
from services.api.admin import Activated
from services.api.deps import ApiState, State
from services.api.strategist.words import Words

log = structlog.get_logger(__name__)

may_change = Depends(require("admin"))
Caller: TypeAlias = Annotated[Key, may_change]

router = APIRouter(prefix="/llm/admin/prompts/{key}", route_class=GuardedRoute, dependencies=[may_change])


def _step(percent: int) -> int:
    if percent not in STEPS:
        raise ValueError(f"must be one of {', '.join(map(str, STEPS))}")
    return percent


Reason: TypeAlias = Annotated[
    str, StringConstraints(max_length=200, strip_whitespace=True, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Version: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Percent: TypeAlias = Annotated[int, Field(strict=True), AfterValidator(_step)]


class Asked(BaseModel):
    """Who asks for a change, and why. The reason stands in for evidence that is not there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: Words
    reason: Reason = ""


class Promotion(Asked):
    """Every unit gets the version; a running experiment ends."""

    version: Version


class Ramp(Asked):
    """`percent` of all units get the version, the rest stays with the one in force."""

    version: Version
    percent: Percent


class Rollback(Asked):
    """A running experiment ends, else the version before the last promotion answers again. `further` goes on back."""

    further: StrictBool = False


class Standing(BaseModel):
    """What is in force for a key then, `changed` by this request or not; `said` is all of it in lines for people.

    The other processes follow within seconds.
    """

    key: str
    changed: bool
    active: str
    source: Source
    arms: Mapping[str, Number]
    phase: str
    activation: Activated | None
    said: Sequence[str]


@router.post("/promote")
async def promote(state: State, caller: Caller, key: str, asked: Promotion) -> Standing:
    """Give every unit a version."""
    files = await _files(state, key)
    prompt = _version(files, key, asked.version)

    def plan(facts: Facts) -> Change | str:
        return promotion(facts, prompt, reason=asked.reason)

    return await _done(state, files, prompt, plan=plan, asked=asked, caller=caller)


@router.post("/ramp")
async def ramp_up(state: State, caller: Caller, key: str, asked: Ramp) -> Standing:
    """Give a share of the units a version."""
    files = await _files(state, key)
    prompt = _version(files, key, asked.version)

    def plan(facts: Facts) -> Change | str:
        return ramp(facts, prompt, asked.percent, reason=asked.reason)

    return await _done(state, files, prompt, plan=plan, asked=asked, caller=caller)


@router.post("/rollback")
async def roll_back(state: State, caller: Caller, key: str, asked: Rollback) -> Standing:
    """End a running experiment, else go back to what was in force before the last promotion."""
    _known(state, key)
    # By what this process last read and asks with: going back must not depend on what is being edited.
    registry = state.prompts.now.registry
    settings = load(LLMSettings)
    files = Files(path=registry.path, registry=registry, buckets=parse_buckets(settings.llm_ab_buckets))
    known = list(registry.versions(key))

    def plan(facts: Facts) -> Change | str:
        return rollback(facts, known=known, reason=asked.reason, further=asked.further)

    return await _done(state, files, registry.active(key), plan=plan, asked=asked, caller=caller)


async def _files(state: ApiState, key: str) -> Files:
    """The prompts' file as it is now, held against its lock, and `LLM_AB_BUCKETS`."""
    _known(state, key)
    try:
        return await asyncio.to_thread(_read)
    except (PromptFileError, ExperimentError) as error:
        raise Conflict(str(error)) from error


def _read() -> Files:
    settings = load(LLMSettings)
    registry = Registry.load_quietly(settings.prompts_file, settings.prompts_lock)
    buckets = parse_buckets(settings.llm_ab_buckets)
    check_buckets(registry, buckets)
    return Files(path=settings.prompts_file, registry=registry, buckets=buckets)


def _known(state: ApiState, key: str) -> None:
    if key not in state.prompts.now.in_force:
        raise NotFound(f"there is no prompt {key}")


def _version(files: Files, key: str, version: str) -> PromptVersion:
    try:
        return files.registry.version(key, version)
    except UnknownPrompt as error:
        raise Unprocessable(str(error)) from error


async def _done(
    state: ApiState, files: Files, prompt: PromptVersion, *, plan: Plan, asked: Asked, caller: Key
) -> Standing:
    try:
        who = operator_of(Namespace(operator=asked.operator))
    except CommandRefused as error:
        raise Unprocessable(str(error)) from error
    try:
        async with state.engine.begin() as connection:
            done = await carry_out(connection, files, prompt, plan=plan, who=who, reason=asked.reason)
    except CommandRefused as error:
        raise Conflict(str(error)) from error
    if done.changed:
        log.info(
            "prompt_changed", prompt_key=prompt.key, version=done.in_force.version, operator=who, caller=caller.name
        )
    return _standing(prompt.key, done)


def _standing(key: str, done: CarriedOut) -> Standing:
    one = done.in_force
    experiment, activation = one.experiment, one.activation
    return Standing(
        key=key,
        changed=done.changed,
        active=one.version,
        source=one.source,
        arms={} if experiment is None else dict(experiment.arms),
        phase="" if experiment is None else experiment.phase,
        activation=None if activation is None else Activated.model_validate(activation, from_attributes=True),
        said=done.lines,
    )
