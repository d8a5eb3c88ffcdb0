"""The calls that are not Alpaca's: faults on request, and marks set by hand."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from services.paper import wire
from services.paper.asked import Ask
from services.paper.exchange import Exchange
from services.paper.faults import FAULT, Entry, Fault
from services.paper.routes import Answer, Call
from services.paper.types import INVALID, NOT_FOUND, Refusal, number


def entry_json(entry: Entry) -> dict[str, Any]:
    """A fault in the book, with how often it acted."""
    until = {} if entry.until is None else {"until": wire.moment(entry.until)}
    return {"id": entry.id, "acted": entry.acted, **entry.fault.model_dump(mode="json"), **until}


def read_fault(item: object) -> Fault:
    """A fault out of JSON. Raises `Refusal` (422) naming what is wrong with it."""
    try:
        return FAULT.validate_python(item)
    except ValidationError as error:
        wrongs = [f"{'.'.join(map(str, found['loc'][1:]))}: {found['msg']}" for found in error.errors()]
        printable = "; ".join(wrongs).encode("ascii", "backslashreplace").decode()
        raise Refusal(422, INVALID, printable) from error


def post_fault(exchange: Exchange, ask: Ask) -> Answer:
    """Make a fault stand; the answer has its id."""
    fault = read_fault(wire.read_object(ask.body))
    return Answer(entry_json(exchange.faults.add(fault, exchange.now)), HTTPStatus.CREATED)


def get_faults(exchange: Exchange, ask: Ask) -> Answer:
    """The faults that stand, spent ones too."""
    del ask
    return Answer([entry_json(entry) for entry in exchange.faults.entries()])


def delete_faults(exchange: Exchange, ask: Ask) -> Answer:
    """Take all faults away."""
    del ask
    exchange.faults.clear()
    return Answer(None, HTTPStatus.NO_CONTENT)


def delete_fault(exchange: Exchange, ask: Ask) -> Answer:
    """Take one fault away."""
    name = ask.path["id"]
    if not (name.isascii() and name.isdecimal() and len(name) < 10 and exchange.faults.remove(int(name))):
        raise Refusal(404, NOT_FOUND, f"there is no fault {name}")
    return Answer(None, HTTPStatus.NO_CONTENT)


def marks_json(exchange: Exchange) -> dict[str, dict[str, Any]]:
    """All marks by symbol."""
    marks = sorted(exchange.ledger.marks.values(), key=lambda mark: mark.symbol)
    return {mark.symbol: {"price": number(mark.price), "by_hand": mark.by_hand} for mark in marks}


def get_marks(exchange: Exchange, ask: Ask) -> Answer:
    """All marks."""
    del ask
    return Answer(marks_json(exchange))


def put_marks(exchange: Exchange, ask: Ask) -> Answer:
    """Set marks by hand, all or none; they stay until null gives them back to the market."""
    asked: Mapping[str, Any] = wire.read_object(ask.body)
    for symbol in asked:
        wire.check_text("symbol", symbol)
    prices = {symbol: None if value is None else wire.read_decimal(symbol, value) for symbol, value in asked.items()}
    for symbol, price in prices.items():
        if price is None:
            exchange.ledger.release_mark(symbol)
        else:
            exchange.ledger.set_mark(symbol, price, by_hand=True)
    return Answer(marks_json(exchange))


CALLS: dict[str, Call] = {
    "POST /paper/faults": post_fault,
    "GET /paper/faults": get_faults,
    "DELETE /paper/faults": delete_faults,
    "DELETE /paper/faults/{id}": delete_fault,
    "GET /paper/marks": get_marks,
    "PUT /paper/marks": put_marks,
}
