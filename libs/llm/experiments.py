"""Which version of a prompt a unit is given: a pure function of the experiment, the prompt's key and the unit.

The point of a unit on [0, 1) is version 2 of GrowthBook's hash: FNV-1a (32 bit) over the UTF-16 code units of
`key + unit`, taken as decimal digits and hashed once more, modulo 10,000, over 10,000. The arms share [0, 1) in the
order they are written, each as wide as its weight, so widening the first arm never moves one of its units away.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeAlias, get_args
from uuid import UUID

from libs.llm.errors import ExperimentError
from libs.llm.types import Arm

UnitKind: TypeAlias = Literal["ticker", "ticker_day", "forecast"]
UNIT_KINDS: tuple[str, ...] = get_args(UnitKind)

_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193
_RESOLUTION = 10_000
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Unit:
    """What an arm is drawn for. `as_of` is market time; its UTC date is the day."""

    ticker: str
    as_of: datetime
    forecast_id: UUID | None = None

    def name(self, kind: UnitKind) -> str | None:
        """The text that is hashed, or None where the unit lacks what `kind` asks for."""
        if kind == "ticker":
            return self.ticker
        if kind == "ticker_day":
            return f"{self.ticker}|{self.as_of.astimezone(UTC).date().isoformat()}"
        return None if self.forecast_id is None else str(self.forecast_id)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms (version to weight, in order) and the unit that is drawn. Weights are of any scale; none is negative."""

    arms: tuple[tuple[str, float], ...]
    unit: UnitKind = "ticker_day"
    guardrails: Mapping[str, Any] | None = None


class Versions(Protocol):
    """What an experiment must know of the prompts."""

    def keys(self) -> tuple[str, ...]:
        """All prompt keys."""
        ...

    def versions(self, key: str) -> Mapping[str, object]:
        """The versions of a key, by number."""
        ...

    def active(self, key: str) -> Any:
        """The version given where no experiment runs; it has `.version`."""
        ...

    def experiment(self, key: str) -> Experiment | None:
        """The experiment the prompts' file asks for."""
        ...


def fnv1a32(text: str) -> int:
    """FNV-1a, 32 bit, over UTF-16 code units (the bytes themselves for ASCII)."""
    value = _FNV_OFFSET
    data = text.encode("utf-16-le", "surrogatepass")
    for low, high in zip(data[::2], data[1::2], strict=True):
        value = ((value ^ (low | high << 8)) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def point(seed: str, unit: str) -> float:
    """Where `unit` falls on [0, 1) in the experiment `seed`, in steps of 1/10,000."""
    return fnv1a32(str(fnv1a32(seed + unit))) % _RESOLUTION / _RESOLUTION


def pick(arms: tuple[tuple[str, float], ...], at: float) -> str:
    """The version whose share of [0, 1) holds `at`. Weights are normalised by their sum, which is positive."""
    total = math.fsum(weight for _, weight in arms)
    ends = accumulate(weight / total for _, weight in arms)
    for (version, weight), end in zip(arms, ends, strict=True):
        if weight > 0 and at < end:
            return version
    return next(version for version, weight in reversed(arms) if weight > 0)


def check_arms(arms: tuple[tuple[str, float], ...], *, where: str) -> None:
    """Refuse an arm named twice, a weight below 0 or not finite, and arms without any weight."""
    seen: set[str] = set()
    for version, weight in arms:
        if version in seen:
            raise ExperimentError(f"{where}: version {version} is named twice")
        if not math.isfinite(weight) or weight < 0:
            raise ExperimentError(f"{where}: the weight of version {version} must be a number of at least 0")
        seen.add(version)
    if not any(weight > 0 for _, weight in arms):
        raise ExperimentError(f"{where}: at least one arm needs a weight above 0")


def parse_buckets(text: str) -> dict[str, Experiment]:
    """Read `LLM_AB_BUCKETS`: `key:v1,v2;key2:v1` splits equally, `key:v1@90,v2@10` by weight.

    Raises `ExperimentError` naming the entry. Whether keys and versions exist is checked by `Experiments.build`.
    """
    found: dict[str, Experiment] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        key, colon, arms_text = (part.strip() for part in entry.partition(":"))
        where = f"LLM_AB_BUCKETS, entry {entry!r}"
        if not colon or not _KEY.fullmatch(key):
            raise ExperimentError(f"{where}: expected key:version,version")
        if key in found:
            raise ExperimentError(f"{where}: key {key} is given twice")
        arms = tuple(_parse_arm(arm.strip(), where=where) for arm in arms_text.split(","))
        weighted = [weight for _, weight in arms if weight is not None]
        if weighted and len(weighted) != len(arms):
            raise ExperimentError(f"{where}: give every version a weight or none")
        even = tuple((version, 1.0 if weight is None else weight) for version, weight in arms)
        check_arms(even, where=where)
        found[key] = Experiment(arms=even)
    return found


def _parse_arm(text: str, *, where: str) -> tuple[str, float | None]:
    version, at, weight = (part.strip() for part in text.partition("@"))
    if not _VERSION.fullmatch(version):
        raise ExperimentError(f"{where}: {version!r} is not a version")
    if not at:
        return version, None
    try:
        return version, float(weight)
    except ValueError:
        raise ExperimentError(f"{where}: the weight {weight!r} of version {version} is not a number") from None


class Experiments:
    """The arms in force for every key. Asking is pure: the same unit gets the same arm, whenever and wherever."""

    def __init__(self, versions: Versions, running: Mapping[str, Experiment]) -> None:
        self._versions = versions
        self._running = dict(running)

    @classmethod
    def build(cls, registry: Versions, ab_buckets: str = "") -> "Experiments":
        """Take each key's experiment from `ab_buckets`, else from the prompts' file.

        A bucket keeps the unit and the guardrails that the file gives the key. Raises `ExperimentError` naming a key
        or a version that does not exist.
        """
        keys = registry.keys()
        running = {key: found for key in keys if (found := registry.experiment(key)) is not None}
        for key, bucket in parse_buckets(ab_buckets).items():
            if key not in keys:
                raise ExperimentError(f"LLM_AB_BUCKETS: there is no prompt {key!r}")
            known = registry.versions(key)
            for version, _ in bucket.arms:
                if version not in known:
                    raise ExperimentError(
                        f"LLM_AB_BUCKETS: prompt {key!r} has no version {version!r}, only {', '.join(known)}"
                    )
            in_file = running.get(key)
            running[key] = bucket if in_file is None else Experiment(bucket.arms, in_file.unit, in_file.guardrails)
        return cls(registry, running)

    def running(self, key: str) -> Experiment | None:
        """The experiment in force for a key."""
        return self._running.get(key)

    def arm(self, key: str, unit: Unit | None) -> Arm:
        """The version `unit` is given.

        A unit that lacks what the experiment draws by (no unit at all, or no forecast id) takes the active version
        and stays outside the experiment: its arm has no name.
        """
        experiment = self._running.get(key)
        name = None if experiment is None or unit is None else unit.name(experiment.unit)
        if experiment is None or name is None:
            return Arm(version=self._versions.active(key).version)
        version = pick(experiment.arms, point(key, name))
        return Arm(version=version, name=version)
