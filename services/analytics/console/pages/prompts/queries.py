"""Where the prompts stand: as the api says, or where it does not answer as file, environment and Postgres say."""

import asyncio
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import history, latest
from libs.llm.commands.difference import diff
from libs.llm.commands.standing import Files, read_files_as_they_are, shares_of, standing_lines
from libs.llm.errors import LLMError
from libs.llm.in_force import Activation, InForce
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import PromptVersion
from libs.settings import load
from services.analytics.console.door.sessions import Session
from services.analytics.console.layout.frame import Console
from services.analytics.console.pages.prompts.words import ended_words
from services.analytics.console.reports import Made, made

MOST_HISTORY = 50
PROMPTS = "/llm/admin/prompts"
SOURCES = {"file": "the file", "environment": "LLM_AB_BUCKETS"}


@dataclass(frozen=True, slots=True)
class Version:
    """A version as it stands: the hash of its content, None as `released_at` for a draft, its share in per cent."""

    number: str
    hash: str
    released_at: datetime | None
    share: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in force for a key. `since` is None where no activation rules, `phase` empty where no experiment runs.

    `certain` is false where the activations could not be read, so that something else may be in force.
    """

    key: str
    active: str
    by: str
    since: datetime | None
    phase: str
    versions: tuple[Version, ...]
    warnings: tuple[str, ...] = ()
    certain: bool = True

    @property
    def arms(self) -> str:
        """The arms with their shares, empty where no experiment runs."""
        if not self.phase:
            return ""
        return ", ".join(f"{one.number} {one.share:.4g} %" for one in self.versions if one.share > 0)


@dataclass(frozen=True, slots=True)
class Standings:
    """Every key, in the file's order. `problem` says why this is not what the api itself answers, empty where it is."""

    keys: tuple[Standing, ...]
    problem: str = ""

    def of(self, key: str) -> Standing | None:
        """One key."""
        return next((one for one in self.keys if one.key == key), None)


@dataclass(frozen=True, slots=True)
class Story:
    """The report on an experiment as the api answers it; `made_at` is None for one that it made just now.

    `ended` says when and by whom the experiment ended, empty for one that runs.
    """

    report: Mapping[str, Any] | None
    made_at: datetime | None = None
    problem: str = ""
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Texts:
    """Two versions and what differs between them, line by line."""

    old: PromptVersion
    new: PromptVersion
    lines: tuple[str, ...]


async def standings(console: Console, session: Session) -> Standings:
    """Where every prompt stands. Whose key may not ask the api is told what file and Postgres say."""
    if not session.may("admin"):
        return await from_files(console.engine)
    told = await console.house.get(PROMPTS, session)
    if told.good:
        return Standings(tuple(from_answer(one) for one in told.content))
    own = await from_files(console.engine)
    words = f"The api does not say what it asks with ({told.problem}). Below is what file and Postgres say."
    return Standings(own.keys, " ".join(filter(None, (words, own.problem))))


def from_answer(prompt: Mapping[str, Any]) -> Standing:
    """A key as the api answers it."""
    ruling = prompt["activation"] if prompt["source"] == "activation" else None
    shares = shares_of(tuple(prompt["arms"].items())) or {prompt["active"]: 100.0}
    versions = (
        Version(number, one["hash"], _moment(one["released_at"]), shares.get(number, 0.0))
        for number, one in prompt["versions"].items()
    )
    return Standing(
        key=prompt["key"],
        active=prompt["active"],
        by=SOURCES[prompt["source"]] if ruling is None else _by(ruling["who"], ruling["why"]),
        since=None if ruling is None else _moment(ruling["at"]),
        phase=prompt["phase"],
        versions=tuple(versions),
    )


