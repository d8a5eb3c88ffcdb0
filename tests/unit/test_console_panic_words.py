"""A panic exit in words: what is over is told in the past tense, with when, who and why."""

from datetime import UTC, datetime
from typing import Any

import pytest

from services.analytics.console.pages.panic.words import Known, begun_of, brief, state_of, steps_of

BEGUN = {"at": "2026-11-22T18:29:22.580000+00:00", "action": "begun", "result": {"reason": "a runaway"}}
ENDED = {"at": "2026-11-22T18:29:23.847000+00:00", "action": "ended", "result": {"state": "FLAT"}}
REARMED = Known("ann", datetime(2026, 11, 22, 18, 40, tzinfo=UTC), "bob (key bob)", "it was a rehearsal")


def record(state: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"state": state, "steps": list(steps)}


def test_an_exit_that_ended_has_its_moment_and_who_and_why() -> None:
    shown = state_of(record("FLAT", BEGUN, ENDED), Known("ann"), halted=True)
    assert shown["title"] == "The latest exit ended FLAT at 2026-11-22 18:29:23 UTC"
    assert shown["words"].startswith("Nothing was held and nothing was open then")
    assert shown["who"] == "Begun at 2026-11-22 18:29:22 UTC, by ann: a runaway"
    assert (shown["tone"], shown["since"]) == ("good", "")


@pytest.mark.parametrize("state", ["FLAT", "PARTIAL", "FAILED", "PENDING_MARKET_OPEN"])
def test_once_entries_are_in_again_no_colour_vouches_for_it(state: str) -> None:
    shown = state_of(record(state, BEGUN, ENDED), REARMED, halted=False)
    assert shown["tone"] == ""
    assert "let in again at 2026-11-22 18:40:00 UTC by bob (key bob): it was a rehearsal." in shown["since"]
    assert "What is held now is not said here" in shown["since"]
    assert " is held" not in shown["words"]


def test_one_that_runs_has_no_end_and_one_from_the_machine_has_no_name() -> None:
    shown = state_of(record("RUNNING", BEGUN), Known(), halted=True)
    assert (shown["title"], shown["tone"], shown["since"]) == ("The latest exit: RUNNING", "note", "")
    assert shown["who"] == "Begun at 2026-11-22 18:29:22 UTC: a runaway"
    ended = record("FLAT", BEGUN, ENDED)
    assert "by whom is not on record" in state_of(ended, Known(), halted=True)["who"]
    assert "while Postgres does not answer" in state_of(ended, Known(asked=False), halted=True)["who"]
    assert begun_of(record("RUNNING")) is None
    assert begun_of(record("FLAT", BEGUN)) == (datetime(2026, 11, 22, 18, 29, 22, 580_000, tzinfo=UTC), "a runaway")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"open_orders": [], "positions": {}}, "open orders: none; positions: none"),
        ({"positions": {"AAPL": "11", "FB": "-46"}}, "positions: AAPL 11, FB -46"),
        (
            {"orders": [{"id": "0128a44b", "qty": "11", "side": "sell", "symbol": "AAPL"}], "failed": []},
            "orders: sell 11 AAPL",
        ),
        ({"failed": [{"subject": "FB", "message": "422 no"}]}, "failed: FB 422 no"),
        (
            {"ok": True, "exit_id": "8e3f", "halted_until": "2026-11-22T18:30:22.577750+00:00", "orders_cancelled": 0},
            "ok: yes; halted until: 2026-11-22 18:30:22 UTC; orders cancelled: 0",
        ),
        ({}, ""),
    ],
)
def test_a_steps_result_is_written_for_people(result: dict[str, Any], words: str) -> None:
    assert brief(result) == words


def test_steps_come_newest_first() -> None:
    assert [step["action"] for step in steps_of(record("FLAT", BEGUN, ENDED))] == ["ended", "begun"]
