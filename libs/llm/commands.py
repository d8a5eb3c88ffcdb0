"""The prompts' tool: `python -m libs.llm.registry check | list | render | release | diff`."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from libs.llm.errors import LLMError, PromptFileError
from libs.llm.lock import add_release
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion

DEFAULT_FILE = "configs/llm_prompts.yaml"


def main(arguments: Sequence[str]) -> int:
    """Run one command. 0 when all is well, 1 with one line per fault on stderr."""
    options = _parser().parse_args(arguments)
    path: Path = options.file
    try:
        for line in options.run(options, path):
            sys.stdout.write(f"{line}\n")
    except (LLMError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.llm.registry", description="Prompts and their lock.")
    parser.add_argument("--file", type=Path, default=Path(os.environ.get("PROMPTS_FILE") or DEFAULT_FILE))
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="fail unless every version is released and none was edited")
    check.set_defaults(run=_check)
    listing = commands.add_parser("list", help="every version with its hash; * marks the active one")
    listing.set_defaults(run=_list)
    render = commands.add_parser("render", help="the messages of a version for inputs from a JSON file (- for stdin)")
    render.add_argument("key")
    render.add_argument("version")
    render.add_argument("inputs")
    render.set_defaults(run=_render)
    release = commands.add_parser("release", help="add a version's hash to the lock; it never changes after that")
    release.add_argument("key", nargs="?")
    release.add_argument("version", nargs="?")
    release.add_argument("--all", action="store_true", help="every draft at once")
    release.set_defaults(run=_release)
    diff = commands.add_parser("diff", help="what differs between two versions")
    diff.add_argument("key")
    diff.add_argument("old")
    diff.add_argument("new")
    diff.set_defaults(run=_diff)
    return parser


def _check(_: argparse.Namespace, path: Path) -> list[str]:
    registry = Registry.load_quietly(path)
    drafts = [f"{path}, key {one.key}, version {one.version}: is not released" for one in registry.drafts()]
    if drafts:
        raise PromptFileError("\n".join([*drafts, "release with: python -m libs.llm.registry release KEY VERSION"]))
    keys = registry.keys()
    count = sum(len(registry.versions(key)) for key in keys)
    return [f"{path}: {count} versions, all as released"]


def _list(_: argparse.Namespace, path: Path) -> list[str]:
    registry = Registry.load_quietly(path)
    lines: list[str] = []
    keys = registry.keys()
    for key in keys:
        active = registry.active(key).version
        for number, prompt in registry.versions(key).items():
            state = "draft" if prompt.released_at is None else f"released {prompt.released_at.isoformat()}"
            lines.append(f"{'*' if number == active else ' '} {key} {number} {prompt.sha256[:12]} {state}")
    return lines


def _render(options: argparse.Namespace, path: Path) -> list[str]:
    registry = Registry.load_unlocked(path)
    text = sys.stdin.read() if options.inputs == "-" else Path(options.inputs).read_text(encoding="utf-8")
    inputs: Any = json.loads(text)
    if not isinstance(inputs, dict):
        raise PromptFileError(f"{options.inputs}: expected a JSON object of variables")
    rendered = registry.render(registry.version(options.key, options.version), inputs)  # pyright: ignore[reportUnknownArgumentType]
    return [f"--- {message.role}\n{message.content}" for message in rendered.messages]


def _release(options: argparse.Namespace, path: Path) -> list[str]:
    registry = Registry.load_unlocked(path)
    if options.all == bool(options.key and options.version):
        raise PromptFileError("release: give a key and a version, or --all")
    chosen = list(registry.drafts()) if options.all else [registry.version(options.key, options.version)]
    return [_release_one(prompt, path.with_suffix(".lock")) for prompt in chosen]


def _release_one(prompt: PromptVersion, lock: Path) -> str:
    added = add_release(lock, prompt, at=datetime.now(UTC))
    return f"{prompt.key} {prompt.version} {prompt.sha256} {'added to' if added else 'stands already in'} {lock}"


def _diff(options: argparse.Namespace, path: Path) -> list[str]:
    registry = Registry.load_unlocked(path)
    old, new = (_as_text(registry.version(options.key, number)) for number in (options.old, options.new))
    lines = difflib.unified_diff(old, new, f"{options.key} {options.old}", f"{options.key} {options.new}", lineterm="")
    return list(lines) or ["no difference"]


def _as_text(prompt: PromptVersion) -> list[str]:
    constraint = prompt.constraint
    output: Any = None
    if constraint is not None:
        output = {"choice": list(constraint.choice)} if constraint.choice else constraint.schema
    sampling = {name: getattr(prompt.sampling, name) for name in sorted(prompt.sampling_fields)}
    data = {"inputs": prompt.inputs_schema, "output": output, "sampling": sampling}
    return [
        "system:",
        *prompt.system.splitlines(),
        "user_template:",
        *prompt.user_template.splitlines(),
        *yaml.safe_dump(data, sort_keys=True, allow_unicode=True).splitlines(),
    ]
