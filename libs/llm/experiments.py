"""Which version of a prompt a unit is given: a pure function of the experiment, the prompt's key and the unit.

It costs a few microseconds, so that it can be asked for every forecast and every call.

The point of a unit on [0, 1) is version 2 of GrowthBook's hash: FNV-1a (32 bit) over the UTF-16 code units of
`key + unit`, taken as decimal digits and hashed once more, modulo 10,000, over 10,000. The arms share [0, 1) in the
order they are written, each as wide as its weight, so widening the first arm never moves one of its units away.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args
from uuid import UUID

from libs.llm.errors import ExperimentError, UnknownPrompt
from libs.llm.types import Arm

UnitKind: TypeAlias = Literal["ticker", "ticker_day", "forecast"]
UNIT_KINDS: tuple[str, ...] = get_args(UnitKind)

GUARDRAILS: Final[Mapping[str, float | None]] = {
    "invalid_rate": 0.05,
    "timeout_rate": 0.10,
    "p95_latency_ms": None,
    "deny_to_allow": 0.20,
}
"""What takes a candidate back by itself, with the bound where an experiment sets none; None where it is off."""

METRICS: Final[Mapping[str, float]] = {
    "validity": 0.01,
    "latency": 100.0,
    "tokens": 20.0,
    "deny_rate": 0.02,
    "agreement": 0.02,
    "brier": 0.01,
    "return_allowed": 0.001,
    "return_blocked": 0.001,
}
"""What arms are compared by, with the smallest difference worth having: a rate, milliseconds (`latency`), a count
(`tokens`), a mean square (`brier`), or a return as a fraction."""

_FNV_OFFSET = 0x811C9DC5
_RESOLUTION = 10_000
_MILLION = 1_000_000
_HUGE = 1e15
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
        parts = self.parts(kind)
        return None if parts is None else parts[0] + parts[1]

    def parts(self, kind: UnitKind) -> tuple[str, str] | None:
        """The same in two: what many units begin with, and the rest."""
        if kind == "ticker_day":
            as_of = self.as_of if self.as_of.tzinfo is UTC else self.as_of.astimezone(UTC)
            return f"{self.ticker}|", as_of.date().isoformat()
        if kind == "ticker":
            return self.ticker, ""
        return None if self.forecast_id is None else ("", str(self.forecast_id))


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms (version to weight, in order) and the unit that is drawn. Weights are of any scale; none is negative.

    `guardrails` and `metrics` are as the file says them, or None; in an experiment in force they are whole, see
    `bounds_of` and `worths_of`. `phase` names the stretch of time with these arms, weights and unit; `control` is the
    arm that others are held against. Both are empty until the experiment is in force.
    """

    arms: tuple[tuple[str, float], ...]
    unit: UnitKind = "ticker_day"
    guardrails: Mapping[str, float | None] | None = None
    metrics: Mapping[str, float] | None = None
    phase: str = ""
    control: str = ""


class Assignment(NamedTuple):
    """What one unit was given. `unit` is the text it is drawn by, such as `AAPL|2013-01-02`."""

    key: str
    unit: str
    arm: str
    phase: str


def bounds_of(guardrails: Mapping[str, float | None] | None) -> dict[str, float | None]:
    """Every guardrail with its bound, None where it is off; what is not said is as in `GUARDRAILS`."""
    return {**GUARDRAILS, **(guardrails or {})}


