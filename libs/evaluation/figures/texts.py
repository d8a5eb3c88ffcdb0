"""What was said, kept small: few texts are shown in the end, and which is known only when all rows were seen."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from libs.evaluation.running.row import Row

BLOCK = 1 << 16
LONGEST = 4_000
"""Characters of a text that are kept; a longer one is cut and says so."""


@dataclass(frozen=True, slots=True)
class Said:
    """The reply as received, what was wrong with it, and the reasons of the decision in it."""

    text: str
    error: str | None
    reasons: tuple[str, ...]


NOTHING = Said("", None, ())


class Texts:
    """The texts of all rows by item, compressed in blocks: some tens of bytes each."""

    def __init__(self, items: int) -> None:
        self._blocks: list[bytes] = []
        self._open: list[bytes] = []
        self._size = 0
        self._block = np.full(items, -1, dtype=np.int32)
        self._place = np.zeros(items, dtype=np.int32)
        self._read: tuple[int, list[bytes]] = (-1, [])

    def keep(self, row: Row) -> None:
        """Keep what a row says."""
        line = orjson.dumps([cut(row.text), row.error, row.reasons])
        self._block[row.item], self._place[row.item] = len(self._blocks), len(self._open)
        self._open.append(line)
        self._size += len(line)
        if self._size >= BLOCK:
            self._blocks.append(zlib.compress(b"\n".join(self._open), 1))
            self._open, self._size = [], 0

    def of(self, item: int) -> Said:
        """What was said for an item; nothing where it has no row."""
        block = int(self._block[item])
        if block < 0:
            return NOTHING
        found: tuple[str, Any, list[str]] = orjson.loads(self._lines(block)[int(self._place[item])])
        return Said(found[0], found[1], tuple(found[2]))

    def _lines(self, block: int) -> list[bytes]:
        if block == len(self._blocks):
            return self._open
        if self._read[0] != block:
            self._read = (block, zlib.decompress(self._blocks[block]).split(b"\n"))
        return self._read[1]


def cut(text: str) -> str:
    """A text of at most `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (cut, {len(text)} characters)"