async def from_files(engine: AsyncEngine) -> Standings:
    """The same from the files of this process and the activations in Postgres."""
    try:
        files = await files_now()
    except LLMError as error:
        return Standings((), f"The prompts' file cannot be used here: {error}")
    problem = ""
    activations: Mapping[str, Sequence[Activation]] = {}
    try:
        async with engine.connect() as connection:
            activations = await latest(connection)
    except (SQLAlchemyError, OSError) as error:
        problem = f"Postgres does not answer ({type(error).__name__}), so another version may be in force by now."
    keys = files.registry.keys()
    found = (from_in_force(files, key, files.in_force(key, activations.get(key, ()))) for key in keys)
    return Standings(tuple(replace(one, certain=not problem) for one in found), problem)


def from_in_force(files: Files, key: str, found: InForce) -> Standing:
    """A key as it stands here."""
    ruling = found.activation if found.source == "activation" else None
    shares = {found.version: 100.0} if found.experiment is None else shares_of(found.experiment.arms)
    return Standing(
        key=key,
        active=found.version,
        by=SOURCES[found.source] if ruling is None else _by(ruling.who, ruling.why),
        since=None if ruling is None else ruling.at,
        phase="" if found.experiment is None else found.experiment.phase,
        versions=tuple(
            Version(number, one.sha256, one.released_at, shares.get(number, 0.0))
            for number, one in files.registry.versions(key).items()
        ),
        warnings=tuple(standing_lines(key, found)[1:]),
    )


async def activations_of(console: Console, key: str) -> list[Activation]:
    """What was promoted, ramped and rolled back, newest first."""
    async with console.engine.connect() as connection:
        return await history(connection, key, limit=MOST_HISTORY)


async def story_of(console: Console, session: Session, standing: Standing) -> Story:
    """The report that the jobs made of the running experiment, else the one that the api makes now.

    Where none runs it is the last that the jobs made: why a version was taken back is asked afterwards.
    """
    key = standing.key
    if not standing.certain:
        return Story(None, problem="It is not known whether an experiment runs.")
    if not standing.phase:
        return await _ended(console, key)
    report = await _made(console.engine, f"experiment:{key}")
    ours = report is not None and report.content["phase"] == standing.phase
    if report is not None and ours and not report.late:
        return Story(report.content, report.made_at)
    told = await console.house.get(f"/llm/admin/experiments/{quote(key, safe='')}", session)
    if told.good:
        return Story(told.content)
    if report is not None and ours:
        return Story(report.content, report.made_at, problem=told.problem)
    return Story(None, problem=told.problem)


async def _ended(console: Console, key: str) -> Story:
    last = await _made(console.engine, f"experiment:{key}")
    if last is None:
        return Story(None, problem=f"No experiment of {key} runs.")
    ended = ended_words(last.content, await activations_of(console, key))
    return Story(last.content, last.made_at, ended=ended)


async def course_of(console: Console, standing: Standing) -> Made | None:
    """How the metrics of the running experiment went, else of the last, as the jobs made it; None before the first."""
    found = await _made(console.engine, f"course:{standing.key}")
    phase = standing.phase
    if not phase:
        last = await _made(console.engine, f"experiment:{standing.key}")
        phase = "" if last is None else last.content["phase"]
    return found if found is not None and found.content["phase"] == phase else None


async def _made(engine: AsyncEngine, name: str) -> Made | None:
    async with engine.connect() as connection:
        return await made(connection, name)


async def texts_of(key: str, old: str, new: str) -> Texts:
    """Two versions of the prompts' file and their difference. Raises `LLMError`."""
    return await asyncio.to_thread(_texts, key, old, new)


def _texts(key: str, old: str, new: str) -> Texts:
    path = load(LLMSettings).prompts_file
    registry = Registry.load_unlocked(path)
    lines = diff(Namespace(file=path, key=key, old=old, new=new, inputs=None, stored=0))
    return Texts(registry.version(key, old), registry.version(key, new), tuple(lines))


async def files_now() -> Files:
    """The prompts' file as it is now. Raises `LLMError`."""
    return await asyncio.to_thread(_read)


def _read() -> Files:
    return read_files_as_they_are(Namespace(file=load(LLMSettings).prompts_file))


def _by(who: str, why: str) -> str:
    return f"{who}: {why}"


def _moment(said: str | None) -> datetime | None:
    return None if said is None else datetime.fromisoformat(said)
