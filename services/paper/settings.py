"""What services.paper reads from the environment beyond where it listens and keeps its file."""

from decimal import Decimal

from pydantic import Field, SecretStr, model_validator

from libs.settings import Settings
from services.paper.hours import Market


class PaperSettings(Settings):
    """The paper broker."""

    paper_port: int = Field(default=8010, ge=1, le=65535, description="Port of services.paper.")
    paper_key_id: SecretStr | None = Field(
        default=None, description="Id of the one key that may trade on the paper broker; without it loopback alone may."
    )
    paper_secret_key: SecretStr | None = Field(default=None, description="Secret of that key.")
    paper_calendar: Market = Field(
        default="24/7", description="Hours of the paper broker's market: 24/7 or XNYS (New York)."
    )
    paper_fill_ms: float = Field(
        default=50,
        ge=0,
        le=60_000,
        allow_inf_nan=False,
        description="Milliseconds until an order fills, and between its slices.",
    )
    paper_slices: int = Field(default=1, ge=1, le=100, description="In how many parts the paper broker fills an order.")
    paper_cash: Decimal = Field(
        default=Decimal(1_000_000),
        gt=0,
        le=1_000_000_000,
        decimal_places=9,
        description="Money that a new paper account begins with.",
    )

    @model_validator(mode="after")
    def key_must_be_whole(self) -> "PaperSettings":
        """Refuse half a key."""
        if (self.paper_key_id is None) != (self.paper_secret_key is None):
            raise ValueError("PAPER_KEY_ID and PAPER_SECRET_KEY are set together or not at all")
        return self


class MarksSettings(Settings):
    """Where the paper broker reads its prices. It runs without."""

    database_url: SecretStr | None = Field(
        default=None, description="Where Postgres answers; the paper broker goes on with the prices it kept without it."
    )
