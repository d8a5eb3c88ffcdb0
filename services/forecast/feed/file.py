"""Bars from a CSV or Parquet file: read whole, checked whole, and read again when the file changes."""

import asyncio
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from libs.judgement.bars import Bars
from services.forecast.feed.replay import session_close
from services.forecast.feed.table import BarTable, make_history
from services.forecast.feed.types import MIN_BARS, Bar, FeedError, Run, Tick

PRICES = ("open", "high", "low", "close")
NUMBERS = (*PRICES, "volume")
DATE_LENGTH = len("2013-03-01")


class RowError(Exception):
    """One value of one row is wrong: the column, and what is wrong with it."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"column {column}: {problem}")


def read_number(row: Mapping[str, Any], column: str) -> float:
    """A finite number from a cell."""
    cell = row.get(column)
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise RowError(column, "missing value")
    try:
        number = float(cell)
    except (TypeError, ValueError):
        raise RowError(column, f"{cell!r} is not a number") from None
    if not math.isfinite(number):
        raise RowError(column, f"{cell!r} is not a finite number")
    return number


def read_moment(row: Mapping[str, Any], column: str, *, around_the_clock: bool) -> datetime:
    """The end of a bar. A bare date means the close of that New York session, or midnight after it (24/7)."""
    cell = row.get(column)
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise RowError(column, "missing value")
    try:
        value = datetime.fromisoformat(str(cell).strip())
    except ValueError:
        raise RowError(column, f"{cell!r} is not an ISO 8601 date or time") from None
    if len(str(cell).strip()) <= DATE_LENGTH:
        if around_the_clock:
            return datetime.combine(value.date() + timedelta(days=1), datetime.min.time(), UTC)
        return session_close(date(value.year, value.month, value.day))
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def read_bar(row: Mapping[str, Any], moment_column: str, *, around_the_clock: bool) -> tuple[str, Bar]:
    """One row as a bar. Raises `RowError`."""
    ticker = str(row.get("ticker") or "").strip()
    if not ticker:
        raise RowError("ticker", "missing value")
    moment = read_moment(row, moment_column, around_the_clock=around_the_clock)
    values = {column: read_number(row, column) for column in NUMBERS}
    for column in PRICES:
        if values[column] <= 0:
            raise RowError(column, f"{values[column]:g} is not a price")
    if values["volume"] < 0:
        raise RowError("volume", f"{values['volume']:g} is negative")
    if values["high"] < values["low"]:
        raise RowError("high", f"{values['high']:g} is below low {values['low']:g}")
    bar = Bar(moment, **values)
    return ticker, bar if "adj_close" not in row else adjust(bar, read_number(row, "adj_close"))


def adjust(bar: Bar, adj_close: float) -> Bar:
    """Scale prices so that the close is the adjusted one, and volume so that the dollars traded stay the same."""
    if adj_close <= 0:
        raise RowError("adj_close", f"{adj_close:g} is not a price")
    factor = adj_close / bar.close
    return replace(
        bar,
        open=bar.open * factor,
        high=bar.high * factor,
        low=bar.low * factor,
        close=adj_close,
        volume=bar.volume / factor,
    )


def csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a CSV file, each with its place: `line 17`."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:
            if None in row:
                raise FeedError(f"{path} line {reader.line_num}: more values than columns")
            yield f"line {reader.line_num}", row


def parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a Parquet file, each with its place: `row 17`, counted from 1."""
    from pyarrow import parquet

    number = 0
    opened: Any = parquet.ParquetFile(path)
    with opened as table:
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def moment_column_of(path: Path, row: Mapping[str, Any]) -> str:
    """Which column holds the bar's end; also checks that every other column is there."""
    missing = [column for column in ("ticker", *NUMBERS) if column not in row]
    found = next((column for column in ("as_of", "date") if column in row), None)
    if found is None:
        missing.append("date")
    if missing or found is None:
        raise FeedError(f"{path} line 1: no column {', '.join(missing)}")
    return found


