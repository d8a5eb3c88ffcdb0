"""The bundled feed."""

from datetime import UTC, datetime

import numpy as np
import pytest

from services.forecast.feed.replay import ReplayFeed, adjusted, load_bundled, session_close
from services.forecast.feed.types import MIN_BARS, FeedError, Run


async def all_moments(feed: ReplayFeed, after: datetime | None = None) -> list[datetime]:
    moments: list[datetime] = []
    while (tick := await feed.next(after)) is not None:
        after = tick.as_of
        moments.append(after)
    return moments


def test_a_session_closes_at_four_in_new_york_in_summer_and_winter() -> None:
    assert session_close(datetime(2012, 7, 2).date()) == datetime(2012, 7, 2, 20, tzinfo=UTC)  # noqa: DTZ001
    assert session_close(datetime(2012, 12, 3).date()) == datetime(2012, 12, 3, 21, tzinfo=UTC)  # noqa: DTZ001


def test_prices_are_adjusted_and_the_dollars_traded_stay() -> None:
    history = adjusted(
        {
            "date": ["2012-01-03", "2012-01-04"],
            "open": [10.0, 20.0],
            "high": [12.0, 22.0],
            "low": [8.0, 18.0],
            "close": [11.0, 20.0],
            "adj_close": [5.5, 20.0],
            "volume": [100, 300],
        }
    )
    assert history.open.tolist() == [5.0, 20.0]
    assert history.high.tolist() == [6.0, 22.0]
    assert history.low.tolist() == [4.0, 18.0]
    assert history.close.tolist() == [5.5, 20.0]
    assert (history.close * history.volume).tolist() == [1100.0, 6000.0]


def test_a_split_leaves_no_jump_in_the_bundled_data() -> None:
    closes = load_bundled(["AAPL"]).series["AAPL"].close
    returns = np.abs(np.diff(np.log(closes)))
    assert (
        returns.max() < 0.75
    )  # unadjusted, the split of 2000-06-21 alone would be log 2; the crash of 2000-09 is real


async def test_it_starts_when_every_ticker_has_enough_history() -> None:
    feed = ReplayFeed()
    await feed.open()
    first = await feed.next(None)
    assert first is not None
    assert set(first.bars) == {"AAPL", "FB", "GOOG", "IBM", "MSFT"}
    lengths = {ticker: len(feed.history(ticker, first.as_of, 10_000)) for ticker in first.bars}
    assert lengths["FB"] == MIN_BARS
    assert min(lengths.values()) == MIN_BARS
    assert len(feed.history("AAPL", first.as_of, 250)) == 250
    assert feed.days(first.as_of, 60)[-1] == first.as_of.date()


async def test_without_the_youngest_ticker_it_starts_years_earlier() -> None:
    feed = ReplayFeed(["IBM", "MSFT"])
    await feed.open()
    first = await feed.next(None)
    assert first is not None
    assert first.as_of.year == 2000


async def test_it_goes_on_after_a_moment_and_ends_with_the_data() -> None:
    feed = ReplayFeed()
    await feed.open()
    moments = await all_moments(feed)
    assert moments == sorted(set(moments))
    assert await all_moments(feed, moments[50]) == moments[51:]
    assert feed.ended(moments[-1])
    assert not feed.ended(moments[-2])
    assert moments[-1] == datetime(2013, 3, 1, 21, tzinfo=UTC)


async def test_history_never_reaches_past_its_moment() -> None:
    feed = ReplayFeed()
    await feed.open()
    tick = await feed.next(None)
    assert tick is not None
    for ticker, bar in tick.bars.items():
        history = feed.history(ticker, tick.as_of, 5)
        assert history.close[-1] == bar.close
        assert history.as_of[-1] == np.datetime64(tick.as_of.replace(tzinfo=None))


def test_runs_are_numbered() -> None:
    feed = ReplayFeed()
    assert feed.run_name(None) == "replay:1"
    assert feed.run_name(Run("replay:1", None, done=False)) == "replay:1"
    assert feed.run_name(Run("replay:9", None, done=True)) == "replay:10"


async def test_an_unknown_ticker_is_named() -> None:
    with pytest.raises(FeedError, match=r"FORECAST_TICKERS: .*TSLA.*AAPL"):
        await ReplayFeed(["AAPL", "TSLA"]).open()
