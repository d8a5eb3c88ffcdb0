"""What the contract says of Phi-3's object, without any schema."""

import math
from typing import Any

MEMBERS = {"ticker", "action", "side", "new_stop_pct", "new_target_pct", "confidence", "rationale"}
REQUIRED = {"ticker", "action", "confidence", "rationale"}


def is_number(value: Any) -> bool:
    """A JSON number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def by_the_contract(found: Any) -> bool:
    """The contract's sentence, read without any schema."""
    if not isinstance(found, dict):
        return False
    given: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType] - from JSON
    percents = (given[name] for name in ("new_stop_pct", "new_target_pct") if name in given)
    return (
        set(given) >= REQUIRED
        and set(given) <= MEMBERS
        and isinstance(given["ticker"], str)
        and given["action"] in ("adjust", "pass", "abort")
        and given.get("side", "LONG") in ("LONG", "SHORT")
        and all(value is None or is_number(value) for value in percents)
        and is_number(given["confidence"])
        and 0 <= given["confidence"] <= 1
        and isinstance(given["rationale"], str)
    )
