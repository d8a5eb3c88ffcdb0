"""`list`, `history`, `promote`, `ramp` and `rollback`: what is in force, and how it changes."""

import asyncio
import hashlib
import os
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.db.engine import DatabaseError
from libs.db.opening import open_database
from libs.llm.activations import activate, history, latest
from libs.llm.commands.evidence import (
    APPLICATION,
    LATELY_MIN,
    asked_lately,
    finished_evaluation,
    finished_replay,
    open_evaluation,
    open_replay,
    strangers,
)
from libs.llm.commands.plans import GUARDRAIL, Change, Facts, promotion, ramp, rollback
from libs.llm.commands.refusal import CommandRefused
from libs.llm.commands.standing import (
    Files,
    arms_words,
    given_words,
    ground_words,
    made_elsewhere,
    read_files,
    read_files_as_they_are,
    shares_of,
    standing_lines,
)
from libs.llm.in_force import Activation, InForce
from libs.llm.types import PromptVersion
from libs.process import explain
from libs.settings import SettingsError

RULES_FILE = Path("configs/rules.yaml")
"""The rules that policies are judged by; only their hash is of interest here."""
REMEMBERED = 200
"""Activations of a key that are looked through."""
OTHER_GROUND = (
    "nothing was done, since it might not reach those who run that: look at what they run, then say why it is meant "
    'all the same with --reason "…" (make: REASON="…")'
)


@asynccontextmanager
async def open_transaction() -> AsyncGenerator[AsyncConnection, None]:
    """A connection in a transaction, committed after the block. Raises what names the database and its trouble."""
    async with open_database(application=APPLICATION, pool_size=1) as engine, engine.begin() as connection:
        yield connection


