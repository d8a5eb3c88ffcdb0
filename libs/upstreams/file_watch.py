"""The file of upstreams while it is in use: whether it changed, and the entries it holds when it can be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from libs.upstreams.config import UpstreamConfigError, UpstreamEntry, load_entries
from libs.upstreams.settings import UpstreamSettings

Mark: TypeAlias = tuple[int, int, int]


class FileWatch:
    """Looks at the file by its time, size and inode. `settings` are those of the start: what the environment fills in
    stays as it was then. `trouble` is why the file cannot be used, None where it can.
    """

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._taken: Mark | None = None
        self._seen: Mark | None = None
        self._refused = False
        self.trouble: str | None = None

    def load(self) -> dict[str, UpstreamEntry]:
        """Read it. Raises `UpstreamConfigError` naming file, entry and field."""
        self._taken = self._seen = _mark(self._settings.upstreams_file)
        return load_entries(self._settings)

    @property
    def settled(self) -> bool:
        """Whether the last look found the file as the look before it did."""
        return self._seen == self._taken

    def look(self) -> Mapping[str, UpstreamEntry] | None:
        """The entries of a file that changed, else None.

        It is read once two looks in a row found it alike, and taken if it stayed so meanwhile: a file that is being
        written in place may be good YAML with half of its entries. One that is missing or broken changes nothing, and a
        broken one is read again with every look: what is wrong may lie beside it, such as a file that holds a key.
        """
        path = self._settings.upstreams_file
        mark = _mark(path)
        if mark is None:
            self._seen = self._taken = None
            self.trouble = f"{path}: it is gone; what it said last still holds"
            return None
        seen, self._seen = self._seen, mark
        if mark != seen or (mark == self._taken and not self._refused):
            return None
        try:
            entries = load_entries(self._settings)
        except UpstreamConfigError as error:
            if _mark(path) == mark:
                self._taken, self._refused = mark, True
                self.trouble = f"{error}; what it said before still holds"
            return None
        if _mark(path) != mark:
            return None
        self._taken, self._refused, self.trouble = mark, False, None
        return entries


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
