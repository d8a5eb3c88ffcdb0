"""What `make run` starts: a paper broker of its own, and an example that never trades where orders might be real."""

import stat
from pathlib import Path

import pytest

from libs.keys import KeyRing, ensure_operator_key, read_keys
from libs.settings import load
from libs.trading.broker.errors import BrokerConfigError
from tools.local_stack.banner import broker, strategy
from tools.local_stack.plan import StackSettings, environment, environment_of, services
from tools.local_stack.plan import strategy as strategy_program
from tools.local_stack.preflight import check_configuration
from tools.local_stack.strategy_key import ensure_strategy_key


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> StackSettings:
    for name in ("BROKER", "PAPER_URL", "PAPER_PORT", "EXAMPLE_STRATEGY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(StackSettings)


def names(given: StackSettings) -> list[str]:
    return [service.name for service in services(given)]


def test_the_paper_broker_starts_first_and_stays_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, PAPER_PORT="8999", API_HOST="0.0.0.0")
    first, *others = services(given)
    assert (first.name, first.host, first.port) == ("paper", "127.0.0.1", 8999)
    assert [service.name for service in others] == ["api", "forecast", "jobs", "analytics"]
    env = environment(given, "postgresql://x")
    assert environment_of(first, env, settings=given)["API_HOST"] == "127.0.0.1"
    assert environment_of(others[0], env, settings=given)["API_HOST"] == "0.0.0.0"
    assert given.runs_strategy
    assert "paper: no money moves" in broker(given)


def test_a_paper_broker_that_runs_elsewhere_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, PAPER_URL="http://paper:8010")
    assert "paper" not in names(given)
    assert given.runs_strategy


def test_the_example_never_trades_on_another_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"ALPACA_KEY_ID": "k", "ALPACA_SECRET_KEY": "s"}
    given = settings(monkeypatch, BROKER="alpaca", EXAMPLE_STRATEGY="on", **keys)
    assert "paper" not in names(given)
    assert not given.runs_strategy
    assert strategy(given).startswith("none")
    assert not settings(monkeypatch, EXAMPLE_STRATEGY="off").runs_strategy


def test_a_broker_without_its_keys_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings(monkeypatch, BROKER="alpaca")
    with pytest.raises(BrokerConfigError, match="ALPACA_KEY_ID"):
        check_configuration()


def test_the_example_is_told_where_the_api_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(monkeypatch, API_PORT="8123")
    env = environment_of(strategy_program(), {"A": "b"}, settings=given)
    assert env == {"A": "b", "API_URL": "http://127.0.0.1:8123"}


def test_the_examples_key_is_made_once_and_may_read_and_trade(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    ensure_operator_key(keys, tmp_path)
    token = ensure_strategy_key(keys, tmp_path)
    assert ensure_strategy_key(keys, tmp_path) == token
    key = KeyRing.load(keys).identify(token)
    assert key is not None
    assert (key.name, key.scopes) == ("follow-signal", {"read", "trade"})
    assert stat.S_IMODE((tmp_path / "follow-signal.key").stat().st_mode) == 0o600
    assert len(read_keys(keys)) == 2


def test_a_lost_key_is_followed_by_another(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    first = ensure_strategy_key(keys, tmp_path)
    (tmp_path / "follow-signal.key").unlink()
    second = ensure_strategy_key(keys, tmp_path)
    assert first != second
    assert [key.name for key in read_keys(keys)] == ["follow-signal", "follow-signal-2"]
    assert ensure_strategy_key(keys, tmp_path) == second
