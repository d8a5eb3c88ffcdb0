"""Numbers on their way into JSON: at most 15 significant digits, so that every reader gets back what was meant."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import PlainSerializer

SIGNIFICANT_DIGITS = 15
LARGEST = 1.79769313486231e308  # of 15 digits; the largest double itself rounds up to infinity


def json_number(value: float | None) -> float | None:
    """The number with at most 15 significant digits; None where it is not finite, which JSON cannot say."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return rounded if math.isfinite(rounded) else math.copysign(LARGEST, value)


def json_value(value: Any) -> Any:
    """Any decoded JSON value with its numbers so rounded."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Mapping):
        items: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return {name: json_value(item) for name, item in items.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        elements: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return [json_value(item) for item in elements]
    return value


Number = Annotated[float, PlainSerializer(json_number, when_used="json-unless-none")]
"""A float field of an answer."""

JsonValue = Annotated[Any, PlainSerializer(json_value, when_used="json")]
"""A field of an answer that holds stored JSON of any shape."""
