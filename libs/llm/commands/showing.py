"""`check`, `lint` and `render`: what the files say, without a database."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from libs.llm.commands.lint import warnings_of, warnings_of_choices
from libs.llm.commands.refusal import CommandRefused
from libs.llm.errors import PromptFileError
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion, Rendered

RELEASE = "python -m libs.llm.registry release {} {}"


def check(options: Namespace) -> list[str]:
    """Fail unless every version is released and none was edited."""
    path: Path = options.file
    registry = Registry.load_quietly(path)
    drafts = [f"{path}, key {one.key}, version {one.version}: is not released" for one in registry.drafts()]
    if drafts:
        raise PromptFileError("\n".join([*drafts, f"release with: {RELEASE.format('KEY', 'VERSION')}"]))
    return [f"{path}: {sum(1 for _ in _all(registry))} versions, all as released"]


def lint(options: Namespace) -> list[str]:
    """What the files do wrong stops it; what they do oddly is listed.

    A released version cannot heed a warning any more, so unless asked for (by name, or `--all`) its own are counted
    only.
    """
    path: Path = options.file
    registry = Registry.load_quietly(path)
    asked = [prompt for prompt in _all(registry) if _is_asked(prompt, options)]
    if not asked:
        raise CommandRefused(f"{path} holds no prompt {options.key} {options.version or ''}".rstrip())
    lines: list[str] = []
    kept_back = 0
    for prompt in asked:
        found = warnings_of(prompt, registry)
        if prompt.released_at is None or options.all or options.key:
            lines += [f"{prompt.key} {prompt.version}: {words}" for words in found]
        else:
            kept_back += len(found)
    lines += [*warnings_of_choices(registry), *(_draft(prompt) for prompt in asked if prompt.released_at is None)]
    if kept_back:
        lines.append(f"{kept_back} more on released versions, which cannot change any more: lint --all shows them")
    return [*(f"warning: {line}" for line in lines), f"{path}: {len(asked)} versions can be used"]


def _is_asked(prompt: PromptVersion, options: Namespace) -> bool:
    return options.key in {None, prompt.key} and options.version in {None, prompt.version}


def _draft(prompt: PromptVersion) -> str:
    return f"{prompt.key} {prompt.version}: is a draft until {RELEASE.format(prompt.key, prompt.version)}"


def _all(registry: Registry) -> Iterator[PromptVersion]:
    keys = registry.keys()
    for key in keys:
        yield from registry.versions(key).values()


def render(options: Namespace) -> list[str]:
    """The messages of a version for the variables of a JSON file, or of stdin where it is called `-`."""
    registry = Registry.load_unlocked(options.file)
    rendered = registry.render(registry.version(options.key, options.version), read_inputs(options.inputs))
    return messages_of(rendered)


def messages_of(rendered: Rendered) -> list[str]:
    """The messages as lines, each under its role."""
    return [line for message in rendered.messages for line in (f"--- {message.role}", *message.content.splitlines())]


def read_inputs(name: str) -> dict[str, Any]:
    """The variables in a JSON file, or on stdin where `name` is `-`. Raises `PromptFileError`."""
    text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    try:
        inputs: Any = json.loads(text)
    except ValueError as error:
        raise PromptFileError(f"{name}: is not JSON: {error}") from error
    if not isinstance(inputs, dict):
        raise PromptFileError(f"{name}: expected a JSON object of variables")
    return cast("dict[str, Any]", inputs)
