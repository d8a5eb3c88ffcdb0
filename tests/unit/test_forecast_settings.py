"""What the environment may say about the forecast loop."""

from datetime import UTC, datetime, timedelta

import pytest

from libs.calendar import open_calendar
from libs.judgement.rules import Rules
from libs.settings import SettingsError, load
from services.forecast.cases import Plan, parts
from services.forecast.feed.choice import choose_feed
from services.forecast.feed.file import FileFeed
from services.forecast.feed.replay import ReplayFeed
from services.forecast.main import RULES_FILE
from services.forecast.settings import DecisionSettings, ForecastSettings, Horizon


def test_defaults_are_the_bundled_feed_one_bar_ahead() -> None:
    settings = load(ForecastSettings)
    assert settings.parsed_horizon == Horizon(1, "1d", timedelta(days=1))
    assert settings.tickers == ()
    assert isinstance(choose_feed(settings), ReplayFeed)
    assert load(DecisionSettings).llm_decision_ttl_s == 900


def test_tickers_and_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECAST_TICKERS", "AAPL, MSFT,AAPL,")
    monkeypatch.setenv("FORECAST_FEED", "file:/data/prices.csv")
    monkeypatch.setenv("FORECAST_HORIZON", "4h")
    settings = load(ForecastSettings)
    assert settings.tickers == ("AAPL", "MSFT")
    assert settings.parsed_horizon == Horizon(4, "1h", timedelta(hours=1))
    feed = choose_feed(settings)
    assert isinstance(feed, FileFeed)
    assert feed.source == "file:prices.csv"


@pytest.mark.parametrize(
    ("horizon", "calendar", "due"),
    [
        ("1d", "bars", None),
        ("1d", "24/7", "2024-01-06T21:00:00+00:00"),
        ("1d", "XNYS", "2024-01-08T21:00:00+00:00"),
        ("4h", "24/7", "2024-01-06T01:00:00+00:00"),
        ("90m", "24/7", "2024-01-05T22:30:00+00:00"),
        ("4h", "XNYS", None),
    ],
)
def test_a_forecast_is_due_when_its_bars_have_passed(horizon: str, calendar: str, due: str | None) -> None:
    plan = Plan(
        interval_s=1,
        horizon_name=horizon,
        horizon=load(ForecastSettings, horizon=horizon).parsed_horizon,
        decision_ttl_s=900,
        calendar=open_calendar(calendar),
        rules=Rules.load(RULES_FILE),
    )
    friday = datetime(2024, 1, 5, 21, tzinfo=UTC)
    found = plan.due_at(friday)
    assert (None if found is None else found.isoformat()) == due


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FORECAST_FEED", "yahoo"),
        ("FORECAST_FEED", "file:"),
        ("FORECAST_FEED", "ccxt:../x"),
        ("FORECAST_HORIZON", "soon"),
        ("FORECAST_HORIZON", "0d"),
        ("FORECAST_HORIZON", "1w"),
        ("FORECAST_INTERVAL_S", "0"),
        ("FORECAST_INTERVAL_S", "nan"),
    ],
)
def test_an_unreadable_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load(ForecastSettings)


@pytest.mark.parametrize("count", [0, 1, 32, 33, 96, 97, 1000])
def test_parts_hold_every_ticker_once_in_order(count: int) -> None:
    tickers = [f"T{number}" for number in range(count)]
    cut = list(parts(tickers))
    assert [ticker for part in cut for ticker in part] == tickers
    assert all(0 < len(part) <= 64 for part in cut)
