"""`release`: a version's hash goes into the lock, and from then on its words are fixed."""

from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from libs.llm.commands.evidence import JUDGED_KEYS
from libs.llm.commands.lint import warnings_of
from libs.llm.commands.plans import evaluation_command
from libs.llm.errors import PromptFileError
from libs.llm.lock import add_release
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion


def release(options: Namespace) -> list[str]:
    """Release one version, or every draft, and say what comes next."""
    path: Path = options.file
    lock = path.with_suffix(".lock")
    registry = Registry.load_quietly(path) if lock.exists() else Registry.load_unlocked(path)
    if options.all == bool(options.key and options.version):
        raise PromptFileError("release: give a key and a version, or --all")
    chosen = list(registry.drafts()) if options.all else [registry.version(options.key, options.version)]
    return [line for prompt in chosen for line in _release_one(prompt, lock, registry)]


def _release_one(prompt: PromptVersion, lock: Path, registry: Registry) -> list[str]:
    if not add_release(lock, prompt, at=datetime.now(UTC)):
        return [f"{prompt.key} {prompt.version} {prompt.sha256} stands already in {lock}"]
    lines = [f"warning: {words}" for words in warnings_of(prompt, registry)]
    lines.append(f"{prompt.key} {prompt.version} {prompt.sha256} added to {lock}")
    if prompt.key in JUDGED_KEYS:
        lines.append(f"try it on stored decisions: make replay SINCE=… PROMPT={prompt.key} VERSION={prompt.version}")
        lines.append(f"judge it by thresholds: {evaluation_command(prompt)}")
    return lines
