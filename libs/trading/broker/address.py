"""Where the broker is, read from an environment by the standard library alone, for the panic exit needs it early."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from libs.trading.broker.errors import BrokerConfigError

PAPER = "paper"
ALPACA = "alpaca"
DEFAULT_PAPER_PORT = 8010
DEFAULT_ALPACA_URL = "https://paper-api.alpaca.markets"
_NO_KEY = "a key is one line of printable ASCII letters"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Which broker, where, and with which key. Empty keys send no key."""

    name: str
    base_url: str
    key_id: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)


def broker_address(environment: Mapping[str, str]) -> BrokerAddress:
    """The broker that an environment names. Raises `BrokerConfigError` naming the variable that cannot be read."""
    name = _value(environment, "BROKER", PAPER).lower()
    if name == PAPER:
        return BrokerAddress(
            name=PAPER,
            base_url=_url("PAPER_URL", _value(environment, "PAPER_URL") or _local(environment)),
            key_id=_secret(environment, "PAPER_KEY_ID"),
            secret=_secret(environment, "PAPER_SECRET_KEY"),
        )
    if name == ALPACA:
        return BrokerAddress(
            name=ALPACA,
            base_url=_url("ALPACA_BASE_URL", _value(environment, "ALPACA_BASE_URL", DEFAULT_ALPACA_URL)),
            key_id=_required(environment, "ALPACA_KEY_ID"),
            secret=_required(environment, "ALPACA_SECRET_KEY"),
        )
    raise BrokerConfigError(f"BROKER={name!r}: the broker is paper or alpaca")


def _local(environment: Mapping[str, str]) -> str:
    port = _value(environment, "PAPER_PORT", str(DEFAULT_PAPER_PORT))
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise BrokerConfigError(f"PAPER_PORT={port!r}: a port is a number from 1 to 65535")
    return f"http://127.0.0.1:{port}"


def _value(environment: Mapping[str, str], name: str, default: str = "") -> str:
    return environment.get(name, "").strip() or default


def _url(name: str, value: str) -> str:
    if "@" in value:
        raise BrokerConfigError(f"{name}: an address has no user and no password in it")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and _plain(value)
    except ValueError:
        usable = False
    if not usable:
        raise BrokerConfigError(f"{name}={value!r}: an address looks like https://host[:port]")
    return value.rstrip("/").removesuffix("/v2")


def _plain(value: str) -> bool:
    """Whether a text can stand in a header: printable letters of ASCII alone."""
    return value.isascii() and value.isprintable()


def _secret(environment: Mapping[str, str], name: str) -> str:
    """A key or a secret. What is wrong with it is said without a letter of it."""
    value = _value(environment, name)
    path = _value(environment, f"{name}_FILE")
    if not value and path:
        name = f"{name}_FILE"
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            raise BrokerConfigError(f"{name}: {_NO_KEY}") from None
        except (OSError, ValueError) as error:
            raise BrokerConfigError(f"{name}: cannot read {path}: {error}") from error
    if not _plain(value):
        raise BrokerConfigError(f"{name}: {_NO_KEY}")
    return value


def _required(environment: Mapping[str, str], name: str) -> str:
    value = _secret(environment, name)
    if not value:
        raise BrokerConfigError(f"{name} is required with BROKER=alpaca (or {name}_FILE)")
    return value
