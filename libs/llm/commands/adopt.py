"""`adopt`: what is active is written back into the YAML, for a commit; comments and layout stay."""

import asyncio
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.llm.activations import activate, latest
from libs.llm.commands.refusal import CommandRefused
from libs.llm.commands.standing import Files, arms_words, read_files, standing_lines
from libs.llm.commands.turning import open_transaction, operator_of
from libs.llm.commands.yaml_spans import SpanError, in_braces, rewritten
from libs.llm.errors import LLMError
from libs.llm.in_force import Activation, Arms, Ground, InForce
from libs.llm.registry import Registry


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in force for the keys that are adopted, and all activations that were looked at."""

    wanted: Mapping[str, InForce]
    activations: Mapping[str, Sequence[Activation]]


@dataclass(frozen=True, slots=True)
class Woken:
    """An older activation that would rule on the ground of the new file."""

    key: str
    activation: Activation
    ground: Ground


def adopt(options: Namespace) -> list[str]:
    """Write what is in force for a key, or for all, into the file. The lock and every version stay as they are.

    The new file is read and compared before it replaces the old one. Raises `CommandRefused` where it would not say
    what is in force; the file is untouched then. Where it comes to say what it said when an older activation was made,
    that one would rule again: what is in force is then appended on this ground too, where nothing runs as yet.
    """
    files = read_files(options)
    keys = [options.key] if options.key else list(files.registry.keys())
    activations = asyncio.run(_latest())
    wanted = {key: files.in_force(key, activations.get(key, ())) for key in keys}
    lines: list[str] = []
    text = before = files.path.read_bytes().decode()
    for key, found in wanted.items():
        lines += standing_lines(key, found)[1:]
        if found.source == "file":
            continue
        written = _rewritten(text, key, found)
        lines += _done(files, key, found) if written != text else []
        text = written
    if text == before:
        return [*lines, f"{files.path} says what is in force: nothing to write"]
    lines += _replace(options, files, text, Standing(wanted, activations))
    return [*lines, f"{files.path} is written; look at it with git diff, and commit it"]


async def _latest() -> dict[str, tuple[Activation, ...]]:
    async with open_transaction() as connection:
        return await latest(connection)


def _rewritten(text: str, key: str, found: InForce) -> str:
    try:
        return rewritten(text, key, version=found.version, arms=_arms(found))
    except SpanError as error:
        raise CommandRefused(f"{key} is not written: {error}. {_by_hand(key, found)}") from error


def _arms(found: InForce) -> Arms:
    return () if found.experiment is None else found.experiment.arms


def _by_hand(key: str, found: InForce) -> str:
    arms = "no experiment" if found.experiment is None else f"experiment: {{arms: {in_braces(found.experiment.arms)}}}"
    return f'Write it by hand: {key} has version: "{found.version}" and {arms}'


def _done(files: Files, key: str, found: InForce) -> list[str]:
    in_file = files.registry.experiment(key)
    lines = [f"adopted: {standing_lines(key, found)[0]}"]
    if found.experiment is None and in_file is not None:
        lines.append(f"{key}: the experiment {arms_words(in_file.arms)} is taken out, with its guardrails and metrics")
    if found.experiment is not None:
        lines.append(f"{key}: once deployed, the file's experiment counts as a new phase, from zero")
    if found.source == "activation" and found.activation is not None:
        lines.append(
            f"{key}: a revert of this change brings activation {found.activation.id} back; to go back, use rollback"
        )
    return lines


def _replace(options: Namespace, files: Files, text: str, standing: Standing) -> list[str]:
    path = files.path.resolve()
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        waiting.write_bytes(text.encode())
        shutil.copymode(path, waiting)
        woken = _compare(files, waiting, standing)
        if woken:
            asyncio.run(_keep(woken, standing, who=operator_of(options)))
        waiting.replace(path)
    finally:
        waiting.unlink(missing_ok=True)
    return [
        f"{one.key}: the file says again what it said at activation {one.activation.id}, which would rule again: what "
        "is in force was appended on this ground too"
        for one in woken
    ]


def _compare(files: Files, written: Path, standing: Standing) -> list[Woken]:
    """Read the new file as a service would. Everything but what is wanted must be as it was."""
    try:
        registry = Registry.load_quietly(written, files.path.with_suffix(".lock"))
    except LLMError as error:
        raise CommandRefused(f"{files.path} is not written, since it could not be read afterwards: {error}") from error
    new = Files(path=written, registry=registry, buckets=files.buckets)
    keys = files.registry.keys()
    woken: list[Woken] = []
    if registry.keys() != keys:
        raise CommandRefused(f"{files.path} is not written: its keys would change")
    for key in keys:
        if _hashes(registry, key) != _hashes(files.registry, key):
            raise CommandRefused(f"{files.path} is not written: a version of {key} would change")
        rows = standing.activations.get(key, ())
        before = standing.wanted.get(key) or files.in_force(key, rows)
        after = new.in_force(key, rows)
        if _meant(new.in_force(key)) != _meant(before) and _meant(after) != _meant(before):
            raise CommandRefused(_why_not(files, key, before))
        if after.activation is not None and _meant(after) != _meant(before):
            woken.append(Woken(key, after.activation, after.ground))
    return woken


async def _keep(woken: Sequence[Woken], standing: Standing, *, who: str) -> None:
    """Append what is in force on the ground of the new file, where an older activation on it would rule again."""
    async with open_transaction() as connection:
        for one in woken:
            before = standing.wanted[one.key]
            written = await activate(
                connection,
                key=one.key,
                version=before.version,
                arms=_arms(before),
                who=who,
                why=f"adopted, instead of activation {one.activation.id}",
                ground=one.ground,
                expected=before.last_id,
            )
            if written is None:
                raise CommandRefused(
                    f"somebody changed {one.key} in this very moment; nothing was written: adopt again"
                )


def _hashes(registry: Registry, key: str) -> list[tuple[str, str]]:
    return [(prompt.version, prompt.sha256) for prompt in registry.versions(key).values()]


def _meant(found: InForce) -> tuple[object, ...]:
    """What an adoption keeps; phase and control follow from it."""
    experiment = found.experiment
    if experiment is None:
        return (found.version,)
    return (found.version, experiment.arms, experiment.unit, experiment.guardrails, experiment.metrics)


def _why_not(files: Files, key: str, found: InForce) -> str:
    if key in files.buckets:
        return (
            f"{files.path} is not written: LLM_AB_BUCKETS has an entry for {key}, which would win over the file. "
            f"{_by_hand(key, found)}, and take {key} out of LLM_AB_BUCKETS in the same deployment"
        )
    return f"{files.path} is not written: it would not give {key} what is in force. {_by_hand(key, found)}"
