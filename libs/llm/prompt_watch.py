"""The prompts' file and its lock while they are in use: whether they changed, and the prompts they hold when they can
be used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from libs.llm.errors import LLMError
from libs.llm.registry import Registry

Mark: TypeAlias = tuple[int, int, int]
Marks: TypeAlias = tuple[Mark | None, Mark | None]


class PromptWatch:
    """Looks at both files by their time, size and inode. `trouble` is why they cannot be used, None where they can.

    `accept` raises `LLMError` for prompts that are good in themselves and cannot be used here.
    """

    def __init__(self, path: Path, lock_path: Path, *, accept: Callable[[Registry], None]) -> None:
        self._path, self._lock_path = path, lock_path
        self._accept = accept
        self._taken: Marks | None = None
        self._seen: Marks | None = None
        self._refused = False
        self.trouble: str | None = None

    def load(self) -> Registry:
        """Read them. Raises `PromptFileError` naming file, key, version and field, or what `accept` raises."""
        self._taken = self._seen = self._marks()
        registry = Registry.load(self._path, self._lock_path)
        self._accept(registry)
        return registry

    @property
    def settled(self) -> bool:
        """Whether the last look found the files as the look before it did."""
        return self._seen == self._taken

    def look(self) -> Registry | None:
        """The prompts of files that changed, else None.

        They are read once two looks in a row found them alike, and taken if they stayed so meanwhile: a file that is
        being written in place may be good YAML with half of its versions. Files that are missing or broken change
        nothing, and are read again with every look.
        """
        marks = self._marks()
        seen, self._seen = self._seen, marks
        if marks != seen or (marks == self._taken and not self._refused):
            return None
        try:
            registry = Registry.load_quietly(self._path, self._lock_path)
            self._accept(registry)
        except LLMError as error:
            if self._marks() == marks:
                self._taken, self._refused = marks, True
                self.trouble = f"{error}; the prompts read before still hold"
            return None
        if self._marks() != marks:
            return None
        self._taken, self._refused, self.trouble = marks, False, None
        return registry

    def _marks(self) -> Marks:
        return _mark(self._path), _mark(self._lock_path)


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
