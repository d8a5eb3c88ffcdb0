"""CSV and Parquet files: what is read, what is refused, what happens when they grow."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from services.forecast.feed.file import FileFeed, read_bars
from services.forecast.feed.types import MIN_BARS, FeedError, Run

HEADER = "ticker,date,open,high,low,close,volume\n"
FIRST = datetime(2024, 1, 1, tzinfo=UTC)


def line(day: int, ticker: str = "ABC", close: float = 10.0) -> str:
    return f"{ticker},{(FIRST + timedelta(days=day)).date()},{close},{close + 1},{close - 1},{close},100\n"


def write(path: Path, rows: str) -> Path:
    path.write_text(HEADER + rows, encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    arrow: Any = pa
    writer: Any = parquet
    writer.write_table(arrow.table(columns), path)


def test_dates_are_the_close_in_new_york_or_midnight_around_the_clock(tmp_path: Path) -> None:
    path = write(tmp_path / "bars.csv", line(0))
    assert read_bars(path)["ABC"].as_of[0].item() == datetime(2024, 1, 1, 21)  # noqa: DTZ001
    assert read_bars(path, around_the_clock=True)["ABC"].as_of[0].item() == datetime(2024, 1, 2)  # noqa: DTZ001


def test_moments_keep_their_zone(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(
        "volume,ticker,as_of,close,open,high,low,note\n5,ABC,2024-01-01T10:00:00+02:00,2,1,3,1,x\n", encoding="utf-8"
    )
    history = read_bars(path)["ABC"]
    assert history.as_of[0].item() == datetime(2024, 1, 1, 8)  # noqa: DTZ001
    assert (history.open[0], history.high[0], history.close[0], history.volume[0]) == (1, 3, 2, 5)


def test_an_adjusted_close_scales_the_bar(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(HEADER.strip() + ",adj_close\nABC,2024-01-01,10,12,8,10,100,5\n", encoding="utf-8")
    history = read_bars(path)["ABC"]
    assert (history.open[0], history.high[0], history.low[0], history.close[0], history.volume[0]) == (5, 6, 4, 5, 200)


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ("ABC,2024-01-02,,11,9,10,100", "open", "missing value"),
        ("ABC,2024-01-02,10,11,9,  ,100", "close", "missing value"),
        ("ABC,2024-01-02,10,11,9,10", "volume", "missing value"),
        ("ABC,2024-01-02,ten,11,9,10,100", "open", "'ten' is not a number"),
        ("ABC,2024-01-02,10,11,9,nan,100", "close", "not a finite number"),
        ("ABC,2024-01-02,10,inf,9,10,100", "high", "not a finite number"),
        ("ABC,2024-01-02,10,11,-9,10,100", "low", "is not a price"),
        ("ABC,2024-01-02,0,11,9,10,100", "open", "is not a price"),
        ("ABC,2024-01-02,10,11,9,10,-1", "volume", "negative"),
        ("ABC,2024-01-02,10,8,9,10,100", "high", "below low"),
        (",2024-01-02,10,11,9,10,100", "ticker", "missing value"),
        ("ABC,,10,11,9,10,100", "date", "missing value"),
        ("ABC,02.01.2024,10,11,9,10,100", "date", "not an ISO 8601"),
        ("ABC,2024-01-01,10,11,9,10,100", "date", "comes twice"),
        ("ABC,2023-12-31,10,11,9,10,100", "date", "after a later row"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_column(tmp_path: Path, row: str, column: str, problem: str) -> None:
    path = write(tmp_path / "prices.csv", line(0) + row + "\n")
    with pytest.raises(FeedError) as caught:
        read_bars(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"line 3 column {column}: " in message
    assert problem in message


def test_a_missing_column_and_too_many_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("ticker,date,open,high,low,volume\nABC,2024-01-01,1,1,1,1\n", encoding="utf-8")
    with pytest.raises(FeedError, match="no column close"):
        read_bars(path)
    with pytest.raises(FeedError, match="line 2: more values than columns"):
        read_bars(write(path, "ABC,2024-01-01,10,11,9,10,100,7\n"))


@pytest.mark.parametrize("content", [b"PAR1 not parquet", b"", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["bars.parquet", "bars.csv"])
async def test_a_file_that_is_none_is_a_feed_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FeedError, match=name):
        await FileFeed(path).open()


async def test_a_missing_file_is_a_feed_error(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=r"gone\.csv: No such file"):
        await FileFeed(tmp_path / "gone.csv").open()


def test_parquet_reads_the_same_and_names_the_row(tmp_path: Path) -> None:
    days = [FIRST.date() + timedelta(days=day) for day in range(3)]
    columns: dict[str, list[object]] = {
        "ticker": ["ABC"] * 3,
        "date": list(days),
        "open": [1.0, 2.0, 3.0],
        "high": [2.0, 3.0, 4.0],
        "low": [0.5, 1.0, 2.0],
        "close": [1.5, 2.5, 3.5],
        "volume": [10, 20, 30],
    }
    path = tmp_path / "bars.parquet"
    write_parquet(path, columns)
    history = read_bars(path)["ABC"]
    assert history.close.tolist() == [1.5, 2.5, 3.5]
    assert history.as_of[0].item() == datetime(2024, 1, 1, 21)  # noqa: DTZ001
    columns["close"][1] = None
    write_parquet(path, columns)
    with pytest.raises(FeedError, match="row 2 column close: missing value"):
        read_bars(path)


async def test_appended_rows_become_ticks_and_broken_ones_do_not(tmp_path: Path) -> None:
    rows = "".join(line(day) for day in range(MIN_BARS))
    path = write(tmp_path / "bars.csv", rows)
    feed = FileFeed(path)
    await feed.open()
    tick = await feed.next(None)
    assert tick is not None
    assert await feed.next(tick.as_of) is None
    assert not feed.ended(tick.as_of)

    write(path, rows + line(MIN_BARS, close=12.0))
    following = await feed.next(tick.as_of)
    assert following is not None
    assert following.bars["ABC"].close == 12.0

    write(path, rows + line(MIN_BARS, close=12.0) + "ABC,2025-01-01,10,")
    with pytest.raises(FeedError, match="column high: missing value"):
        await feed.next(following.as_of)
    assert len(feed.history("ABC", following.as_of, 500)) == MIN_BARS + 1
    write(path, rows + line(MIN_BARS, close=12.0) + line(MIN_BARS + 1, close=13.0))
    last = await feed.next(following.as_of)
    assert last is not None
    assert last.bars["ABC"].close == 13.0


async def test_a_young_ticker_is_in_the_ticks_and_a_chosen_one_must_exist(tmp_path: Path) -> None:
    rows = "".join(line(day) for day in range(MIN_BARS)) + line(MIN_BARS - 1, ticker="NEW")
    path = write(tmp_path / "bars.csv", rows)
    feed = FileFeed(path)
    await feed.open()
    tick = await feed.next(None)
    assert tick is not None
    assert set(tick.bars) == {"ABC", "NEW"}
    assert len(feed.history("NEW", tick.as_of, 500)) == 1
    with pytest.raises(FeedError, match="has no XYZ"):
        await FileFeed(path, ["ABC", "XYZ"]).open()
    with pytest.raises(FeedError, match=f"no ticker has the {MIN_BARS} bars"):
        await FileFeed(path, ["NEW"]).open()


def test_a_file_has_one_run() -> None:
    feed = FileFeed(Path("/somewhere/prices.csv"))
    assert feed.source == "file:prices.csv"
    assert feed.run_name(None) == "file:prices.csv"
    assert feed.run_name(Run("file:prices.csv", None, done=False)) == "file:prices.csv"


@given(st.text(max_size=300))
def test_any_text_is_bars_or_a_feed_error(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "bars.csv"
    path.write_text(HEADER + content, encoding="utf-8", newline="")
    message, series = "", {}
    try:
        series = read_bars(path)
    except FeedError as error:
        message = str(error)
    assert str(path) in message or all((history.close > 0).all() for history in series.values())


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0.01, 1e6)), unique_by=lambda row: row[0], max_size=20))
def test_well_formed_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]]) -> None:
    rows = sorted(rows)
    path = tmp_path_factory.mktemp("fuzz") / "bars.csv"
    text = "".join(f"ABC,{(FIRST + timedelta(days=d)).date()},{c!r},{c!r},{c!r},{c!r},1\n" for d, c in rows)
    path.write_text(HEADER + text, encoding="utf-8")
    series = read_bars(path)
    assert [close for history in series.values() for close in history.close.tolist()] == [close for _, close in rows]
