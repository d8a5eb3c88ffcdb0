"""The broker's address as settings of the services. The panic exit reads the same variables without this module."""

from typing import Literal

from pydantic import Field, SecretStr

from libs.settings import Settings
from libs.trading.broker.address import (
    DEFAULT_ALPACA_URL,
    DEFAULT_PAPER_PORT,
    BrokerAddress,
    broker_address,
)


class BrokerSettings(Settings):
    """Which broker, and where it is."""

    broker: Literal["paper", "alpaca"] = Field(default="paper", description="The broker: paper or alpaca.")
    paper_port: int = Field(default=DEFAULT_PAPER_PORT, ge=1, le=65535, description="Port of services.paper.")
    paper_url: str | None = Field(
        default=None, description="Address of the paper broker; http://127.0.0.1:PAPER_PORT where unset."
    )
    paper_key_id: SecretStr | None = Field(
        default=None, description="Key of the paper broker; it asks for none where unset, on loopback only."
    )
    paper_secret_key: SecretStr | None = Field(default=None, description="Secret that belongs to PAPER_KEY_ID.")
    alpaca_key_id: SecretStr | None = Field(default=None, description="Key at Alpaca; required with BROKER=alpaca.")
    alpaca_secret_key: SecretStr | None = Field(
        default=None, description="Secret that belongs to ALPACA_KEY_ID; required with BROKER=alpaca."
    )
    alpaca_base_url: str = Field(
        default=DEFAULT_ALPACA_URL, description="Address of Alpaca, of its paper or its live account."
    )
    panic_limit_s: float = Field(
        default=120,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a panic exit goes on trying before it says what it did not reach.",
    )

    def address(self) -> BrokerAddress:
        """Where to call. Raises `BrokerConfigError` naming the variable that is missing."""
        said = {
            "BROKER": self.broker,
            "PAPER_PORT": str(self.paper_port),
            "PAPER_URL": self.paper_url or "",
            "PAPER_KEY_ID": _plain(self.paper_key_id),
            "PAPER_SECRET_KEY": _plain(self.paper_secret_key),
            "ALPACA_KEY_ID": _plain(self.alpaca_key_id),
            "ALPACA_SECRET_KEY": _plain(self.alpaca_secret_key),
            "ALPACA_BASE_URL": self.alpaca_base_url,
        }
        return broker_address(said)


def _plain(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()
