"""`configs/llm_prompts.lock`: what was released never changes.

One line per released version, `key version sha256 released_at`, in the order of release; lines that start with # are
comments. Lines are added by `python -m libs.llm.registry release` and never changed.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from libs.llm.errors import PromptFileError
from libs.llm.prompt_file import PromptKey
from libs.llm.types import PromptVersion

HEADER = "# Released prompt versions: key version sha256 released_at. Written by `python -m libs.llm.registry release`."
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?")
_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Released:
    """One line of the lock."""

    key: str
    version: str
    sha256: str
    released_at: datetime


def read_lock(path: Path) -> dict[tuple[str, str], Released]:
    """The released versions. Raises `PromptFileError` where the file is missing or a line cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(
            f"{path}: the lock cannot be read: {error}; `python -m libs.llm.registry release --all` writes one"
        ) from error
    found: dict[tuple[str, str], Released] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _read_line(line, f"{path}, line {number}")
        if (entry.key, entry.version) in found:
            raise PromptFileError(f"{path}, line {number}: key {entry.key}, version {entry.version} stands twice")
        found[entry.key, entry.version] = entry
    return found


def _read_line(line: str, where: str) -> Released:
    parts = line.split()
    if len(parts) != _FIELDS or not _SHA256.fullmatch(parts[2]):
        raise PromptFileError(f"{where}: expected `key version sha256 released_at`")
    try:
        released_at = datetime.fromisoformat(parts[3])
    except ValueError as error:
        raise PromptFileError(f"{where}: {parts[3]!r} is not a time") from error
    if released_at.tzinfo is None:
        raise PromptFileError(f"{where}: {parts[3]!r} lacks its time zone")
    return Released(parts[0], parts[1], parts[2], released_at)


def broken_promises(
    prompts: Mapping[str, PromptKey], lock: Mapping[tuple[str, str], Released], *, file: Path
) -> Iterable[str]:
    """One sentence per released version that was edited or has vanished."""
    for (key, version), released in lock.items():
        entry = prompts.get(key)
        current = None if entry is None else entry.versions.get(version)
        if entry is None or current is None:
            yield f"{file}, key {key}, version {version}: was released and has vanished; put it back"
        elif current.sha256 != released.sha256:
            yield (
                f"{file}, key {key}, version {version}: was edited after its release "
                f"(sha256 {current.sha256[:12]}, released as {released.sha256[:12]}). A released version never "
                f"changes: put it back (git diff {file} shows the edit; comments and layout are free) and make the "
                f'change under a new version, such as "{_next_number(entry.versions)}"'
            )


def _next_number(versions: Iterable[str]) -> str:
    """A number that none of the versions has: the middle part of the highest, plus one."""
    numbers = [match for version in versions if (match := _NUMBER.fullmatch(version))]
    highest = max(((int(found[1]), int(found[2])) for found in numbers), default=(1, -1))
    return f"{highest[0]}.{highest[1] + 1}.0"


def add_release(path: Path, prompt: PromptVersion, *, at: datetime) -> bool:
    """Add a version's hash; True if it was new, False if it stood there already with the same hash.

    Raises `PromptFileError` if it was released with other content. The file is replaced in one move.
    """
    lock = read_lock(path) if path.exists() else {}
    known = lock.get((prompt.key, prompt.version))
    if known is not None:
        if known.sha256 != prompt.sha256:
            raise PromptFileError(
                f"{path}: key {prompt.key}, version {prompt.version} was released with other content; "
                "a released version never changes, choose a new number"
            )
        return False
    path = path.resolve()
    before = path.read_text(encoding="utf-8") if path.exists() else f"{HEADER}\n"
    if not before.endswith("\n"):
        before += "\n"
    line = f"{prompt.key} {prompt.version} {prompt.sha256} {at.isoformat(timespec='seconds')}\n"
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    waiting.write_text(before + line, encoding="utf-8")
    if path.exists():
        shutil.copymode(path, waiting)
    waiting.replace(path)
    return True
