"""The plan of a run: which versions are asked about which cases, how often, in what order, and under which conditions.

An item is one question: a case, a version and a repeat. Items are numbered densely, so that a number alone says what is
asked, and a set of them is a few bytes. The plan is written before the first item is asked and never changed.
"""

import random
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson
from pydantic import TypeAdapter, ValidationError

MOST_ITEMS: Final = 50_000_000
"""A row of that many items is some 50 GB; a plan beyond it is a mistake."""


class PlanError(Exception):
    """A plan cannot be used; the message names the field, and the file where there is one."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """One version of a prompt with the content it had when the run was planned."""

    prompt: str
    version: str
    hash: str

    def __str__(self) -> str:
        return f"{self.prompt} {self.version}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where the cases came from: the file as it was given, its content's sha256, and how many cases it holds."""

    path: str
    sha256: str
    cases: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What answers cost: per million tokens in and out, and per hour of the machine, all in one currency."""

    in_per_mtok: float = 0.0
    out_per_mtok: float = 0.0
    per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that fixes a run. `cases` counts the lines of its cases file, twins included.

    `concurrency` None means all slots this process may use, `rate` None the closed loop; else it is arrivals per second
    of the open one. `stamp` says what ran: commit, model, server, packages. Raises `PlanError` where nothing would be
    asked.
    """

    name: str
    made_at: datetime
    seed: int
    repeat: int
    versions: tuple[Pinned, ...]
    cases: int
    cases_sha256: str
    dataset: Dataset
    concurrency: int | None
    rate: float | None
    cache: bool
    thresholds: tuple[str, ...]
    rules_sha256: str
    prices: Prices | None
    workers: int
    evaluation_id: UUID
    stamp: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        least = {"repeat": self.repeat, "cases": self.cases, "versions": len(self.versions)}
        if missing := [name for name, count in least.items() if count < 1]:
            raise PlanError(f"{missing[0]}: must be at least 1")
        if len(set(self.versions)) != len(self.versions):
            raise PlanError("versions: one of them is given twice")
        if self.items > MOST_ITEMS:
            raise PlanError(f"{self.items:,} items are too many, at most {MOST_ITEMS:,}; take fewer cases or repeats")

    @property
    def items(self) -> int:
        """How many questions there are."""
        return self.cases * len(self.versions) * self.repeat

    def item(self, number: int) -> tuple[int, Pinned, int]:
        """What an item asks: the index of its case, the version, the repeat (from 0). Raises `IndexError`."""
        if not 0 <= number < self.items:
            raise IndexError(f"there is no item {number}; there are {self.items}")
        rest, repeat = divmod(number, self.repeat)
        case, version = divmod(rest, len(self.versions))
        return case, self.versions[version], repeat

    def order(self) -> Iterator[int]:
        """All items, shuffled by the seed: a drift of the model over the run then meets all versions, repeats and
        cases alike. Four bytes per item.
        """
        numbers = array("I", range(self.items))
        random.Random(self.seed).shuffle(numbers)  # noqa: S311 - an order, not a secret
        return iter(numbers)

    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        return PLANS.dump_python(self, mode="json")


PLANS: Final = TypeAdapter(Plan)


def plan_from(document: Mapping[str, Any]) -> Plan:
    """The plan of a document. Raises `PlanError` naming the field; fields that it does not know are let pass."""
    try:
        return PLANS.validate_json(orjson.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises `PlanError` naming the file and what is wrong with it."""
    try:
        document: Any = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PlanError(f"{path} is missing: the run was never begun; delete the folder and run again") from error
    except (OSError, orjson.JSONDecodeError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from error
    try:
        return plan_from(document)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
