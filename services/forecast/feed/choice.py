"""Which feed the settings mean."""

from libs.calendar import ALWAYS
from services.forecast.feed.exchange import ExchangeFeed, open_exchange
from services.forecast.feed.file import FileFeed
from services.forecast.feed.replay import ReplayFeed
from services.forecast.feed.types import Feed
from services.forecast.settings import ForecastSettings


def choose_feed(settings: ForecastSettings) -> Feed:
    """The feed that `FORECAST_FEED` names, not opened yet. Raises `FeedError` for one that cannot be had."""
    kind, _, rest = settings.feed.partition(":")
    if kind == "replay":
        return ReplayFeed(settings.tickers)
    if kind == "file":
        return FileFeed(settings.file, settings.tickers, around_the_clock=settings.calendar == ALWAYS)
    exchange, errors = open_exchange(rest, settings.exchange_url)
    horizon = settings.parsed_horizon
    return ExchangeFeed(
        rest, settings.tickers, exchange=exchange, errors=errors, timeframe=(horizon.unit, horizon.length)
    )
