"""The rules' names and `configs/rules.yaml`: read strictly, every mistake named."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from libs.strict_yaml import YamlError, read_yaml


class RulesError(Exception):
    """The rules file cannot be used; the message names the file and what in it."""


class Rule(StrEnum):
    """The rules by name, in the order in which their reasons are given."""

    NO_SIGNAL = "NO_SIGNAL"
    EARNINGS = "EARNINGS"
    DISPERSION = "DISPERSION"
    COVERAGE = "COVERAGE"
    LIQUIDITY = "LIQUIDITY"
    BORROW = "BORROW"
    MACRO = "MACRO"


class Strict(BaseModel):
    """A part of the rules file: no unknown names, no type juggling, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Thresholds(Strict):
    """The limits of the rules. Percent as percent, money in the quote currency, days as trading days."""

    min_expected_return_pct: Annotated[float, Field(ge=0)]
    earnings_days: Annotated[int, Field(ge=0)]
    max_factor_dispersion: Annotated[float, Field(ge=0)]
    min_coverage_pct: Annotated[float, Field(ge=0, le=100)]
    min_liquidity_usd: Annotated[float, Field(ge=0)]


class MaxAgeDays(Strict):
    """How many days a fact stays good after its `as_of`."""

    earnings_date: Annotated[float, Field(ge=0, le=10_000)]
    borrow: Annotated[float, Field(ge=0, le=10_000)]
    macro_regime: Annotated[float, Field(ge=0, le=10_000)]


Family: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")]


class RulesFile(Strict):
    """The whole of `configs/rules.yaml`."""

    thresholds: Thresholds
    max_age_days: MaxAgeDays
    off: dict[Family, list[Annotated[Rule, Field(strict=False)]]] = Field(default_factory=dict)


def read_rules_file(path: Path) -> RulesFile:
    """Read and check the file. Raises `RulesError` naming the file and the entry that is missing, unknown or wrong."""
    try:
        raw = read_yaml(path)
    except YamlError as error:
        raise RulesError(f"{path}: {error}") from error
    return check_rules(raw, origin=str(path))


def check_rules(raw: Any, *, origin: str) -> RulesFile:
    """Check what such a file holds; `origin` opens each line of a `RulesError`."""
    try:
        file = RulesFile.model_validate(raw)
    except ValidationError as error:
        lines = (f"{origin}: {entry_name(problem['loc'])}: {problem['msg']}" for problem in error.errors())
        raise RulesError("\n".join(lines)) from error
    for family, names in file.off.items():
        if Rule.NO_SIGNAL in names:
            raise RulesError(f"{origin}: off.{family}: NO_SIGNAL cannot be switched off")
    return file


def entry_name(place: tuple[int | str, ...]) -> str:
    """Where in the file a problem is: `thresholds.earnings_days`."""
    return ".".join(str(part) for part in place) or "the file"
