"""What a journal of exits says, in whatever order its lines were written."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.trading.intent import intent_id
from libs.trading.journal import Entry, Journal
from libs.trading.reasons import Reason
from libs.trading.types import Order
from services.api.strategist.exits.journal import ExitJournal
from services.api.strategist.exits.memory import CLOSING, COPIED, DONE, Memory, holder
from services.api.strategist.exits.types import Exit, copied_mark, written
from services.api.strategist.words import printable

AT = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)


def an_exit(number: int = 1, **changes: Any) -> Exit:
    """An exit that was begun; its verdict goes by a number."""
    order = Order("AAPL", "sell", Decimal(2), Decimal(100), client_order_id="out", key_name="desk", reduce_only=True)
    return replace(Exit(order, UUID(int=number), AT + timedelta(seconds=number)), **changes)


def line(action: str, told: Exit) -> Entry:
    """A line of the journal."""
    result = copied_mark(told) if action == COPIED else written(told)
    return entry(told, action, json.loads(json.dumps(result)))


def entry(told: Exit, action: str, result: Mapping[str, Any]) -> Entry:
    """A line with a content of one's own."""
    return Entry(intent_id(told.order), 1, AT + timedelta(days=1), action, dict(result), "")


def replayed(*lines: Entry, alive: bool = False) -> Memory:
    """What is remembered after some lines."""
    memory = Memory()
    memory.replay(lines, alive=alive)
    return memory


BEGUN = an_exit()
FAILED = an_exit(status="rejected", detail="held")
SENT = an_exit(2, status="accepted", broker_id="b2")


def test_an_exit_is_read_as_it_was_written() -> None:
    """Its own moment too, whenever its line was written."""
    assert replayed(line(CLOSING, BEGUN), line(DONE, SENT)).held == {BEGUN.name: SENT}


@pytest.mark.parametrize(
    "lines",
    [
        [line(CLOSING, BEGUN), line(DONE, FAILED), line(CLOSING, an_exit(2)), line(DONE, SENT)],
        [line(CLOSING, BEGUN), line(CLOSING, an_exit(2)), line(DONE, SENT), line(DONE, FAILED)],
        [line(DONE, SENT), line(CLOSING, an_exit(2)), line(DONE, FAILED), line(CLOSING, BEGUN)],
        [line(DONE, SENT), line(DONE, an_exit(2, status="not_sent")), line(DONE, FAILED)],
    ],
)
def test_an_order_at_the_broker_is_never_forgotten(lines: list[Entry]) -> None:
    """Lines that the disk refused at first are written late; the attempt that went out stays, and both are recorded."""
    memory = replayed(*lines)
    assert memory.held == {SENT.name: SENT}
    assert set(memory.unrecorded.values()) == {SENT, FAILED}


def test_a_copy_counts_for_what_was_copied() -> None:
    """The failed attempt on record says nothing of the next one, nor does an earlier state of the same."""
    lines = [line(DONE, FAILED), line(CLOSING, an_exit(2)), line(COPIED, FAILED), line(COPIED, an_exit(2))]
    memory = replayed(*lines, line(DONE, SENT), line(COPIED, an_exit(2)))
    assert list(memory.unrecorded.values()) == [SENT]
    assert replayed(*lines, line(DONE, SENT), line(COPIED, SENT)).unrecorded == {}
    assert memory.recorded(an_exit(2)) is False
    assert (memory.recorded(SENT), memory.recorded(SENT)) == (True, False)


def test_what_cannot_be_read_is_left_out_and_what_is_new_is_ignored() -> None:
    """A start never fails for a line of its journal."""
    said = written(SENT)
    newer = {**said, "venue": "x", "order": {**said["order"], "note": "x"}}
    broken = [
        {},
        {**said, "order": None},
        {**said, "order": {"ticker": "AAPL"}},
        {**said, "order": {**said["order"], "qty": "many"}},
        {**said, "at": "2026-01-05T15:00:00"},
        {**said, "verdict_id": "x"},
        {**said, "refusal": "NO_SUCH"},
    ]
    lines = [entry(SENT, DONE, each) for each in broken]
    memory = replayed(*lines, entry(SENT, COPIED, {"verdict_id": 1}), entry(SENT, COPIED, {}))
    assert (memory.held, memory.unrecorded) == ({}, {})
    assert replayed(*lines, entry(SENT, DONE, newer)).held == {SENT.name: SENT}


def test_what_is_old_is_forgotten_once_it_is_on_record() -> None:
    """What waits for its record, and what nobody knows the end of, stays."""
    refused = an_exit(3, refusal=Reason.NOT_REDUCING)
    memory = replayed(line(DONE, SENT), line(DONE, refused))
    memory.forget(AT + timedelta(days=1))
    assert (memory.held, set(memory.refused.values())) == ({SENT.name: SENT}, {refused})
    assert memory.recorded(SENT)
    assert memory.recorded(refused)
    memory.forget(AT)
    assert memory.held
    memory.forget(AT + timedelta(days=1))
    assert (memory.held, memory.refused) == ({}, {})
    lost = replayed(line(CLOSING, BEGUN), line(COPIED, BEGUN))
    lost.forget(AT + timedelta(days=1))
    assert lost.held == {BEGUN.name: BEGUN}


def test_who_holds_an_order_id() -> None:
    """A begin of somebody else does, a failed attempt or a refusal does not."""
    mine = an_exit(9)
    assert holder(mine, None, [line(CLOSING, BEGUN)]) == BEGUN
    assert holder(mine, None, [line(CLOSING, BEGUN), line(DONE, FAILED)]) is None
    assert holder(mine, FAILED, []) is None
    assert holder(mine, FAILED, [line(DONE, SENT)]) == SENT
    assert holder(mine, None, [line(DONE, an_exit(3, refusal=Reason.DUPLICATE))]) is None


def test_what_another_process_has_begun_is_its_own_to_record() -> None:
    """What it has ended is anybody's; after its death so is what it began."""
    assert replayed(line(CLOSING, BEGUN), alive=True).unrecorded == {}
    assert replayed(line(CLOSING, BEGUN), alive=False).unrecorded == {BEGUN.verdict_id: BEGUN}
    assert list(replayed(line(CLOSING, BEGUN), line(DONE, FAILED), alive=True).unrecorded.values()) == [FAILED]


def test_words_of_a_broker_are_such_as_a_database_takes() -> None:
    """Without NUL and lone surrogates, and not without end."""
    assert printable("a\x00b\ud800c\udfff é😀") == "abc é😀"
    assert len(printable("x" * 100_000)) == 1000


async def test_a_thousand_exits_are_read_once_each(tmp_path: Path) -> None:
    """Every line is replayed once: what a start costs grows with the journal, not with its square."""
    exits = [
        an_exit(number, order=replace(BEGUN.order, client_order_id=f"o{number}"), broker_id=f"b{number}")
        for number in range(1000)
    ]
    journal = Journal(tmp_path / "exits.jsonl")
    journal.append_after(0, lambda _: [(uuid4(), DONE, written(each)) for each in exits])
    memory = await ExitJournal(tmp_path, learn=lambda _: None).load()
    assert list(memory.held.values()) == exits