def listing(options: Namespace) -> list[str]:
    """Every version with its hash, what is in force and who said so; * marks the version in force.

    Without a database it shows what file and environment say, and says that it does.
    """
    files = read_files_as_they_are(options)
    keys = files.registry.keys()
    alone = [line for key in keys for line in _key_lines(files, key, files.in_force(key), asked={})]
    if not (os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE")):
        return [*files.warnings, *alone, "note: DATABASE_URL names no database: activations are not shown"]
    try:
        return [*files.warnings, *asyncio.run(_all_lines(files))]
    except (DatabaseError, SettingsError, OSError, SQLAlchemyError) as error:
        return [*files.warnings, *alone, f"warning: activations are not shown: {explain(error)}"]


async def _all_lines(files: Files) -> list[str]:
    lines: list[str] = []
    keys = files.registry.keys()
    async with open_transaction() as connection:
        activations = await latest(connection)
        for key in keys:
            found = files.in_force(key, activations.get(key, ()))
            asked = await asked_lately(connection, key, minutes=LATELY_MIN)
            lines += _key_lines(files, key, found, asked=asked)
            lines += _strange(key, await strangers(connection, key, found))
    return lines


def _key_lines(files: Files, key: str, found: InForce, *, asked: Mapping[str, int]) -> list[str]:
    versions = files.registry.versions(key).values()
    return [*standing_lines(key, found), *(_version_line(files, one, found, asked=asked) for one in versions)]


def _strange(key: str, versions: Mapping[str, int]) -> list[str]:
    return [
        f"warning: services asked {key} {version} {calls} times lately, which nobody is given by what stands here: "
        "they run with another file or another LLM_AB_BUCKETS, and what is done here may not reach them"
        for version, calls in versions.items()
    ]


def _version_line(files: Files, prompt: PromptVersion, found: InForce, *, asked: Mapping[str, int]) -> str:
    shares = {found.version: 100.0} if found.experiment is None else shares_of(found.experiment.arms)
    released = "draft" if prompt.released_at is None else f"released {prompt.released_at.isoformat()}"
    notes = ["not held against its lock" if files.warnings else released]
    notes += [f"{shares[prompt.version]:.4g} %"] if prompt.version in shares else []
    notes += [f"{asked[prompt.version]} calls in {LATELY_MIN} min"] if prompt.version in asked else []
    mark = "*" if prompt.version == found.version else " "
    return f"{mark} {prompt.key} {prompt.version} {prompt.sha256[:12]} {', '.join(notes)}"


def show_history(options: Namespace) -> list[str]:
    """The activations of a key, newest first, below what is in force."""
    files = read_files_as_they_are(options)
    found, rows = asyncio.run(_history(files, options.key))
    lines = [_history_line(row) for row in rows[: options.limit]] or [f"no activation of {options.key} is on record"]
    return [*files.warnings, *standing_lines(options.key, found), *lines]


async def _history(files: Files, key: str) -> tuple[InForce, list[Activation]]:
    async with open_transaction() as connection:
        return await _standing(connection, files, key)


async def _standing(connection: AsyncConnection, files: Files, key: str) -> tuple[InForce, list[Activation]]:
    """What is in force, and then the rows: who writes by this is refused where another row came since the first."""
    found = files.in_force(key, (await latest(connection)).get(key, ()))
    return found, await history(connection, key, limit=REMEMBERED)


def _history_line(row: Activation) -> str:
    made = f"{row.id} {row.at:%Y-%m-%d %H:%M:%S} UTC {row.who}:"
    if row.problem is not None:
        return f"{made} not followed, {row.problem} ({row.why})"
    gives = arms_words(row.arms) if row.arms else f"{row.version} alone"
    return f"{made} {gives} ({row.why}); ground: {ground_words(row.ground)}"


def promote(options: Namespace) -> list[str]:
    """Give every unit a version."""
    files = read_files(options)
    prompt = files.registry.version(options.key, options.version)
    return _change(options, files, prompt, lambda facts: promotion(facts, prompt, reason=options.reason))


def ramp_up(options: Namespace) -> list[str]:
    """Give a share of the units a version."""
    files = read_files(options)
    prompt = files.registry.version(options.key, options.version)
    return _change(options, files, prompt, lambda facts: ramp(facts, prompt, options.percent, reason=options.reason))


def roll_back(options: Namespace) -> list[str]:
    """End a running experiment, else go back to what was in force before the last promotion."""
    files = read_files_as_they_are(options)
    known = list(files.registry.versions(options.key))

    def plan(facts: Facts) -> Change | str:
        return rollback(facts, known=known, reason=options.reason, further=options.further)

    return [*files.warnings, *_change(options, files, files.registry.active(options.key), plan)]


Plan = Callable[[Facts], Change | str]


def _change(options: Namespace, files: Files, prompt: PromptVersion, plan: Plan) -> list[str]:
    return asyncio.run(_write(files, prompt, plan, who=operator_of(options), reason=options.reason))


def operator_of(options: Namespace) -> str:
    """Who does this. Raises `CommandRefused` where nobody is named."""
    who: str = options.operator.strip()
    if not who or who == GUARDRAIL:
        raise CommandRefused('say who does this: --operator NAME (make: OPERATOR=NAME), and not "guardrail"')
    return who


async def _write(files: Files, prompt: PromptVersion, plan: Plan, *, who: str, reason: str) -> list[str]:
    async with open_transaction() as connection:
        return list((await carry_out(connection, files, prompt, plan=plan, who=who, reason=reason)).lines)


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """What came of a change: what rules its key from then on, whether a row was written, and all of it in words."""

    in_force: InForce
    changed: bool
    lines: Sequence[str]


async def carry_out(
    connection: AsyncConnection, files: Files, prompt: PromptVersion, *, plan: Plan, who: str, reason: str
) -> CarriedOut:
    """Judge a change by what stands now and append it in the caller's transaction (READ COMMITTED).

    It rules once that is committed. Raises `CommandRefused`, then nothing was written.
    """
    key = prompt.key
    facts = await facts_of(connection, files, prompt)
    before = facts.in_force
    warnings = [*standing_lines(key, before)[1:], *_strange(key, await strangers(connection, key, before))]
    try:
        change = plan(facts)
    except CommandRefused as error:
        raise CommandRefused("\n".join([*warnings, str(error)])) from error
    if isinstance(change, str):
        return CarriedOut(before, changed=False, lines=[*warnings, change, standing_lines(key, before)[0]])
    if made_elsewhere(before) is not None and not reason:
        raise CommandRefused("\n".join([*warnings, OTHER_GROUND]))
    written = await activate(
        connection,
        key=key,
        version=change.version,
        arms=change.arms,
        who=who,
        why=change.why,
        ground=before.ground,
        expected=before.last_id,
    )
    if written is None:
        raise CommandRefused(f"somebody changed {key} in this very moment; nothing was done: make prompts, then again")
    after = files.in_force(key, [written])
    said = [f"before: {key}: {given_words(before)}", f"now: {standing_lines(key, after)[0]}", _reach(files)]
    return CarriedOut(after, changed=True, lines=[*warnings, *said])


def _reach(files: Files) -> str:
    return (
        f"every process whose prompts are those of {files.path} follows within seconds; `make prompts` counts its calls"
    )


async def facts_of(connection: AsyncConnection, files: Files, prompt: PromptVersion) -> Facts:
    """What is known of a version's key, and of the trials of the version."""
    found, rows = await _standing(connection, files, prompt.key)
    return Facts(
        key=prompt.key,
        in_force=found,
        history=rows,
        replay=await finished_replay(connection, prompt),
        open_replay=await open_replay(connection, prompt),
        evaluation=await finished_evaluation(connection, prompt),
        open_evaluation=await open_evaluation(connection, prompt),
        rules_sha256=await asyncio.to_thread(_rules_now),
    )


def _rules_now() -> str | None:
    try:
        return hashlib.sha256(RULES_FILE.read_bytes()).hexdigest()
    except OSError:
        return None
