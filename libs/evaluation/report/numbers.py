"""Numbers as people read them, never rounded to a claim: a rate short of all is not shown as 100 %."""

from collections.abc import Mapping
from math import floor, isfinite
from typing import Any, Final, TypeAlias

Figure: TypeAlias = Mapping[str, Any]
"""`value`, `low`, `high`, `n` and `unit`, as in `summary.json`."""

NOTHING: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
_PERCENT: Final = {"rate", "return", "points", "low"}
_SIGNED: Final = {"return", "points"}
_SUFFIX: Final = {"ms": " ms", "usd": " USD", "s": " s"}


def number(value: float | None, unit: str = "count") -> str:
    """A number with its unit: `98.3 %`, `1,240 ms`, `0.00042 USD`; a dash where there is none.

    Units are those of figures, and `low` for the end of a rate that is judged: cut, not rounded, so that what is missed
    does not read as reached; `points` for a signed difference of rates, `p` for a probability under chance, `s`,
    `exact` for a number as it was typed, and `count`.
    """
    if value is None or not isfinite(value):
        return NOTHING
    return (_in_percent(value, unit) if unit in _PERCENT else _plain(value, unit)).replace("-", MINUS)


def interval(figure: Figure, *, unit: str | None = None) -> str:
    """`96.1 to 99.3 %`, or nothing where there is no interval."""
    low, high, unit = figure.get("low"), figure.get("high"), unit or str(figure.get("unit", "count"))
    if low is None or high is None:
        return ""
    return f"{without_unit(number(low, unit))} to {number(high, unit)}"


def without_unit(shown: str) -> str:
    """`98.3` of `98.3 %`; bounds such as `> 99.999 %` keep theirs."""
    return shown if shown[:1] in {"<", ">"} else shown.partition(" ")[0]


def with_interval(figure: Figure | None, *, unit: str | None = None) -> str:
    """`98.3 % (96.1 to 99.3 %)`."""
    if figure is None:
        return NOTHING
    ends = interval(figure, unit=unit)
    ends = ends.removesuffix(" percentage points") if unit == "points" else ends
    return f"{number(figure.get('value'), unit or figure.get('unit', 'count'))}{f' ({ends})' if ends else ''}"


def _in_percent(value: float, unit: str) -> str:
    """With one digit after the point (a return two), or as many more as keep a rate beside 0 or 1 apart from them."""
    percent, sign = 100 * value, "+" if unit in _SIGNED and value else ""
    suffix = " percentage points" if unit == "points" else " %"
    if unit == "low":
        return f"{floor(10 * percent + 1e-9) / 10:.1f}{suffix}"
    shown = ""
    for digits in range(2 if unit == "return" else 1, 4):
        shown = f"{percent:{sign}.{digits}f}"
        if percent in (0.0, 100.0) or float(shown) not in (0.0, 100.0):
            return f"{shown}{suffix}"
    if unit in _SIGNED:
        return f"{shown}{suffix}"
    return f"< 0.001{suffix}" if percent < 50 else f"> 99.999{suffix}"


def _plain(value: float, unit: str) -> str:
    if unit == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if unit == "exact":
        return f"{value:.15g}"
    if unit == "score":
        return f"{value:.3f}"
    if unit == "count" and float(value).is_integer():
        return f"{value:,.0f}"
    return f"{_digits(value)}{_SUFFIX.get(unit, '')}"


def _digits(value: float) -> str:
    """With three digits that tell, and no exponent."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 0.1:
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return f"{value:.3g}" if size >= 1e-4 else f"{value:.9f}".rstrip("0").rstrip(".")