def worths_of(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """The metrics to compare by, each with the smallest difference worth having: those that are named, else all."""
    return dict(metrics or METRICS)


def bound_problem(name: str, value: Any) -> str | None:
    """Why `value` cannot be the bound of the guardrail `name`, or None. A null turns it off."""
    if value is None:
        return None
    if name.endswith("_ms"):
        return None if _is_number(value) and value > 0 else f"{value!r} is not a number of milliseconds, nor null"
    return None if _is_number(value) and 0 <= value <= 1 else f"{value!r} is not a share between 0 and 1, nor null"


def worth_problem(_name: str, value: Any) -> str | None:
    """Why `value` cannot be the smallest difference worth having, or None."""
    return None if _is_number(value) and value > 0 else f"{value!r} is not a number above 0"


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < _HUGE


def fnv1a32(text: str, value: int = _FNV_OFFSET) -> int:
    """FNV-1a, 32 bit, over UTF-16 code units (the bytes themselves for ASCII), going on from the hash `value`."""
    for unit in text.encode() if text.isascii() else _code_units(text):
        value = (value ^ unit) * 0x01000193 & 0xFFFFFFFF
    return value


def _code_units(text: str) -> Iterable[int]:
    data = text.encode("utf-16-le", "surrogatepass")
    return (low | high << 8 for low, high in zip(data[::2], data[1::2], strict=True))


_LEADING = [fnv1a32(str(leading)) for leading in range(0xFFFFFFFF // _MILLION + 1)]
"""The hashes of everything that stands before the last six digits of a number of 32 bit."""


def fnv1a32_of_digits(number: int) -> int:
    """`fnv1a32(str(number))` of a number of 32 bit, going on from the hash of its leading digits."""
    leading, rest = divmod(number, _MILLION)
    if not leading:
        return fnv1a32(str(number))
    value = _LEADING[leading]
    for digit in b"%06d" % rest:
        value = (value ^ digit) * 0x01000193 & 0xFFFFFFFF
    return value


def point(seed: str, unit: str) -> float:
    """Where `unit` falls on [0, 1) in the experiment `seed`, in steps of 1/10,000."""
    return fnv1a32_of_digits(fnv1a32(seed + unit)) % _RESOLUTION / _RESOLUTION


def pick(arms: tuple[tuple[str, float], ...], at: float) -> str:
    """The version whose share of [0, 1) holds `at`. Weights are normalised by their sum, which is positive."""
    return _pick(_shares(arms), at)


def _shares(arms: tuple[tuple[str, float], ...]) -> tuple[tuple[float, str], ...]:
    """Where the share of each version with a weight ends; the last one's never does, whatever the rounding."""
    total = math.fsum(weight for _, weight in arms)
    ends = accumulate(weight / total for _, weight in arms)
    shares = [(end, version) for (version, weight), end in zip(arms, ends, strict=True) if weight > 0]
    return (*shares[:-1], (math.inf, shares[-1][1]))


def _pick(shares: tuple[tuple[float, str], ...], at: float) -> str:
    for end, version in shares:
        if at < end:
            return version
    raise ValueError(f"{at} is not on [0, 1)")


def check_arms(arms: tuple[tuple[str, float], ...], *, where: str) -> None:
    """Refuse an arm named twice, a weight below 0 or beyond reason, and arms without any weight."""
    seen: set[str] = set()
    for version, weight in arms:
        if version in seen:
            raise ExperimentError(f"{where}: version {version} is named twice")
        if not 0 <= weight < _HUGE:
            raise ExperimentError(f"{where}: the weight of version {version} must be a number from 0 to {_HUGE:g}")
        seen.add(version)
    if not any(weight > 0 for _, weight in arms):
        raise ExperimentError(f"{where}: at least one arm needs a weight above 0")


def parse_buckets(text: str) -> dict[str, Experiment]:
    """Read `LLM_AB_BUCKETS`: `key:v1,v2;key2:v1` splits equally, `key:v1@90,v2@10` by weight.

    Raises `ExperimentError` naming the entry. Whether keys and versions exist is checked by `in_force.check_buckets`.
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


class _Draw:
    """All that drawing an arm needs, made ready once, and the hashes of what units begin with: tickers, mostly."""

    __slots__ = ("begun", "experiment", "phase", "seeded", "shares", "unit")

    def __init__(self, key: str, experiment: Experiment) -> None:
        self.experiment = experiment
        self.unit: UnitKind = experiment.unit
        self.phase = experiment.phase
        self.seeded = fnv1a32(key)
        self.shares = _shares(experiment.arms)
        self.begun: dict[str, int] = {}

    def arm(self, beginning: str, rest: str) -> str:
        """`pick` at the `point` of the unit: FNV-1a of a text goes on from the hash of its beginning."""
        begun = self.begun.get(beginning)
        if begun is None:
            begun = self.begun[beginning] = fnv1a32(beginning, self.seeded)
        return _pick(self.shares, fnv1a32_of_digits(fnv1a32(rest, begun)) % _RESOLUTION / _RESOLUTION)


class Experiments:
    """The arms in force for every key. Asking is pure: the same unit gets the same arm, whenever and wherever."""

    def __init__(self, active: Mapping[str, str], running: Mapping[str, Experiment]) -> None:
        """`active` is the version of each key where no experiment runs, `running` the experiments by key."""
        self._active = dict(active)
        self._draws = {key: _Draw(key, experiment) for key, experiment in running.items()}

    def running(self, key: str) -> Experiment | None:
        """The experiment in force for a key."""
        draw = self._draws.get(key)
        return None if draw is None else draw.experiment

    def assign(self, key: str, unit: Unit) -> Assignment | None:
        """What `unit` is given; None where no experiment runs or the unit lacks what it draws by."""
        draw = self._draws.get(key)
        if draw is None:
            return None
        parts = unit.parts(draw.unit)
        if parts is None:
            return None
        beginning, rest = parts
        return Assignment(key, beginning + rest, draw.arm(beginning, rest), draw.phase)

    def arm(self, key: str, unit: Unit | None) -> Arm:
        """The version `unit` is given. Raises `UnknownPrompt`.

        A unit that lacks what the experiment draws by (no unit at all, or no forecast id) takes the active version
        and stays outside the experiment: its arm has no name.
        """
        given = None if unit is None else self.assign(key, unit)
        if given is not None:
            return Arm(version=given.arm, name=given.arm)
        active = self._active.get(key)
        if active is None:
            raise UnknownPrompt(f"there is no prompt {key!r}")
        return Arm(version=active)
