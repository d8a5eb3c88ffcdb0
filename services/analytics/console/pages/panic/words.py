"""States and steps of a panic exit in words that can be read at night."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

STATES: Final[Mapping[str, tuple[str, str]]] = {
    "FLAT": ("good", "Nothing was held and nothing was open then, read twice, with entries stopped."),
    "PENDING_MARKET_OPEN": (
        "note",
        "It was not flat then: closing orders waited for the market to open, with entries stopped.",
    ),
    "PARTIAL": ("bad", "It was NOT flat then: not everything was reached. What was left is listed below."),
    "FAILED": (
        "bad",
        "It was NOT flat then: nothing was reached. Call the broker, or run `make panic` on the machine.",
    ),
    "RUNNING": ("note", "Under way. It goes on whatever becomes of this page."),
    "DRY_RUN": ("note", "Only read: nothing was cancelled and nothing was closed."),
}
MOST_STEPS: Final = 60
LONGEST_RESULT: Final = 240
SAID_WHEN_EMPTY: Final = frozenset({"positions", "open_orders"})
"""That these are empty is what an exit is about."""
MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")


@dataclass(frozen=True, slots=True)
class Known:
    """What Postgres adds to an exit's own record: whose press it was, and who let entries in again, when and why."""

    pressed_by: str | None = None
    rearmed_at: datetime | None = None
    rearmed_by: str | None = None
    rearm_reason: str | None = None
    asked: bool = True
    """False where Postgres did not answer."""


def state_of(record: Mapping[str, Any], known: Known, *, halted: bool) -> dict[str, str]:
    """An exit for its card: how it ended and when, in the past tense; who and why; and what has happened since.

    Once entries are in again the account has moved on, so no colour says anything of it.
    """
    state = str(record.get("state"))
    tone, words = STATES.get(state, ("bad", f"State {state}."))
    steps: Sequence[Mapping[str, Any]] = record.get("steps") or ()
    begun = next((step for step in steps if step["action"] == "begun"), None)
    ended = next((step for step in reversed(steps) if step["action"] == "ended"), None)
    running = state == "RUNNING"
    title = f"The latest exit: {state}" if running else f"The latest exit ended {state}"
    return {
        "name": state,
        "tone": tone if halted or running else "",
        "title": title if ended is None or running else f"{title} at {moment(ended['at'])}",
        "words": words,
        "who": _who(begun, known, running=running),
        "since": _since(known, halted=halted, running=running),
    }


def begun_of(record: Mapping[str, Any]) -> tuple[datetime, str] | None:
    """When an exit began, and the reason it was given; None where its beginning is not on record."""
    steps: Sequence[Mapping[str, Any]] = record.get("steps") or ()
    step = next((each for each in steps if each["action"] == "begun"), None)
    return None if step is None else (datetime.fromisoformat(str(step["at"])), str(step["result"].get("reason")))


def _who(begun: Mapping[str, Any] | None, known: Known, *, running: bool) -> str:
    """A press is kept when the exit has answered, so that of one which runs nobody can be named yet."""
    if begun is None:
        return ""
    by = f", by {known.pressed_by}" if known.pressed_by else ""
    if not by and not running:
        by = ", by whom is not on record (no console kept a press of it)"
        by = by if known.asked else ", by whom is not known while Postgres does not answer"
    return f"Begun at {moment(begun['at'])}{by}: {begun['result'].get('reason')}"


def _since(known: Known, *, halted: bool, running: bool) -> str:
    if halted or running:
        return ""
    again = "Entries may be made again"
    if known.rearmed_at is not None:
        at = moment(known.rearmed_at.astimezone(UTC).isoformat())
        again = f"Entries were let in again at {at} by {known.rearmed_by}: {known.rearm_reason}"
    return f"{again.rstrip('.')}. What is held now is not said here."


def moment(at: object) -> str:
    """A moment as the api writes it, as a person reads it."""
    try:
        return f"{datetime.fromisoformat(str(at)).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return str(at)


def steps_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The newest steps, newest first: when, what, and what came of it."""
    steps: Sequence[Mapping[str, Any]] = record.get("steps") or ()
    return [
        {"at": str(step["at"])[11:23], "action": str(step["action"]).replace("_", " "), "result": brief(step["result"])}
        for step in reversed(steps[-MOST_STEPS:])
    ]


def brief(result: Any) -> str:
    """A step's result on a line."""
    words = "; ".join(_entries(result)) if isinstance(result, Mapping) else _shown(result)  # pyright: ignore[reportUnknownArgumentType] - JSON
    return words if len(words) <= LONGEST_RESULT else f"{words[:LONGEST_RESULT]}…"


def _entries(result: Mapping[str, Any]) -> Iterator[str]:
    for name, value in result.items():
        if value is None or value == "" or name == "exit_id":
            continue
        if value or isinstance(value, bool | int) or name in SAID_WHEN_EMPTY:
            yield f"{name.replace('_', ' ')}: {_shown(value)}"


def _shown(value: Any) -> str:
    """A value of a step without the marks of a programming language."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        pairs: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return ", ".join(f"{name} {_shown(each)}" for name, each in pairs.items()) or "none"
    if isinstance(value, list):
        listed: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return ", ".join(_item(each) for each in listed) or "none"
    return moment(value) if isinstance(value, str) and MOMENT.match(value) else str(value)


def _item(value: Any) -> str:
    """One of a list: an order as side, quantity and symbol, a failure as what it is about and what was said."""
    if not isinstance(value, Mapping):
        return _shown(value)
    known: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
    if {"side", "qty", "symbol"} <= set(known):
        return f"{known['side']} {known['qty']} {known['symbol']}"
    return " ".join(_shown(each) for each in known.values())
