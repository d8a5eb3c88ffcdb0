"""How the work of an evaluation is cut: shards of cases that one worker asks together. Pure.

Of S shards, shard s holds every S-th case from s on, so that each is a fair mix of all cases. A case lies in one shard
with all its versions and repeats, which so meet the same worker in the same minutes.
"""

import gzip
import random
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from libs.evaluation.cases.case import EvalCase, case_from, document_of
from libs.evaluation.running.plan import Plan

MOST_ITEMS: Final = 256
"""How many items a shard has at most, save where one case has more: what a worker that dies holds up for a lease."""
LEAST_ITEMS: Final = 32
"""How many items are worth a shard: fewer do not keep a worker's slots busy."""
PER_WORKER: Final = 8
"""How many shards there should be for each worker, so that a slow one does not keep the others waiting at the end."""


class ShardError(Exception):
    """A shard cannot be used; the message says which and why."""


def count_of(plan: Plan, *, workers: int) -> int:
    """In how many shards to cut a plan for so many workers."""
    each = len(plan.versions) * plan.repeat
    fewest = -(-plan.cases // max(1, MOST_ITEMS // each))
    for_all = min(workers * PER_WORKER, -(-plan.items // LEAST_ITEMS))
    return min(plan.cases, max(fewest, for_all))


@dataclass(frozen=True, slots=True)
class Cut:
    """Shard number `shard` of `step` shards of a plan. Cases and items keep the numbers they have in the whole."""

    plan: Plan
    shard: int
    step: int

    @property
    def cases(self) -> range:
        """The places of its cases."""
        return range(self.shard, self.plan.cases, self.step)

    @property
    def items(self) -> Iterator[int]:
        """The numbers of its items."""
        each = len(self.plan.versions) * self.plan.repeat
        return (case * each + rest for case in self.cases for rest in range(each))

    def order(self) -> Iterator[int]:
        """Its items, shuffled by the plan's seed: within it, too, versions, repeats and cases are interleaved."""
        numbers = array("I", self.items)
        random.Random(f"{self.plan.seed}:{self.shard}").shuffle(numbers)  # noqa: S311 - an order, not a secret
        return iter(numbers)


class ShardCases:
    """The cases of one shard, from how they travel, by the places they have in the whole.

    Raises `ShardError` where they are not those of the cut.
    """

    def __init__(self, cut: Cut, packed: bytes) -> None:
        self._places = cut.cases
        try:
            self._documents = gzip.decompress(packed).splitlines()
        except (OSError, EOFError, zlib.error) as error:
            raise ShardError(f"shard {cut.shard}: its cases cannot be read: {error}") from error
        if len(self._documents) != len(self._places):
            raise ShardError(f"shard {cut.shard}: it holds {len(self._documents)} cases, not {len(self._places)}")

    def case(self, index: int) -> EvalCase:
        """One case. Raises `CaseError` where its JSON cannot be used."""
        document: Any = orjson.loads(self._documents[self._places.index(index)])
        return case_from(document)


def pack(cases: Iterable[EvalCase]) -> bytes:
    """Cases as they travel: gzipped JSON lines."""
    lines = b"".join(orjson.dumps(document_of(case), option=orjson.OPT_APPEND_NEWLINE) for case in cases)
    return gzip.compress(lines, compresslevel=5, mtime=0)
