"""The broker's file: what is written comes back, and nothing else may use it meanwhile."""

import sqlite3
from pathlib import Path

import pytest

from services.paper.exchange import Exchange, Manners, new_account
from services.paper.main import Pulse
from services.paper.store import FileStore, StoreError
from services.paper.types import Account, Changes
from tests.unit.paper_cases import ACCOUNT, CASH, START, Broker, after, fault, made, order


def fresh() -> Account:
    return new_account(ACCOUNT, CASH, START)


def opened(path: Path) -> FileStore:
    return FileStore(path, fresh)


async def test_everything_comes_back(tmp_path: Path) -> None:
    store = opened(tmp_path / "paper.sqlite")
    broker = Broker(made(slices=3), store=store)
    await broker.hold(9)
    await broker.hold(2, symbol="BTC/USD")
    await broker.buy(4, limit=50)
    await broker.post("sell", 3, limit=700)
    await broker.strike(kind="slow_cancel", symbols=["AAPL"], for_s=60)
    await broker.http.delete("/v2/orders")
    await broker.http.put("/paper/marks", json={"IBM": "7.5"})
    await broker.http.delete("/v2/positions/BTCUSD")
    broker.wait(50)
    await broker.http.get("/v2/account")
    await broker.buy(1, symbol="MSFT")
    store.close()
    again = Exchange(opened(tmp_path / "paper.sqlite").kept, manners=Manners(50, 3))
    before = broker.exchange
    assert again.book.orders == before.book.orders
    assert again.book.fills == before.book.fills
    assert again.ledger.account == before.ledger.account
    assert again.ledger.positions == before.ledger.positions
    assert again.ledger.marks == before.ledger.marks
    assert [placed.id for placed in again.book.open_orders()] == [placed.id for placed in before.book.open_orders()]


def test_an_order_goes_on_where_it_was(tmp_path: Path) -> None:
    store = opened(tmp_path / "paper.sqlite")
    exchange = made(slices=4)
    placed = order(exchange, "buy", 8)
    after(exchange, 100)
    store.save(exchange.changes, exchange.ledger.account)
    store.close()
    again = Exchange(opened(tmp_path / "paper.sqlite").kept, manners=Manners(50, 4))
    again.advance(exchange.now)
    assert again.book.order(placed.id).filled_qty == 4
    after(again, 100)
    assert again.book.order(placed.id).status == "filled"
    assert [fill.qty for fill in again.book.fills] == [2, 2, 2, 2]
    assert len({fill.id for fill in again.book.fills}) == 4


def test_a_position_that_is_gone_stays_gone(tmp_path: Path) -> None:
    store = opened(tmp_path / "paper.sqlite")
    exchange = made()
    for act in (lambda: order(exchange, "buy", 1), lambda: exchange.close("AAPL")):
        act()
        after(exchange, 100)
        store.save(exchange.changes, exchange.ledger.account)
        exchange.changes.clear()
    store.close()
    assert opened(tmp_path / "paper.sqlite").kept.positions == {}


def test_a_pending_cancel_whose_fault_is_forgotten_comes_through(tmp_path: Path) -> None:
    store = opened(tmp_path / "paper.sqlite")
    exchange = made()
    placed = order(exchange, "buy", 1, limit=50)
    exchange.faults.add(fault(kind="slow_cancel"), START)
    exchange.cancel(placed.id)
    store.save(exchange.changes, exchange.ledger.account)
    store.close()
    again = Exchange(opened(tmp_path / "paper.sqlite").kept)
    assert again.book.order(placed.id).status == "pending_cancel"
    again.advance(exchange.now)
    assert again.book.order(placed.id).status == "canceled"


def test_two_brokers_cannot_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "paper.sqlite"
    first = opened(path)
    with pytest.raises(StoreError, match="another paper broker runs on it"):
        opened(path)
    first.close()
    assert opened(path).kept.account == fresh()


def test_what_is_no_file_of_the_brokers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "paper.sqlite"
    path.write_text("something else entirely, and long enough to be looked at " * 10)
    with pytest.raises(StoreError, match=r"paper\.sqlite.*move it away"):
        opened(path)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"newer\.sqlite.*version 99"):
        opened(newer)
    with pytest.raises(StoreError, match="nowhere"):
        opened(path / "nowhere" / "paper.sqlite")


class Full:
    """A file that cannot be written for a while, in front of one that can."""

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self.full = False

    def save(self, changes: Changes, account: Account) -> None:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        self.store.save(changes, account)


async def test_what_could_not_be_stored_is_a_500_and_is_stored_with_what_comes_next(tmp_path: Path) -> None:
    store = Full(opened(tmp_path / "paper.sqlite"))
    broker = Broker(made(), store=store)
    assert (await broker.buy(1, limit=50)).status_code == 200
    store.full = True
    answer = await broker.buy(1, limit=51)
    assert (answer.status_code, answer.json()["code"]) == (500, 50010000)
    store.full = False
    assert len((await broker.http.get("/v2/orders")).json()) == 2
    store.store.close()
    assert len(opened(tmp_path / "paper.sqlite").kept.orders) == 2


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    store = opened(tmp_path / "paper.sqlite")
    exchange = made()
    order(exchange, "buy", 1)
    bad = Changes(account=True, orders=exchange.changes.orders, marks={"X": exchange.ledger.marks["AAPL"]})
    bad.fills.append(object())  # type: ignore[arg-type]
    with pytest.raises(Exception, match="object"):
        store.save(bad, exchange.ledger.account)
    store.save(exchange.changes, exchange.ledger.account)
    store.close()
    assert len(opened(tmp_path / "paper.sqlite").kept.orders) == 1


async def test_a_file_that_takes_nothing_shows_until_it_does_again(tmp_path: Path) -> None:
    store = Full(opened(tmp_path / "paper.sqlite"))
    broker = Broker(made(), store=store)
    pulse = Pulse(broker.app.state.desk)
    assert (await broker.buy(1)).status_code == 200
    store.full = True
    broker.wait(1000)  # it fills when the pulse beats, and nobody asked
    pulse.beat()
    assert "database or disk is full" in str(await pulse.check())
    store.full = False
    pulse.beat()
    assert await pulse.check() is None
    store.store.close()
    assert len(opened(tmp_path / "paper.sqlite").kept.fills) == 1
