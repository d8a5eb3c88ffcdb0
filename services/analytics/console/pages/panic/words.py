"""States and steps of a panic exit in words that can be read at night."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

STATES: Final[Mapping[str, tuple[str, str]]] = {
    "FLAT": ("good", "Flat: nothing is held and nothing is open, read twice, with entries stopped."),
    "PENDING_MARKET_OPEN": (
        "note",
        "Closing orders wait for the market to open. Entries are stopped. It is not flat yet.",
    ),
    "PARTIAL": ("bad", "NOT flat: not everything was reached. What is left is listed below."),
    "FAILED": ("bad", "NOT flat: nothing was reached. Call the broker, or run `make panic` on the machine."),
    "RUNNING": ("note", "Under way. It goes on whatever becomes of this page."),
    "DRY_RUN": ("note", "Only read: nothing was cancelled and nothing was closed."),
}
MOST_STEPS: Final = 60
LONGEST_RESULT: Final = 240


def state_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """Tone and words of an exit's state; one that is not known here is shown as it came."""
    state = str(answer.get("state"))
    tone, words = STATES.get(state, ("bad", f"State {state}."))
    return {"name": state, "tone": tone, "words": words}


def steps_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The newest steps, newest first: when, what, and what came of it."""
    steps: Sequence[Mapping[str, Any]] = record.get("steps") or ()
    return [
        {"at": str(step["at"])[11:23], "action": str(step["action"]).replace("_", " "), "result": brief(step["result"])}
        for step in reversed(steps[-MOST_STEPS:])
    ]


def brief(result: Any) -> str:
    """A step's result on a line."""
    if isinstance(result, Mapping):
        known: Mapping[str, Any] = result  # pyright: ignore[reportUnknownVariableType] - JSON
        words = ", ".join(f"{name} {value}" for name, value in known.items() if value not in (None, [], {}, ""))
    else:
        words = str(result)
    return words if len(words) <= LONGEST_RESULT else f"{words[:LONGEST_RESULT]}…"
