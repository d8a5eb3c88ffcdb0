"""A file for each entry of which nobody knows yet what became of it, so that it is known when its process is gone.

Standard library only, for a panic exit reads them.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from libs.trading.durable import sync_folder, write_synced

MAY_STILL_ARRIVE_S = 60.0
"""How long a broker may take to work on a request that nobody waits for any more. Older marks tell nothing."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry that may reach the broker, or may have. `name` is its id there, empty where that cannot be read."""

    order_id: str
    name: str
    at: datetime


class Marks:
    """`<state>/entries`, one file for each entry, named by its order id."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "entries"

    def put(self, order_id: UUID, name: str) -> None:
        """Mark an entry before it is sent, on the disk when this returns. Raises `OSError`."""
        try:
            self._folder.mkdir()
        except FileExistsError:
            pass
        else:
            sync_folder(self._folder.parent)
        write_synced(self._folder / str(order_id), name.encode("ascii"), replace=True)
        sync_folder(self._folder)

    def remove(self, order_id: UUID) -> None:
        """What became of it is known. A mark that cannot be removed tells nothing any more when it is old."""
        with suppress(OSError):
            (self._folder / str(order_id)).unlink(missing_ok=True)

    def all(self) -> list[Mark]:
        """Every mark, of any age. Raises `OSError`."""
        found: list[Mark] = []
        for path in self._files():
            with suppress(FileNotFoundError):
                at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                found.append(Mark(path.name, path.read_text(encoding="ascii", errors="replace").strip(), at))
        return found

    def tidy(self, now: datetime) -> None:
        """Take away the marks that are too old to tell anything."""
        with suppress(OSError):
            for mark in self.all():
                if now - mark.at >= timedelta(seconds=MAY_STILL_ARRIVE_S):
                    (self._folder / mark.order_id).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        try:
            return list(self._folder.iterdir())
        except FileNotFoundError:
            return []