def read_bars(path: Path, *, around_the_clock: bool = False) -> dict[str, Bars]:
    """Every bar of a file by ticker. Raises `FeedError` naming file, line and column at the first thing wrong."""
    series: dict[str, list[Bar]] = {}
    moment_column = ""
    try:
        for place, row in parquet_rows(path) if path.suffix == ".parquet" else csv_rows(path):
            moment_column = moment_column or moment_column_of(path, row)
            try:
                ticker, bar = read_bar(row, moment_column, around_the_clock=around_the_clock)
                bars = series.setdefault(ticker, [])
                check_order(bars, bar, moment_column)
            except RowError as error:
                raise FeedError(f"{path} {place} {error}") from None
            bars.append(bar)
    except (OSError, UnicodeDecodeError, csv.Error, ImportError) as error:
        raise FeedError(f"{path}: {error}") from error
    except ValueError as error:  # pyarrow's way to say that the file is not Parquet
        raise FeedError(f"{path}: {error}") from error
    return {ticker: make_history(bars) for ticker, bars in series.items()}


def check_order(earlier: Sequence[Bar], bar: Bar, column: str) -> None:
    """Bars of one ticker must come oldest first, each moment once."""
    if not earlier or earlier[-1].as_of < bar.as_of:
        return
    if earlier[-1].as_of == bar.as_of:
        raise RowError(column, f"{bar.as_of:%Y-%m-%dT%H:%M:%SZ} comes twice for this ticker")
    raise RowError(column, f"{bar.as_of:%Y-%m-%dT%H:%M:%SZ} comes after a later row of this ticker")


class FileFeed:
    """Bars of a file, one moment per tick, oldest first.

    The file is checked whole before anything of it is used. When its size or time of change differs, it is read
    again: appended rows become ticks, and a file that no longer passes the checks stops the ticks with its error
    while what was read before stays. A ticker is forecast once it has `MIN_BARS` bars.
    """

    def __init__(self, path: Path, tickers: Sequence[str] = (), *, around_the_clock: bool = False) -> None:
        self._path = path
        self._chosen = tuple(tickers)
        self._around_the_clock = around_the_clock
        self._table = BarTable({})
        self._start: datetime | None = None
        self._seen: tuple[int, int] | None = None

    @property
    def source(self) -> str:
        """`file:` and the file's own name."""
        return f"file:{self._path.name}"

    def run_name(self, previous: Run | None) -> str:
        """A file has one run, for ever."""
        return self.source if previous is None else previous.name

    def _fingerprint(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise FeedError(f"{self._path}: {error.strerror}") from error
        return status.st_size, status.st_mtime_ns

    def _load(self) -> None:
        seen = self._fingerprint()
        series = read_bars(self._path, around_the_clock=self._around_the_clock)
        unknown = [ticker for ticker in self._chosen if ticker not in series]
        if unknown:
            raise FeedError(f"FORECAST_TICKERS: {self._path} has no {', '.join(unknown)}")
        table = BarTable({ticker: series[ticker] for ticker in self._chosen or series})
        start = table.ready_moment(MIN_BARS, every=False)
        if start is None:
            raise FeedError(f"{self._path}: no ticker has the {MIN_BARS} bars a forecast needs")
        self._table, self._start, self._seen = table, start, seen

    async def open(self) -> None:
        """Read and check the file."""
        await asyncio.to_thread(self._load)

    async def close(self) -> None:
        """Nothing is held."""

    async def next(self, after: datetime | None) -> Tick | None:
        """The earliest moment after this one, None until rows are appended."""
        if self._fingerprint() != self._seen:
            await asyncio.to_thread(self._load)
        moment = self._table.next_moment(after, self._start)
        return None if moment is None else self._table.tick(moment)

    def ended(self, after: datetime | None) -> bool:
        """Never: rows may be appended."""
        return False

    def history(self, ticker: str, as_of: datetime, bars: int) -> Bars:
        """The last bars up to a moment."""
        return self._table.history(ticker, as_of, bars)

    def days(self, as_of: datetime, count: int) -> tuple[date, ...]:
        """The last days with a bar up to a moment."""
        return self._table.days(as_of, count)
