"""The broker's own file: SQLite, written before anybody is told, so that `kill -9` loses nothing that was.

A commit reaches the operating system, not the disk itself: a machine that loses power may forget the last moments of a
paper account, a process that dies may not.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from services.paper.types import Account, Changes, Fill, Kept, Mark, Order, Position

VERSION = 1
TABLES = """
create table account (one integer primary key check (one = 1), body text not null);
create table orders (seq integer primary key, body text not null);
create table fills (seq integer primary key, body text not null);
create table positions (symbol text primary key, body text not null);
create table marks (symbol text primary key, body text not null);
"""
ACCOUNT, ORDER, FILL = TypeAdapter(Account), TypeAdapter(Order), TypeAdapter(Fill)
POSITION, MARK = TypeAdapter(Position), TypeAdapter(Mark)

T = TypeVar("T")


class StoreError(Exception):
    """The file cannot be used; the message names it and says why."""


class FileStore:
    """The file, held by this process alone. `kept` is what it said when it was opened."""

    def __init__(self, path: Path, fresh: Callable[[], Account]) -> None:
        """Open the file, or begin one with a `fresh` account. Raises `StoreError`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=0)
            try:
                self._prepare(fresh)
                self.kept = self._read()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.OperationalError as error:
            hint = " (another paper broker runs on it)" if "locked" in str(error) else ""
            raise StoreError(f"cannot use {path}: {error}{hint}") from error
        except (OSError, sqlite3.Error, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"cannot read {path}: {reason}; move it away to begin a new account") from error

    def _prepare(self, fresh: Callable[[], Account]) -> None:
        run = self._connection.execute
        run("pragma locking_mode = exclusive")
        run("pragma journal_mode = wal")
        run("pragma synchronous = normal")
        run("begin exclusive")
        [version] = run("pragma user_version").fetchone()
        if version > VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, this broker knows {VERSION}")
        if version == 0:
            for statement in TABLES.split(";"):
                run(statement)
            run("insert into account values (1, ?)", [ACCOUNT.dump_json(fresh()).decode()])
            run(f"pragma user_version = {VERSION}")
        run("commit")

    def _read(self) -> Kept:
        run = self._connection.execute
        bodies = {
            table: [body for [body] in run(f"select body from {table} order by 1")]
            for table in ("account", "positions", "marks")
        }
        in_order = {table: run(f"select body from {table} order by seq").fetchall() for table in ("orders", "fills")}
        [account] = bodies["account"]
        positions = [POSITION.validate_json(body) for body in bodies["positions"]]
        marks = [MARK.validate_json(body) for body in bodies["marks"]]
        return Kept(
            account=ACCOUNT.validate_json(account),
            orders=tuple(ORDER.validate_json(body) for [body] in in_order["orders"]),
            fills=tuple(FILL.validate_json(body) for [body] in in_order["fills"]),
            positions={position.symbol: position for position in positions},
            marks={mark.symbol: mark for mark in marks},
        )

    def save(self, changes: Changes, account: Account) -> None:
        """Store changes, all or none. Raises `sqlite3.Error`."""
        run = self._connection.execute
        run("begin immediate")
        try:
            if changes.account:
                run("update account set body = ?", [ACCOUNT.dump_json(account).decode()])
            self._put("orders", [(order.seq, body(ORDER, order)) for order in changes.orders.values()])
            self._put("fills", [(fill.seq, body(FILL, fill)) for fill in changes.fills])
            self._put("marks", [(mark.symbol, body(MARK, mark)) for mark in changes.marks.values()])
            self._put_positions(changes.positions)
            run("commit")
        except BaseException:
            if self._connection.in_transaction:
                run("rollback")
            raise

    def _put(self, table: str, rows: Iterable[tuple[int | str, str]]) -> None:
        self._connection.executemany(f"insert or replace into {table} values (?, ?)", rows)

    def _put_positions(self, positions: Mapping[str, Position | None]) -> None:
        gone = [(symbol,) for symbol, position in positions.items() if position is None]
        self._connection.executemany("delete from positions where symbol = ?", gone)
        self._put(
            "positions",
            [(symbol, body(POSITION, position)) for symbol, position in positions.items() if position is not None],
        )

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def body(adapter: TypeAdapter[T], value: T) -> str:
    """A value as it is stored."""
    return adapter.dump_json(value).decode()
